"""Source files of a run, with their labels, splits and SHA-256 digests.

Hashing 200,000 files takes hours of reading, so digests are kept in a ledger keyed on name, size and version
(mtime or ETag); planning reads only that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.exclusion import FORGOTTEN, read_exclusion
from pipelines.engine.ledger import Failed, Ledger
from pipelines.engine.local_listing import BROKEN_LINK, LISTED_FOLDER, NO_FILE, NOT_UTF_8, SPECIAL_FILE
from pipelines.engine.recipe import Recipe
from pipelines.engine.row_stage import RowSet, is_missing, made_rows
from pipelines.engine.stage import Refused
from pipelines.engine.storage import LISTING, Storage
from pipelines.engine.store import text_columns
from pipelines.errors import UserError, one_line
from pipelines.media.kinds import VIDEO, kind_of
from pipelines.run_config import Config, Split, Workers
from pipelines.stages.canary import stratified
from pipelines.stages.listing import SourceListing
from pipelines.tables import NameFinder, TableKind, UserTable, read_table

NOT_IN_TABLE = "not in the table"
MISSING_FILE = "MissingFile"
HIDDEN = r"(?:^|/)\."
HASHES = "sources"
HASH_HERE_BYTES = 256 * 2**20

FILES = pa.schema(
    [
        *LISTING,
        *text_columns("label", "split", "video_id"),
        ("start_s", pa.float64()),
    ]
)
"""Columns of raw files. `name` is relative to the source folder; `split` is null where the source does not say it;
`video_id` and `start_s` are VGGSound's; without them they are the name without suffix, and 0."""
SPLITS = frozenset(get_args(Split))
SHA256 = pa.schema(text_columns("sha256"))

TABLE = TableKind(
    "source.table",
    columns={
        "file": ("filename", "file_name", "path", "name", "video"),
        "video_id": ("youtube_id", "ytid", "id", "videoid"),
        "start_s": ("start", "start_seconds", "start_time", "start_sec"),
        "label": ("labels", "class", "category", "positive_labels"),
        "split": ("train_test_split", "set", "subset"),
        "licence": ("license", "licence_name", "license_name"),
    },
    required=(frozenset({"file"}), frozenset({"video_id", "start_s"})),
    bare=("video_id", "start_s", "label", "split"),
)
"""Table of the source: VGGSound's own, without header, or one with a header."""

NO_FILES = {
    BROKEN_LINK: "a link to nothing; mend the link, or remove it",
    NOT_UTF_8: "its name is not UTF-8 text; rename it",
}
"""Fault and remedy of a video that is no readable file."""
PASSED_OVER = {
    LISTED_FOLDER: "a link to a folder that is read already",
    SPECIAL_FILE: "a pipe, a socket or a device",
    BROKEN_LINK: "a link to nothing",
    NOT_UTF_8: "its name is not UTF-8 text",
}
"""Words on other things that are no readable files."""


@dataclass(frozen=True)
class SourceFolder:
    """Listing of the source.

    Attributes:
        files: raw files, with the columns FILES.
        refused: videos that cannot be read as files, and rows of the table without a file of their own.
        passed_over: names of other files, which are no rows, by what they are.
    """

    folder: Storage
    files: pa.Table
    refused: list[Refused]
    passed_over: Mapping[str, Sequence[str]]


def list_source(config: Config, listing: SourceListing | None = None) -> SourceFolder:
    """Files of the source, listed now or as of `listing`, through its table if one is configured.

    Raises UserError for no files or a bad table.
    """
    source = config.source
    listing = listing or SourceListing(source.folder, rescan=True)
    folder = listing.source
    if folder.is_local and not Path(folder.url).exists():
        raise UserError(
            f"source.folder: {source.folder!r} does not exist ({folder.url}); give the folder of video clips"
        )
    if folder.is_local and Path(folder.url).is_file():
        raise UserError(f"source.folder: {source.folder!r} is a file; give the folder of video clips")
    if folder.is_local and Path(Storage(config.root).url).resolve().is_relative_to(Path(folder.url).resolve()):
        raise UserError(
            f"root: {config.root!r} lies in source.folder, {source.folder!r}, and its media would become sources; "
            "give a root outside"
        )
    files = listing.files
    files = files.filter(pc.invert(pc.match_substring_regex(files["name"], HIDDEN)))
    if not files.num_rows:
        raise UserError(f"source.folder: no files in {source.folder!r}; give a folder of video clips")
    is_file = pc.greater(files["size"], NO_FILE)
    odd = files.filter(pc.invert(is_file)).select(["name", "version"])
    files = files.filter(is_file)
    found = _from_folder(folder, files) if source.table is None else _from_table(folder, files, source.table)
    found = _with_odd(found, odd)
    if source.table is None and not found.files.num_rows and not found.refused:
        kinds = ", ".join(f"{kind} {len(names)}" for kind, names in found.passed_over.items())
        raise UserError(
            f"source.folder: no videos in {source.folder!r}, only others ({kinds}); give a folder of videos"
        )
    if source.split is not None:
        split = pa.array([source.split] * found.files.num_rows, pa.string())
        found = replace(found, files=found.files.set_column(FILES.get_field_index("split"), "split", split))
    return found if source.sample is None else _sampled(found, source.sample)


def _sampled(found: SourceFolder, size: int) -> SourceFolder:
    """Source of a canary: a sample of the videos that are there, and nothing else."""
    there = found.files.num_rows
    if size > there:
        raise UserError(
            f"a canary (--canary, source.sample) of {size} videos: the source has {there}; take fewer, or run it whole"
        )
    places = stratified(found.files["label"].to_pylist(), found.files["name"].to_pylist(), size)
    return SourceFolder(found.folder, found.files.take(places), [], {})


def _with_odd(found: SourceFolder, odd: pa.Table) -> SourceFolder:
    """Adds what is no readable file: refused if it is called a video, else passed over."""
    refused, passed_over = list(found.refused), {kind: list(names) for kind, names in found.passed_over.items()}
    for name, why in zip(odd["name"].to_pylist(), odd["version"].to_pylist(), strict=True):
        if why in NO_FILES and kind_of(name) == "video":
            refused.append(Refused(name, why, f"{name}: {NO_FILES[why]}"))
        else:
            passed_over.setdefault(PASSED_OVER[why], []).append(name)
    return replace(found, refused=refused, passed_over=passed_over)


def _from_folder(folder: Storage, files: pa.Table) -> SourceFolder:
    """Videos of a plain folder. A subfolder's name is the label, as in `datasets`' video folders."""
    is_video = _is_video(files)
    videos = files.filter(is_video)
    passed_over: dict[str, list[str]] = {}
    for name in files.filter(pc.invert(is_video))["name"].to_pylist():
        passed_over.setdefault(kind_of(name), []).append(name)
    nothing = pa.nulls(videos.num_rows, pa.string())
    starts_s = pa.array(np.zeros(videos.num_rows))
    label = pc.replace_substring_regex(videos["name"], r"^([^/]*)/.*$|^[^/]*$", r"\1")
    columns = [*videos.columns, label, nothing, _without_suffix(videos), starts_s]
    return SourceFolder(folder, pa.table(columns, schema=FILES), [], passed_over)


def _is_video(files: pa.Table) -> pa.ChunkedArray:
    return pc.match_substring_regex(files["name"], VIDEO, ignore_case=True)


def _without_suffix(files: pa.Table) -> pa.ChunkedArray:
    """Names with folder, without suffix."""
    return pc.replace_substring_regex(files["name"], r"\.[^./]*$", "")


def _from_table(folder: Storage, files: pa.Table, path: str) -> SourceFolder:
    """Files that the table lists, in its order."""
    table, names = _read_table(path), files["name"].to_pylist()
    finder = NameFinder(names)
    found = [
        finder.find(file) if file else finder.find_stem(stem)
        for file, stem in zip(table.files, table.wanted, strict=True)
    ]
    owner: dict[int, int] = {}
    refused: dict[int, Refused] = {}
    for row in sorted(range(len(found)), key=lambda row: found[row][0]):  # so that an exact name comes first
        wanted, places, line = table.wanted[row], found[row][1], f"{path} line {table.lines[row]}"
        if len(places) > 1:
            there = " and ".join(names[place] for place in places)
            message = f"{line} lists {wanted}, and {there} are there; leave one"
            refused[row] = Refused(wanted, "AmbiguousFile", message)
        elif not places:
            message = f"{line} lists {wanted}, but no video of that name is in the source folder"
            refused[row] = Refused(wanted, MISSING_FILE, message)
        elif (first := owner.setdefault(places[0], row)) != row:
            message = f"{line} lists {wanted}, as line {table.lines[first]} does; leave one of them"
            refused[row] = Refused(f"{wanted}#{table.lines[row]}", "ListedTwice", message)
    if not owner:
        raise UserError(
            f"{TABLE.key}: {path}: none of its {len(found)} rows names a video in the source folder, such as line "
            f"{table.lines[0]}, {table.wanted[0]}; in the folder is {names[0] if names else 'nothing'}"
        )
    at = {row: place for place, row in owner.items()}
    rows = sorted(at)
    columns = [*files.take([at[row] for row in rows]).columns, *(pa.array(c).take(rows) for c in table.columns)]
    unlisted = [name for place, name in enumerate(names) if place not in owner]
    passed_over = {NOT_IN_TABLE: unlisted} if unlisted else {}
    listed = pa.table(columns, schema=FILES)
    ids = pc.if_else(pc.equal(listed["video_id"], ""), _without_suffix(listed), listed["video_id"])
    listed = listed.set_column(FILES.get_field_index("video_id"), "video_id", ids)
    return SourceFolder(folder, listed, [refused[row] for row in sorted(refused)], passed_over)


@dataclass(frozen=True)
class _Listed:
    """Rows of the source's table.

    Attributes:
        files: file that each names, "" where id and start do.
        wanted: that file, or the stem that id and start make.
        lines: line of each.
        columns: columns of FILES after those of LISTING.
    """

    files: Sequence[str]
    wanted: Sequence[str]
    lines: Sequence[int]
    columns: Sequence[Sequence[Any]]


def _read_table(path: str) -> _Listed:
    """Rows of the source's table. Raises UserError that names the bad line."""
    table = read_table(path, TABLE)
    nothing = [""] * len(table.lines)
    names = ("file", "video_id", "start_s", "label", "split")
    files, ids, starts, labels, splits = (table.columns.get(name, nothing) for name in names)
    starts_s = [_start_s(text, table, row) if text else 0.0 for row, text in enumerate(starts)]
    wanted = [
        file or f"{video_id}_{int(start_s):06d}" for file, video_id, start_s in zip(files, ids, starts_s, strict=True)
    ]
    for row, (file, video_id, start) in enumerate(zip(files, ids, starts, strict=True)):
        if not file and not (video_id and start):
            raise UserError(f"{table.where(row)}: names no file; {TABLE.wanted}")
    listed = [_split(text, table, row) for row, text in enumerate(splits)] if "split" in table.columns else None
    return _Listed(files, wanted, table.lines, (labels, listed or [None] * len(wanted), ids, starts_s))


def videos_of_licences(path: str, licences: Collection[str]) -> set[str]:
    """Video ids of a source's table whose licence is one of these, in any case; a file's is its name without suffix.

    Raises UserError for a table without licences.
    """
    table = read_table(path, TABLE)
    if "licence" not in table.columns:
        raise UserError(f"source.table: {path} has no column licence, by which videos could be kept back")
    nothing, wanted = [""] * len(table.lines), {licence.casefold() for licence in licences}
    columns = (table.columns.get(name, nothing) for name in ("file", "video_id", "licence"))
    found = zip(*columns, strict=True)
    return {video_id or file.rpartition(".")[0] or file for file, video_id, one in found if one.casefold() in wanted}


def _start_s(text: str, table: UserTable, row: int) -> float:
    try:
        start_s = float(text)
    except ValueError:
        start_s = math.nan
    if not 0 <= start_s < math.inf:
        raise UserError(f"{table.where(row)}: got the start {text!r}, wanted seconds; {TABLE.wanted}")
    return start_s


def _split(text: str, table: UserTable, row: int) -> str | None:
    """Split that a row gives; None, which leaves it to the content hash, where it gives none."""
    if text and text.casefold() not in SPLITS:
        raise UserError(f"{table.where(row)}: got the split {text!r}, wanted train or test")
    return text.casefold() or None


def split_of(listed: Split | None, sha256: str, test_fraction: float) -> Split:
    """Split of a clip. Without one in the source, the content hash decides, so that it never changes."""
    if listed is not None:
        return listed
    return "test" if split_share(sha256) < test_fraction else "train"


def split_share(sha256: str) -> float:
    """Place of a content hash in [0, 1), which decides a clip's split."""
    return int(sha256[:8], 16) / 16**8


# --- digests -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HashRecipe(Recipe):
    """Recipe of a file's digest, which depends on the file alone."""

    folder: str


@dataclass
class HashWorker:
    """Hashing worker: SHA-256 of each file's bytes."""

    folder: Storage

    def setup(self) -> None:
        """Nothing to load."""

    def process(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any] | Failed]:
        return [self._hash(task["name"]) for task in tasks]

    def _hash(self, name: str) -> dict[str, Any] | Failed:
        try:
            return {"sha256": self.folder.sha256(name)}
        except OSError as error:
            return Failed("UnreadableSource", f"{name}: cannot be read: {one_line(error)}")


class KnownFiles(NamedTuple):
    """Raw files that can be read, with the columns FILES and `sha256`; the other attributes are as of SourceFolder."""

    files: pa.Table
    refused: list[Refused]
    passed_over: Mapping[str, Sequence[str]]


class SourceHashes:
    """SHA-256 of every file of a source, from the ledger `sources`. Forgotten videos are refused, and not hashed."""

    def __init__(self, source: SourceFolder, storage: Storage) -> None:
        self._exclusion, self.ledger = read_exclusion(storage), Ledger(storage, HASHES, SHA256)
        files, forgotten = self._without_forgotten(source.files)
        self.source = replace(source, files=files, refused=[*source.refused, *forgotten])
        sizes = files["size"].cast(pa.string())
        tasks = files.select(["name", "version"]).append_column("size", sizes)
        self.worker = HashWorker(source.folder)
        key = ("name", "size", "version")
        self.rows = RowSet(HASHES, HashRecipe(source.folder.url), tasks, key, SHA256, self.worker)

    def count_missing(self) -> int:
        """Number of files that were never hashed; files that could not be read are not among them."""
        return int(is_missing(self.rows.keys, self.ledger.read(), retry_failed=False).sum())

    def _without_forgotten(self, files: pa.Table) -> tuple[pa.Table, list[Refused]]:
        """Files that are not forgotten, by video id and, once hashed, by their bytes; and the others, refused."""
        is_forgotten = self._exclusion.has(files)
        names = files.filter(is_forgotten)["name"].to_pylist() if self._exclusion else []
        remedy = "its video was forgotten on request; remove the file from the source"
        return files.filter(pc.invert(is_forgotten)), [Refused(name, FORGOTTEN, f"{name}: {remedy}") for name in names]

    def known(self) -> KnownFiles:
        """Files that can be read, with `sha256`: null where a file is not hashed yet."""
        made = self.ledger.read(SHA256.names)
        places = pc.index_in(self.rows.keys, value_set=made["key"].combine_chunks())
        made = made.take(places)
        files = self.source.files.append_column("sha256", made["sha256"])
        files = files.filter(pc.equal(pc.fill_null(made["error_class"], ""), ""))
        files, forgotten = self._without_forgotten(files)
        return KnownFiles(files, [*self.source.refused, *forgotten], self.source.passed_over)

    def complete(self, workers: int, say: Callable[[str], None]) -> None:
        """Computes and stores the missing digests: in this process if that is quick, else over Ray.

        A file that could not be read is tried again each time.
        """
        mask = pa.array(is_missing(self.rows.keys, self.ledger.read(), retry_failed=True))
        tasks, keys = self.rows.tasks.filter(mask), self.rows.keys.filter(mask)
        if not len(keys):
            return
        if (pc.sum(self.source.files["size"].filter(mask)).as_py() or 0) <= HASH_HERE_BYTES:
            results = self.worker.process(tasks.to_pylist())
            self.ledger.write(keys.to_pylist(), tasks["name"].to_pylist(), results)
        else:
            from pipelines.engine.fanout import fan_out  # `plan` starts without Ray

            execution = Workers(workers=workers, batch_rows=64)
            recipe = self.rows.recipe
            fan_out(tasks, keys, self.worker, ledger=self.ledger, recipe=recipe, workers=execution, say=say)
        self.ledger.settle()

    def read(self) -> KnownFiles:
        """Files with their digests. All must have been hashed."""
        made = made_rows(self.rows, self.ledger)
        files = self.source.files.append_column("sha256", made["sha256"])
        is_good = pc.equal(made["error_class"], "")
        bad = made.filter(pc.invert(is_good)).select(["error_class", "message"])
        names = files.filter(pc.invert(is_good))["name"].to_pylist()
        refused = [Refused(name, *row.values()) for name, row in zip(names, bad.to_pylist(), strict=True)]
        files, forgotten = self._without_forgotten(files.filter(is_good))
        return KnownFiles(files, [*self.source.refused, *refused, *forgotten], self.source.passed_over)
