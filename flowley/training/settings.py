"""Training settings, published recipes, execution options and reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

Timesteps = Literal["tangent", "logit_normal"]
MAX_SIGMA_REL = 0.28
"""Upper bound of an average's width: no power-function profile is wider than 1 / sqrt(12) = 0.289."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """Training recipe: all that decides the trained weights. Defaults are Flowley's; `RECIPES` has those of others.

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
    """Seed of initial weights, order of clips, noise, times and dropped conditions."""
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
    """Distribution of t: see `flowley.training.flow.timesteps`."""
    cosine_weight: float = 0.5
    """Weight of 1 - cos(v, v*) beside the squared error."""
    assign_noise: bool = True
    """Match noise to sounds within each worker's batch (`flowley.training.flow.assign_noise`)."""
    drop_visual: float = 0.1
    """Probability that a clip's video is dropped, all features of it together, for guidance."""
    drop_text: float = 0.1
    """Probability that a clip's caption is dropped, independently."""
    ema_sigma_rel: float = 0.05
    """Width of the weight average that checkpoints hold, relative to the training time."""

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


RECIPES: dict[str, dict[str, Any]] = {
    "flowley_169m": {},
    "flowley_release": {},
    "mmaudio_small_16k": {
        "timesteps": "logit_normal", "cosine_weight": 0.0, "assign_noise": False, "learning_rate": 1e-4,
        "adam_epsilon": 1e-6, "decay_steps": (240_000, 270_000),
    },
    "tiny": {},
}  # fmt: skip
"""Published recipe of each preset, as changes to `TrainSettings`' defaults: `TrainSettings(**RECIPES[name], ...)`.
`steps` and `batch_size` depend on the hardware and have no default. MMAudio drops clip and synchronisation features
together, the caption apart."""


def clips_per_rank(batch_size: int, world_size: int) -> int:
    """Clips of a batch on each rank.

    Raises:
        ValueError: the batch is no multiple of the ranks.
    """
    if batch_size % world_size:
        raise ValueError(f"batch_size = {batch_size} over {world_size} workers, wanted a multiple of the workers")
    return batch_size // world_size


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainExecution:
    """Execution of training: processes, precision, intervals. Changes the trained weights by rounding only.

    Raises:
        ValueError: a field is out of range.
    """

    workers: int = 0
    """Processes that load clips, per training process; 0 loads in the training process."""
    sharding: Literal["none", "fsdp"] = "none"
    """fsdp: weights, averages and optimiser are sharded over the processes, for networks too large for one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: matrix products in bfloat16, weights and optimiser in float32."""
    compile: bool = False
    """torch.compile the network block by block; captions are padded to `max_text_tokens`, so that shapes are static."""
    log_every_steps: int = 10
    """Steps between reports."""
    validate_every_steps: int = 1_000
    """Steps between validations, where there are validation clips."""
    checkpoint_every_steps: int = 1_000
    """Steps between checkpoints; the last step always makes one."""
    ema_snapshots: int = 32
    """Snapshots of the averages, evenly over all steps, for `flowley.training.ema.synthesise`."""
    sample_every_steps: int = 0
    """Steps between sounds of a few validation clips, which the last step makes too; 0: none."""
    sample_clips: int = 4
    """Validation clips to make sounds of."""

    def __post_init__(self) -> None:
        least = {"workers": 0, "log_every_steps": 1, "validate_every_steps": 1, "checkpoint_every_steps": 1,
                 "ema_snapshots": 1, "sample_every_steps": 0, "sample_clips": 1}  # fmt: skip
        wrong = [f"{n} = {getattr(self, n)}, wanted >= {low}" for n, low in least.items() if getattr(self, n) < low]
        if wrong:
            raise ValueError("TrainExecution: " + "; ".join(wrong))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """Progress report. Losses are means over all clips of the steps since the last report."""

    step: int
    """Steps done."""
    steps: int
    """Steps in all."""
    loss: float
    mse: float
    cosine: float
    grad_norm: float
    """Norm of the gradient before clipping."""
    learning_rate: float
    validation_loss: float | None
    """Loss of the averaged weights on the validation clips with fixed noise; None where not measured at this step."""
    clips_per_s: float
    """All workers together, since the last report."""
    seconds_left: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ValidationSound:
    """Sound of a validation clip by the averaged weights, from the same noise at every step."""

    step: int
    """Steps done."""
    number: int
    """Position among the clips of this step, from 0."""
    clip_id: str
    wave: np.ndarray
    """(N,) float32 in [-1, 1]."""
    audio_hz: int


class Callback:
    """Hooks of the training loop, all empty. Rank 0 calls them all, the other ranks only `on_checkpoint`."""

    def on_start(self, step: int) -> None:
        """Before the first step; `step` counts those of the checkpoint that training resumes from, or is 0."""

    def on_report(self, report: StepReport) -> None:
        """After every `TrainExecution.log_every_steps` steps, every validation and the last step."""

    def on_sounds(self, sounds: list[ValidationSound]) -> None:
        """After every `TrainExecution.sample_every_steps` steps."""

    def on_snapshot(self, file: Path) -> None:
        """For each file that belongs into `ema/` beside a checkpoint's files (`flowley.training.ema`).

        Once per file, and before the checkpoint; the file is removed when the call returns.
        """

    def on_checkpoint(self, folder: Path | None, step: int) -> None:
        """After every `TrainExecution.checkpoint_every_steps` steps and the last one, on every rank.

        The folder is removed when the call returns; it is None on ranks other than 0. `step` counts the steps done.
        """

    def on_end(self) -> None:
        """After the last step, or when training fails."""
