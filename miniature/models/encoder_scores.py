"""Evaluation of the frozen encoders on held-out films: retrieval and linear probes, beside random weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch.nn.functional import normalize

from flowley.features.encoders import VisualEncoder
from miniature.models.frames import Frames, evenly, fits, full_sentence, render
from miniature.models.tiny import build_tiny_clip
from miniature.models.training import area_under_curve
from miniature.world.objects import OBJECTS, since

FPS = 8.0
"""Rate of the frames that probes see, as the networks of the study do."""
EVENT_WINDOW_S = 0.08
RETRIEVED = 500
FIRST_PROBE_FILM = 1_000_000
"""Number in the training split, far beyond those that the encoders are trained on."""


def held_out_scores(folder: Path, *, seed: int, films: int = 200) -> dict[str, float]:
    """Scores of the checkpoint on test films; probes are fitted on as many unseen films of the training split.

    retrieval: share of frames whose best of many full sentences is true of them; text_retrieval the other way.
    last_80ms, next_80ms: area under the curve for "the object sounded within the last 80 ms" (or will within the
    next) from one frame, mean over the kinds. between: the same for "it sounded between two frames at 8 fps" from
    both frames. kinds: share of frames whose set of objects is right. random_*: of the tower of `build_tiny_clip`.
    """
    at = partial(evenly, fps=FPS)
    fitted = render(seed, "train", range(FIRST_PROBE_FILM, FIRST_PROBE_FILM + films), at, lambda _: None)
    tested = render(seed, "test", range(films), at, lambda _: None)
    scores = _retrieval(folder, tested) | _probes(folder, fitted, tested)
    with TemporaryDirectory() as random_folder:
        build_tiny_clip(random_folder, seed=0)
        scores |= {f"random_{name}": value for name, value in _probes(Path(random_folder), fitted, tested).items()}
    return scores


@torch.inference_mode()
def _retrieval(folder: Path, frames: Frames) -> dict[str, float]:
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    truths = [now for of_film in frames.truths for now in of_film]
    chosen = np.linspace(0, len(truths) - 1, min(RETRIEVED, len(truths))).astype(int)
    truths = [truths[k] for k in chosen]
    sentences = [full_sentence(now) for now in truths]
    inputs = tokenizer([one.text for one in sentences], padding=True, return_tensors="pt")
    text = model.get_text_features(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
    text = normalize(getattr(text, "pooler_output", text), dim=-1).numpy()
    similar, fit = _features(folder, frames).reshape(-1, text.shape[1])[chosen] @ text.T, fits(truths, sentences)
    index = np.arange(len(truths))
    return {
        "retrieval": float(fit[index, similar.argmax(1)].mean()),
        "text_retrieval": float(fit[similar.argmax(0), index].mean()),
    }


def _features(folder: Path, frames: Frames) -> np.ndarray:
    """(films, frames, D), through the loader that the project uses."""
    encoded = VisualEncoder(str(folder)).encode(frames.pixels.reshape(-1, *frames.pixels.shape[2:]))
    return encoded.reshape(*frames.times_s.shape, -1)


def _probes(folder: Path, fitted: Frames, tested: Frames) -> dict[str, float]:
    x, evaluated = _features(folder, fitted), _features(folder, tested)
    kinds = ridge(_flat(x), _kinds(fitted), _flat(evaluated)) > 0.5
    scores = {"kinds": float((kinds == (_kinds(tested) > 0.5)).all(axis=1).mean())}
    probes = (("last_80ms", _flat, 0), ("next_80ms", _flat, 0), ("between", _pairs, 1))  # name, inputs, first frame
    of_kind: dict[str, list[float]] = {name: [] for name, _, _ in probes}
    for kind in OBJECTS:
        moving, moving_too = _moving(fitted, kind), _moving(tested, kind)
        truth, truth_too = _events(fitted, kind)[:, moving], _events(tested, kind)[:, moving_too]
        for k, (name, inputs, first) in enumerate(probes):
            targets = truth[k, :, first:].reshape(-1, 1)
            values = ridge(inputs(x[moving]), targets, inputs(evaluated[moving_too]))[:, 0]
            of_kind[name].append(area_under_curve(values, truth_too[k, :, first:].ravel() > 0))
    for name, values_of in of_kind.items():
        scores[name] = float(np.mean(values_of))
        scores |= {f"{name}_{kind}": value for kind, value in zip(OBJECTS, values_of, strict=True)}
    return scores


def _kinds(frames: Frames) -> np.ndarray:
    """(frames of all films, kinds): 1 where the kind is seen."""
    seen = [[kind in {one.kind for one in film.plan.seen} for kind in OBJECTS] for film in frames.films]
    return np.repeat(np.array(seen, dtype=float), frames.times_s.shape[1], axis=0)


def _moving(frames: Frames, kind: str) -> np.ndarray:
    """(films,) bool: True where the kind is seen in motion."""
    return np.array([any(one.kind == kind and film.plan.moves(one) for one in film.plan.seen) for film in frames.films])


def _events(frames: Frames, kind: str) -> np.ndarray:
    """(3, films, frames): 1 where it sounded within the last window, will in the next, did since the frame before."""
    found = np.zeros((3, *frames.times_s.shape))
    for k, film in enumerate(frames.films):
        of_kind = [what for one, what in zip(film.plan.seen, film.objects, strict=True) if one.kind == kind]
        for n, t_s in enumerate(frames.times_s[k] if of_kind else ()):
            before, after = since(of_kind[0].times, float(t_s))
            found[:, k, n] = before < EVENT_WINDOW_S, after < EVENT_WINDOW_S, before < 1 / FPS
    return found


def _flat(features: np.ndarray) -> np.ndarray:
    return features.reshape(-1, features.shape[-1])


def _pairs(features: np.ndarray) -> np.ndarray:
    """Two neighbouring frames and how far each channel moved, for a linear probe cannot tell a change by itself."""
    before, now = features[:, :-1], features[:, 1:]
    return _flat(np.concatenate([before, now, np.abs(now - before)], axis=-1))


def ridge(features: np.ndarray, targets: np.ndarray, evaluated: np.ndarray, *, penalty: float = 1e-2) -> np.ndarray:
    """Ridge regression with an offset of targets (N, K) on features (N, D); its values (M, K) at `evaluated` (M, D).

    The penalty is in units of the features' variance per sample, so that encoders of any scale are probed alike.
    """
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
    x, y = (features - mean) / scale, targets - targets.mean(axis=0)
    weights = np.linalg.solve(x.T @ x + penalty * len(x) * np.eye(x.shape[1]), x.T @ y)
    return np.asarray((evaluated - mean) / scale @ weights + targets.mean(axis=0))
