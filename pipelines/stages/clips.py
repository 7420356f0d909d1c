"""Stage `clips`: normalisation of raw files to clips, the only media that later stages read."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.engine.fingerprint import digest
from pipelines.engine.ledger import Failed
from pipelines.engine.recipe import Recipe, per_row, unhashed
from pipelines.engine.stage import Context, Counts, NotYetKnown, Refused, Row, Rows, RowSet, RowStage
from pipelines.engine.storage import Storage
from pipelines.engine.store import text_columns
from pipelines.errors import MachineFault, one_line
from pipelines.media.clip import NORMALISER_VERSION, NormaliserSettings
from pipelines.media.faults import MediaError
from pipelines.media.normalise import normalise
from pipelines.media.probe import open_source
from pipelines.media.process import Deadline
from pipelines.run_config import Config
from pipelines.stages.source import SourceFolder, SourceHashes, list_source, split_of


@dataclass(frozen=True)
class HashedSource:
    """Raw files with the SHA-256 of their bytes."""

    source: SourceFolder
    sha256: Mapping[str, str]
    refused: Sequence[Refused]
    """Files that are missing, doubled or unreadable."""

    def meaning(self) -> str:
        """Digest of every file's name, bytes, split and label, and of what is missing."""
        sha256 = self.sha256
        present = [
            [c.name, sha256[c.name], c.split, c.label, c.video_id, c.start_s]
            for c in self.source.clips
            if c.name in sha256
        ]
        absent = [[one.row_id, one.error_class] for one in self.refused]
        return digest([sorted(present, key=lambda item: str(item[0])), sorted(absent)])


@dataclass(frozen=True)
class Normaliser:
    """Normaliser version and settings, which identify a clip together with its source's SHA-256.

    Encoders are not bit-exact between versions, so encoded bytes are not hashed.
    """

    settings: NormaliserSettings

    def meaning(self) -> dict[str, Any]:
        settings = {one.name: getattr(self.settings, one.name) for one in fields(NormaliserSettings)}
        return {"version": NORMALISER_VERSION, **settings}

    def clip_id(self, source_sha256: str) -> str:
        """Id of the clip that this normaliser makes of a source."""
        return digest({"source_sha256": source_sha256, "normaliser": self.meaning()})[:16]


@dataclass(frozen=True)
class ClipRecipe(Recipe):
    """Recipe of the clips: all that determines one except its source's bytes, and the list of sources."""

    normaliser: Normaliser
    source: HashedSource = per_row()
    test_fraction: float = per_row()
    folder: str = unhashed()

    @property
    def origins(self) -> Mapping[str, str]:
        return {"source": f"the source folder {self.folder}"}


class ClipsStage(RowStage):
    """Normalisation stage: one row for each raw file."""

    name = "clips"
    ledgers = ("clips",)
    schema = pa.schema(
        [
            *text_columns("clip_id", "source_name", "source_sha256", "video_id"),
            ("start_s", pa.float64()),
            *text_columns("label", "split", "video", "audio"),
            ("duration_s", pa.float64()),
            ("fps", pa.float64()),
            *((name, pa.int32()) for name in ("n_frames", "width_px", "height_px")),
            ("has_audio", pa.bool_()),
            *((name, pa.int32()) for name in ("audio_hz", "audio_channels")),
        ]
    )

    def prepare(self, config: Config, storage: Storage, say: Callable[[str], None]) -> None:
        SourceHashes(list_source(config), storage).complete(config.clips.execution.workers, say)

    def recipe(self, config: Config, storage: Storage) -> ClipRecipe:
        hashes = SourceHashes(list_source(config), storage)
        source = hashes.source
        if hashes.todo and not hashes.is_quick:
            counts = Counts(len(source.clips) + len(source.refused), len(hashes.todo))
            raise NotYetKnown(f"{len(hashes.todo)} source files not hashed yet", counts)
        hashes.known |= hashes.hash_here()
        sha256, unreadable = hashes.read()
        return ClipRecipe(
            normaliser=Normaliser(config.clips),
            source=HashedSource(source, sha256, source.refused + unreadable),
            test_fraction=config.source.test_fraction,
            folder=config.source.folder,
        )

    def rows(self, context: Context) -> Rows:
        recipe: ClipRecipe = context.recipe
        refused = list(recipe.source.refused)
        first_of: dict[str, str] = {}
        carried, rows = {}, []
        for clip in recipe.source.source.clips:
            sha256 = recipe.source.sha256.get(clip.name)
            if sha256 is None:
                continue
            same = first_of.setdefault(sha256, clip.name)
            if same != clip.name:
                refused.append(Refused(clip.name, "DuplicateSource", f"{clip.name}: the same bytes as {same}"))
                continue
            clip_id = recipe.normaliser.clip_id(sha256)
            carried[clip.name] = {
                "clip_id": clip_id,
                "source_name": clip.name,
                "source_sha256": sha256,
                "video_id": clip.video_id,
                "start_s": clip.start_s,
                "label": clip.label,
                "split": split_of(clip, sha256, recipe.test_fraction),
            }
            rows.append(Row(clip.name, {"source_sha256": sha256}, {"name": clip.name, "clip_id": clip_id}))
        execution = context.config.clips.execution
        worker = ClipWorker(recipe.normaliser.settings, Storage(recipe.folder), context.storage, execution.deadline_s)
        return Rows(dict(sorted(carried.items())), [RowSet("clips", recipe, rows, worker)], refused)

    def meaning_of(self, row: Mapping[str, Any], keys: Sequence[str]) -> Any:
        return [row["clip_id"], row["label"], row["split"]]

    def figures(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "train": sum(row["split"] == "train" for row in rows),
            "test": sum(row["split"] == "test" for row in rows),
            "hours": round(sum(row["duration_s"] for row in rows) / 3600, 4),
        }


@dataclass
class ClipWorker:
    """Normalisation worker. Each clip is uploaded before its row is committed."""

    settings: NormaliserSettings
    source: Storage
    storage: Storage
    deadline_s: float

    def setup(self) -> None:
        """Nothing to load."""

    def process(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any] | Failed]:
        return [self._normalise(task["name"], task["clip_id"]) for task in tasks]

    def _normalise(self, name: str, clip_id: str) -> dict[str, Any] | Failed:
        with tempfile.TemporaryDirectory(prefix="soundcap-clip-") as folder:
            video, audio = Path(folder) / "clip.mp4", Path(folder) / "clip.flac"
            try:
                with self.source.local(name) as path:
                    deadline = Deadline(self.deadline_s)
                    clip = normalise(open_source(path, deadline), video, audio, self.settings, deadline=deadline)
            except MediaError as error:
                return Failed(type(error).__name__, one_line(error))
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise MachineFault(one_line(error)) from error
                return Failed("UnreadableSource", f"{name}: {one_line(error)}")
            stem = f"media/{clip_id[:2]}/{clip_id}"
            self.storage.upload(video, f"{stem}.mp4")
            if clip.has_audio:
                self.storage.upload(audio, f"{stem}.flac")
        return {"video": f"{stem}.mp4", "audio": f"{stem}.flac" if clip.has_audio else "", **asdict(clip)}
