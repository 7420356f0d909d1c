"""Sound models of the study: their training, the sounds that they make for test films, and scores of those sounds.

The weights are kept as a network learns, so that more can be asked of it later.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowley.metrics.backbones import DURATION_S, FPS, AlignmentClassifier, Listener
from flowley.metrics.distances import frechet_distance, inception_score, kernel_distance, kl_divergence
from flowley.metrics.onsets import detect_onsets, onset_f1
from flowley.metrics.spectral import log_mel_correlation
from flowley.network.base import VelocityNetwork
from flowley.network.registry import load_network
from flowley.sampling.generator import sample_clips
from flowley.sampling.solvers import SampleSettings
from flowley.training.loop import train_network
from flowley.training.settings import Callback, StepReport, TrainExecution, TrainSettings
from miniature.language import NOISES
from miniature.models.training import CHECKPOINTS, Say
from miniature.study.claims import Reference, SoundModel
from miniature.study.film_dataset import FilmDataset, alignment_features, feature_dataset, open_codec
from pipelines.engine.fingerprint import digest
from pipelines.progress import human_time

KEEP_EVERY_STEPS = 100
BATCH_SIZE = 16
SAMPLING = SampleSettings(steps=12, guidance=2.0)


def train_networks(
    model: SoundModel, films: FilmDataset, captions: Sequence[str], work: Path, *, seed: int, say: Say
) -> dict[int, VelocityNetwork]:
    """Train on the train split, once; the network after every `KEEP_EVERY_STEPS` steps, by step."""
    config = model.config()
    settings = TrainSettings(
        steps=model.steps, batch_size=BATCH_SIZE, duration_s=films.world.duration_s, seed=seed, learning_rate=2e-3,
        warmup_steps=50, decay_steps=(int(0.8 * model.steps),), decay_factor=0.3,
    )  # fmt: skip
    execution = TrainExecution(
        log_every_steps=50, checkpoint_every_steps=KEEP_EVERY_STEPS, validate_every_steps=10**6, ema_snapshots=1
    )

    def make(folder: Path) -> None:
        dataset = feature_dataset(films, "train", captions, config, work)
        train_network(config, settings, execution, dataset, callbacks=[_Keeper(folder, say)])

    folder = films.make_once(
        work, "networks", make, models=["clip", "codec"], package="flowley", captions=digest(list(captions)),
        config=config, settings=settings, execution=execution,
    )  # fmt: skip
    return {step: load_network(folder / str(step)) for step in sorted(int(one.name) for one in folder.iterdir())}


class _Keeper(Callback):
    """Keeps the network of every checkpoint in a folder, without the optimiser's state, and says the progress."""

    def __init__(self, folder: Path, say: Say) -> None:
        self.folder, self.say = folder, say

    def on_report(self, report: StepReport) -> None:
        speed = f"{report.clips_per_s:.1f} clips/s, {human_time(report.seconds_left)} left"
        self.say(f"step {report.step}, loss {report.loss:.3f}, {speed}")

    def on_checkpoint(self, folder: Path | None, step: int) -> None:
        load_network(str(folder)).save_pretrained(self.folder / str(step))


def learning_curve(
    networks: dict[int, VelocityNetwork], films: FilmDataset, captions: Sequence[str], work: Path, say: Say
) -> list[dict[str, Any]]:
    """Scores of the test films' sounds by a network after so many steps: [{"steps", metric, ...}, ...]."""
    curve = []
    for step, network in networks.items():
        scores = score_sounds(_sounds(network, films, captions, work), films, work)
        say(f"step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
        curve.append({"steps": step, **scores})
    return curve


def _sounds(network: VelocityNetwork, films: FilmDataset, captions: Sequence[str], work: Path) -> list[np.ndarray]:
    """Sound that a network makes for every test film."""
    dataset, duration_s = feature_dataset(films, "test", captions, network.config, work), films.world.duration_s
    codec = open_codec()
    waves: list[np.ndarray] = []
    for first in range(0, len(dataset), BATCH_SIZE):
        rows = range(first, min(first + BATCH_SIZE, len(dataset)))
        clips = [dataset[row] for row in rows]
        waves.extend(sample_clips(network, codec, clips, duration_s=duration_s, seeds=rows, settings=SAMPLING).numpy())
    return waves


def reference_scores(films: FilmDataset, reference: Reference, work: Path) -> dict[str, float]:
    """Scores of sounds that no network made: the best that can be reached (`codec`), and chance (`another-film`)."""
    codec = open_codec()
    own = [film.sound(codec.audio_hz, stereo=False)[:, 0] for film in films.films("test")]
    if reference == "another-film":
        return score_sounds([*own[1:], own[0]], films, work)
    with torch.inference_mode():
        coded = [codec.decode(codec.encode(torch.from_numpy(wave)[None].float())[0])[0].numpy() for wave in own]
    return score_sounds(coded, films, work)


def score_sounds(generated: Sequence[np.ndarray], films: FilmDataset, work: Path) -> dict[str, float]:
    """Scores of one sound for each test film, at the codec's rate.

    onset_f1              events of the films that are seen and heard, against onsets of the generated sound, 0.1 s
    aligned               share that the classifier of alignment takes for in time with the picture
    log_mel_correlation   with the film's own sound
    fad, kad, kl, is      with the listener's embeddings and classes
    noise                 what of the listener's classes is music or narration, which no picture tells of

    Of films longer than the classifiers take, each whole span of `DURATION_S` is a clip of its own to them.
    """
    hz, made = open_codec().audio_hz, films.films("test")
    original = [film.sound(hz, stereo=False)[:, 0].astype(np.float32) for film in made]
    length = min(len(generated[0]), len(original[0]))
    generated, original = [g[:length] for g in generated], [o[:length] for o in original]
    onsets = [onset_f1(detect_onsets(g, hz), film.events_s) for g, film in zip(generated, made, strict=True)]
    alike = [log_mel_correlation(g, o, hz) for g, o in zip(generated, original, strict=True)]
    spans = [_spans(waves, round(DURATION_S * hz)) for waves in (generated, original)]
    seen = _spans(alignment_features(films, "test", work), round(DURATION_S * FPS))
    fits = AlignmentClassifier(CHECKPOINTS / "alignment").probabilities(np.stack(seen), spans[0], hz) > 0.5
    listener = Listener(CHECKPOINTS / "listener")
    embedded = [np.asarray(listener.embed(waves, hz), np.float64) for waves in spans]
    classes = [np.asarray(listener.probabilities(waves, hz), np.float64) for waves in spans]
    return {
        "onset_f1": float(np.mean(onsets)),
        "aligned": float(fits.mean()),
        "log_mel_correlation": float(np.mean(alike)),
        "fad": frechet_distance(*embedded),
        "kad": kernel_distance(*embedded, bandwidth_of="reference"),
        "kl": kl_divergence(classes[1], classes[0]),
        "is": inception_score(classes[0]),
        "noise": float(classes[0][:, [listener.classes.index(name) for name in NOISES]].sum(1).mean()),
    }


def _spans(series: Sequence[np.ndarray] | np.ndarray, length: int) -> list[np.ndarray]:
    """Spans of `length` cut from each series, without what is left over; a shorter series stays whole."""
    spans = []
    for one in series:
        count = max(1, int(len(one) / length + 0.05))  # a codec may give a few samples less than whole spans
        spans += [one[k * length : (k + 1) * length] for k in range(count)]
    return spans
