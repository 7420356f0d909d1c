"""Source files of a run, with their labels, splits and SHA-256 digests.

Hashing 200,000 files takes hours of reading, so digests are kept in a ledger keyed on name, size and version
(mtime or ETag); planning reads only that.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.ledger import Failed, Ledger
from pipelines.engine.recipe import Recipe
from pipelines.engine.stage import Refused, RowSet, is_missing, made_rows
from pipelines.engine.storage import LISTING, Storage
from pipelines.engine.store import text_columns
from pipelines.errors import UserError, one_line
from pipelines.run_config import Config, Split, Workers
from pipelines.stages.listing import SourceListing

MEDIA = r"\.(?:mp4|mkv|webm|mov|avi|m4v|mpg|mpeg|ts|flv|wmv|3gp|ogv|mp3|wav|flac|ogg|m4a|aac)$"
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
`video_id` and `start_s` are VGGSound's."""
SPLITS = frozenset(get_args(Split))
SHA256 = pa.schema(text_columns("sha256"))


@dataclass(frozen=True)
class SourceFolder:
    """Listing of the source: raw files with the columns FILES, and refused ones (missing, doubled or no media)."""

    folder: Storage
    files: pa.Table
    refused: list[Refused]


def list_source(config: Config, listing: SourceListing | None = None) -> SourceFolder:
    """Files of the source, listed now or as of `listing`, through VGGSound's CSV if configured.

    Raises UserError for no files or a bad CSV.
    """
    source = config.source
    listing = listing or SourceListing(source.folder, rescan=True)
    folder = listing.source
    if folder.is_local and not Path(folder.url).exists():
        raise UserError(f"source.folder: {source.folder!r} does not exist; give the folder of video clips")
    if folder.is_local and Path(folder.url).is_file():
        raise UserError(f"source.folder: {source.folder!r} is a file; give the folder of video clips")
    files = listing.files
    files = files.filter(pc.invert(pc.match_substring_regex(files["name"], HIDDEN)))
    if not files.num_rows:
        raise UserError(f"source.folder: no files in {source.folder!r}; give a folder of video clips")
    stems = pc.replace_substring_regex(files["name"], r"^(?:.*/)?(.*)\.[^./]*$|^(?:.*/)?([^./]*)$", r"\1\2")
    if source.csv is None:
        found = _from_folder(folder, files, stems)
    else:
        found = _from_csv(folder, files, stems, source.csv)
    if source.split is None:
        return found
    split = pa.array([source.split] * found.files.num_rows, pa.string())
    return replace(found, files=found.files.set_column(FILES.get_field_index("split"), "split", split))


def _from_folder(folder: Storage, files: pa.Table, stems: pa.ChunkedArray) -> SourceFolder:
    """Files of a plain folder. A subfolder's name is the label, as in `datasets`' video folders."""
    is_media = pc.match_substring_regex(files["name"], MEDIA, ignore_case=True)
    refused = [
        Refused(name, "NotMedia", f"{name}: not a media file by its name; move it out of the source folder")
        for name in files.filter(pc.invert(is_media))["name"].to_pylist()
    ]
    media = files.filter(is_media)
    nothing = pa.nulls(media.num_rows, pa.string())
    starts_s = pa.array(np.zeros(media.num_rows))
    label = pc.replace_substring_regex(media["name"], r"^([^/]*)/.*$|^[^/]*$", r"\1")
    columns = [*media.columns, label, nothing, stems.filter(is_media), starts_s]
    return SourceFolder(folder, pa.table(columns, schema=FILES), refused)


def _from_csv(folder: Storage, files: pa.Table, stems: pa.ChunkedArray, path: str) -> SourceFolder:
    """Files that the CSV lists, in its order."""
    video_ids, starts_s, labels, splits = _read_csv(path)
    is_media = pc.match_substring_regex(files["name"], MEDIA, ignore_case=True)
    files, stems = files.filter(is_media), stems.filter(is_media)
    names_of = Counter(stems.to_pylist())
    wanted = [f"{video_id}_{int(start_s):06d}" for video_id, start_s in zip(video_ids, starts_s, strict=True)]
    places = pc.index_in(pa.array(wanted, pa.string()), value_set=stems.combine_chunks())
    used: set[str] = set()
    refused, is_listed = [], []
    for number, (stem, place) in enumerate(zip(wanted, places.to_pylist(), strict=True), start=1):
        is_listed.append(stem not in used and names_of[stem] == 1)
        if stem in used:
            refused.append(Refused(f"{stem}#{number}", "ListedTwice", f"{path} line {number} repeats {stem}"))
        elif place is None:
            message = f"{path} line {number} lists {stem}, but no media file {stem}.* is in the source folder"
            refused.append(Refused(stem, "MissingFile", message))
        elif names_of[stem] > 1:
            same = files.filter(pc.equal(stems, stem))["name"].to_pylist()
            message = f"{path} line {number} lists {stem}, and {' and '.join(same)} are there; leave one"
            refused.append(Refused(stem, "AmbiguousFile", message))
        used.add(stem)
    columns = [*files.take(places).columns, labels, splits, video_ids, starts_s]
    table = pa.table(columns, schema=FILES)
    return SourceFolder(folder, table.filter(pa.array(is_listed, pa.bool_())), refused)


def read_csv_bytes(path: str) -> bytes:
    """Content of the CSV. Raises UserError if it does not exist."""
    folder, _, name = path.rpartition("/")
    try:
        return Storage(folder or ".").read_bytes(name)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"source.csv: {path!r} does not exist; give VGGSound's CSV or leave the key out") from error


def _read_csv(path: str) -> tuple[list[str], list[float], list[str], list[str]]:
    """Columns of VGGSound's CSV: video ids, starts (s), labels, splits. Raises UserError that names the bad line."""
    try:
        text = read_csv_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"source.csv: {path!r} is not UTF-8 text") from error
    wanted = "wanted youtube_id,start_s,label,split with a split of train or test"
    video_ids, starts_s, labels, splits = [], [], [], []
    if not text.strip():
        raise UserError(f"source.csv: {path} is empty, {wanted}")
    reader = csv.reader(text.splitlines(), skipinitialspace=True)
    before = 0
    while True:
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise UserError(f"source.csv: {path} line {before + 1}: {error}; {wanted}") from error
        lines, before = reader.line_num - before, reader.line_num
        where = f"source.csv: {path} line {before - lines + 1}"
        if lines > 1:
            raise UserError(f"{where}: a quote is opened and closed {lines - 1} lines later; {wanted}")
        if not row:
            continue
        if len(row) != 4:
            raise UserError(f"{where}: got {len(row)} fields, {wanted}")
        video_id, start_text, label, split = map(str.strip, row)
        try:
            start_s = float(start_text)
        except ValueError:
            start_s = math.nan
        if not 0 <= start_s < math.inf:
            raise UserError(f"{where}: got the start {start_text!r}, {wanted}")
        if split not in SPLITS:
            raise UserError(f"{where}: got the split {split!r}, {wanted}")
        video_ids.append(video_id)
        starts_s.append(start_s)
        labels.append(label)
        splits.append(split)
    return video_ids, starts_s, labels, splits


def split_of(listed: Split | None, sha256: str, test_fraction: float) -> Split:
    """Split of a clip. Without one in the source, the content hash decides, so that it never changes."""
    if listed is not None:
        return listed
    return "test" if int(sha256[:8], 16) / 16**8 < test_fraction else "train"


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


class SourceHashes:
    """SHA-256 of every file of a source, from the ledger `sources`."""

    def __init__(self, source: SourceFolder, storage: Storage) -> None:
        self.source, self.ledger = source, Ledger(storage, HASHES, SHA256)
        files = source.files
        sizes = files["size"].cast(pa.string())
        tasks = files.select(["name", "version"]).append_column("size", sizes)
        worker = HashWorker(source.folder)
        self.rows = RowSet(HASHES, HashRecipe(source.folder.url), tasks, ("name", "size", "version"), SHA256, worker)

    def count_missing(self) -> int:
        """Number of files that were never hashed; files that could not be read are not among them."""
        return int(is_missing(self.rows.keys, self.ledger.read(), retry_failed=False).sum())

    def complete(self, workers: int, say: Callable[[str], None]) -> None:
        """Computes and stores the missing digests: in this process if that is quick, else over Ray.

        A file that could not be read is tried again each time.
        """
        mask = pa.array(is_missing(self.rows.keys, self.ledger.read(), retry_failed=True))
        tasks, keys = self.rows.tasks.filter(mask), self.rows.keys.filter(mask)
        if not len(keys):
            return
        if (pc.sum(self.source.files["size"].filter(mask)).as_py() or 0) <= HASH_HERE_BYTES:
            results = self.rows.worker.process(tasks.to_pylist())
            self.ledger.write(keys.to_pylist(), tasks["name"].to_pylist(), results)
        else:
            from pipelines.engine.fanout import fan_out  # `plan` starts without Ray

            execution = Workers(workers=workers, batch_rows=64)
            fan_out(tasks, keys, self.rows.worker, ledger=self.ledger, workers=execution, say=say)
        self.ledger.settle()

    def read(self) -> tuple[pa.Table, list[Refused]]:
        """Files with a column `sha256`, and refused files. All must have been hashed."""
        made = made_rows(self.rows, self.ledger)
        files = self.source.files.append_column("sha256", made["sha256"])
        is_good = pc.equal(made["error_class"], "")
        bad = made.filter(pc.invert(is_good)).select(["error_class", "message"])
        names = files.filter(pc.invert(is_good))["name"].to_pylist()
        refused = [Refused(name, *row.values()) for name, row in zip(names, bad.to_pylist(), strict=True)]
        return files.filter(is_good), self.source.refused + refused
