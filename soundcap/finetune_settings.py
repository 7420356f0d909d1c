"""Settings of the silent captioner's fine-tuning: of its result, and of its execution."""

from dataclasses import dataclass, field
from typing import Literal

from soundcap.request import FrameSettings, check_fields

ZeroStage = Literal[1, 2, 3]


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """Settings that decide the resulting adapter. Raises ValueError for a field out of range."""

    rank: int = 32
    """LoRA rank, >= 1."""
    alpha: int = 64
    """LoRA scale is alpha / rank."""
    dropout: float = 0.05
    """On the LoRA branch, in [0, 1)."""
    learning_rate: float = 1e-4
    """Peak, after the warm-up."""
    weight_decay: float = 0.0
    """AdamW's, decoupled."""
    scheduler: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup_share: float = 0.03
    """Share of all steps in which the learning rate rises from 0, in [0, 1)."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0: never."""
    batch_size: int = 32
    """Clips per optimiser step, over all processes and accumulated batches."""
    epochs: float = 2.0
    """Passes over the examples, unless `max_steps` is set."""
    max_steps: int | None = None
    """Optimiser steps, whatever `epochs` says."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the base model and of its products."""
    seed: int = 0
    """Order of examples, initial LoRA weights, dropout."""
    frames: FrameSettings = field(default_factory=FrameSettings)
    """Frames of a clip, in training and when the trained captioner answers."""
    max_tokens: int = 4096
    """Longest example in tokens, clip, prompt and caption together; longer ones are dropped, never cut."""

    def __post_init__(self) -> None:
        ranges = dict.fromkeys(("rank", "batch_size", "max_steps", "max_tokens"), "[1, inf)")
        ranges |= dict.fromkeys(("alpha", "learning_rate", "epochs"), "(0, inf)")
        ranges |= dict.fromkeys(("weight_decay", "max_grad_norm", "seed"), "[0, inf)")
        check_fields(self, **ranges, dropout="[0, 1)", warmup_share="[0, 1)")


@dataclass(frozen=True, slots=True)
class FinetuneExecution:
    """Settings of a training run that do not change what is learnt, apart from rounding.

    Raises ValueError for a field out of range.
    """

    per_device_batch: int = 1
    """Clips per process and forward pass; `batch_size` divided by all processes' batches is accumulated."""
    gradient_checkpointing: bool = True
    """Activations are computed again in the backward pass: less memory, a third more time."""
    zero_stage: ZeroStage = 2
    """2 for a LoRA on a frozen base that fits each GPU; 3 shards the base too."""
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

    def __post_init__(self) -> None:
        ranges = dict.fromkeys(("per_device_batch", "save_steps", "log_steps", "check_threads"), "[1, inf)")
        check_fields(self, **ranges, loader_processes="[0, inf)", max_dropped_share="[0, 1]")
