"""Encoder pair: loads as any CLIP checkpoint, tells moments and kinds apart, and learns from scratch."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from flowley.features.encoders import TextEncoder, VisualEncoder
from miniature.models import encoder_pair, encoder_scores
from miniature.models.frames import (
    Frames,
    describe_frame,
    evenly,
    fits,
    full_sentence,
    often_near_events,
    random_sentence,
    render,
)
from miniature.models.training import CHECKPOINTS
from miniature.world.film import Film, World, plan_film

CLIP = CHECKPOINTS / "clip"


@pytest.fixture(scope="module")
def films() -> list[Film]:
    return [Film(World(), plan_film(World(), 11, "test", number)) for number in range(12)]


@pytest.fixture(scope="module")
def few_frames() -> Frames:
    return render(11, "train", range(64), partial(often_near_events, frames=4), lambda _: None)


def test_visual_features_of_a_film_move_and_fill_their_space(films):
    encoder = VisualEncoder(str(CLIP))
    features = np.stack([encoder.encode(film.frames(evenly(film, fps=8.0))) for film in films])
    assert features.shape == (12, 32, encoder_pair.DIM) == (12, 32, encoder.dim)
    assert np.linalg.norm(features, axis=-1) == pytest.approx(1, abs=1e-4)
    spectrum = np.linalg.svd(features.reshape(-1, encoder_pair.DIM) - features.mean((0, 1)), compute_uv=False) ** 2
    assert spectrum.sum() ** 2 / (spectrum**2).sum() > 5, "features of low rank tell few things"
    moving = [not film.plan.still for film in films]
    assert (features.std(axis=1).mean(axis=1)[moving] > 0.01).all()


def test_text_features_have_one_row_for_each_token_of_any_text():
    encoder = TextEncoder(str(CLIP), max_tokens=77)
    ball, unknown, empty = encoder.encode(["A rubber ball bounces with dull thuds.", "Ünbekanntes Wort \U0001f514", ""])
    assert ball.features.shape == (10, encoder_pair.DIM) and ball.tokens_cut == 0  # start, 7 words, full stop, end
    assert unknown.n_tokens > 4 and empty.n_tokens == 2
    assert all(np.isfinite(text.features).all() for text in (ball, unknown, empty))


def test_the_shipped_checkpoint_is_small_and_in_bfloat16():
    assert json.loads((CLIP / "config.json").read_text())["dtype"] == "bfloat16"
    assert sum(path.stat().st_size for path in CLIP.iterdir()) < 1.4e6


@pytest.mark.slow
def test_held_out_scores_stay_above_their_floors():
    scores = encoder_scores.held_out_scores(CLIP, seed=7, films=100)
    floors = {"retrieval": 0.08, "kinds": 0.9, "last_80ms": 0.7, "next_80ms": 0.6, "between": 0.75}
    low = {name: scores[name] for name, floor in floors.items() if scores[name] < floor}
    assert not low
    for name in ("kinds", "last_80ms", "next_80ms", "between"):
        assert scores[name] > scores[f"random_{name}"] + 0.05, name


def test_a_few_steps_lower_the_loss(few_frames):
    torch.manual_seed(0)
    tokenizer = encoder_pair.build_tokenizer(few_frames)
    model = encoder_pair.build_model(len(tokenizer))
    losses = encoder_pair.fit(model, tokenizer, few_frames, steps=12, seed=0, say=lambda _: None)
    assert np.mean(losses[-3:]) < losses[0] - 0.1


def test_a_saved_pair_loads_through_the_real_loaders(few_frames, tmp_path):
    tokenizer = encoder_pair.build_tokenizer(few_frames)
    encoder_pair.save(encoder_pair.build_model(len(tokenizer)), tokenizer, tmp_path)
    assert VisualEncoder(str(tmp_path)).encode(few_frames.pixels[0]).shape == (4, encoder_pair.DIM)
    assert TextEncoder(str(tmp_path), max_tokens=77).dim == encoder_pair.DIM


def test_every_sentence_is_true_of_its_own_frame(films):
    rng = np.random.default_rng(0)
    truths = [describe_frame(film, float(t_s)) for film in films for t_s in evenly(film, fps=2.0)]
    for sentences in ([full_sentence(now) for now in truths], [random_sentence(now, rng) for now in truths]):
        fit = fits(truths, sentences)
        assert fit.diagonal().all()
        assert fit.mean() < 0.5, "sentences that fit everything say nothing"


def test_a_frames_truth_tells_when_the_ball_touches_the_floor():
    plan = next(plan for n in range(50) if not (plan := plan_film(World(objects=("ball",)), 3, "test", n)).still)
    film = Film(World(objects=("ball",)), plan)
    touch_s, next_s = film.objects[0].times[:2]
    assert "a ball: touching the floor" in describe_frame(film, touch_s).statements
    assert "a ball: high in the air" in describe_frame(film, (touch_s + next_s) / 2).statements
