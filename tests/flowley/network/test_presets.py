"""Every preset is the size it says, and survives being written down."""

from __future__ import annotations

import json

import pytest
import torch

from flowley.network.config import CONFIGS
from flowley.network.presets import PRESETS, preset
from flowley.network.registry import build_network

SIZES = {"flowley_169m": 169.27, "flowley_release": 170.89, "mmaudio_small_16k": 157.28, "tiny": 1.91}
"""Millions of parameters: the paper says 169M, the released file is 683.6 MB of fp32, MMAudio counts 157.28M."""


def n_parameters(name: str, **changes: object) -> int:
    with torch.device("meta"):
        return build_network(preset(name, **changes)).n_parameters


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts(name: str) -> None:
    assert round(n_parameters(name) / 1e6, 2) == SIZES[name]


def test_untied_release_is_the_size_the_paper_cannot_mean() -> None:
    assert round(n_parameters("flowley_release", tie_single_blocks=False) / 1e6, 1) == 277.1


def test_the_peers_count_has_what_upstream_freezes() -> None:
    """157.20 M learn; the rest is the empty caption (77 x 1024) and the latent's mean and deviation (20 each)."""
    with torch.device("meta"):
        network = build_network(preset("mmaudio_small_16k"))
    learning = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert round(learning / 1e6, 2) == 157.20
    assert network.n_parameters - learning == 77 * 1024 + 20 + 20


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip_through_json(name: str) -> None:
    chosen = PRESETS[name]
    assert CONFIGS[chosen.model_type].from_dict(json.loads(json.dumps(chosen.to_dict()))) == chosen


@pytest.mark.parametrize("name", PRESETS)
def test_no_change_is_the_preset_itself(name: str) -> None:
    assert preset(name) is PRESETS[name]
    assert preset(name, dropout=0.5).dropout == 0.5


def test_unknown_preset_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="flowley_169m, flowley_release, mmaudio_small_16k, tiny"):
        preset("flowley_1b")


def test_unknown_field_is_named() -> None:
    with pytest.raises(ValueError, match="omega"):
        preset("mmaudio_small_16k", omega=1)
