"""Audio classifier of the world's sounds, whose classes and embeddings serve distances between sets of sounds.

A clip holds several sounds. The target is a distribution, uniform over those that are heard, and the loss its
cross-entropy: then the softmax estimates the clip's mixture, which KL compares between clips and whose entropy IS
needs; independent labels (sigmoids) would give no distribution. Silence has the uniform distribution over all, so that
a generator that makes nothing is not taken for one that makes something definite. The penultimate layer, which must
hold every kind linearly, serves FAD and KAD.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from flowley.metrics.backbones import DURATION_S, HZ, MEL_BINS, MEL_FRAMES_PER_S, Listener, log_mel_extractor, log_mels
from miniature.language import NOISES
from miniature.models.training import Say, average_precision, down_to_zero, optimise, with_progress
from miniature.world.film import Film, FilmPlan, World, plan_film
from miniature.world.objects import OBJECTS
from miniature.world.places import OFF_SCREEN

CLASSES = (*OBJECTS, *OFF_SCREEN, *NOISES)
HIDDEN, LAYERS, PATCH = 96, 3, 16

CLIPS, CLIPS_PER_BATCH, STEPS = 3000, 64, 900
PEAK_LEARNING_RATE, WEIGHT_DECAY = 1.5e-3, 0.05
SILENT_EVERY = 20
"""One training clip in so many holds nothing but the hiss of a quiet room."""
GAIN_DB = 8.0
MASKED_BINS, MASKED_FRAMES = 12, 48


@dataclass(frozen=True)
class Clips:
    """Training clips: sounds of films and their targets."""

    mels: Tensor
    """(clips, frames, MEL_BINS)."""
    targets: Tensor
    """(clips, classes): distributions."""


def train(folder: Path, *, seed: int, say: Say) -> dict[str, float]:
    """Train the listener from scratch, save it to `folder` in bfloat16, and return its `held_out_scores`."""
    world = World(odd_place=0.5, music=0.35, narration=0.35)  # a place must not tell what is heard there
    plans = [plan_film(world, seed, "train", number) for number in range(CLIPS)]
    plans = [_silent(plan) if number % SILENT_EVERY == 0 else plan for number, plan in enumerate(plans)]
    extractor = log_mel_extractor()
    clips = render(world, plans, extractor, say)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model()
        fit(model, clips, steps=STEPS, seed=seed, say=say)
    model.to(torch.bfloat16).save_pretrained(folder)
    extractor.save_pretrained(folder)
    return held_out_scores(folder, seed=seed)


def _silent(plan: FilmPlan) -> FilmPlan:
    return replace(plan, seen=tuple(replace(one, heard=False) for one in plan.seen), off_screen=None, noise=None)


def heard(plan: FilmPlan) -> np.ndarray:
    """(classes,) bool: True for the sounds of the film."""
    kinds = {*plan.sounding, plan.off_screen, *plan.noises}
    return np.array([kind in kinds for kind in CLASSES])


def render(world: World, plans: Sequence[FilmPlan], extractor: Any, say: Say) -> Clips:
    """Log-mels and targets of each film's sound."""
    made = with_progress(plans, "listener: making sounds", "clips", say)
    mels = [log_mels(extractor, [sound_of(world, plan)]) for plan in made]
    silence = np.full(len(CLASSES), 1 / len(CLASSES))
    targets = np.stack([one / one.sum() if one.any() else silence for one in map(heard, plans)])
    return Clips(torch.cat(mels), torch.from_numpy(targets).float())


def sound_of(world: World, plan: FilmPlan) -> np.ndarray:
    """(N,) float32 at HZ."""
    return Film(world, plan).sound(HZ, stereo=False)[:, 0].astype(np.float32)


def build_model() -> Any:
    """An audio spectrogram transformer with random weights, its patches side by side."""
    from transformers import ASTConfig, ASTForAudioClassification

    config = ASTConfig(
        hidden_size=HIDDEN, intermediate_size=3 * HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_mel_bins=MEL_BINS, max_length=round(DURATION_S* MEL_FRAMES_PER_S), patch_size=PATCH, frequency_stride=PATCH,
        time_stride=PATCH, id2label=dict(enumerate(CLASSES)), label2id={name: k for k, name in enumerate(CLASSES)},
    )  # fmt: skip
    return ASTForAudioClassification(config)


def fit(model: Any, clips: Clips, *, steps: int, seed: int, say: Say) -> list[float]:
    """Minimise the cross-entropy for `steps` batches; the loss of each."""
    rng, std = np.random.default_rng(seed), log_mel_extractor().std

    def loss() -> Tensor:
        index = rng.choice(len(clips.mels), CLIPS_PER_BATCH, replace=len(clips.mels) < CLIPS_PER_BATCH)
        logits = model(_varied(clips.mels[index], rng, std)).logits
        return -(clips.targets[index] * log_softmax(logits, dim=-1)).sum(-1).mean()

    return optimise(
        model.parameters(), loss, steps=steps, learning_rate=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY,
        schedule=down_to_zero, counted=("listener", CLIPS_PER_BATCH, "clips"), say=say,
    )  # fmt: skip


def _varied(mels: Tensor, rng: np.random.Generator, std: float) -> Tensor:
    """Augmentation: gain, cyclic shift, and a band and a span of time masked."""
    x = mels.clone()
    for one in x:
        one.copy_(one.roll(int(rng.integers(len(one))), dims=0))
        # A gain adds to the logarithm of the power, of which the extractor takes half a standard deviation as 1.
        one += rng.uniform(-GAIN_DB, GAIN_DB) * np.log(10) / 10 / (2 * std)
        low, first = rng.integers(MEL_BINS - MASKED_BINS), rng.integers(len(one) - MASKED_FRAMES)
        one[:, low : low + rng.integers(MASKED_BINS)] = 0
        one[first : first + rng.integers(MASKED_FRAMES)] = 0
    return x


def held_out_scores(folder: Path, *, seed: int, clips: int = 400) -> dict[str, float]:
    """Scores of the checkpoint on films of the usual world that it was not trained on, by name.

    ap_*: average precision of each class, and their mean. top1: share of the clips with one object in which it is the
    likeliest object. top1_any: share of all clips whose likeliest class is heard. entropy: of the distributions, nats.
    """
    world, listener = World(), Listener(folder)
    plans = [plan_film(world, seed, "test", number) for number in range(clips)]
    probabilities = listener.probabilities([sound_of(world, plan) for plan in plans], HZ)
    truth = np.stack([heard(plan) for plan in plans])
    precision = {f"ap_{kind}": average_precision(probabilities[:, k], truth[:, k]) for k, kind in enumerate(CLASSES)}
    objects = slice(0, len(OBJECTS))
    single = truth[:, objects].sum(axis=1) == 1
    right = probabilities[single, objects].argmax(axis=1) == truth[single, objects].argmax(axis=1)
    likeliest = truth[np.arange(clips), probabilities.argmax(axis=1)]
    return precision | {
        "mean_ap": float(np.mean(list(precision.values()))),
        "top1": float(right.mean()),
        "top1_any": float(likeliest.mean()),
        "entropy": float(-(probabilities * np.log(probabilities + 1e-12)).sum(axis=1).mean()),
    }
