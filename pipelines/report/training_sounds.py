"""Sounds that a training drew for the same clips over its steps, ready for the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.engine.storage import Storage
from pipelines.engine.store import Output
from pipelines.errors import one_line
from pipelines.media.faults import MediaError
from pipelines.media.read import read_audio
from pipelines.report.figures import data_uri, sound_player, spectrograms
from pipelines.stages.flowley import SOUND_CLIPS, SOUNDS_FOLDER

MAX_STEPS = 6
"""Steps shown of each clip, the first and the last among them; each weighs some 120 KB."""
SPECTROGRAM_HZ = 16_000


@dataclass(frozen=True)
class TrainingSound:
    """A clip's sound after some steps; `uri` and `picture` are `data:` URIs, or `problem` says why there are none."""

    step: int
    uri: str = ""
    picture: str = ""
    problem: str = ""


def training_sounds(storage: Storage, outputs: Mapping[str, Output]) -> list[tuple[str, list[TrainingSound]]]:
    """(clip id, its sounds by step) of the last Flowley training; empty where it drew none."""
    if "flowley" not in outputs:
        return []
    folder = outputs["flowley"].name(SOUNDS_FOLDER)
    if not storage.exists(f"{folder}/{SOUND_CLIPS}"):
        return []
    files = [info.name for info in storage.files(folder) if info.name.endswith(".flac")]
    steps = evenly(sorted({int(Path(name).stem.split("-")[0]) for name in files}), MAX_STEPS)
    return [
        (clip_id, _clip(storage, folder, number, steps))
        for number, clip_id in enumerate(storage.read_json(f"{folder}/{SOUND_CLIPS}"))
    ]


def evenly(steps: list[int], limit: int) -> list[int]:
    """Up to `limit` of the steps, evenly, with the first and the last."""
    if len(steps) <= limit:
        return steps
    return [steps[round(k * (len(steps) - 1) / (limit - 1))] for k in range(limit)]


def _clip(storage: Storage, folder: str, number: int, steps: list[int]) -> list[TrainingSound]:
    """One clip's sounds, their spectrograms on one scale."""
    uris, waves, sounds = {}, {}, {}
    for step in steps:
        try:
            with storage.local(f"{folder}/{step:08d}-{number}.flac") as file:
                uris[step], waves[step] = sound_player(file), read_audio(file, SPECTROGRAM_HZ)
        except (MediaError, OSError) as error:
            sounds[step] = TrainingSound(step, problem=one_line(error))
    pictures = spectrograms(list(waves.values()), SPECTROGRAM_HZ) if waves else []
    for (step, uri), picture in zip(uris.items(), pictures, strict=True):
        sounds[step] = TrainingSound(step, uri, data_uri("image/png", picture))
    return [sounds[step] for step in steps]
