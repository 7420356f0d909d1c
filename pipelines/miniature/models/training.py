"""How the encoders and the listener are trained: AdamW, a warm-up, a cosine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

WARM_UP_STEPS = 60


def descend(
    parameters: Iterable[Parameter], loss: Callable[[], Tensor], *, steps: int, learning_rate: float,
    weight_decay: float, done: Callable[[], None],
) -> list[float]:  # fmt: skip
    """Take `steps` steps down `loss`, which draws a batch at each call; the values of all. `done` is called at each."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    losses = []
    for _ in range(steps):
        now = loss()
        optimizer.zero_grad()
        now.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(now.item())
        done()
    return losses


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to 0."""
    warm_up = min(WARM_UP_STEPS, steps // 4 + 1)
    return min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / steps))
