"""Solvers of the flow's ODE dx/dt = v(x, t) from noise at t = 0 to sound at t = 1.

Both ask the network at the same times n / steps, n = 0 ... steps - 1, never at t = 1, which training does not
see. Why the midpoint rule and not Heun's: docs/decisions/sampling.md.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flowley.settings import SolverName

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, L_aud, C), t (B,)) -> v (B, L_aud, C)."""


def solve(velocity: Velocity, x_0: Tensor, *, steps: int, solver: SolverName) -> Tensor:
    """x_1 of dx/dt = v(x, t), x(0) = x_0.

    Args:
        velocity: v.
        x_0: (B, L_aud, C).
        steps: evaluations of `velocity`, whatever the solver, so that equal steps cost the same.
        solver: `euler`, of first order, one evaluation for each 1 / steps; `midpoint`, of second order, two for
            each 2 / steps, and one Euler step at the end where `steps` is odd, which keeps the order.

    Returns:
        (B, L_aud, C).
    """
    x, h = x_0, 1 / steps

    def v(x: Tensor, n: int) -> Tensor:
        return velocity(x, torch.full((len(x),), n / steps, dtype=x.dtype, device=x.device))

    first_euler = 0 if solver == "euler" else steps - steps % 2
    for n in range(0, first_euler, 2):
        halfway = x + h * v(x, n)
        x = x + 2 * h * v(halfway, n + 1)
    for n in range(first_euler, steps):
        x = x + h * v(x, n)
    return x
