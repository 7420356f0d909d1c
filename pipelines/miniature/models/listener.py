"""A listener for distances between sets of sounds: which of the world's sounds a clip holds, and an embedding of it.

A clip holds several sounds. The target is a distribution, uniform over those that are heard, and the loss its
cross-entropy: then the softmax is an estimate of what the clip is made of, which KL compares between clips and whose
entropy IS needs. Labels one by one (sigmoids) would give no distribution, and a softmax over their logits would depend
on how sure the network is more than on what the clip holds; this was not tried. Silence
is given the uniform distribution over all, so that a generator that makes nothing is not taken for one that makes
something definite. The penultimate layer, which must hold every kind linearly, serves FAD and KAD.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from pipelines.miniature.language import noises
from pipelines.miniature.models.scoring import average_precision
from pipelines.miniature.models.training import descend, down_to_zero
from pipelines.miniature.world.film import Film, FilmPlan, Split, World, plan_film
from pipelines.miniature.world.objects import OBJECTS
from pipelines.miniature.world.places import OFF_SCREEN
from pipelines.progress import Progress

CLASSES = (*OBJECTS, *OFF_SCREEN, "music", "narration")
HZ, DURATION_S = 16_000, 4.0
MEL_BINS, PATCH, FRAMES_PER_S = 64, 16, 100
HIDDEN, LAYERS = 96, 3

CLIPS, CLIPS_PER_BATCH, STEPS = 3000, 64, 900
PEAK_LEARNING_RATE, WEIGHT_DECAY = 1.5e-3, 0.05
SILENT_EVERY = 20
"""Each so manieth clip of the training holds nothing but the noise of a quiet room."""
GAIN_DB = 8.0
MASKED_BINS, MASKED_FRAMES = 12, 48


class Listener:
    """The checkpoint in `folder`, for mono clips of up to `DURATION_S` at any sampling rate."""

    def __init__(self, folder: str | Path) -> None:
        from transformers import ASTFeatureExtractor, ASTForAudioClassification

        self.extractor = ASTFeatureExtractor.from_pretrained(folder)
        self.model = ASTForAudioClassification.from_pretrained(folder, dtype=torch.float32).eval()
        self.classes = tuple(self.model.config.id2label[k] for k in range(self.model.config.num_labels))

    def embed(self, waves: Sequence[np.ndarray], hz: int, *, batch_size: int = 64) -> np.ndarray:
        """Waveforms (N_i,) -> (clips, HIDDEN) float32, the penultimate layer.

        Raises ValueError for no clips, or one that is empty, not mono or longer than `DURATION_S`.
        """
        return np.concatenate([pooled.numpy() for pooled, _ in self._outputs(waves, hz, batch_size)])

    def probabilities(self, waves: Sequence[np.ndarray], hz: int, *, batch_size: int = 64) -> np.ndarray:
        """Waveforms (N_i,) -> (clips, classes) float32, each row a distribution over `classes`. Raises as `embed`."""
        return np.concatenate([softmax(logits, dim=-1).numpy() for _, logits in self._outputs(waves, hz, batch_size)])

    @torch.inference_mode()
    def _outputs(self, waves: Sequence[np.ndarray], hz: int, batch_size: int) -> Iterable[tuple[Tensor, Tensor]]:
        if len(waves) == 0:
            raise ValueError("no clips to listen to: wanted at least one")
        for start in range(0, len(waves), batch_size):
            x = log_mels(self.extractor, [resampled(wave, hz) for wave in waves[start : start + batch_size]])
            pooled = self.model.audio_spectrogram_transformer(x).pooler_output
            yield pooled, self.model.classifier(pooled)


def resampled(wave: np.ndarray, hz: int) -> np.ndarray:
    """(N,) at hz -> (M,) float32 at HZ. Raises ValueError if it is empty, not mono or longer than `DURATION_S`."""
    from torchaudio.functional import resample

    if wave.ndim != 1 or not 0 < len(wave) <= 1.01 * DURATION_S * hz:
        raise ValueError(f"a clip of shape {wave.shape} at {hz} Hz, wanted mono (N,) of at most {DURATION_S:g} s")
    samples: np.ndarray = resample(torch.from_numpy(wave.astype(np.float32)), hz, HZ).numpy()
    return samples


def log_mels(extractor: Any, waves: Sequence[np.ndarray]) -> Tensor:
    """Waveforms at HZ -> (clips, frames, MEL_BINS), normalised as the extractor says."""
    mels: Tensor = extractor(list(waves), sampling_rate=HZ, return_tensors="pt")["input_values"]
    return mels


@dataclass(frozen=True)
class Clips:
    """Sounds of films, and what they hold."""

    plans: list[FilmPlan]
    mels: Tensor
    """(clips, frames, MEL_BINS)."""
    targets: Tensor
    """(clips, classes): distributions."""


def train(folder: Path, *, seed: int, say: Callable[[str], None]) -> dict[str, float]:
    """Train the listener from scratch, save it to `folder` in bfloat16, and return its `held_out_scores`."""
    world = World(odd_place=0.5, music=0.35, narration=0.35)  # a place must not tell what is heard there
    plans = [plan_film(world, seed, "train", number) for number in range(CLIPS)]
    plans = [_silent(plan) if number % SILENT_EVERY == 0 else plan for number, plan in enumerate(plans)]
    extractor = build_extractor()
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
    """(classes,) bool: what the film lets hear."""
    kinds = {*plan.sounding, plan.off_screen, *noises(plan)}
    return np.array([kind in kinds for kind in CLASSES])


def render(world: World, plans: Sequence[FilmPlan], extractor: Any, say: Callable[[str], None]) -> Clips:
    """The sound of each film, as the network sees it."""
    progress = Progress("listener: making sounds", len(plans), "clips", say)
    mels = []
    for plan in plans:
        mels.append(log_mels(extractor, [sound_of(world, plan)]))
        progress.advance(1)
    progress.finish()
    targets = np.stack([present / present.sum() if present.any() else np.full(len(CLASSES), 1 / len(CLASSES))
                        for present in map(heard, plans)])  # fmt: skip
    return Clips(list(plans), torch.cat(mels), torch.from_numpy(targets).float())


def sound_of(world: World, plan: FilmPlan) -> np.ndarray:
    """(N,) float32 at HZ."""
    return Film(world, plan).sound(HZ, stereo=False)[:, 0].astype(np.float32)


def build_extractor() -> Any:
    """Log-mel bands; mean and standard deviation are those of the world's sounds."""
    from transformers import ASTFeatureExtractor

    return ASTFeatureExtractor(
        sampling_rate=HZ, num_mel_bins=MEL_BINS, max_length=round(DURATION_S * FRAMES_PER_S), mean=-4.8, std=3.6
    )


def build_model() -> Any:
    """An audio spectrogram transformer with random weights, its patches side by side."""
    from transformers import ASTConfig, ASTForAudioClassification

    config = ASTConfig(
        hidden_size=HIDDEN, intermediate_size=3 * HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_mel_bins=MEL_BINS, max_length=round(DURATION_S * FRAMES_PER_S), patch_size=PATCH, frequency_stride=PATCH,
        time_stride=PATCH, id2label=dict(enumerate(CLASSES)), label2id={name: k for k, name in enumerate(CLASSES)},
    )  # fmt: skip
    return ASTForAudioClassification(config)


def fit(model: Any, clips: Clips, *, steps: int, seed: int, say: Callable[[str], None]) -> list[float]:
    """Minimise the cross-entropy for `steps` batches; the loss of each."""
    rng, std = np.random.default_rng(seed), build_extractor().std

    def loss() -> Tensor:
        index = rng.choice(len(clips.mels), CLIPS_PER_BATCH, replace=len(clips.mels) < CLIPS_PER_BATCH)
        logits = model(_varied(clips.mels[index], rng, std)).logits
        return -(clips.targets[index] * log_softmax(logits, dim=-1)).sum(-1).mean()

    progress = Progress("listener: training", steps * CLIPS_PER_BATCH, "clips", say)
    return descend(
        model.parameters(), loss, steps=steps, learning_rate=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY,
        schedule=down_to_zero, progress=progress, batch_size=CLIPS_PER_BATCH,
    )  # fmt: skip


def _varied(mels: Tensor, rng: np.random.Generator, std: float) -> Tensor:
    """Louder or softer, from another moment on, and with a band and a span of time blotted out."""
    x = mels.clone()
    for one in x:
        one.copy_(one.roll(int(rng.integers(len(one))), dims=0))
        # A gain adds to the logarithm of the power, of which the extractor takes half a standard deviation as 1.
        one += rng.uniform(-GAIN_DB, GAIN_DB) * np.log(10) / 10 / (2 * std)
        low, first = rng.integers(MEL_BINS - MASKED_BINS), rng.integers(len(one) - MASKED_FRAMES)
        one[:, low : low + rng.integers(MASKED_BINS)] = 0
        one[first : first + rng.integers(MASKED_FRAMES)] = 0
    return x


def held_out_scores(folder: Path, *, seed: int, clips: int = 400, split: Split = "test") -> dict[str, float]:
    """Scores of the checkpoint on films of the usual world that it was not trained on.

    ap_*: average precision of each class, and their mean. top1: share of the clips with one object in which it is the
    likeliest object. top1_any: share of all clips whose likeliest class is heard. entropy: of the distributions, nats.
    """
    world, listener = World(), Listener(folder)
    plans = [plan_film(world, seed, split, number) for number in range(clips)]
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
