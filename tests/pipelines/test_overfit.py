"""Eight films, learnt by heart: the whole path from video to sound can carry any sound its codec can."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from flowley.codecs import load_codec
from flowley.features.dataset import collate
from flowley.metrics.spectral import log_mel_correlation
from flowley.network.feature_spec import FeatureSpec
from flowley.network.registry import load_network
from flowley.sampling.generator import sample_clips
from flowley.sampling.solvers import SampleSettings
from miniature.world.corpus import generate_corpus
from pipelines.commands.extract import extract
from pipelines.commands.feature_folder import open_dataset
from pipelines.commands.train import make_recipe, train

CLIPS, DURATION_S, STEPS = 8, 2.0, 1200
NETWORK = {"D": 256, "N1": 1, "N2": 2, "heads": 4}
"""`tiny` but wider: the 64 channels of the latent, of the noise in it and of the flow need room side by side."""
RECIPE = {
    "duration_s": DURATION_S, "learning_rate": 1e-3, "warmup_steps": 50, "decay_steps": (840, 1080),
    "decay_factor": 0.3, "drop_visual": 0.0, "drop_text": 0.0,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_eight_clips_are_learnt_by_heart(tmp_path: Path, tiny_encoder_builders: dict) -> None:
    videos = generate_corpus(tmp_path / "corpus", clips=CLIPS, seed=0, workers=2).parent / "videos"
    for name, build in tiny_encoder_builders.items():
        (tmp_path / name).mkdir()
        build(tmp_path / name, 0)
    with (tmp_path / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("name", "caption"), *((film.name, "a sound") for film in videos.iterdir())])
    recipe = make_recipe("tiny", {"steps": STEPS, "batch_size": CLIPS, **NETWORK, **RECIPE})
    config = recipe.network
    features = tmp_path / "features"
    extract(
        [videos], tmp_path / "captions.csv", features, network=config,
        spec=FeatureSpec(
            visual=str(tmp_path / "clip"), text=str(tmp_path / "t5"), codec="log_mel", duration_s=DURATION_S
        ),
        sync=None, device="cpu", say=print,
    )  # fmt: skip
    train(features, tmp_path / "checkpoint", recipe, validation=None, resume=False, device="cpu", say=print)
    dataset, _ = open_dataset(features)
    clips = [dataset[row] for row in range(CLIPS)]
    codec = load_codec("log_mel")
    generated = sample_clips(
        load_network(tmp_path / "checkpoint").eval(), codec, clips, duration_s=DURATION_S,
        seeds=range(CLIPS), settings=SampleSettings(steps=25, guidance=1.0),
    ).numpy()  # fmt: skip
    batch = collate(clips, config, DURATION_S).to(torch.device("cpu"))
    reconstructed = codec.decode(batch.audio_mean).numpy()
    alike = [log_mel_correlation(g, r, codec.audio_hz) for g, r in zip(generated, reconstructed, strict=True)]
    assert np.mean(alike) >= 0.95, f"log-mel correlation with the codec's reconstruction, clip by clip: {alike}"
    others = [
        log_mel_correlation(g, r, codec.audio_hz)
        for g, r in zip(generated, np.roll(reconstructed, 1, axis=0), strict=True)
    ]
    assert max(others) < min(alike), f"as near to another clip's sound as to its own: {others}, {alike}"
