"""The paper's claim at its smallest: PSCA learns when a sound is due long before plain cross-attention does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowley.features.dataset import Entry, FeatureDataset, Row, collate
from flowley.features.files import AVFeatures, TextFeatures, write_av_features, write_text_features
from flowley.network.base import VelocityNetwork
from flowley.network.presets import preset
from flowley.network.registry import load_network
from flowley.sampling.sample import sample
from flowley.sampling.solvers import SampleSettings
from flowley.training.loop import train_network
from flowley.training.settings import Callback, TrainExecution, TrainSettings

DURATION_S, L_AUD, L_VIS = 2.0, 63, 16
STEPS, TRAIN_CLIPS, TEST_CLIPS = 60, 256, 64


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More would wait for one another at matrices this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def clips(rng: np.random.Generator, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Frames (16, 16) of which a few are marked, and latents (63, 4) in which a decaying pulse begins at each mark."""
    made = []
    for _ in range(count):
        marked = np.flatnonzero(rng.random(L_VIS) < 0.15)
        visual, latent = rng.normal(0, 0.3, (L_VIS, 16)), rng.normal(0, 0.1, (L_AUD, 4))
        visual[marked, 0] += 2
        for frame in marked:
            since = np.arange(L_AUD) - round((frame + 0.5) * L_AUD / L_VIS)
            latent[:, 0] += np.where(since >= 0, 3 * np.exp(-since / 1.5), 0)
        made.append((visual, latent))
    return made


def dataset(folder: Path, of: list[tuple[np.ndarray, np.ndarray]]) -> FeatureDataset:
    av, text = str(folder / f"{len(of)}.av"), str(folder / f"{len(of)}.text")
    write_av_features(av, [AVFeatures(f"c{k}", v, a, np.full(a.shape, 0.05)) for k, (v, a) in enumerate(of)])
    write_text_features(text, [TextFeatures(f"c{k}", np.ones((2, 8)), 2) for k in range(len(of))])
    entries = [Entry(f"c{k}", Row(av, k), Row(text, k)) for k in range(len(of))]
    return FeatureDataset(entries, null_text=np.ones((1, 8), np.float16))


def timing(folder: Path, **changes: Any) -> float:
    """Mean correlation of sampled and true pulses of clips that were not trained on, by a changed network."""
    rng = np.random.default_rng(1)
    train_clips, test_clips = clips(rng, TRAIN_CLIPS), clips(rng, TEST_CLIPS)
    config = preset(
        "tiny", D=32, N1=1, N2=2, heads=2, latent_dim=4, visual_dim=16, text_dim=8, max_text_tokens=4,
        **changes,
    )  # fmt: skip
    settings = TrainSettings(
        steps=STEPS, batch_size=16, duration_s=DURATION_S, learning_rate=3e-3, warmup_steps=20,
        decay_steps=(int(0.8 * STEPS),), decay_factor=0.3,
    )  # fmt: skip
    networks: list[VelocityNetwork] = []

    class Keep(Callback):
        def on_checkpoint(self, folder: Path | None, step: int) -> None:
            assert folder is not None
            networks.append(load_network(folder))

    train_network(
        config, settings, TrainExecution(checkpoint_every_steps=STEPS, ema_snapshots=1), dataset(folder, train_clips),
        callbacks=[Keep()],
    )  # fmt: skip
    rows = dataset(folder, test_clips)
    conditions = collate([rows[k] for k in range(len(rows))], config, DURATION_S)
    made = sample(
        networks[-1], conditions.to(torch.device("cpu")).conditions, L_aud=L_AUD, seeds=range(len(rows)),
        settings=SampleSettings(steps=8, guidance=1.5),
    ).numpy()  # fmt: skip
    pairs = [(x[:, 0], latent[:, 0]) for x, (_, latent) in zip(made, test_clips, strict=True) if latent[:, 0].max() > 1]
    return float(np.mean([np.corrcoef(x, wanted)[0, 1] for x, wanted in pairs]))


def test_psca_learns_timing(tmp_path: Path) -> None:
    """Four seeds gave .68 to .75."""
    psca = timing(tmp_path)
    assert psca > 0.5, f"pulses come when frames are marked: correlation {psca:.2f}"


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"visual_attention": "plain"}, 0.25),
        pytest.param({"progressive": False}, 0.3, marks=pytest.mark.slow),
        pytest.param({"omega": 2, "delta": 0}, 0.45, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_without_a_layer_that_sees_one_frame_timing_takes_longer(
    changes: dict[str, Any], limit: float, tmp_path: Path
) -> None:
    """Three seeds gave -.01 to .00, .13 to .17, .20 to .29; with five times the steps, plain attention is there too."""
    correlation = timing(tmp_path, **changes)
    assert correlation < limit, f"if it learns as soon as PSCA does, docs/miniature.md is wrong: {correlation:.2f}"
