"""Workers of the stage `features`: encoders and codec inside an actor, one feature file for each batch."""

from __future__ import annotations

import io
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.checkpoints import open_codec
from pipelines.config import CodecConfig, FeaturesExecution
from pipelines.errors import one_line
from pipelines.stage import Failed
from pipelines.storage import Storage

FEATURES_VERSION = 2
"""Part of every feature row's key: raise it when the same inputs would give other features."""

PARTS_FOLDER = "features/parts"


@dataclass(frozen=True)
class GivenSync:
    """Synchronisation features that somebody else extracted: one array (frames or more, channels) for each clip."""

    folder: str
    channels: int
    frames: int

    def read(self, name: str) -> Any:
        """(L, C) float array. Raises ValueError for a file that holds something else, OSError where it is absent."""
        import numpy as np

        array = np.load(io.BytesIO(Storage(self.folder).read_bytes(name)), allow_pickle=False)
        fits = array.ndim == 2 and array.shape[0] >= self.frames and array.shape[1] == self.channels
        if not fits or not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
            raise ValueError(
                f"{name}: {array.dtype} of shape {array.shape}, wanted finite floats ({self.frames} or more, "
                f"{self.channels}): extract its synchronisation features again"
            )
        return array


@dataclass(frozen=True)
class AVWorker:
    """Picture and sound of clips: frames through the visual encoder, sound through the codec."""

    storage: Storage
    visual: str
    visual_revision: str | None
    visual_fps: float
    codec: CodecConfig
    sync: GivenSync | None
    execution: FeaturesExecution

    def __post_init__(self) -> None:
        from flowley.encoders import VisualEncoder

        encoder = VisualEncoder(
            self.visual,
            revision=self.visual_revision,
            dtype=self.execution.dtype,
            device=self.execution.device,
        )
        object.__setattr__(self, "encoder", encoder)
        object.__setattr__(self, "audio_codec", open_codec(self.codec, self.execution.device))

    def process(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any] | Failed]:
        from flowley.features import AVFeatures, write_av_features

        made = [self._encode(task) for task in tasks]
        good = [one for one in made if isinstance(one, AVFeatures)]
        return _placed(made, _write(self.storage, "av", lambda file: write_av_features(file, good)) if good else "")

    def _encode(self, task: Mapping[str, Any]) -> Any:
        import torch

        from flowley.features import AVFeatures
        from pipelines.media.errors import MediaError
        from pipelines.media.read import read_audio, read_frames

        codec = self.audio_codec  # type: ignore[attr-defined]
        try:
            with self.storage.local(task["video"]) as video:
                visual = self.encoder.encode(read_frames(video, self.visual_fps))  # type: ignore[attr-defined]
            with self.storage.local(task["audio"]) as file:
                wave = read_audio(file, codec.audio_hz)
            with torch.inference_mode():
                mean, std = codec.encode(torch.from_numpy(wave)[None].to(self.execution.device))
            sync = None if self.sync is None else self.sync.read(task["sync"])
            return AVFeatures(task["clip_id"], visual, mean[0].cpu().numpy(), std[0].cpu().numpy(), sync)
        except (MediaError, OSError, ValueError) as error:
            return Failed(type(error).__name__, one_line(error))


@dataclass(frozen=True)
class TextWorker:
    """Captions through the text encoder."""

    storage: Storage
    text: str
    text_revision: str | None
    max_tokens: int
    normalisation: str
    keep_padding: bool
    execution: FeaturesExecution

    def __post_init__(self) -> None:
        from flowley.encoders import TextEncoder

        encoder = TextEncoder(
            self.text,
            max_tokens=self.max_tokens,
            normalisation=self.normalisation,  # type: ignore[arg-type]
            keep_padding=self.keep_padding,
            revision=self.text_revision,
            dtype=self.execution.dtype,
            device=self.execution.device,
        )
        object.__setattr__(self, "encoder", encoder)

    def process(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any] | Failed]:
        from flowley.features import TextFeatures, write_text_features

        encoded = self.encoder.encode([task["caption"] for task in tasks])  # type: ignore[attr-defined]
        made = [
            TextFeatures(task["clip_id"], one.features, one.n_tokens) for task, one in zip(tasks, encoded, strict=True)
        ]
        file = _write(self.storage, "text", lambda path: write_text_features(path, made))
        placed = _placed(made, file)
        return [
            row if isinstance(row, Failed) else {**row, "tokens_cut": one.tokens_cut}
            for row, one in zip(placed, encoded, strict=True)
        ]


def _write(storage: Storage, kind: str, write: Callable[[Path], int]) -> str:
    """Writes one feature file and moves it into the storage. Returns its name there."""
    name = f"{PARTS_FOLDER}/{kind}-{uuid.uuid4().hex}.arrow"
    with tempfile.TemporaryDirectory(prefix="soundcap-features-") as folder:
        path = Path(folder) / "part.arrow"
        write(path)
        storage.upload(path, name)
    return name


def _placed(made: list[Any], file: str) -> list[dict[str, Any] | Failed]:
    """Where each row that was made lies in the file: failed ones take no place."""
    rows: list[dict[str, Any] | Failed] = []
    place = 0
    for one in made:
        if isinstance(one, Failed):
            rows.append(one)
        else:
            rows.append({"file": file, "row": place})
            place += 1
    return rows
