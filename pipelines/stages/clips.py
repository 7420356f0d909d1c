"""Stage `clips`: normalisation of raw files to clips, the only media that later stages read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, cached_property
from itertools import repeat
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.exclusion import read_exclusion
from pipelines.engine.fingerprint import digest, file_sha256, table_digest
from pipelines.engine.ledger import Failed, Ledger
from pipelines.engine.recipe import Recipe, per_row, unhashed
from pipelines.engine.row_stage import Rows, RowSet, RowStage
from pipelines.engine.stage import Context, Counts, NotYetKnown, Refused
from pipelines.engine.storage import Storage
from pipelines.engine.store import Output, file_columns, keep_file, latest, text_columns
from pipelines.errors import RunError, UserError, one_line
from pipelines.media.clip import NORMALISER_VERSION, NormaliserSettings
from pipelines.media.faults import MediaError
from pipelines.media.normalise import normalise
from pipelines.media.probe import open_source
from pipelines.media.process import Deadline
from pipelines.run_config import ClipLimits, Config
from pipelines.scratch import scratch
from pipelines.stages.listing import SourceListing
from pipelines.stages.source import HASHES, SHA256, TABLE, HashRecipe, KnownFiles, SourceHashes, list_source, split_of
from pipelines.stages.source_changes import (
    SourceChange,
    find_changes,
    kept_of_same,
    read_seen,
    record_seen,
    unlisted_digest,
)
from pipelines.tables import read_table_bytes

CLIP = pa.schema(
    [
        *file_columns("video"),
        *file_columns("audio"),
        ("duration_s", pa.float64()),
        ("fps", pa.float64()),
        *((name, pa.int32()) for name in ("n_frames", "width_px", "height_px")),
        ("has_audio", pa.bool_()),
        *((name, pa.int32()) for name in ("audio_hz", "audio_channels")),
        ("is_interlaced", pa.bool_()),
        *((name, pa.float64()) for name in ("still_share", "silent_share", "peak", "clipped_share")),
        *text_columns("mono_from"),
    ]
)
SETTINGS = fields(NormaliserSettings)
CLIP_ID_CHARS = 16
MEDIA_FOLDER = "media"
PASSED_OVER = "passed_over.json"
"""Names of the source's files that are no rows, by what they are."""


@dataclass(frozen=True)
class HashedSource:
    """Raw files with the SHA-256 of their bytes, read when they are needed.

    `known`: their digest, where that is known without. `unlisted`: digest of the videos that are no rows.
    """

    read: Callable[[], KnownFiles]
    known: dict[str, str] | None = None
    unlisted: str | None = None

    @cached_property
    def found(self) -> KnownFiles:
        return self.read()

    def meaning(self) -> dict[str, str]:
        """Digests of every file's name and bytes, of what is told of it, and of what is missing."""
        if self.known is not None:
            return self.known
        files, refused, _ = self.found
        files = files.sort_by("name")
        absent = sorted([one.row_id, one.error_class] for one in refused)
        return {
            "files": table_digest(files.select(["name", "sha256"])),
            "told": table_digest(files.select(["name", "split", "label", "video_id", "start_s"])),
            "absent": digest(absent),
        }


_NO_SOURCE = HashedSource(read=lambda: KnownFiles(pa.table({}), [], {}))


@dataclass(frozen=True)
class ClipIdentity(Recipe):
    """Recipe of a clip's id: all that determines its bytes, with its source's SHA-256.

    Encoders are not bit-exact between versions, so encoded bytes are not hashed.
    """

    settings: NormaliserSettings
    normaliser_version: int = NORMALISER_VERSION

    def clip_ids(self, sha256: Sequence[str]) -> list[str]:
        """Ids of the clips that this normaliser makes of sources."""
        return [key.hex()[:CLIP_ID_CHARS] for key in self.keys(sha256)]


@dataclass(frozen=True)
class ClipRecipe(Recipe):
    """Recipe of the clips: all that determines one except its source's bytes, and the list of sources."""

    normaliser: NormaliserSettings
    source: HashedSource = per_row()
    test_fraction: float = per_row()
    limits: ClipLimits = per_row()
    folder: str = unhashed()
    table: str | None = unhashed()
    normaliser_version: int = NORMALISER_VERSION

    @property
    def origins(self) -> Mapping[str, str]:
        return {
            "source.files": f"files of {self.folder}",
            "source.told": f"labels and splits in {self.table or self.folder}",
            "source.absent": f"what is missing or refused of {self.folder}",
        }

    @property
    def identity(self) -> ClipIdentity:
        """Recipe of the clips' ids. Whether silent sources are accepted does not change a clip."""
        return ClipIdentity(replace(self.normaliser, require_audio=True))


class ClipsStage(RowStage):
    """Normalisation stage: one row for each raw file."""

    name = "clips"
    ledgers = ("clips",)
    config_keys: ClassVar[Mapping[str, str]] = {
        "normaliser": "clips",
        "limits": "clips.limits",
        "test_fraction": "source.test_fraction",
    }
    schema = pa.schema(
        [
            *text_columns("clip_id", "source_name", "source_sha256", "video_id"),
            ("start_s", pa.float64()),
            *text_columns("label", "split"),
            *CLIP,
        ]
    )
    meaning = ("clip_id", "label", "split")
    is_rows_alone = True

    def recipe(self, config: Config, storage: Storage) -> ClipRecipe:
        return _known_recipe(config, storage, SourceListing(config.source.folder, rescan=True))

    def check(self, config: Config, storage: Storage) -> None:
        """Nothing to check: this stage runs first."""

    def work_recipes(self, config: Config, storage: Storage) -> Mapping[str, Recipe]:
        return {"clips": _recipe(config, _NO_SOURCE)}

    def recipe_to_run(self, config: Config, storage: Storage, say: Callable[[str], None]) -> ClipRecipe:
        if unfinished := read_exclusion(storage).unfinished:
            say(f"clips: not all of these is forgotten yet: `soundcap forget CONFIG {' '.join(unfinished)}` goes on")
        listing = SourceListing(config.source.folder, rescan=True)
        hashes = SourceHashes(list_source(config, listing), storage)
        for kind, names in hashes.source.passed_over.items():
            say(f"clips: passes over, {kind}: {', '.join(names[:3])}{', ...' * (len(names) > 3)} ({len(names)})")
        hashes.complete(config.clips.execution.workers, say)
        for change in _changes(_last_output(config, storage), hashes):
            if change.kind != "on disk but unlisted":  # it is passed over, which was just said
                say(f"clips: {change}")
        return _known_recipe(config, storage, listing, hashes)  # so that the next plan knows it

    def identity(self, config: Config) -> ClipIdentity:
        """Recipe of the clips' ids under a configuration."""
        return _recipe(config, _NO_SOURCE).identity

    def rows(self, context: Context) -> Rows:
        recipe: ClipRecipe = context.recipe
        files, doubles = _without_doubles(recipe.source.found.files)
        sha256 = files["sha256"].to_pylist()
        splits = map(split_of, files["split"].to_pylist(), sha256, repeat(recipe.test_fraction))
        carried = pa.table(
            {
                "source_name": files["name"],
                "clip_id": pa.array(recipe.identity.clip_ids(sha256), pa.string()),
                "source_sha256": files["sha256"],
                **{name: files[name] for name in ("video_id", "start_s", "label")},
                "split": pa.array(splits, pa.string()),
            }
        ).sort_by("source_name")
        execution = context.config.clips.execution
        worker = ClipWorker(recipe.normaliser, Storage(recipe.folder), context.storage, execution.deadline_s)
        tasks = carried.select(["source_name", "clip_id", "source_sha256"])
        rows = RowSet("clips", recipe, tasks, ("source_sha256",), CLIP, worker)
        return Rows(carried, [rows], [*recipe.source.found.refused, *doubles])

    def unwanted(self, context: Context, rows: pa.Table) -> Mapping[int, Refused]:
        found: dict[int, Refused] = {}
        for name, limit in vars(context.recipe.limits).items():
            beyond = pc.fill_null(pc.greater(rows[name], pa.scalar(limit, pa.float64())), False)
            for place in np.flatnonzero(beyond.to_numpy()):
                source, share = rows["source_name"][place].as_py(), rows[name][place].as_py()
                message = f"{source}: {name} {share:g}, wanted at most clips.limits.{name} = {limit:g}"
                found.setdefault(int(place), Refused(source, "BeyondLimits", message))
        return found

    def finish(self, context: Context, rows: pa.Table, made: Mapping[str, pa.Table]) -> dict[str, Any]:
        passed_over = context.recipe.source.found.passed_over
        context.output.write_json(PASSED_OVER, passed_over)
        files = context.recipe.source.found.files
        clip_ids = context.recipe.identity.clip_ids(files["sha256"].to_pylist())
        record_seen(context.output, files.append_column("clip", pa.array(clip_ids, pa.string())))
        of_split = Counter(rows["split"].to_pylist())
        for split, lacking in (("train", "no stage can train"), ("test", "samples and scores have nothing to show")):
            if not of_split[split]:
                context.say(
                    f"clips: none of {rows.num_rows} clips is in the split {split}, so {lacking}; change "
                    "source.test_fraction, or give splits in source.table"
                )
        hours = (pc.sum(rows["duration_s"]).as_py() or 0.0) / 3600
        return {
            "train": of_split["train"],
            "test": of_split["test"],
            "hours": round(hours, 4),
            "passed_over": sum(map(len, passed_over.values())),
        }


class PlannedClipsStage(ClipsStage):
    """Stage `clips` as `plan` and `status` see it: with a listing of the source that may be a remembered one."""

    def __init__(self, listing: SourceListing) -> None:
        self.listing = listing

    def recipe(self, config: Config, storage: Storage) -> ClipRecipe:
        return _known_recipe(config, storage, self.listing)


def source_changes(config: Config, storage: Storage, listing: SourceListing) -> list[SourceChange]:
    """Changes of the source since the last output, by the hashes that are recorded. Nothing is hashed.

    A source that is as that output saw it is not listed again. A canary's has no changes.

    Raises UserError as of `list_source`.
    """
    if config.source.sample is not None:
        return []
    last = _last_output(config, storage)
    with contextlib.suppress(NotYetKnown, RunError):
        source = _known_recipe(config, storage, listing).source
        if last is not None and source.meaning() == last.spec()["meaning"]["source"]:
            passed_over = json.loads(last.read_bytes(PASSED_OVER))
            if source.unlisted == unlisted_digest(passed_over):
                return []
    return _changes(last, SourceHashes(list_source(config, listing), storage))


def _last_output(config: Config, storage: Storage) -> Output | None:
    """Output of the whole source that was used last."""
    fingerprint = None if config.source.sample is not None else latest(storage, ClipsStage.name)
    output = Output(storage, ClipsStage.name, fingerprint) if fingerprint else None
    return output if output is not None and output.manifest() is not None else None


def _changes(last: Output | None, hashes: SourceHashes) -> list[SourceChange]:
    """Changes of a source since an output; without one, or what it saw, those that the source itself tells."""
    seen = None
    with contextlib.suppress(RunError):  # it is gone or damaged
        seen = None if last is None else read_seen(last)
    return find_changes(seen, *hashes.known())


def _known_recipe(
    config: Config, storage: Storage, listing: SourceListing, made: SourceHashes | None = None
) -> ClipRecipe:
    """Recipe from what is hashed already. Raises NotYetKnown if a file is not."""
    hashes = cache(lambda: made or SourceHashes(list_source(config, listing), storage))  # when it is needed
    table = None
    with contextlib.suppress(UserError):  # it is said in its turn, by `list_source`
        table = config.source.table and hashlib.sha256(read_table_bytes(config.source.table, TABLE.key)).hexdigest()
    hashed = [list(info) for info in storage.files(Ledger(storage, HASHES, SHA256).folder)]

    @cache
    def read() -> KnownFiles:
        if lost := hashes().count_missing():  # a part of the ledger was damaged, which its name does not tell
            raise _not_hashed(Counts(hashes().source.files.num_rows, lost))
        return hashes().read()

    def look() -> dict[str, Any]:
        source = hashes().source
        total, refused = source.files.num_rows + len(source.refused), len(source.refused)
        missing = hashes().count_missing()
        known = None if missing else HashedSource(read).meaning()
        unlisted = unlisted_digest(source.passed_over)
        return {"counts": [total, missing, refused], "digest": known, "unlisted": unlisted}

    exclusion = read_exclusion(storage).digest
    of = [storage.url, config.source.table, table, config.source.split, hashed, HashRecipe.code_version, exclusion]
    whose = digest([storage.url, config.source.sample])[:8]  # a canary's beside that of the whole source
    fact = listing.fact(f"source-{whose}", of, look)
    if fact["digest"] is None:
        raise _not_hashed(Counts(*fact["counts"]))
    return _recipe(config, HashedSource(read, fact["digest"], fact["unlisted"]))


def _not_hashed(counts: Counts) -> NotYetKnown:
    return NotYetKnown(f"new or changed source files to hash: {counts.to_run}", counts)


def _recipe(config: Config, source: HashedSource) -> ClipRecipe:
    return ClipRecipe(
        normaliser=NormaliserSettings(**{one.name: getattr(config.clips, one.name) for one in SETTINGS}),
        source=source,
        test_fraction=config.source.test_fraction,
        limits=config.clips.limits,
        folder=config.source.folder,
        table=config.source.table,
    )


def _without_doubles(files: pa.Table) -> tuple[pa.Table, list[Refused]]:
    """Files of different bytes, and the others, refused."""
    kept = kept_of_same(files)
    is_kept = pc.equal(files["name"], kept)
    others = zip(*(column.filter(pc.invert(is_kept)).to_pylist() for column in (files["name"], kept)), strict=True)
    labels = dict(zip(files["name"].to_pylist(), files["label"].to_pylist(), strict=True))
    refused = []
    for name, same in others:
        told = f"{name}: the same bytes as {same}"
        if labels[name] and labels[name] != labels[same]:
            told += f", which has another label, {labels[same]!r} and not {labels[name]!r}"
        refused.append(Refused(name, "DuplicateSource", told))
    return files.filter(is_kept), refused


@dataclass
class ClipWorker:
    """Normalisation worker. Each clip is uploaded before its row is committed."""

    settings: NormaliserSettings
    source: Storage
    storage: Storage
    deadline_s: float

    def setup(self) -> None:
        """Nothing to load."""

    def process(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any] | Failed | None]:
        return [self._normalise(task["source_name"], task["clip_id"], task["source_sha256"]) for task in tasks]

    def _normalise(self, name: str, clip_id: str, sha256: str) -> dict[str, Any] | Failed | None:
        """Row of a clip; None if the source's bytes are no longer those that were hashed."""
        with scratch("clip") as folder:
            video, audio = folder / "clip.mp4", folder / "clip.flac"
            try:
                with self.source.local(name) as path:
                    before = path.stat()
                    if file_sha256(path) != sha256:
                        return None
                    deadline = Deadline(self.deadline_s)
                    clip = normalise(open_source(path, deadline), video, audio, self.settings, deadline=deadline)
                    if _mark(path.stat()) != _mark(before):
                        return None
            except MediaError as error:
                return Failed(type(error).__name__, one_line(error))
            stem = f"{MEDIA_FOLDER}/{clip_id[:2]}/{clip_id}"
            kept = keep_file(self.storage, video, f"{stem}.mp4", "video")
            kept |= keep_file(self.storage, audio, f"{stem}.flac", "audio") if clip.has_audio else {"audio": ""}
        return {**kept, **asdict(clip)}


def _mark(status: os.stat_result) -> tuple[int, int, int]:
    """Inode, size and time of a file, one of which changes when it is written to or replaced."""
    return status.st_ino, status.st_size, status.st_mtime_ns
