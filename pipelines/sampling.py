"""Worker of the stage `samples`: Flowley inside an actor, sound onto the silent clip."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checkpoints import open_codec
from pipelines.config import CodecConfig, SamplesConfig
from pipelines.errors import one_line
from pipelines.stage import Failed
from pipelines.storage import Storage

if TYPE_CHECKING:
    import numpy as np

    from flowley.dataset import Clip

SAMPLER_VERSION = 1


@dataclass(frozen=True)
class SampleWorker:
    """`model` is the storage name of a Flowley checkpoint folder."""

    storage: Storage
    model: str
    codec: CodecConfig
    duration_s: float
    config: SamplesConfig

    def __post_init__(self) -> None:
        from flowley.registry import load_network

        with self.storage.local(self.model) as folder:
            network = load_network(folder).to(self.config.execution.device)
        object.__setattr__(self, "network", network)
        object.__setattr__(self, "audio_codec", open_codec(self.codec, self.config.execution.device))

    def process(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any] | Failed]:
        with ExitStack() as stack:
            clips = [self._read(task, stack) for task in tasks]
            waves = self._sample(clips)
        return [self._keep(task, wave) for task, wave in zip(tasks, waves, strict=True)]

    def _read(self, task: dict[str, Any], stack: ExitStack) -> Clip:
        from flowley.dataset import Entry, FeatureDataset, Row

        av = stack.enter_context(self.storage.local(task["av_file"]))
        text = stack.enter_context(self.storage.local(task["text_file"]))
        entry = Entry(task["clip_id"], Row(str(av), task["av_row"]), Row(str(text), task["text_row"]))
        return FeatureDataset([entry])[0]

    def _sample(self, clips: list[Clip]) -> np.ndarray:
        from flowley.dataset import collate
        from flowley.generator import make_sounds
        from flowley.sample import SampleSettings

        network = self.network  # type: ignore[attr-defined]
        L_aud, L_vis = network.config.lengths(self.duration_s)
        L_sync = network.config.sync_length(self.duration_s)
        batch = collate(clips, L_aud=L_aud, L_vis=L_vis, L_txt=None, L_sync=L_sync)
        waves: np.ndarray = make_sounds(
            network,
            self.audio_codec,  # type: ignore[attr-defined]
            batch.conditions,
            L_aud=L_aud,
            seeds=[seed_of(clip.clip_id, self.config.seed) for clip in clips],
            settings=SampleSettings(steps=self.config.steps, guidance=self.config.guidance, solver=self.config.solver),
        ).numpy()
        return waves

    def _keep(self, task: dict[str, Any], wave: np.ndarray) -> dict[str, Any] | Failed:
        import soundfile

        from pipelines.media.errors import MediaError
        from pipelines.media.mux import mux

        hz = self.audio_codec.audio_hz  # type: ignore[attr-defined]
        stem = f"samples/media/{task['sample_id']}"
        try:
            with tempfile.TemporaryDirectory(prefix="soundcap-sample-") as folder:
                film, sound = Path(folder) / "sample.mp4", Path(folder) / "sample.flac"
                wave = wave[: round(self.duration_s * hz)]
                soundfile.write(sound, wave, hz)
                with self.storage.local(task["video"]) as video:
                    mux(video, wave, hz, film)
                self.storage.upload(film, f"{stem}.mp4")
                self.storage.upload(sound, f"{stem}.flac")
        except (MediaError, OSError, ValueError) as error:
            return Failed(type(error).__name__, one_line(error))
        return {"video": f"{stem}.mp4", "audio": f"{stem}.flac"}


def seed_of(clip_id: str, seed: int) -> int:
    """A clip's own seed, so that its sound does not depend on what it is batched with."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{clip_id}".encode()).digest()[:7], "big")
