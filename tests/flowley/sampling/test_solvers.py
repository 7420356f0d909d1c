"""Solvers against flows whose solution is known, scipy's adaptive solver, and their order of convergence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from flowley.sampling.solvers import SOLVER_NAMES, SolverName, solve


@pytest.mark.parametrize("solver", SOLVER_NAMES)
@pytest.mark.parametrize("steps", [1, 2, 7, 25])
def test_straight_flows_are_exact(solver: SolverName, steps: int) -> None:
    """v = x_1 - x_0, and v = (x_1 - x) / (1 - t), the flow of a single training example."""
    x_0, x_1 = torch.randn(2, 2, 5, 3).double()
    torch.testing.assert_close(solve(lambda x, t: x_1 - x_0, x_0, steps=steps, solver=solver), x_1)
    to_x_1 = solve(lambda x, t: (x_1 - x) / (1 - t)[:, None, None], x_0, steps=steps, solver=solver)
    torch.testing.assert_close(to_x_1, x_1)


@pytest.mark.parametrize(
    ("solver", "steps", "want"),
    [("euler", 10, 1.1**10), ("midpoint", 10, (1 + 0.2 + 0.02) ** 5), ("midpoint", 5, (1 + 0.4 + 0.08) ** 2 * 1.2)],
)
def test_growth_factor_of_dx_dt_equal_x(solver: SolverName, steps: int, want: float) -> None:
    """Per step of h: Euler 1 + h, midpoint 1 + h + h^2 / 2; an odd evaluation is an Euler step of 1 / steps."""
    assert float(solve(lambda x, t: x, torch.ones(1, 1, 1).double(), steps=steps, solver=solver)) == pytest.approx(want)


@pytest.mark.parametrize("solver", SOLVER_NAMES)
@pytest.mark.parametrize("steps", [1, 2, 9, 10])
def test_the_network_is_asked_once_at_each_time(solver: SolverName, steps: int) -> None:
    times: list[float] = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (3,)
        times.append(float(t[0]))
        return x

    solve(velocity, torch.ones(3, 1, 1).double(), steps=steps, solver=solver)
    assert times == pytest.approx([n / steps for n in range(steps)])


def curved(x: Tensor, t: Tensor) -> Tensor:
    """Nonlinear in x and t."""
    return torch.sin(3 * x) + t[:, None, None] * torch.cos(2 * x) * 2 - 0.3 * x


def scipys_solution(x_0: Tensor) -> Tensor:
    def f(t: float, x: np.ndarray) -> np.ndarray:
        return curved(torch.from_numpy(x).view_as(x_0), torch.full((len(x_0),), t).double()).flatten().numpy()

    solved = solve_ivp(f, (0.0, 1.0), x_0.flatten().numpy(), rtol=1e-11, atol=1e-12)
    return torch.from_numpy(solved.y[:, -1]).view_as(x_0)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2)])
@pytest.mark.parametrize("odd", [0, 1])
def test_order_of_convergence(solver: SolverName, order: int, odd: int) -> None:
    """The error falls as steps^-order towards scipy's solution, with a last Euler step too."""
    x_0 = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1)).double()
    want = scipys_solution(x_0)
    steps = [n + odd for n in (20, 40, 80, 160)]
    errors = [float((solve(curved, x_0, steps=n, solver=solver) - want).norm()) for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.15, errors


def test_midpoint_is_nearer_at_the_same_cost() -> None:
    x_0 = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(2)).double()
    want = scipys_solution(x_0)
    error = {s: float((solve(curved, x_0, steps=25, solver=s) - want).norm()) for s in SOLVER_NAMES}
    assert error["midpoint"] < error["euler"] / 5, error
