"""Paths, times, noise assignment, loss and dropped conditions against closed forms and brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from flowley.config import preset
from flowley.flow import assign_noise, flow_loss, interpolate, tangent_timesteps, without
from flowley.model import Conditions


def test_path_runs_from_noise_to_sound_at_constant_velocity() -> None:
    x_0, x_1 = torch.randn(2, 3, 5, 4).double()
    at = [interpolate(x_0, x_1, torch.full((3,), t).double()) for t in (0.0, 0.25, 1.0)]
    torch.testing.assert_close(at[0], x_0)
    torch.testing.assert_close(at[2], x_1)
    torch.testing.assert_close((at[1] - at[0]) / 0.25, x_1 - x_0)


def test_tangent_timesteps() -> None:
    u = torch.tensor([0.0, 0.5, 1 - 1e-9, 0.2]).double()
    t = tangent_timesteps(u)
    assert t[:2].tolist() == pytest.approx([0.0, 0.5])
    assert 0.999 < t[2] <= 1
    assert float(t[3]) == pytest.approx(1 - 1 / (math.tan(math.pi * 0.2 / 2) + 1))
    torch.testing.assert_close(tangent_timesteps(1 - u), 1 - t, msg="the schedule is symmetric about 1/2")


def test_noise_assignment_is_the_cheapest_of_all_permutations() -> None:
    x_1, x_0 = torch.randn(2, 5, 6, 2)
    assigned = assign_noise(x_1, x_0)

    def cost(noise: torch.Tensor) -> float:
        return float((x_1 - noise).flatten(1).norm(dim=1).sum())

    best = min(cost(x_0[list(order)]) for order in itertools.permutations(range(5)))
    assert cost(assigned) == pytest.approx(best)
    assert sorted(x.sum().item() for x in assigned) == sorted(x.sum().item() for x in x_0)


def test_loss_terms() -> None:
    """Opposite flows: (v - v*)^2 = 4 v^2 and 1 - cos = 2."""
    v = torch.randn(2, 7, 4).double()
    losses = flow_loss(v, -v, cosine_weight=0.5)
    assert float(losses.mse) == pytest.approx(4 * float((v**2).mean()))
    assert float(losses.cosine) == pytest.approx(2)
    assert float(losses.total) == pytest.approx(float(losses.mse) + 1)
    assert float(flow_loss(v, v, cosine_weight=0.5).total) == pytest.approx(0)
    assert float(flow_loss(3 * v, v, cosine_weight=0.5).cosine) == pytest.approx(0), "direction, not size"


def test_dropped_with_zeros_in_place(random_conditions: Callable[..., Conditions]) -> None:
    c = random_conditions(preset("tiny"), L_vis=4, text_lengths=[2, 3])
    got = without(c, visual=torch.tensor([True, False]), text=torch.tensor([False, True]), null_text=None)
    assert not got.visual[0].any() and torch.equal(got.visual[1], c.visual[1])
    assert torch.equal(got.text[0], c.text[0]) and not got.text[1].any()
    assert torch.equal(got.text_mask, c.text_mask)


@pytest.mark.parametrize("null_tokens", [1, 5])
def test_dropped_text_becomes_the_empty_caption(null_tokens: int, random_conditions: Callable[..., Conditions]) -> None:
    """Also where the empty caption is longer than every caption of the batch (CLIP pads to 77)."""
    config = preset("tiny")
    c = random_conditions(config, L_vis=4, text_lengths=[2, 3])
    null = torch.randn(null_tokens, config.text_dim)
    no, last = torch.tensor([False, False]), torch.tensor([False, True])
    got = without(c, visual=no, text=last, null_text=null)
    assert torch.equal(got.text[0][got.text_mask[0]], c.text[0, :2])
    assert torch.equal(got.text[1][got.text_mask[1]], null)
    assert torch.equal(got.visual, c.visual)
