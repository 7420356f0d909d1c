"""Validation loss against the same by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from flowley.dataset import FeatureDataset, collate
from flowley.presets import preset
from flowley.settings import TrainSettings
from flowley.trainer import initial_network
from flowley.validate import validation_loss

CONFIG = preset(
    "tiny", D=32, N1=1, N2=2, heads=2, latent_dim=6, visual_dim=8, text_dim=8, max_text_tokens=9, dropout=0.0
)


def test_validation_measures_on_the_recipes_own_times(make_dataset: Callable[..., FeatureDataset]) -> None:
    """By hand: clip k, noise of seed k, t at the quantile (k + 1/2) / n of the logit-normal, squared error alone."""
    dataset = make_dataset(3, std=0.0)
    network = initial_network(CONFIG, 0, dataset).eval()
    torch.nn.init.normal_(network.get_parameter("output.conv.weight"))
    settings = TrainSettings(steps=1, batch_size=2, duration_s=1.0, timesteps="logit_normal", cosine_weight=0.0)
    errors = []
    for k in range(3):
        batch = collate([dataset[k]], L_aud=32, L_vis=8, L_txt=None).to(torch.device("cpu"))
        x_1 = (batch.audio_mean - network.latent_mean) / network.latent_std
        x_0 = torch.randn(32, 6, generator=torch.Generator().manual_seed(k))[None]
        t = torch.tensor([scipy.special.expit(scipy.stats.norm.ppf((k + 0.5) / 3))]).float()
        with torch.no_grad():
            v = network(t[:, None, None] * x_1 + (1 - t[:, None, None]) * x_0, t, batch.conditions)
        errors.append(float((v - (x_1 - x_0)).square().mean()))
    got = validation_loss(network, dataset, settings, device=torch.device("cpu"))
    assert got == pytest.approx(np.mean(errors), rel=1e-5)
