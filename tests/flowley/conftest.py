"""Shared inputs: random features of a batch for a configuration."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from flowley.config import NetworkConfig
from flowley.network import Conditions


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
