"""Classifier of temporal alignment between picture and sound of a clip, after Diff-Foley's alignment accuracy.

It sees the frames' features of the shipped encoder at `FPS` and hears log-mel frames, both on one grid in time. A
negative pair is the same clip's sound shifted by 0.2 to 1.5 s, or another clip's sound. Both halves of a pair are
first rolled by the same random amount, so that no cut in the sound tells a shift. Half of the sounds have gone through
the study's codec, as every sound that a network makes has.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from flowley.codecs import load_codec
from flowley.features.encoders import VisualEncoder
from flowley.metrics.backbones import (
    DURATION_S,
    FPS,
    MELS_PER_FRAME,
    AlignmentClassifier,
    AlignmentNetwork,
    aligned_mels,
    resampled,
)
from miniature.models.training import CHECKPOINTS, Say, area_under_curve, down_to_zero, optimise, with_progress
from miniature.world.film import Film, Split, World, plan_film

FILMS, PAIRS_PER_BATCH, STEPS = 1500, 64, 1000
PEAK_LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.05
SHIFT_S = (0.2, 1.5)
OTHER_FILM_SHARE = 0.4
GAIN = 0.7
"""Largest change of the normalised log-mels, as by a louder or softer recording."""
WORLD = World(still=0.0, odd_place=0.5, music=0.2, narration=0.2)
"""Films of the training. None is a photograph, which fits any sound."""


@dataclass(frozen=True)
class Pairs:
    """Pictures and sounds of the same films."""

    visual: Tensor
    """(films, T, D)."""
    mels: Tensor
    """(2, films, T x MELS_PER_FRAME, MEL_BINS): as made, and as the codec returns it."""


def render(seed: int, split: Split, films: int, say: Say) -> Pairs:
    encoder = VisualEncoder(str(CHECKPOINTS / "clip"))
    codec = load_codec("log_mel_pca", path=str(CHECKPOINTS / "codec"))
    visual: list[Tensor] = []
    made: list[Tensor] = []
    coded: list[Tensor] = []
    for number in with_progress(range(films), "alignment: making films", "films", say):
        film = Film(WORLD, plan_film(WORLD, seed, split, number))
        visual.append(torch.from_numpy(frame_features(encoder, film)))
        wave = torch.from_numpy(film.sound(codec.audio_hz, stereo=False)[:, 0]).float()
        with torch.inference_mode():
            again = codec.decode(codec.encode(wave[None])[0])[0].numpy()
        for kept, sound in ((made, wave.numpy()), (coded, again)):
            cut = sound[: round(DURATION_S * codec.audio_hz)]
            kept.append(aligned_mels([resampled(cut, codec.audio_hz)], len(visual[0])))
    return Pairs(torch.stack(visual), torch.stack([torch.cat(made), torch.cat(coded)]))


def frame_features(encoder: VisualEncoder, film: Film) -> np.ndarray:
    """(T, D) of the film's frames at `FPS`."""
    return encoder.encode(film.frames([k / FPS for k in range(round(film.world.duration_s * FPS))]))


def train(folder: Path, *, seed: int, say: Say) -> dict[str, float]:
    """Train the classifier from scratch, save it to `folder` in bfloat16, and return its `held_out_scores`."""
    from safetensors.torch import save_file

    pairs = render(seed, "train", FILMS, say)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = AlignmentNetwork(pairs.visual.shape[-1])
        fit(network, pairs, steps=STEPS, seed=seed, say=say)
    save_file({name: one.bfloat16() for name, one in network.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"visual_dim": pairs.visual.shape[-1], "fps": FPS}, indent=1) + "\n")
    return held_out_scores(folder, seed=seed)


def fit(network: nn.Module, pairs: Pairs, *, steps: int, seed: int, say: Say) -> list[float]:
    """Minimise the cross-entropy for `steps` batches, half of whose pairs fit; the loss of each."""
    rng = np.random.default_rng(seed)

    def loss() -> Tensor:
        fitting = np.arange(PAIRS_PER_BATCH) < PAIRS_PER_BATCH // 2
        visual, mels = zip(*(_pair(pairs, fits, rng) for fits in fitting), strict=True)
        heard = torch.stack(mels) + torch.from_numpy(rng.uniform(-GAIN, GAIN, (len(mels), 1, 1))).float()
        logits = network(torch.stack(visual), heard)
        return binary_cross_entropy_with_logits(logits, torch.from_numpy(fitting).float())

    return optimise(
        network.parameters(), loss, steps=steps, learning_rate=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY,
        schedule=down_to_zero, counted=("alignment", PAIRS_PER_BATCH, "pairs"), say=say,
    )  # fmt: skip


def _pair(pairs: Pairs, fits: bool, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Picture and sound of a random film, or sound that does not fit it."""
    films, frames = pairs.visual.shape[:2]
    film, start = int(rng.integers(films)), int(rng.integers(frames))
    heard, late_s = film, 0.0
    if not fits and rng.random() < OTHER_FILM_SHARE:
        heard = int(rng.integers(films - 1))
        heard += heard >= film
    elif not fits:
        late_s = float(rng.choice([-1, 1]) * rng.uniform(*SHIFT_S))
    mels = pairs.mels[rng.integers(2), heard]
    return (
        pairs.visual[film].roll(start, 0),
        mels.roll(MELS_PER_FRAME * start + round(late_s * FPS * MELS_PER_FRAME), 0),
    )


@torch.inference_mode()
def held_out_scores(folder: Path, *, seed: int, films: int = 200) -> dict[str, float]:
    """Scores of the checkpoint on films that it was not trained on, their sounds as the codec returns them.

    aligned: share of clips judged aligned with their own sound. aligned_late_X: with their own sound X s late;
    aligned_other: with that of the next film. auc_*: area under the curve, own sound against that.
    """
    classifier, pairs = AlignmentClassifier(folder), render(seed, "test", films, lambda _: None)

    def judged(late_s: float = 0.0, heard: int = 0) -> np.ndarray:
        mels = pairs.mels[1].roll(-heard, 0).roll(round(late_s * FPS * MELS_PER_FRAME), 1)
        logits: np.ndarray = classifier.network(pairs.visual, mels).numpy()
        return logits

    own = judged()
    wrong = {f"late_{late_s:g}": judged(late_s) for late_s in (0.1, 0.2, 0.3, 0.5, 1.0)} | {"other": judged(heard=1)}
    scores = {"aligned": float((own > 0).mean())}
    for name, logits in wrong.items():
        scores[f"aligned_{name}"] = float((logits > 0).mean())
        truth = np.repeat([True, False], len(own))
        scores[f"auc_{name}"] = area_under_curve(np.concatenate([own, logits]), truth)
    return scores
