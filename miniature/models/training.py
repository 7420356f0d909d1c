"""Training loop of the shipped models (AdamW, warm-up, cosine), progress of long work, and ranking scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from pipelines.progress import Progress

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
"""Folder of the shipped models."""
WARM_UP_STEPS = 60

Item = TypeVar("Item")
Say = Callable[[str], None]
"""Sink of lines of progress."""
Schedule = Callable[[int, int], float]
"""Share of the peak learning rate at (step, steps)."""


def optimise(
    parameters: Iterable[Parameter], loss: Callable[[], Tensor], *, steps: int, learning_rate: float,
    weight_decay: float, schedule: Schedule, counted: tuple[str, int, str], say: Say,
) -> list[float]:  # fmt: skip
    """Minimise a loss with AdamW and clipped gradients; returns the loss of every step.

    Args:
        loss: samples a batch at each call, and returns its loss.
        learning_rate: at the schedule's peak.
        counted: label of the progress, items in a batch, and their name.
    """
    label, batch_size, unit = counted
    progress = Progress(f"{label}: training", steps * batch_size, unit, say)
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.98))
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps))
    losses = []
    for _ in range(steps):
        now = loss()
        optimizer.zero_grad()
        now.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rates.step()
        losses.append(now.item())
        progress.note = f"loss {np.mean(losses[-50:]):.4f}"
        progress.advance(batch_size)
    progress.finish()
    return losses


def down_to_zero(step: int, steps: int) -> float:
    """Linear warm-up, over at most a quarter of a short training, under a cosine from 1 to 0."""
    warm_up = min(WARM_UP_STEPS, steps // 4 + 1)
    return min((step + 1) / warm_up, _cosine(step / steps))


def down_to_a_twentieth(step: int, steps: int) -> float:
    """Linear warm-up, and after it a cosine from 1 to 0.05."""
    if step < WARM_UP_STEPS:
        return (step + 1) / WARM_UP_STEPS
    return 0.05 + 0.95 * _cosine((step - WARM_UP_STEPS) / max(1, steps - WARM_UP_STEPS))


def _cosine(done: float) -> float:
    """From 1 to 0 as `done` goes from 0 to 1."""
    return 0.5 + 0.5 * math.cos(math.pi * done)


def with_progress(items: Sequence[Item], label: str, unit: str, say: Say) -> Iterator[Item]:
    """Iterator over items that says how many are done and how long the rest will take."""
    progress = Progress(label, len(items), unit, say)
    for item in items:
        yield item
        progress.advance(1)
    progress.finish()


def area_under_curve(scores: np.ndarray, truth: np.ndarray) -> float:
    """Probability that a positive (truth (N,) bool) scores above a negative: 0.5 for a guess."""
    from scipy.stats import rankdata

    positives = int(truth.sum())
    ranks = rankdata(scores)[truth].sum() - positives * (positives + 1) / 2
    return float(ranks / (positives * (len(truth) - positives)))


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mean of the precision at each positive (truth (N,) bool), from the highest score down."""
    hits = truth[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())
