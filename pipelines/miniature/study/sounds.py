"""Let networks sound films that they were not trained on, and score that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from flowley.dataset import collate
from flowley.generator import make_sounds
from flowley.metrics.frechet import frechet_distance
from flowley.metrics.kernel import kernel_distance
from flowley.metrics.onsets import detect_onsets, onset_f1
from flowley.metrics.spectral import log_mel_correlation
from flowley.network import VelocityNetwork
from flowley.sample import SampleSettings
from pipelines.miniature.language import NOISES
from pipelines.miniature.models.alignment import FPS, AlignmentClassifier
from pipelines.miniature.models.listener import DURATION_S, Listener
from pipelines.miniature.study.films import CHECKPOINTS, Films, open_codec, seen_by_judge
from pipelines.miniature.study.networks import BATCH_SIZE, feature_dataset
from pipelines.miniature.world.film import Film

SAMPLING = SampleSettings(steps=12, guidance=2.0)
TOLERANCE_S = 0.1
Reference = Literal["codec", "another-film"]


def learning_curve(
    networks: dict[int, VelocityNetwork], films: Films, captions: Sequence[str], work: Path, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Scores of the test films' sounds by a network after so many steps: [{"steps", metric, ...}, ...]."""
    curve = []
    for step, network in networks.items():
        scores = score_sounds(_sounds(network, films, captions, work), films, work)
        say(f"step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
        curve.append({"steps": step, **scores})
    return curve


def _sounds(network: VelocityNetwork, films: Films, captions: Sequence[str], work: Path) -> list[np.ndarray]:
    """What a network makes of every test film."""
    config, duration_s, codec = network.config, films.world.duration_s, open_codec()
    dataset = feature_dataset(films, "test", captions, config, work)
    L_aud, L_vis = config.lengths(duration_s)
    waves: list[np.ndarray] = []
    for first in range(0, len(dataset), BATCH_SIZE):
        rows = range(first, min(first + BATCH_SIZE, len(dataset)))
        batch = collate(
            [dataset[row] for row in rows], L_aud=L_aud, L_vis=L_vis, L_txt=None, L_sync=config.sync_length(duration_s)
        ).to(torch.device("cpu"))
        made = make_sounds(network, codec, batch.conditions, L_aud=L_aud, seeds=list(rows), settings=SAMPLING)
        waves += list(made.numpy())
    return waves


def reference_scores(films: Films, reference: Reference, work: Path) -> dict[str, float]:
    """Scores of sound that no network made: what is the best that can be reached, and what is chance.

    codec: the films' own sound through the codec. another-film: the own sound of the next film.
    """
    codec = open_codec()
    own = [film.sound(codec.audio_hz, stereo=False)[:, 0] for film in films.films("test")]
    if reference == "another-film":
        return score_sounds([*own[1:], own[0]], films, work)
    with torch.inference_mode():
        coded = [codec.decode(codec.encode(torch.from_numpy(wave)[None].float())[0])[0].numpy() for wave in own]
    return score_sounds(coded, films, work)


def score_sounds(generated: Sequence[np.ndarray], films: Films, work: Path) -> dict[str, float]:
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
    onsets = [
        onset_f1(detect_onsets(g, hz), _events_s(film), tolerance_s=TOLERANCE_S)
        for g, film in zip(generated, made, strict=True)
    ]
    alike = [log_mel_correlation(g, o, hz) for g, o in zip(generated, original, strict=True)]
    spans = [_spans(waves, round(DURATION_S * hz)) for waves in (generated, original)]
    seen = _spans(seen_by_judge(films, "test", work), round(DURATION_S * FPS))
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
    """Each series cut to spans of `length`, of a rest less than that none; a shorter one stays whole."""
    spans = []
    for one in series:
        count = max(1, int(len(one) / length + 0.05))  # a codec may give a few samples less than whole spans
        spans += [one[k * length : (k + 1) * length] for k in range(count)]
    return spans


def _events_s(film: Film) -> np.ndarray:
    """Times at which something is seen and heard in a film."""
    heard = [what.times for one, what in zip(film.plan.seen, film.objects, strict=True) if one.heard]
    return np.unique(np.concatenate([np.asarray(times, float) for times in heard]))


def kl_divergence(original: np.ndarray, generated: np.ndarray) -> float:
    """Mean KL(original || generated) of class probabilities (N, K), pair by pair, in nats."""
    p, q = (np.clip(classes, 1e-9, None) for classes in (original, generated))
    return float((p * np.log(p / q)).sum(1).mean())


def inception_score(classes: np.ndarray) -> float:
    """exp of the mean KL(p(y | x) || p(y)) of class probabilities (N, K): 1 to K, more is clearer and more varied."""
    p = np.clip(classes, 1e-9, None)
    return float(np.exp((p * np.log(p / p.mean(0))).sum(1).mean()))
