"""Classifier of alignment: it tells a sound in time from one out of time, and learns to from scratch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flowley.features.encoders import VisualEncoder
from flowley.metrics.backbones import FPS, MEL_BINS, MELS_PER_FRAME, AlignmentClassifier, AlignmentNetwork
from miniature.models import alignment as module
from miniature.models.alignment import Pairs
from miniature.models.training import CHECKPOINTS
from miniature.world.film import Film, plan_film

FOLDER = CHECKPOINTS / "alignment"
HZ = 16_000


@pytest.fixture(scope="module")
def films() -> list[Film]:
    return [Film(module.WORLD, plan_film(module.WORLD, 77, "test", number)) for number in range(16)]


@pytest.fixture(scope="module")
def seen(films: list[Film]) -> np.ndarray:
    encoder = VisualEncoder(str(CHECKPOINTS / "clip"))
    return np.stack([module.frame_features(encoder, film) for film in films])


def test_the_shipped_checkpoint_is_small_and_in_bfloat16():
    assert {one.dtype for one in load_file(FOLDER / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((FOLDER / "config.json").read_text())["fps"] == FPS
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 0.5e6


def test_it_tells_own_sounds_from_late_early_and_other_ones(films: list[Film], seen: np.ndarray):
    classifier = AlignmentClassifier(FOLDER)
    own = [film.sound(HZ, stereo=False)[:, 0] for film in films]
    shares = {
        "own": own,
        "early": [np.roll(wave, -round(0.4 * HZ)) for wave in own],
        "late": [np.roll(wave, round(0.4 * HZ)) for wave in own],
        "of the next film": [*own[1:], own[0]],
    }
    aligned = {name: float((classifier.probabilities(seen, waves, HZ) > 0.5).mean()) for name, waves in shares.items()}
    assert aligned["own"] >= 0.85, aligned
    assert max(share for name, share in aligned.items() if name != "own") <= 0.25, aligned


def test_another_sampling_rate_is_judged_alike(films: list[Film], seen: np.ndarray):
    classifier = AlignmentClassifier(FOLDER)
    [low, high] = [
        classifier.probabilities(seen[:8], [film.sound(hz, stereo=False)[:, 0] for film in films[:8]], hz)
        for hz in (HZ, 48_000)
    ]
    assert np.mean((low > 0.5) == (high > 0.5)) >= 7 / 8


def test_bad_input_is_named(films: list[Film], seen: np.ndarray):
    classifier = AlignmentClassifier(FOLDER)
    with pytest.raises(ValueError, match="2 clips' pictures and 1 sounds"):
        classifier.probabilities(seen[:2], [np.zeros(HZ)], HZ)
    with pytest.raises(ValueError, match="at most 4 s"):
        classifier.probabilities(seen[:1], [np.zeros(5 * HZ)], HZ)


def test_half_of_the_pairs_of_a_batch_fit_and_no_seam_tells_which():
    """Each frame's feature and mels are its number: a pair that fits has the same numbers in both."""
    films, frames = 3, 64
    number = torch.arange(films * frames).view(films, frames, 1).float()
    mels = number.repeat_interleave(MELS_PER_FRAME, 1).expand(-1, -1, MEL_BINS)
    pairs, rng = Pairs(number, torch.stack([mels, mels])), np.random.default_rng(0)
    for fits in (True, False):
        for _ in range(50):
            seen, heard = module._pair(pairs, fits, rng)
            same = torch.equal(seen[:, 0], heard[::MELS_PER_FRAME, 0])
            assert same == fits
            jumps = [(torch.diff(one) < 0).sum() for one in (seen[:, 0], heard[:, 0])]
            assert all(0 <= int(count) <= 1 for count in jumps), "one cut at most, wherever the roll put it"


def test_it_learns_from_scratch_what_an_impulse_in_both_says():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    visual = torch.from_numpy(rng.random((24, 64, 4)) < 0.05).float()
    mels = visual[..., :1].repeat_interleave(MELS_PER_FRAME, 1).expand(-1, -1, MEL_BINS)
    pairs = Pairs(visual, torch.stack([mels, mels]))
    losses = module.fit(AlignmentNetwork(4), pairs, steps=40, seed=0, say=lambda _: None)
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])


def test_the_record_has_its_digest_and_scores():
    record = json.loads((Path(FOLDER).parent / "models.json").read_text())["alignment"]
    assert record["scores"]["aligned"] >= 0.9
    assert record["scores"]["aligned_late_0.3"] <= 0.1
