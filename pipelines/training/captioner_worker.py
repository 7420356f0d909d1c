"""Fine-tuning of the silent captioner under Ray Train: processes, checkpoints in storage, resumption."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import RunError, UserError
from pipelines.training.run import TrainingRun, cause_of, torch_trainer
from pipelines.training.worker_lines import lines_from_workers
from soundcap.finetune import (
    RESULT_FILE,
    ExecutionSettings,
    FinetuneError,
    FinetuneResult,
    FinetuneSettings,
    finetune,
    load_result,
)

if TYPE_CHECKING:
    import numpy as np

    from soundcap.finetune_data import TrainExample


def train_captioner(
    *,
    model: str,
    revision: str | None,
    examples: "list[TrainExample]",
    read_frames: "Callable[[str], np.ndarray]",
    settings: FinetuneSettings,
    execution: ExecutionSettings,
    run: TrainingRun,
    output_dir: Path,
    say: Callable[[str], None],
) -> FinetuneResult:
    """Train, or go on with `run`, and put the adapter into `output_dir`. Ray must be initialised.

    `read_frames` is sent to the workers: video address -> frames (T, H, W, 3) uint8 at `settings.frames_fps`.
    `say` gets lines of progress, in this process.

    Raises UserError for settings or examples that cannot be trained on, RunError when training failed more
    often than `run.max_failures`.
    """
    import ray
    from ray.train import TrainingFailedError

    # ZeRO's checkpoints fit only the stage and number of processes that wrote them: others start afresh
    name = f"{run.name}-zero{execution.zero_stage}-{run.num_workers}"
    work_dir = _work_dir(run.storage_path, name)
    train = partial(
        finetune,
        model,
        revision,
        read_frames=read_frames,
        settings=settings,
        execution=execution,
        output_dir=work_dir,
    )
    shared = ray.put(examples)
    try:
        with lines_from_workers(say) as say_from_worker:
            work = partial(_work, train, shared, work_dir, say_from_worker)
            result = torch_trainer(work, name, run, execution.use_gpu).fit()
    except TrainingFailedError as error:
        raise RunError(f"captioner: {cause_of(error)}") from error
    if result.return_value is not None:
        raise UserError(f"captioner: {result.return_value}")
    assert result.checkpoint is not None, "a worker that returns no message has reported the adapter"
    result.checkpoint.to_directory(str(output_dir))
    return load_result(output_dir)


def _work(
    train: Callable[..., FinetuneResult],
    examples: Any,
    work_dir: Path,
    say: Callable[[str], None],
) -> str | None:
    """One worker's whole life. Returns what the user must mend: an exception would only be tried again.

    `examples` is Ray's reference to the list of them.
    """
    import ray
    import ray.train

    train = partial(train, examples=ray.get(examples))
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return _train(train, work_dir, say, resume_from=None)
    with checkpoint.as_directory() as folder:
        if (Path(folder) / RESULT_FILE).exists():
            return None  # an earlier run got this far, and its caller died before it took the adapter
        return _train(train, work_dir, say, resume_from=Path(folder))


def _train(
    train: Callable[..., FinetuneResult],
    work_dir: Path,
    say: Callable[[str], None],
    resume_from: Path | None,
) -> str | None:
    import ray.train
    import torch.distributed

    from pipelines.training.trainer_callbacks import CheckpointToStorage, SayProgress

    first_of_node = int(os.environ["LOCAL_RANK"]) == 0
    if first_of_node:
        shutil.rmtree(work_dir, ignore_errors=True)  # left by a process that was killed
    torch.distributed.barrier()
    try:
        result = train(callbacks=[CheckpointToStorage(), SayProgress(say)], resume_from=resume_from)
    except FinetuneError as error:
        return str(error)
    first = ray.train.get_context().get_world_rank() == 0
    adapter = ray.train.Checkpoint.from_directory(result.adapter_dir) if first else None
    ray.train.report({"loss": result.loss_curve[-1].loss}, checkpoint=adapter)
    if first_of_node:
        shutil.rmtree(work_dir)
    return None


def _work_dir(storage_path: str, name: str) -> Path:
    """Folder on a node's own disk, the same for all processes of this run there and for its restarts."""
    run = hashlib.sha256(f"{storage_path}\0{name}".encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"soundcap-captioner-{run}"
