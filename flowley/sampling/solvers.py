"""Solvers of the flow's ODE dx/dt = v(x, t) from noise at t = 0 to sound at t = 1, and the sampler's settings.

Both ask the network at the same times n / steps, n = 0 ... steps - 1, never at t = 1, which training does not
see. Reasons for the midpoint rule and against Heun's: docs/decisions/sampling.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:  # configurations and `--help` load these settings, but not torch
    from torch import Tensor

Velocity = Callable[["Tensor", "Tensor"], "Tensor"]
"""(x_t (B, L_aud, C), t (B,)) -> v (B, L_aud, C)."""
SolverName = Literal["euler", "midpoint"]
SOLVER_NAMES: tuple[SolverName, ...] = get_args(SolverName)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSettings:
    """Settings of the sampler; its defaults are everybody's.

    Raises:
        ValueError: a field is out of range.
    """

    steps: int = 25
    """Evaluations of the network from t = 0 to t = 1, a guided pair counting as one."""
    guidance: float = 7.5
    """w in v = w v(conditions) + (1 - w) v(null); 1 is no guidance."""
    solver: SolverName = "euler"
    """See `solve`."""
    window_s: float | None = None
    """Clips longer than this are made in blended windows of it (`flowley.sampling.windows`); None makes any at once."""
    windows_per_batch: int = 16
    """Windows in one evaluation at most: less memory, the same sound."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, wanted at least 1")
        if not 0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance: got {self.guidance}, wanted >= 0 (1: none)")
        if self.solver not in SOLVER_NAMES:
            raise ValueError(f"solver: got {self.solver!r}, wanted one of {', '.join(SOLVER_NAMES)}")
        if self.window_s is not None and not self.window_s > 0:
            raise ValueError(f"window_s: got {self.window_s}, wanted > 0 s, or None for no windows")
        if self.windows_per_batch < 1:
            raise ValueError(f"windows_per_batch: got {self.windows_per_batch}, wanted at least 1")


def solve(velocity: Velocity, x_0: Tensor, *, steps: int, solver: SolverName) -> Tensor:
    """x_1 of dx/dt = v(x, t), x(0) = x_0, with `velocity` v; x_0 and x_1 (B, L_aud, C).

    Args:
        steps: evaluations of `velocity`, whatever the solver, so that equal steps cost the same.
        solver: `euler`, of first order, one evaluation for each 1 / steps; `midpoint`, of second order, two for
            each 2 / steps, and one Euler step at the end where `steps` is odd, which keeps the order.
    """
    x, h = x_0, 1 / steps

    def v(x: Tensor, n: int) -> Tensor:
        return velocity(x, x.new_full((len(x),), n / steps))

    first_euler = 0 if solver == "euler" else steps - steps % 2
    for n in range(0, first_euler, 2):
        halfway = x + h * v(x, n)
        x = x + 2 * h * v(halfway, n + 1)
    for n in range(first_euler, steps):
        x = x + h * v(x, n)
    return x
