"""What training means (`TrainSettings`), how it is carried out (`TrainExecution`), and what it tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import numpy as np

Timesteps = Literal["tangent", "logit_normal"]
MAX_SIGMA_REL = 0.28
"""No power function is as wide."""


SolverName = Literal["euler", "midpoint"]
"""See `flowley.solvers`."""
SOLVER_NAMES: tuple[SolverName, ...] = get_args(SolverName)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """All that decides which weights come out. Defaults are Flowley's recipe; `flowley.recipes` has its peers'.

    Raises:
        ValueError: a field is out of range.
    """

    steps: int
    """Optimiser steps."""
    batch_size: int
    """Clips per step, over all workers together."""
    duration_s: float = 8.0
    """Clips are cut to this; shorter ones are refused."""
    seed: int = 0
    """Decides initial weights, order of clips, noise, times and dropped conditions."""
    learning_rate: float = 1.5e-4
    """AdamW's, after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the moments."""
    weight_decay: float = 1e-6
    """AdamW's, decoupled."""
    adam_epsilon: float = 1e-8
    """AdamW's, added to the root of the second moment."""
    warmup_steps: int = 1_000
    """Steps over which the learning rate rises linearly."""
    decay_steps: tuple[int, ...] = (180_000, 300_000)
    """Steps at which the learning rate is multiplied by `decay_factor`."""
    decay_factor: float = 0.1
    """See `decay_steps`."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    timesteps: Timesteps = "tangent"
    """How t is drawn: see `flowley.flow.timesteps`."""
    cosine_weight: float = 0.5
    """Weight of 1 - cos(v, v*) beside the squared error."""
    assign_noise: bool = True
    """Whether noise is matched to sounds within each worker's batch (`flowley.flow.assign_noise`)."""
    drop_visual: float = 0.1
    """Probability that a clip's video is dropped, all features of it together, for guidance."""
    drop_text: float = 0.1
    """Probability that a clip's caption is dropped, independently."""
    ema_sigma_rel: float = 0.05
    """Width of the average over past weights that a checkpoint's network is, relative to the training time."""

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "duration_s", "learning_rate", "adam_epsilon", "clip_norm")
        wrong = [f"{n} = {getattr(self, n)}, wanted > 0" for n in positive if not getattr(self, n) > 0]
        for name in ("drop_visual", "drop_text"):
            if not 0 <= getattr(self, name) < 1:
                wrong.append(f"{name} = {getattr(self, name)}, wanted within [0, 1)")
        if not 0 < self.ema_sigma_rel < MAX_SIGMA_REL:
            wrong.append(f"ema_sigma_rel = {self.ema_sigma_rel}, wanted within (0, {MAX_SIGMA_REL})")
        if wrong:
            raise ValueError("TrainSettings: " + "; ".join(wrong))

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then a factor for every decay step passed; `step` counts from 0."""
        warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
        return self.learning_rate * warm * self.decay_factor ** sum(step >= s for s in self.decay_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainExecution:
    """How training is carried out.

    Raises:
        ValueError: a field is out of range.
    """

    workers: int = 0
    """Processes that load clips, per training process; 0 loads in the training process."""
    sharding: Literal["none", "fsdp"] = "none"
    """fsdp: weights, averages and optimiser are shared out among the processes, for networks too large for one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: matrix products in bfloat16, weights and optimiser in float32."""
    compile: bool = False
    """torch.compile the network, part by part; captions are padded to `max_text_tokens`, for one shape to compile."""
    log_every_steps: int = 10
    """Steps between reports."""
    validate_every_steps: int = 1_000
    """Steps between validations, where there are validation clips."""
    checkpoint_every_steps: int = 1_000
    """Steps between checkpoints; the last step always makes one."""
    ema_snapshots: int = 32
    """Snapshots of the averages, evenly over the training: what `flowley.ema.synthesise` works from."""
    sample_every_steps: int = 0
    """Steps between sounds drawn for a few validation clips, which the last step draws too; 0 draws none."""
    sample_clips: int = 4
    """Validation clips whose sound is drawn."""

    def __post_init__(self) -> None:
        least = {"workers": 0, "log_every_steps": 1, "validate_every_steps": 1, "checkpoint_every_steps": 1,
                 "ema_snapshots": 1, "sample_every_steps": 0, "sample_clips": 1}  # fmt: skip
        wrong = [f"{n} = {getattr(self, n)}, wanted >= {low}" for n, low in least.items() if getattr(self, n) < low]
        if wrong:
            raise ValueError("TrainExecution: " + "; ".join(wrong))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """Training so far. Losses are means over all clips of the steps since the last report."""

    step: int
    """Steps done."""
    steps: int
    """Steps in all."""
    loss: float
    mse: float
    cosine: float
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    validation_loss: float | None
    """Of the averaged weights on the validation clips with fixed noise; None where not measured here."""
    clips_per_s: float
    """All workers together, since the last report."""
    seconds_left: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DrawnSound:
    """Sound drawn for a validation clip while training, from the averaged weights and always the same noise."""

    step: int
    """Steps done."""
    number: int
    """Of the clip among those drawn, from 0."""
    clip_id: str
    wave: np.ndarray
    """(N,) float32 in [-1, 1]."""
    audio_hz: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """A finished training. Its weights are in the last checkpoint."""

    step: int
    history: list[StepReport] = field(default_factory=list)
    """Every report, those before a resumption included."""
