"""Counts from shapes against torch's own counter, which watches the operators run."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import flops_of, sampling_flops
from flowley.network.base import Conditions
from flowley.network.presets import PRESETS, preset
from flowley.network.registry import build_network

L_TXT, DURATION_S = 9, 1.6
DENSE = {"visual_attention": "plain"}
"""PSCA counts as dense; torch counts what it really does."""


def watched(name: str, *, backward: bool) -> tuple[int, int]:
    """FLOPs that torch counts for the embedding of the conditions and for all of a pass."""
    config = preset(name, **({} if name.startswith("mmaudio") else DENSE))
    L_aud, L_vis = config.lengths(DURATION_S)
    L_sync = config.sync_length(DURATION_S)
    with torch.device("meta"):
        network = build_network(config)
        conditions = Conditions(
            torch.randn(1, L_vis, config.visual_dim), torch.randn(1, L_TXT, config.text_dim),
            torch.ones(1, L_TXT, dtype=torch.bool), torch.randn(1, L_sync, config.sync_dim) if L_sync else None,
        )  # fmt: skip
        x_t, t = torch.randn(1, L_aud, config.latent_dim), torch.rand(1)
        with FlopCounterMode(display=False) as embed:
            network.embed(conditions, L_aud)
        with FlopCounterMode(display=False) as whole:
            v = network(x_t, t, conditions)
            if backward:
                v.sum().backward()
    return embed.get_total_flops(), whole.get_total_flops()


@pytest.mark.parametrize("name", PRESETS)
def test_forward_counts_are_torchs(name: str) -> None:
    flops = flops_of(preset(name), duration_s=DURATION_S, L_txt=L_TXT)
    assert (flops.embed, flops.forward) == watched(name, backward=False)


@pytest.mark.parametrize("name", ["flowley_169m", "mmaudio_small_16k"])
def test_training_is_three_forwards_less_the_gradients_of_the_inputs(name: str) -> None:
    counted = flops_of(preset(name), duration_s=DURATION_S, L_txt=L_TXT).training
    assert 0.97 * counted < watched(name, backward=True)[1] <= counted


def test_a_guided_sample_embeds_once_and_runs_pairs() -> None:
    flops = flops_of(preset("tiny"), duration_s=2.0, L_txt=5)
    made = sampling_flops(preset("tiny"), duration_s=2.0, L_txt=5, evaluations=25, guided=True)
    assert made == 2 * flops.embed + 50 * flops.velocity
