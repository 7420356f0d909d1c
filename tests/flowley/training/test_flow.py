"""Paths, times, noise assignment, loss and dropped conditions against closed forms and brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from flowley.features.dataset import FeatureDataset, collate
from flowley.network.base import Conditions
from flowley.network.flowley import Flowley
from flowley.network.presets import preset
from flowley.training import flow
from flowley.training.flow import assign_noise, flow_loss, interpolate, timesteps, validation_loss
from flowley.training.settings import TrainSettings
from flowley.training.trainer import initial_network

Build = Callable[..., Conditions]
CONFIG = preset(
    "tiny", D=32, N1=1, N2=2, heads=2, latent_dim=6, visual_dim=8, text_dim=8, max_text_tokens=9, dropout=0.0
)


def test_path_runs_from_noise_to_sound_at_constant_velocity() -> None:
    x_0, x_1 = torch.randn(2, 3, 5, 4).double()
    at = [interpolate(x_0, x_1, torch.full((3,), t).double()) for t in (0.0, 0.25, 1.0)]
    torch.testing.assert_close(at[0], x_0)
    torch.testing.assert_close(at[2], x_1)
    torch.testing.assert_close((at[1] - at[0]) / 0.25, x_1 - x_0)


def test_tangent_timesteps() -> None:
    u = torch.tensor([0.0, 0.5, 1 - 1e-9, 0.2]).double()
    t = timesteps("tangent", u)
    assert t[:2].tolist() == pytest.approx([0.0, 0.5])
    assert 0.999 < t[2] <= 1
    assert float(t[3]) == pytest.approx(1 - 1 / (math.tan(math.pi * 0.2 / 2) + 1))
    torch.testing.assert_close(timesteps("tangent", 1 - u), 1 - t, msg="the schedule is symmetric about 1/2")


def test_logit_normal_timesteps() -> None:
    """log(t / (1 - t)) is standard normal: its quantiles are scipy's; u = 0, which torch.rand can give, is t = 0."""
    u = torch.linspace(0.001, 0.999, 101).double()
    t = timesteps("logit_normal", u)
    np.testing.assert_allclose(t.numpy(), scipy.special.expit(scipy.stats.norm.ppf(u.numpy())), rtol=1e-10)
    assert timesteps("logit_normal", torch.zeros(1)).tolist() == [0.0]
    drawn = torch.logit(timesteps("logit_normal", torch.rand(100_000, generator=torch.Generator().manual_seed(0))))
    assert float(drawn.mean()) == pytest.approx(0, abs=0.02) and float(drawn.std()) == pytest.approx(1, abs=0.02)


def test_noise_assignment_is_the_cheapest_of_all_permutations() -> None:
    x_1, x_0 = torch.randn(2, 5, 6, 2)
    assert cost(x_1, assign_noise(x_1, x_0)) == pytest.approx(cheapest(x_1, x_0))


def test_large_batches_are_matched_in_even_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """11 clips in groups of at most 4: 4, 4 and 3, each with its own noise in the cheapest order."""
    monkeypatch.setattr(flow, "MAX_ASSIGNED", 4)
    x_1, x_0 = torch.randn(2, 11, 6, 2)
    assigned = assign_noise(x_1, x_0)
    for at in (slice(0, 4), slice(4, 8), slice(8, 11)):
        assert cost(x_1[at], assigned[at]) == pytest.approx(cheapest(x_1[at], x_0[at]))
        assert sorted(x.sum().item() for x in assigned[at]) == sorted(x.sum().item() for x in x_0[at])


def cost(x_1: torch.Tensor, noise: torch.Tensor) -> float:
    return float((x_1 - noise).flatten(1).norm(dim=1).sum())


def cheapest(x_1: torch.Tensor, x_0: torch.Tensor) -> float:
    return min(cost(x_1, x_0[list(order)]) for order in itertools.permutations(range(len(x_0))))


def test_loss_terms() -> None:
    """Opposite flows: (v - v*)^2 = 4 v^2 and 1 - cos = 2."""
    v = torch.randn(2, 7, 4).double()
    losses = flow_loss(v, -v, cosine_weight=0.5)
    assert float(losses.mse) == pytest.approx(4 * float((v**2).mean()))
    assert float(losses.cosine) == pytest.approx(2)
    assert float(losses.total) == pytest.approx(float(losses.mse) + 1)
    assert float(flow_loss(v, v, cosine_weight=0.5).total) == pytest.approx(0)
    assert float(flow_loss(3 * v, v, cosine_weight=0.5).cosine) == pytest.approx(0), "direction, not size"


@pytest.mark.parametrize("null_text", ["zeros", "empty_caption"])
def test_dropped_video_is_zeros_and_the_rest_stays(null_text: str, random_conditions: Build) -> None:
    network = Flowley(preset("tiny", null_text=null_text))
    network.set_null_text(torch.ones(1, network.config.text_dim))
    c = random_conditions(network.config, L_vis=4, text_lengths=[2, 3])
    got = network.without(c, visual=torch.tensor([True, False]), text=torch.tensor([False, False]))
    assert not got.visual[0].any() and torch.equal(got.visual[1], c.visual[1])
    assert torch.equal(got.text, c.text) and torch.equal(got.text_mask, c.text_mask)


def test_dropped_text_becomes_zeros_in_place(random_conditions: Build) -> None:
    network = Flowley(preset("tiny", null_text="zeros"))
    c = random_conditions(network.config, L_vis=4, text_lengths=[2, 3])
    got = network.without(c, visual=torch.tensor([False, False]), text=torch.tensor([False, True]))
    assert torch.equal(got.text[0], c.text[0]) and not got.text[1].any()
    assert torch.equal(got.text_mask, c.text_mask)


@pytest.mark.parametrize("null_tokens", [1, 5])
def test_dropped_text_becomes_the_empty_caption(null_tokens: int, random_conditions: Build) -> None:
    """Also where the empty caption is longer than every caption of the batch (CLIP pads to 77)."""
    network = Flowley(preset("tiny"))
    c = random_conditions(network.config, L_vis=4, text_lengths=[2, 3])
    null = torch.randn(null_tokens, network.config.text_dim)
    network.set_null_text(null)
    got = network.without(c, visual=torch.tensor([False, False]), text=torch.tensor([False, True]))
    assert torch.equal(got.text[0][got.text_mask[0]], c.text[0, :2])
    assert torch.equal(got.text[1][got.text_mask[1]], null)
    assert torch.equal(got.visual, c.visual)


def test_validation_measures_on_the_recipes_own_times(make_dataset: Callable[..., FeatureDataset]) -> None:
    """By hand: clip k, noise of seed k, t at the quantile (k + 1/2) / n of the logit-normal, squared error alone."""
    dataset = make_dataset(3, std=0.0)
    network = initial_network(CONFIG, 0, dataset).eval()
    torch.nn.init.normal_(network.get_parameter("output.conv.weight"))
    settings = TrainSettings(steps=1, batch_size=2, duration_s=1.0, timesteps="logit_normal", cosine_weight=0.0)
    errors = []
    for k in range(3):
        batch = collate([dataset[k]], CONFIG, 1.0).to(torch.device("cpu"))
        x_1 = (batch.audio_mean - network.latent_mean) / network.latent_std
        x_0 = torch.randn(32, 6, generator=torch.Generator().manual_seed(k))[None]
        t = torch.tensor([scipy.special.expit(scipy.stats.norm.ppf((k + 0.5) / 3))]).float()
        with torch.no_grad():
            v = network(t[:, None, None] * x_1 + (1 - t[:, None, None]) * x_0, t, batch.conditions)
        errors.append(float((v - (x_1 - x_0)).square().mean()))
    got = validation_loss(network, dataset, settings, device=torch.device("cpu"))
    assert got == pytest.approx(np.mean(errors), rel=1e-5)
