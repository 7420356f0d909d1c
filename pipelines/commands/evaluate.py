"""Evaluation of generated sound against originals paired by file name: implementation of `flowley evaluate`."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np

from flowley.metrics import score
from pipelines.errors import UserError, one_line
from pipelines.media.clip import NormaliserSettings
from pipelines.media.faults import MediaError
from pipelines.media.normalise import normalise
from pipelines.media.probe import measured, open_source, probe
from pipelines.media.process import Deadline
from pipelines.media.read import decode_sound, read_audio
from pipelines.media.videos import DEADLINE_S, picture_duration_s
from pipelines.scratch import scratch

CLOCK_FPS = 25
"""Frame rate of the compared sound's duration: whole frames from the first picture on, as in clips."""


def evaluate(generated: Path, original: Path, *, hz: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Scores of `flowley.metrics.score`, with the clips' names.

    `generated` and `original` are two files, or two folders of videos or sound files that are paired by stem.
    A longer original is truncated to the generated sound. Raises UserError.
    """
    pairs = _pairs(generated, original, say)
    names = list(pairs)
    ones, others = tee(_waves(pairs.values(), hz))  # read as they are scored
    try:
        scores = score((one for one, _ in ones), (other for _, other in others), hz)
    except ValueError as error:
        named = re.sub(r"^clip (\d+)", lambda found: f"clip {names[int(found.group(1))]!r}", str(error))
        raise UserError(named) from error
    return {"clips": names, **scores.to_dict()}


def _waves(pairs: Iterable[tuple[Path, Path]], hz: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Waveforms of generated sounds and of their originals, truncated to them. Raises UserError."""
    for generated, original in pairs:
        try:
            wave = read_sound(generated, hz)
            yield wave, read_sound(original, hz)[: len(wave)]
        except (MediaError, OSError) as error:
            raise UserError(one_line(error)) from error


def read_sound(file: Path, hz: int) -> np.ndarray:
    """Mono waveform (N,) float32 of a sound file, or of a video from its first picture on. Raises MediaError."""
    deadline = Deadline(DEADLINE_S)
    if probe(file, deadline).video is None:
        return decode_sound(file, hz, deadline)
    source = measured(open_source(file, deadline), deadline)
    frames = max(1, math.floor(picture_duration_s(source, deadline) * CLOCK_FPS + 1e-6))
    settings = NormaliserSettings(duration_s=frames / CLOCK_FPS, fps=CLOCK_FPS)
    with scratch("evaluate") as folder:
        sound = folder / "sound.flac"
        normalise(source, None, sound, settings, deadline=deadline)
        return read_audio(sound, hz)


def _pairs(generated: Path, original: Path, say: Callable[[str], None]) -> dict[str, tuple[Path, Path]]:
    if generated.is_file() and original.is_file():
        return {generated.stem: (generated, original)}
    ours, theirs = _by_stem(generated, "GENERATED"), _by_stem(original, "ORIGINAL")
    alone = sorted(set(ours) - set(theirs))
    if alone:
        raise UserError(f"{len(alone)} generated files have no original of their name: {', '.join(alone[:5])}")
    if len(theirs) > len(ours):
        say(f"{len(theirs) - len(ours)} originals have nothing generated and are left out")
    return {stem: (ours[stem], theirs[stem]) for stem in sorted(ours)}


def _by_stem(folder: Path, what: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{what} {folder}: wanted two files, or two folders with files of the same names")
    files = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))
    doubled = sorted(stem for stem, count in Counter(f.stem for f in files).items() if count > 1)
    if doubled:
        raise UserError(f"{what} {folder}: several files are named {', '.join(doubled[:5])}; keep one of each")
    if not files:
        raise UserError(f"{what} {folder}: no files; wanted videos or sound files")
    return {f.stem: f for f in files}
