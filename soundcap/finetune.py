"""Fine-tuning of a vision-language model to predict sound captions from silent video (paper, section 2.3).

LoRA on the language model's linear layers, transformers' Trainer, DeepSpeed ZeRO. Runs in every process that
a launcher starts, or in one process without a launcher. The objective is the paper's negative log-likelihood
over the caption's tokens, end token included, averaged over all caption tokens of a step on all processes.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from soundcap.checkpoint import load_model, load_processor
from soundcap.finetune_data import (
    DroppedExample,
    ExampleLoader,
    FrameSettings,
    ReadFrames,
    TrainExample,
    find_problems,
)
from soundcap.inputs import IGNORED_LABEL
from soundcap.zero import ZeroStage, deepspeed_processes, zero_config

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

LORA_TARGETS = r"^model\.language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)$"
"""Language model only: bare names would also hit the vision tower's MLPs, which serving engines ignore."""

RESULT_FILE = "training.json"


class FinetuneError(ValueError):
    """Settings or examples that cannot be trained on; the same on every process, a restart does not help."""


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """What decides the resulting adapter."""

    rank: int = 32
    """LoRA rank."""
    alpha: int = 64
    """LoRA scale is alpha / rank."""
    dropout: float = 0.05
    """On the LoRA branch, in [0, 1)."""
    learning_rate: float = 1e-4
    """Peak, after the warm-up."""
    weight_decay: float = 0.0
    scheduler: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup_share: float = 0.03
    """Share of all steps in which the learning rate rises from 0."""
    max_grad_norm: float = 1.0
    batch_size: int = 32
    """Clips per optimiser step, over all processes and accumulated batches."""
    epochs: float = 2.0
    """Passes over the examples, unless `max_steps` is set."""
    max_steps: int | None = None
    """Optimiser steps, whatever `epochs` says."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    seed: int = 0
    """Order of examples, initial LoRA weights, dropout."""
    frames_fps: float = 2.0
    """Rate, in frames per second, at which `read_frames` samples."""
    min_frame_px: int = 4 * 28 * 28
    max_frame_px: int = 448 * 448
    """Area in pixels within which a frame is scaled."""
    max_tokens: int = 4096
    """Longest example in tokens, clip, prompt and caption together; longer ones are dropped, never cut."""


@dataclass(frozen=True, slots=True)
class ExecutionSettings:
    """How training runs. Does not change what is learnt, apart from rounding."""

    per_device_batch: int = 1
    """Clips per process and forward pass; `batch_size` divided by all processes' batches is accumulated."""
    gradient_checkpointing: bool = True
    zero_stage: ZeroStage = 2
    """2 for a LoRA on a frozen base that fits each GPU; 3 shards the base too."""
    use_gpu: bool = True
    save_steps: int = 100
    """Steps between checkpoints."""
    log_steps: int = 10
    """Steps between points of the loss curve."""
    loader_processes: int = 4
    """Processes per rank that decode and prepare batches ahead; 0: in the training process itself."""
    check_threads: int = 4
    """Threads per rank that check the examples before training."""
    max_dropped_share: float = 0.1
    """A larger share of examples that cannot be trained on is an error."""


@dataclass(frozen=True, slots=True)
class LossPoint:
    """Mean over the steps since the point before."""

    step: int
    epoch: float
    loss: float
    """Nats per caption token."""
    learning_rate: float


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """The same on every process."""

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
    execution: ExecutionSettings,
    output_dir: Path,
    *,
    callbacks: "Sequence[TrainerCallback]" = (),
    resume_from: Path | None = None,
    wrap_trainer: "Callable[[Trainer], Trainer]" = lambda trainer: trainer,
) -> FinetuneResult:
    """Train a LoRA adapter of `model` (a Qwen2.5-VL checkpoint folder or hub id) on silent video.

    Every process gets the same examples. Each example is read once before training; those that cannot be
    used are dropped with their reason. `output_dir` receives checkpoints and, from process 0, `adapter/`.
    `resume_from` is a checkpoint of the same examples, settings and number of processes: training goes on
    exactly as without the break.

    Raises FinetuneError for settings or examples that cannot be trained on, CheckpointError for the model.
    """
    with deepspeed_processes(execution.use_gpu):
        processor = load_processor(model, revision)
        if processor.family.model_type != "qwen2_5_vl":
            raise FinetuneError(f"{model} is a {processor.family.model_type}; wanted a qwen2_5_vl checkpoint")
        arguments = _training_arguments(settings, execution, output_dir)
        frames = FrameSettings(settings.frames_fps, settings.min_frame_px, settings.max_frame_px, settings.max_tokens)
        loader, dropped = _usable(ExampleLoader(examples, read_frames, processor, frames), execution)
        trainer = wrap_trainer(_trainer(model, revision, loader, settings, arguments, callbacks))
        trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
        result = FinetuneResult(
            adapter_dir=str(output_dir / "adapter"),
            loss_curve=_loss_curve(trainer),
            examples_used=len(loader),
            examples_dropped=dropped,
        )
        _save(trainer, result)
        return result


def load_result(adapter_dir: Path) -> FinetuneResult:
    """The result that was saved with an adapter."""
    saved = json.loads((adapter_dir / RESULT_FILE).read_text())
    return FinetuneResult(
        adapter_dir=str(adapter_dir),
        loss_curve=tuple(LossPoint(**point) for point in saved["loss_curve"]),
        examples_used=saved["examples_used"],
        examples_dropped=tuple(DroppedExample(**dropped) for dropped in saved["examples_dropped"]),
    )


def _training_arguments(
    settings: FinetuneSettings, execution: ExecutionSettings, output_dir: Path
) -> "TrainingArguments":
    """Built before the model and kept as long: transformers refers to the ZeRO settings weakly."""
    import torch.distributed
    from transformers import TrainingArguments

    together = execution.per_device_batch * torch.distributed.get_world_size()
    if settings.batch_size % together:
        raise FinetuneError(
            f"batch_size {settings.batch_size} is no multiple of per_device_batch x processes = {together}: "
            "change one of them"
        )
    return TrainingArguments(
        output_dir=str(output_dir / "checkpoints"),
        per_device_train_batch_size=execution.per_device_batch,
        gradient_accumulation_steps=settings.batch_size // together,
        num_train_epochs=settings.epochs,
        max_steps=-1 if settings.max_steps is None else settings.max_steps,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=settings.warmup_share,  # below 1, transformers takes it for a share of all steps
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.precision == "bfloat16",
        gradient_checkpointing=execution.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        seed=settings.seed,
        data_seed=settings.seed,
        save_steps=execution.save_steps,
        save_total_limit=2,
        logging_steps=execution.log_steps,
        logging_first_step=True,
        dataloader_num_workers=execution.loader_processes,
        remove_unused_columns=False,
        label_names=["labels"],
        deepspeed=zero_config(execution.zero_stage),
        use_cpu=not execution.use_gpu,
        dataloader_pin_memory=execution.use_gpu,
        report_to="none",
        disable_tqdm=True,
        log_level="warning",
    )


def _usable(loader: ExampleLoader, execution: ExecutionSettings) -> tuple[ExampleLoader, tuple[DroppedExample, ...]]:
    """The loader without the examples that cannot be trained on, and these; the same on every process."""
    import torch.distributed

    world_size = torch.distributed.get_world_size()
    mine = find_problems(
        loader, rank=torch.distributed.get_rank(), world_size=world_size, threads=execution.check_threads
    )
    shares: list[dict[int, str]] = [{} for _ in range(world_size)]
    torch.distributed.all_gather_object(shares, mine)
    problems = {index: problem for share in shares for index, problem in share.items()}
    dropped = tuple(DroppedExample(loader.examples[i].clip_id, problems[i]) for i in sorted(problems))
    if len(dropped) == len(loader) or len(dropped) > execution.max_dropped_share * len(loader):
        first = f"; the first, {dropped[0].clip_id}: {dropped[0].reason}" if dropped else ""
        raise FinetuneError(
            f"{len(dropped)} of {len(loader)} examples cannot be trained on, wanted at most "
            f"{execution.max_dropped_share:.0%} and one left{first}"
        )
    usable = [example for i, example in enumerate(loader.examples) if i not in problems]
    return ExampleLoader(usable, loader.read_frames, loader.processor, loader.settings), dropped


def _trainer(
    model: str,
    revision: str | None,
    loader: ExampleLoader,
    settings: FinetuneSettings,
    arguments: "TrainingArguments",
    callbacks: "Sequence[TrainerCallback]",
) -> "Trainer":
    from transformers import PrinterCallback, Trainer, set_seed

    set_seed(settings.seed)  # LoRA's initial weights are drawn here
    trainer = Trainer(
        model=_with_lora(load_model(model, revision, dtype=settings.precision), settings),
        args=arguments,
        train_dataset=loader,
        data_collator=loader.collate,
        compute_loss_func=_caption_nll,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)  # the caller's callbacks say how it goes
    return trainer


def _with_lora(base: "PreTrainedModel", settings: FinetuneSettings) -> Any:
    from peft import LoraConfig, get_peft_model

    base.config.use_cache = False
    return get_peft_model(
        base,
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=LORA_TARGETS,
            task_type="CAUSAL_LM",
        ),
    )


def _caption_nll(outputs: Any, labels: "Tensor", num_items_in_batch: "Tensor") -> "Tensor":
    """The paper's L_vlm: sum of -log P over a batch's caption tokens, divided by their count in the whole step.

    Left to itself the Trainer averages this model's batch means, so that a short caption's tokens would weigh
    more, and by how much would depend on the batch per process.
    """
    from torch.nn.functional import cross_entropy

    targets = labels[:, 1:]  # logits at l predict token l + 1
    captioned = targets != IGNORED_LABEL
    logits = outputs.logits[:, :-1][captioned].float()
    return cross_entropy(logits, targets[captioned], reduction="sum") / num_items_in_batch


def _loss_curve(trainer: "Trainer") -> tuple[LossPoint, ...]:
    return tuple(
        LossPoint(entry["step"], entry["epoch"], entry["loss"], entry["learning_rate"])
        for entry in trainer.state.log_history
        if "loss" in entry
    )


def _save(trainer: "Trainer", result: FinetuneResult) -> None:
    """Write adapter and result from process 0. Every process calls this: ZeRO-3 gathers weights from all."""
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        trainer.accelerator.unwrap_model(trainer.model_wrapped).save_pretrained(result.adapter_dir, state_dict=weights)
        (Path(result.adapter_dir) / "README.md").unlink()  # peft's unfilled model card
        saved = asdict(replace(result, adapter_dir=""))
        del saved["adapter_dir"]
        (Path(result.adapter_dir) / RESULT_FILE).write_text(json.dumps(saved, indent=1) + "\n")
    trainer.accelerator.wait_for_everyone()
