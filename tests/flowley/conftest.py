"""Shared inputs: random features of a batch for a configuration, and feature files of clips to train on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from flowley.features.dataset import Entry, FeatureDataset, Row
from flowley.features.files import AVFeatures, TextFeatures, write_av_features, write_text_features
from flowley.network.base import Conditions
from flowley.network.config import NetworkConfig


@pytest.fixture
def random_conditions() -> Callable[..., Conditions]:
    def build(config: NetworkConfig, *, L_vis: int, text_lengths: list[int], seed: int = 0) -> Conditions:
        B = len(text_lengths)
        g = torch.Generator().manual_seed(seed)
        lengths = torch.tensor(text_lengths)
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        text = torch.randn(B, int(lengths.max()), config.text_dim, generator=g) * mask[..., None]
        visual = torch.randn(B, L_vis, config.visual_dim, generator=g)
        L_sync = config.sync_length(L_vis / config.r_v)
        sync = torch.randn(B, L_sync, config.sync_dim, generator=g) if L_sync else None
        return Conditions(visual, text, mask, sync)

    return build


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., FeatureDataset]:
    """Clips of 1 s: 8 frames and captions of 8 channels, latents of 6 (mean 3, standard deviation 2)."""

    def make(n: int = 5, *, std: float = 0.1, null_text: bool = True, tag: str = "d") -> FeatureDataset:
        rng = np.random.default_rng(0)
        av, text = str(tmp_path / f"{tag}.av"), str(tmp_path / f"{tag}.text")
        clips = [
            AVFeatures(f"c{k}", rng.normal(size=(8, 8)), 3 + 2 * rng.normal(size=(32, 6)), np.full((32, 6), std))
            for k in range(n)
        ]
        write_av_features(av, clips)
        write_text_features(text, [TextFeatures(f"c{k}", rng.normal(size=(2 + k % 3, 8)), 2 + k % 3) for k in range(n)])
        entries = [Entry(f"c{k}", Row(av, k), Row(text, k)) for k in range(n)]
        return FeatureDataset(entries, null_text=np.ones((1, 8), np.float16) if null_text else None)

    return make
