"""Stage `clips`: raw files become normalised clips, the only media that any later stage reads."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipelines.config import ClipsConfig, Config, Workers
from pipelines.errors import MachineFault, one_line
from pipelines.fingerprint import digest
from pipelines.source import (
    SourceClip,
    digests_of,
    hash_new_files,
    is_quick_to_hash,
    list_source,
    source_digest,
    split_of,
    unhashed,
)
from pipelines.stage import Context, Counts, Failed, NotYetKnown, Refused, Row, RowStage, Spec
from pipelines.storage import Storage

if TYPE_CHECKING:
    from pipelines.media.normalise import NormaliserSettings


class ClipsStage(RowStage):
    """A clip's identity is its source's SHA-256 with the normaliser's settings and version: encoders are not
    bit-exact between versions, so encoded bytes decide nothing."""

    name = "clips"
    schema = pa.schema(
        [
            ("clip_id", pa.string()),
            ("source_name", pa.string()),
            ("source_sha256", pa.string()),
            ("video_id", pa.string()),
            ("start_s", pa.float64()),
            ("label", pa.string()),
            ("split", pa.string()),
            ("video", pa.string()),
            ("audio", pa.string()),
            ("duration_s", pa.float64()),
            ("fps", pa.float64()),
            ("n_frames", pa.int32()),
            ("width_px", pa.int32()),
            ("height_px", pa.int32()),
            ("has_audio", pa.bool_()),
            ("audio_hz", pa.int32()),
            ("audio_channels", pa.int32()),
        ]
    )

    def inputs(self, config: Config) -> tuple[str, ...]:
        return ()

    def prepare(self, config: Config, storage: Storage, say: Callable[[str], None]) -> None:
        hash_new_files(list_source(config), config, storage, say)

    def spec(self, config: Config, storage: Storage) -> Spec:
        source = list_source(config)
        todo = unhashed(source, storage)
        if todo and not is_quick_to_hash(source, todo):
            raise NotYetKnown(
                f"{len(todo)} source files not hashed yet", Counts(len(source.clips) + len(source.refused), len(todo))
            )
        hash_new_files(source, config, storage, _silent)
        sha256, unreadable = digests_of(source, storage)
        meaning = {
            "normaliser": normaliser_meaning(config.clips),
            "source": source_digest(source.clips, sha256, source.refused + unreadable),
            "test_fraction": config.source.test_fraction,
        }
        return Spec(meaning, {"source": f"the source folder {config.source.folder}"})

    def rows(self, context: Context) -> tuple[list[Row], list[Refused]]:
        source = list_source(context.config)
        sha256, unreadable = digests_of(source, context.storage)
        refused = source.refused + unreadable
        first_of: dict[str, str] = {}
        rows = []
        for clip in source.clips:
            if clip.name not in sha256:
                continue
            same = first_of.setdefault(sha256[clip.name], clip.name)
            if same != clip.name:
                refused.append(Refused(clip.name, "DuplicateSource", f"{clip.name}: the same bytes as {same}"))
                continue
            rows.append(_row(clip, sha256[clip.name], context.config))
        return rows, refused

    def worker(self, context: Context) -> Callable[[], ClipWorker]:
        config = context.config
        return partial(ClipWorker, Storage(config.source.folder), context.storage, config.clips)

    def execution(self, config: Config) -> Workers:
        return config.clips.execution

    def meaning_of(self, row: Mapping[str, Any]) -> Any:
        return [row["clip_id"], row["label"], row["split"]]

    def figures(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "train": sum(row["split"] == "train" for row in rows),
            "test": sum(row["split"] == "test" for row in rows),
            "hours": round(sum(row["duration_s"] for row in rows) / 3600, 4),
        }


def normaliser_meaning(config: ClipsConfig) -> dict[str, Any]:
    """The normaliser's settings and version: with a source's SHA-256, a clip's identity."""
    from pipelines.media.normalise import NORMALISER_VERSION

    return {"version": NORMALISER_VERSION, **asdict(normaliser_settings(config))}


def normaliser_settings(config: ClipsConfig) -> NormaliserSettings:
    from pipelines.media.normalise import NormaliserSettings

    return NormaliserSettings(
        duration_s=config.duration_s,
        fps=config.fps,
        long_side_px=config.long_side_px,
        crf=config.crf,
        max_audio_hz=config.max_audio_hz,
        require_audio=config.require_audio,
    )


def _row(clip: SourceClip, sha256: str, config: Config) -> Row:
    identity = {"source_sha256": sha256, "normaliser": normaliser_meaning(config.clips)}
    clip_id = digest(identity)[:16]
    carried = {
        "clip_id": clip_id,
        "source_name": clip.name,
        "source_sha256": sha256,
        "video_id": clip.video_id,
        "start_s": clip.start_s,
        "label": clip.label,
        "split": split_of(clip, sha256, config.source.test_fraction),
    }
    return Row(clip.name, identity, {"name": clip.name, "clip_id": clip_id}, carried)


@dataclass(frozen=True)
class ClipWorker:
    """Normalises files one after the other; each is uploaded whole before its row is committed."""

    source: Storage
    storage: Storage
    config: ClipsConfig

    def process(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any] | Failed]:
        return [self._normalise(task["name"], task["clip_id"]) for task in tasks]

    def _normalise(self, name: str, clip_id: str) -> dict[str, Any] | Failed:
        from pipelines.media.errors import FfmpegMissing
        from pipelines.media.normalise import MediaError, normalise

        with tempfile.TemporaryDirectory(prefix="soundcap-clip-") as folder:
            video, audio = Path(folder) / "clip.mp4", Path(folder) / "clip.flac"
            try:
                with self.source.local(name) as path:
                    clip = normalise(
                        path,
                        video,
                        audio,
                        normaliser_settings(self.config),
                        deadline_s=self.config.execution.deadline_s,
                    )
            except MediaError as error:
                return Failed(type(error).__name__, one_line(error))
            except FfmpegMissing as error:
                raise MachineFault(one_line(error)) from error
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise MachineFault(one_line(error)) from error
                return Failed("UnreadableSource", f"{name}: {one_line(error)}")
            stem = f"media/{clip_id[:2]}/{clip_id}"
            self.storage.upload(video, f"{stem}.mp4")
            if clip.has_audio:
                self.storage.upload(audio, f"{stem}.flac")
        return {
            "video": f"{stem}.mp4",
            "audio": f"{stem}.flac" if clip.has_audio else "",
            "duration_s": clip.duration_s,
            "fps": clip.fps,
            "n_frames": clip.n_frames,
            "width_px": clip.width_px,
            "height_px": clip.height_px,
            "has_audio": clip.has_audio,
            "audio_hz": clip.audio_hz,
            "audio_channels": clip.audio_channels,
        }


def _silent(message: str) -> None:
    pass
