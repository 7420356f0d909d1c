"""Fine-tuning of a vision-language model to predict sound captions from silent video (paper, section 2.3).

LoRA on the language model's linear layers, transformers' Trainer, DeepSpeed ZeRO. Runs in every process that
a launcher starts, or in one process without a launcher. The objective is the paper's negative log-likelihood
over the caption's tokens, end token included, averaged over all caption tokens of a step on all processes.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter

from soundcap.finetune_settings import FinetuneExecution, FinetuneSettings
from soundcap.inputs import prepare_inputs
from soundcap.lora_trainer import deepspeed_processes, lora_trainer, training_arguments
from soundcap.pretrained import CaptionProcessor, load_processor
from soundcap.request import CaptionRequest

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer, TrainerCallback

RESULT_FILE = "training.json"

ReadFrames = Callable[[str], np.ndarray]
"""Video path -> frames (T, H, W, 3) uint8 at `FinetuneSettings.frames.fps`."""


class FinetuneError(ValueError):
    """Settings or examples that cannot be trained on; the same on every process, a restart does not help."""


@dataclass(frozen=True, slots=True)
class TrainExample:
    """One pair of the paper's section 2.3: silent video V and the caption T_a that describes its sound."""

    clip_id: str
    prompt: str
    """Instruction, already rendered, as it will be at inference."""
    caption: str
    video: str
    """Path or address of the clip, for `read_frames`."""


@dataclass(frozen=True, slots=True)
class DroppedExample:
    """Example that cannot be trained on, and why."""

    clip_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class LossPoint:
    """Point of the loss curve: mean over the steps since the point before."""

    step: int
    epoch: float
    loss: float
    """Nats per caption token."""
    learning_rate: float


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """Adapter, loss curve and dropped examples; the same on every process."""

    adapter_dir: str
    """Holds adapter_model.safetensors, adapter_config.json and training.json (the other fields here)."""
    loss_curve: tuple[LossPoint, ...]
    examples_used: int
    examples_dropped: tuple[DroppedExample, ...]


def finetune(
    model: str,
    revision: str | None,
    examples: Sequence[TrainExample],
    read_frames: ReadFrames,
    settings: FinetuneSettings,
    execution: FinetuneExecution,
    output_dir: Path,
    *,
    use_gpu: bool,
    callbacks: "Sequence[TrainerCallback]" = (),
    resume_from: Path | None = None,
) -> FinetuneResult:
    """Train a LoRA adapter on silent video. Every process calls this with the same arguments.

    Args:
        model: Qwen2.5-VL checkpoint folder or hub id.
        revision: Commit of a hub id, or None.
        examples: Clips with captions. Each is read once before training; those that cannot be used are dropped
            with their reason.
        read_frames: Reader of a clip's frames at `settings.frames.fps`.
        settings: Settings that decide the adapter.
        execution: Settings of the run.
        output_dir: Receives checkpoints and, from process 0, `adapter/`.
        use_gpu: One GPU for each process, or none.
        callbacks: Callbacks of transformers' Trainer.
        resume_from: Checkpoint of the same examples, settings and number of processes: training goes on exactly
            as without the break.

    Raises:
        FinetuneError: Settings or examples cannot be trained on.
        CheckpointError: The model cannot be used.
    """
    import torch.distributed

    with deepspeed_processes(use_gpu):
        processor = load_processor(model, revision)
        if processor.family.model_type != "qwen2_5_vl":
            raise FinetuneError(f"{model} is a {processor.family.model_type}; wanted a qwen2_5_vl checkpoint")
        world_size = torch.distributed.get_world_size()
        if settings.batch_size % (together := execution.per_device_batch * world_size):
            raise FinetuneError(
                f"batch_size {settings.batch_size} is no multiple of per_device_batch x processes = {together}: "
                "change one of them"
            )
        arguments = training_arguments(settings, execution, world_size, output_dir / "checkpoints", use_gpu)
        loader, dropped = _usable(ExampleLoader(examples, read_frames, processor, settings), execution)
        trainer = lora_trainer(model, revision, loader, loader.collate, settings, arguments, callbacks)
        trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
        logged = [record for record in trainer.state.log_history if "loss" in record]
        curve = TypeAdapter(tuple[LossPoint, ...]).validate_python(logged)
        result = FinetuneResult(str(output_dir / "adapter"), curve, len(loader), dropped)
        _save(trainer, result)
        return result


def load_result(adapter_dir: Path) -> FinetuneResult:
    """Result saved with an adapter."""
    saved = json.loads((adapter_dir / RESULT_FILE).read_text())
    return TypeAdapter(FinetuneResult).validate_python({"adapter_dir": str(adapter_dir), **saved})


@dataclass(frozen=True, slots=True, eq=False)
class ExampleLoader:
    """Dataset of examples for a torch loader, which reads clips and makes batches of model inputs with labels."""

    examples: Sequence[TrainExample]
    read_frames: ReadFrames
    processor: CaptionProcessor
    settings: FinetuneSettings

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[CaptionRequest, str]:
        """The decoded clip and its caption. Raises what `read_frames` raises, or ValueError."""
        example = self.examples[index]
        frames = self.read_frames(example.video)
        return CaptionRequest(example.prompt, frames, self.settings.frames.fps, audio=None), example.caption

    def collate(self, pairs: Sequence[tuple[CaptionRequest, str]]) -> "dict[str, Tensor]":
        """Inputs of a batch; raises ValueError for a row longer than `max_tokens`: nothing is truncated."""
        requests, captions = zip(*pairs, strict=True)
        frames, max_tokens = self.settings.frames, self.settings.max_tokens
        return prepare_inputs(self.processor, requests, answers=captions, frames=frames, max_tokens=max_tokens)

    def problem(self, index: int) -> str | None:
        """Reason why an example cannot be trained on, found by preparing it as training does; None: it can."""
        try:
            self.collate([self[index]])
        except Exception as error:  # noqa: BLE001 - readers fail in many ways; the reason is returned, not hidden
            return f"{type(error).__name__}: {error}"
        return None


def _usable(loader: ExampleLoader, execution: FinetuneExecution) -> tuple[ExampleLoader, tuple[DroppedExample, ...]]:
    """Loader without the examples that cannot be trained on, and these; the same on every process."""
    import torch.distributed

    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    mine = range(rank, len(loader), world_size)
    with ThreadPoolExecutor(execution.check_threads) as pool:
        checked = zip(mine, pool.map(loader.problem, mine), strict=True)
        found = {index: problem for index, problem in checked if problem is not None}
    shares: list[dict[int, str]] = [{} for _ in range(world_size)]
    torch.distributed.all_gather_object(shares, found)
    problems = {index: problem for share in shares for index, problem in share.items()}
    dropped = tuple(DroppedExample(loader.examples[i].clip_id, problems[i]) for i in sorted(problems))
    if len(dropped) == len(loader) or len(dropped) > execution.max_dropped_share * len(loader):
        first = f"; the first, {dropped[0].clip_id}: {dropped[0].reason}" if dropped else ""
        raise FinetuneError(
            f"{len(dropped)} of {len(loader)} examples cannot be trained on, wanted at most "
            f"{execution.max_dropped_share:.0%} and one left{first}"
        )
    usable = [example for i, example in enumerate(loader.examples) if i not in problems]
    return replace(loader, examples=usable), dropped


def _save(trainer: "Trainer", result: FinetuneResult) -> None:
    """Write adapter and result from process 0. Every process calls this: ZeRO-3 gathers weights from all."""
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        trainer.accelerator.unwrap_model(trainer.model_wrapped).save_pretrained(result.adapter_dir, state_dict=weights)
        (Path(result.adapter_dir) / "README.md").unlink()  # peft's unfilled model card
        saved = asdict(result)
        del saved["adapter_dir"]
        (Path(result.adapter_dir) / RESULT_FILE).write_text(json.dumps(saved, indent=1) + "\n")
    trainer.accelerator.wait_for_everyone()
