"""Audio classifier: loads as any AST checkpoint, knows the world's sounds, and learns from scratch."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from flowley.metrics.backbones import HZ, Listener, log_mel_extractor
from flowley.metrics.distances import frechet_distance
from miniature.models import listener as module
from miniature.models.listener import CLASSES, HIDDEN
from miniature.models.training import CHECKPOINTS
from miniature.world.film import World, plan_film

FOLDER = CHECKPOINTS / "listener"


@pytest.fixture(scope="module")
def listener() -> Listener:
    return Listener(FOLDER)


def sounds_of(world: World, count: int, seed: int = 11) -> list[np.ndarray]:
    return [module.sound_of(world, plan_film(world, seed, "test", number)) for number in range(count)]


def test_the_shipped_checkpoint_is_ordinary_small_and_in_bfloat16():
    assert AutoModelForAudioClassification.from_pretrained(FOLDER).config.id2label == dict(enumerate(CLASSES))
    assert AutoFeatureExtractor.from_pretrained(FOLDER).sampling_rate == HZ
    assert json.loads((FOLDER / "config.json").read_text())["dtype"] == "bfloat16"
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 0.8e6


def test_held_out_scores_stay_above_their_floors():
    scores = module.held_out_scores(FOLDER, seed=7, clips=100)
    floors = {"mean_ap": 0.85, "top1": 0.9, "top1_any": 0.9}
    assert not {name: scores[name] for name, floor in floors.items() if scores[name] < floor}


def test_shapes_and_distributions_in_batches_of_any_size(listener):
    sounds = sounds_of(World(), 5)
    probabilities = listener.probabilities(sounds, HZ, batch_size=2)
    assert probabilities.shape == (5, len(CLASSES)) and listener.classes == CLASSES
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    embedded = listener.embed(sounds, HZ, batch_size=2)
    assert embedded.shape == (5, HIDDEN)
    assert embedded == pytest.approx(listener.embed(sounds, HZ), abs=1e-3)


def test_another_sampling_rate_hears_the_same(listener):
    world = World(objects=("siren",), two_sounding=0, resting=0, place_heard=0, music=0, narration=0)
    plan = plan_film(world, 11, "test", 0)
    wide = module.Film(world, plan).sound(44_100, stereo=False)[:, 0]
    assert CLASSES[listener.probabilities([wide], 44_100)[0].argmax()] == "siren"


def test_other_sounds_are_farther_away_than_the_same(listener):
    same = [listener.embed(sounds_of(World(), 40, seed), HZ) for seed in (1, 2)]
    other = listener.embed(sounds_of(World(objects=("siren", "bell")), 40, 3), HZ)
    near, far = frechet_distance(same[0], same[1]), frechet_distance(other, same[1])
    assert far > 1.5 * near


@pytest.mark.parametrize("wave", [np.zeros((2, 100)), np.zeros(0), np.zeros(5 * HZ)])
def test_what_is_no_short_mono_clip_is_refused(listener, wave):
    with pytest.raises(ValueError, match="mono"):
        listener.embed([wave], HZ)


def test_no_clips_are_refused(listener):
    with pytest.raises(ValueError, match="no clips"):
        listener.probabilities([], HZ)


def test_a_few_steps_lower_the_loss():
    plans = [plan_film(World(), 11, "train", number) for number in range(64)]
    clips = module.render(World(), plans, log_mel_extractor(), lambda _: None)
    assert clips.targets.sum(dim=1).numpy() == pytest.approx(1, abs=1e-5)
    torch.manual_seed(0)
    losses = module.fit(module.build_model(), clips, steps=12, seed=0, say=lambda _: None)
    assert np.mean(losses[-3:]) < losses[0] - 0.1
