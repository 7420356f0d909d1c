"""Train a small sound model on films, let it sound the test films, and score that as it learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from flowley.config import NetworkConfig
from flowley.dataset import Entry, FeatureDataset, Row, collate
from flowley.encoders import TextEncoder
from flowley.generator import make_sounds
from flowley.metrics.frechet import frechet_distance
from flowley.metrics.kernel import kernel_distance
from flowley.metrics.onsets import detect_onsets, onset_f1
from flowley.metrics.spectral import log_mel_correlation
from flowley.presets import preset
from flowley.registry import load_network
from flowley.sample import SampleSettings
from flowley.settings import StepReport, TrainExecution, TrainSettings
from flowley.train import train
from pipelines.miniature.models.listener import Listener
from pipelines.miniature.study.films import CHECKPOINTS, ENCODER, Films, av_file, open_codec, text_file
from pipelines.miniature.world.film import Film, Split
from pipelines.progress import human_time

STEPS, SCORE_EVERY_STEPS = 400, 100
BATCH_SIZE = 16
SAMPLING = SampleSettings(steps=12, guidance=2.0)
TOLERANCE_S = 0.1
Reference = Literal["codec", "another-film"]


@dataclass(frozen=True, slots=True)
class SoundModel:
    """A network to train, and how long."""

    preset: str = "tiny"
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of the preset that differ."""
    steps: int = STEPS

    def config(self) -> NetworkConfig:
        """The network."""
        return preset(self.preset, **self.changes)


def train_and_score(
    model: SoundModel, films: Films, captions: dict[Split, Sequence[str]], work: Path, *, seed: int,
    say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Scores of the test films after every `SCORE_EVERY_STEPS` steps: {"curve": [{"steps", metric, ...}, ...]}."""
    config, duration_s = model.config(), films.world.duration_s
    settings = TrainSettings(
        steps=model.steps, batch_size=BATCH_SIZE, duration_s=duration_s, seed=seed, learning_rate=2e-3,
        warmup_steps=50, decay_steps=(int(0.8 * model.steps),), decay_factor=0.3,
    )  # fmt: skip
    execution = TrainExecution(
        log_every_steps=50, checkpoint_every_steps=SCORE_EVERY_STEPS, validate_every_steps=10**6, ema_snapshots=1
    )
    datasets = {split: _dataset(films, split, captions[split], config, work) for split in ("train", "test")}
    curve: list[dict[str, float]] = []

    def on_checkpoint(folder: Path | None, step: int) -> None:
        assert folder is not None
        scores = score_sounds(_sounds(folder, datasets["test"], duration_s), films)
        say(f"step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
        curve.append({"steps": step, **scores})

    def on_step(report: StepReport) -> None:
        speed = f"{report.clips_per_s:.1f} clips/s, {human_time(report.seconds_left)} left"
        say(f"step {report.step}, loss {report.loss:.3f}, {speed}")

    train(
        config, settings, execution, datasets["train"],
        on_step=on_step, on_checkpoint=on_checkpoint,
    )  # fmt: skip
    return {"curve": curve}


def _dataset(films: Films, split: Split, captions: Sequence[str], config: NetworkConfig, work: Path) -> FeatureDataset:
    av = av_file(films, split, work, r_v=float(config.r_v), sync=config.sync_dim > 0)
    text = text_file(captions, films, split, work, max_tokens=min(77, config.max_text_tokens))
    names = films.ids(split)
    entries = [Entry(name, Row(str(av), row), Row(str(text), row)) for row, name in enumerate(names)]
    null_text = None
    if config.null_text == "empty_caption":
        [empty] = TextEncoder(ENCODER, max_tokens=77).encode([""])
        null_text = empty.features
    return FeatureDataset(entries, null_text=null_text)


def reference_scores(films: Films, reference: Reference) -> dict[str, float]:
    """Scores of sound that no network made: what is the best that can be reached, and what is chance.

    codec: the films' own sound through the codec. another-film: the own sound of the next film.
    """
    codec = open_codec()
    own = [Film(films.world, plan).sound(codec.audio_hz, stereo=False)[:, 0] for plan in films.plans("test")]
    if reference == "another-film":
        return score_sounds([*own[1:], own[0]], films)
    with torch.inference_mode():
        coded = [codec.decode(codec.encode(torch.from_numpy(wave)[None].float())[0])[0].numpy() for wave in own]
    return score_sounds(coded, films)


def score_sounds(generated: Sequence[np.ndarray], films: Films) -> dict[str, float]:
    """Scores of one sound for each test film, at the codec's rate.

    onset_f1              events of the films that are seen and heard, against onsets of the generated sound, 0.1 s
    log_mel_correlation   with the film's own sound
    fad, kad, kl, is      with the listener's embeddings and classes
    """
    codec, listener = open_codec(), Listener(CHECKPOINTS / "listener")
    hz = codec.audio_hz
    made = [Film(films.world, plan) for plan in films.plans("test")]
    original = [film.sound(hz, stereo=False)[:, 0].astype(np.float32) for film in made]
    length = min(len(generated[0]), len(original[0]))
    generated, original = [g[:length] for g in generated], [o[:length] for o in original]
    both = generated, original
    embedded = [np.asarray(listener.embed(waves, hz), np.float64) for waves in both]
    classes = [np.asarray(listener.probabilities(waves, hz), np.float64) for waves in both]
    onsets = [
        onset_f1(detect_onsets(g, hz), _events_s(film), tolerance_s=TOLERANCE_S)
        for g, film in zip(generated, made, strict=True)
    ]
    alike = [log_mel_correlation(g, o, hz) for g, o in zip(generated, original, strict=True)]
    return {
        "onset_f1": float(np.mean(onsets)),
        "log_mel_correlation": float(np.mean(alike)),
        "fad": frechet_distance(*embedded),
        "kad": kernel_distance(*embedded, bandwidth_of="reference"),
        "kl": kl_divergence(classes[1], classes[0]),
        "is": inception_score(classes[0]),
    }


def _events_s(film: Film) -> np.ndarray:
    """Times at which something is seen and heard in a film."""
    heard = [what.times for one, what in zip(film.plan.seen, film.objects, strict=True) if one.heard]
    return np.unique(np.concatenate([np.asarray(times, float) for times in heard]))


def _sounds(checkpoint: Path, dataset: FeatureDataset, duration_s: float) -> list[np.ndarray]:
    """What a checkpoint makes of every clip of a dataset."""
    network, codec = load_network(checkpoint).eval(), open_codec()
    config = network.config
    L_aud, L_vis = config.lengths(duration_s)
    waves: list[np.ndarray] = []
    for first in range(0, len(dataset), BATCH_SIZE):
        rows = range(first, min(first + BATCH_SIZE, len(dataset)))
        batch = collate(
            [dataset[row] for row in rows], L_aud=L_aud, L_vis=L_vis, L_txt=None, L_sync=config.sync_length(duration_s)
        ).to(torch.device("cpu"))
        made: Tensor = make_sounds(network, codec, batch.conditions, L_aud=L_aud, seeds=list(rows), settings=SAMPLING)
        waves += list(made.numpy())
    return waves


def kl_divergence(original: np.ndarray, generated: np.ndarray) -> float:
    """Mean KL(original || generated) of class probabilities (N, K), pair by pair, in nats."""
    p, q = (np.clip(classes, 1e-9, None) for classes in (original, generated))
    return float((p * np.log(p / q)).sum(1).mean())


def inception_score(classes: np.ndarray) -> float:
    """exp of the mean KL(p(y | x) || p(y)) of class probabilities (N, K): 1 to K, more is clearer and more varied."""
    p = np.clip(classes, 1e-9, None)
    return float(np.exp((p * np.log(p / p.mean(0))).sum(1).mean()))
