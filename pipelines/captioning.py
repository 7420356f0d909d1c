"""What `captions` and `silent_captions` share: clips in, one caption each, by an engine inside an actor."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipelines.config import EngineExecution, FramesConfig, SamplingConfig
from pipelines.errors import one_line
from pipelines.stage import Failed
from pipelines.storage import Storage

if TYPE_CHECKING:
    from soundcap.request import CaptionRequest

CAPTIONER_VERSION = 1
"""Part of every caption's key: raise it when the same inputs would be shown to the model another way."""

AUDIO_HZ = 16_000

CAPTION_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("caption", pa.string()),
        ("prompt", pa.string()),
    ]
)


@dataclass(frozen=True)
class CaptionWorker:
    """Reads clips and captions them. `adapter` is the storage name of a LoRA adapter's folder, or None."""

    storage: Storage
    model: str
    revision: str | None
    adapter: str | None
    frames: FramesConfig
    sampling: SamplingConfig
    execution: EngineExecution
    with_sound: bool

    def __post_init__(self) -> None:
        from soundcap.engines import load_engine
        from soundcap.request import Sampling

        with ExitStack() as stack:
            adapter = None if self.adapter is None else str(stack.enter_context(self.storage.local(self.adapter)))
            engine = load_engine(
                self.execution.engine,
                model=self.model,
                revision=self.revision,
                adapter=adapter,
                sampling=Sampling(**self.sampling.model_dump()),
                min_frame_px=self.frames.min_px,
                max_frame_px=self.frames.max_px,
                dtype=self.execution.dtype,
                device=self.execution.device,
                options=self.execution.options,
            )
        object.__setattr__(self, "engine", engine)

    def process(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any] | Failed]:
        read = [self._read(task) for task in tasks]
        answers = iter(self._ask([request for request in read if not isinstance(request, Failed)]))
        return [
            request if isinstance(request, Failed) else _row(task, next(answers))
            for task, request in zip(tasks, read, strict=True)
        ]

    def _ask(self, requests: list[CaptionRequest]) -> list[str | Exception]:
        from soundcap.engines import EngineError

        try:
            answers: list[str | Exception] = self.engine.caption(requests) if requests else []  # type: ignore[attr-defined]
        except EngineError as error:
            # A lost engine fails every row it is given. Ending the process has another actor started, with a new
            # engine, and only the rows that do this again and again are quarantined.
            print(f"engine lost: {one_line(error)}", file=sys.stderr, flush=True)
            os._exit(1)
        return answers

    def _read(self, task: Mapping[str, Any]) -> CaptionRequest | Failed:
        from pipelines.media.errors import MediaError
        from pipelines.media.read import read_audio, read_frames
        from soundcap.request import CaptionRequest

        try:
            with self.storage.local(task["video"]) as video:
                frames = read_frames(video, self.frames.fps)
            audio = None
            if self.with_sound:
                with self.storage.local(task["audio"]) as file:
                    audio = read_audio(file, AUDIO_HZ)
            return CaptionRequest(task["prompt"], frames, self.frames.fps, audio, AUDIO_HZ)
        except (MediaError, OSError, ValueError) as error:
            return Failed(type(error).__name__, one_line(error))


def _row(task: Mapping[str, Any], answer: str | Exception) -> dict[str, Any] | Failed:
    if isinstance(answer, Exception):
        return Failed(type(answer).__name__, one_line(answer))
    return {"caption": answer, "prompt": task["prompt"]}


def caption_key(
    clip: Mapping[str, Any],
    *,
    model: str,
    adapter: str | None,
    frames: FramesConfig,
    prompt: str,
    sampling: SamplingConfig,
    normaliser: Mapping[str, Any],
    with_sound: bool,
) -> dict[str, Any]:
    """All that decides a caption, for the ledger."""
    return {
        "captioner_version": CAPTIONER_VERSION,
        "source_sha256": clip["source_sha256"],
        "normaliser": normaliser,
        "frames": frames.model_dump(),
        "with_sound": with_sound,
        "model": model,
        "adapter": adapter,
        "prompt": prompt,
        "sampling": sampling.model_dump(),
    }
