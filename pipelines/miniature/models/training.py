"""How the shipped models are trained: AdamW, a warm-up, a cosine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from pipelines.progress import Progress

WARM_UP_STEPS = 60

Schedule = Callable[[int, int], float]
"""The share of the peak learning rate at a step of so many."""


def descend(
    parameters: Iterable[Parameter], loss: Callable[[], Tensor], *, steps: int, learning_rate: float,
    weight_decay: float, schedule: Schedule, progress: Progress, batch_size: int,
) -> list[float]:  # fmt: skip
    """Take `steps` steps down `loss`, which draws a batch at each call; the values of all.

    `progress` counts `batch_size` at each step.
    """
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
    """Linear warm-up, of a quarter of a short training at most, under a cosine from 1 to 0."""
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
