"""Stage `captioner`: LoRA fine-tuning of a vision-language model on silent video (paper, section 2.3)."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipelines.engine.fingerprint import digest, file_sha256
from pipelines.engine.ray_train import StepClock, Trained, TrainingRun, fitted, train_under_ray
from pipelines.engine.recipe import Recipe
from pipelines.engine.stage import Context, Refused, Result, Stage, WholeWork
from pipelines.engine.storage import Storage
from pipelines.engine.usage import Steps
from pipelines.media.read import read_frames
from pipelines.run_config import Config
from pipelines.scratch import scratch
from pipelines.stages.captions import read_prompts
from pipelines.stages.model_refs import Model, Weights, model_of, take_over, weights_of
from soundcap.finetune import RESULT_FILE, FinetuneError, FinetuneResult, TrainExample, finetune, load_result
from soundcap.finetune_settings import FinetuneExecution, FinetuneSettings
from soundcap.prompts import PromptSet

ADAPTER_FOLDER = "adapter"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class CaptionerRecipe(Recipe):
    """Recipe of a trained adapter: all that determines it except the captions it learns from."""

    model: Model
    prompts: PromptSet
    training: FinetuneSettings


@dataclass(frozen=True)
class AdapterRecipe(Recipe):
    """Recipe of an existing adapter, used instead of training."""

    adapter: Weights


class CaptionerStage(Stage):
    """Fine-tuning stage. It reads only curated captions of the train split, never the test split."""

    name = "captioner"
    is_model = True
    split = "train"

    def inputs(self, config: Config) -> tuple[str, ...]:
        return ("clips", "curation") if config.captioner.adapter is None else ()

    def recipe(self, config: Config, storage: Storage) -> CaptionerRecipe | AdapterRecipe:
        section = config.captioner
        if section.adapter is not None:
            return AdapterRecipe(weights_of(section.adapter, ADAPTER_FILES, "captioner.adapter"))
        model = model_of(section.model, "captioner.model", storage)
        return CaptionerRecipe(model, read_prompts(section.instruction, None), section.training)

    def steps(self, config: Config, storage: Storage, rows: int) -> Steps | None:
        recipe, settings = self.recipe(config, storage), config.captioner.training
        if isinstance(recipe, AdapterRecipe):
            return None
        count = settings.max_steps or math.ceil(settings.epochs * math.ceil(rows / settings.batch_size))
        return Steps(count, _step_kind(recipe, config.captioner.execution.settings))

    def work(self, context: Context) -> WholeWork:
        if isinstance(context.recipe, AdapterRecipe):
            adapter = context.recipe.adapter
            meaning = _adapter_digest(Path(adapter.folder))
            return WholeWork(1, lambda: take_over(context, adapter, ADAPTER_FOLDER, meaning))
        rows = training_rows(context)
        return WholeWork(len(rows), lambda: _train_adapter(context, rows))


def training_rows(context: Context) -> list[dict[str, Any]]:
    """Training rows: kept captions of the train split with the clip's video, sorted by clip id."""
    clips, rows = context.inputs["clips"].rows("clip_id", "video"), context.inputs["curation"].rows()
    videos = dict(zip(clips["clip_id"].to_pylist(), clips["video"].to_pylist(), strict=True))
    kept = rows.filter(pc.and_(rows["kept"], pc.equal(rows["split"], "train"))).sort_by("clip_id")
    return [{**row, "video": videos[row["clip_id"]]} for row in kept.to_pylist()]


def _train_adapter(context: Context, rows: list[dict[str, Any]]) -> Result:
    recipe: CaptionerRecipe = context.recipe
    execution, output, storage = context.config.captioner.execution, context.output, context.storage
    prompt = recipe.prompts.render("")
    run = TrainingRun.of(output, execution)
    with scratch("adapter") as folder:
        result, trained, run = train_captioner(
            partial(recipe.model.on_node, storage),
            [TrainExample(r["clip_id"], prompt, r["caption"], r["video"]) for r in rows],
            partial(_read_frames, storage, recipe.training.frames.fps),
            recipe.training,
            execution.settings,
            run,
            output_dir=folder,
            say=context.say,
        )
        meaning = _adapter_digest(folder)
        output.upload_folder(folder, ADAPTER_FOLDER)
    curve = [asdict(point) for point in result.loss_curve]
    output.write_json("loss.json", curve)
    dropped = [Refused(one.clip_id, "CannotTrainOn", one.reason) for one in result.examples_dropped]
    losses = {f"{name}_loss": round(curve[place]["loss"], 4) for name, place in (("first", 0), ("last", -1))}
    figures = {"steps": curve[-1]["step"], **losses}
    kind = _step_kind(recipe, execution.settings)
    usage = [trained.usage(output, kind, run)]
    return Result(len(rows), len(rows), meaning, dropped, figures, usage)


def _step_kind(recipe: CaptionerRecipe, execution: FinetuneExecution) -> str:
    """Digest of what decides the time of a step."""
    settings, how = recipe.training, (execution.per_device_batch, execution.gradient_checkpointing)
    size = (settings.batch_size, settings.rank, settings.precision, asdict(settings.frames))
    return digest([recipe.model.identity, *size, *how, execution.zero_stage])


def _read_frames(storage: Storage, fps: float, name: str) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 of a video in the storage."""
    with storage.local(name) as video:
        return read_frames(video, fps)


def _adapter_digest(folder: Path) -> str:
    """Digest of an adapter's weights and LoRA settings, without the base model's path in its config."""
    config = json.loads((folder / "adapter_config.json").read_text())
    kept = {k: config[k] for k in ("r", "lora_alpha", "target_modules", "peft_type")}
    return digest([kept, file_sha256(folder / "adapter_model.safetensors")])


# --- under Ray Train ------------------------------------------------------------------------------------------


def train_captioner(
    base: Callable[[], Model],
    examples: list[TrainExample],
    frames_of: Callable[[str], np.ndarray],
    settings: FinetuneSettings,
    execution: FinetuneExecution,
    run: TrainingRun,
    *,
    output_dir: Path,
    say: Callable[[str], None],
) -> tuple[FinetuneResult, Trained, TrainingRun]:
    """Starts or resumes training and puts the adapter into `output_dir`.

    Returns its result, what was done now, and the run as it fitted the cluster.

    Args:
        base: sent to the workers: brings the base model to their node.
        examples: clips with their captions; a video is an address that `frames_of` takes.
        frames_of: sent to the workers: address -> frames (T, H, W, 3) uint8 at `settings.frames.fps`.
        settings: settings that determine the weights.
        execution: settings that do not.
        run, output_dir, say: as in `train_under_ray`.

    Raises:
        UserError: settings or examples that cannot be trained on.
        RunError: training failed more often than `run.max_failures`.
    """
    run = fitted(run, "captioner.execution", say)
    import ray

    # A ZeRO checkpoint fits only the ZeRO stage and number of processes that wrote it: others start afresh.
    run = replace(run, name=f"{run.name}-zero{execution.zero_stage}-{run.num_workers}")
    work_dir = _work_dir(run.storage_path, run.name)
    train = partial(
        finetune,
        read_frames=frames_of,
        settings=settings,
        execution=execution,
        output_dir=work_dir,
        use_gpu=run.use_gpu,
    )
    work = partial(_work, base, train, ray.put(examples), work_dir)
    trained = train_under_ray("captioner", work, run, output_dir, say)
    return load_result(output_dir), trained, run


def _work(
    base: Callable[[], Model],
    train: Callable[..., FinetuneResult],
    examples: Any,
    work_dir: Path,
    say: Callable[[str], None],
) -> str | Trained:
    """Body of one training process. `examples`: Ray's object reference to their list."""
    import ray.train
    import torch.distributed

    from pipelines.stages.trainer_callbacks import CheckpointToStorage, SayProgress, StartClock

    clock = StepClock()
    checkpoint = ray.train.get_checkpoint()
    first_of_node = int(os.environ["LOCAL_RANK"]) == 0
    with nullcontext() if checkpoint is None else checkpoint.as_directory() as folder:
        start = None if folder is None else Path(folder)
        if start is not None and (start / RESULT_FILE).exists():
            return Trained()  # an earlier run got this far, and its caller died before it took the adapter
        if first_of_node:
            shutil.rmtree(work_dir, ignore_errors=True)  # left by a process that was killed
        torch.distributed.barrier()
        callbacks = [StartClock(clock), CheckpointToStorage(), SayProgress(say)]
        try:
            model = base()
            rows = ray.get(examples)
            result = train(model.path, model.revision, examples=rows, callbacks=callbacks, resume_from=start)
        except FinetuneError as error:
            return str(error)
    trained = clock.end(result.loss_curve[-1].step)
    first = ray.train.get_context().get_world_rank() == 0
    adapter = ray.train.Checkpoint.from_directory(result.adapter_dir) if first else None
    ray.train.report({"loss": result.loss_curve[-1].loss}, checkpoint=adapter)
    if first_of_node:
        shutil.rmtree(work_dir)
    return trained


def _work_dir(storage_path: str, name: str) -> Path:
    """Node-local working folder, the same for all processes of this run on the node and for its restarts."""
    run = hashlib.sha256(f"{storage_path}\0{name}".encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"soundcap-captioner-{run}"
