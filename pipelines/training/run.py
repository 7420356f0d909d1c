"""What the trainings under Ray Train share: where they run, what they resume, and why they failed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.errors import one_line

if TYPE_CHECKING:
    import pyarrow.fs


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """Where and on how many processes to train. None of it changes what is learnt."""

    name: str
    """The same name and storage go on with an earlier run; use the stage's fingerprint."""
    storage_path: str
    """Folder on a disk that all nodes share, or an address such as s3://bucket/prefix; for checkpoints."""
    storage_filesystem: "pyarrow.fs.FileSystem | None" = None
    """Reaches `storage_path` (then without its scheme) where its address alone does not suffice."""
    num_workers: int = 1
    """Processes; with `use_gpu`, one GPU each."""
    cpus_per_worker: int = 1
    """Cores that Ray reserves per process, and threads that torch uses."""
    max_failures: int = 2
    """Restarts after a crash, each from the latest checkpoint."""


def torch_trainer(work: Callable[[], str | None], name: str, run: TrainingRun, use_gpu: bool) -> Any:
    """Ray Train's trainer of `work`; the same `name` and storage go on with an earlier run."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    return TorchTrainer(
        work,
        scaling_config=ScalingConfig(
            num_workers=run.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": run.cpus_per_worker} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=run.storage_path,
            storage_filesystem=run.storage_filesystem,
            failure_config=FailureConfig(max_failures=run.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )


def cause_of(error: Exception) -> str:
    """What went wrong in the first worker that failed, on one line."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    cause = failures[min(failures)] if failures else error
    return f"{type(cause).__name__}: {one_line(cause)}"
