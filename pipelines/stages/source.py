"""Source files of a run, with their labels, splits and SHA-256 digests.

Hashing 200,000 files takes hours of reading, so digests are kept in a ledger keyed on name, size and version
(mtime or ETag); planning reads only that.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast, get_args

from pipelines.engine.ledger import Entry, Failed, Ledger, missing
from pipelines.engine.recipe import Recipe
from pipelines.engine.runner import ensure_ray
from pipelines.engine.stage import Refused, Row, RowSet
from pipelines.engine.storage import FileInfo, Storage
from pipelines.errors import UserError, one_line
from pipelines.run_config import Config, Split, Workers

MEDIA_SUFFIXES = frozenset(
    ".mp4 .mkv .webm .mov .avi .m4v .mpg .mpeg .ts .flv .wmv .3gp .ogv .mp3 .wav .flac .ogg .m4a .aac".split()
)
HASHES = "sources"
HASH_WHILE_PLANNING_BYTES = 256 * 2**20


@dataclass(frozen=True)
class SourceClip:
    """One raw file. `name` is relative to the source folder; `video_id` and `start_s` are VGGSound's."""

    name: str
    size: int
    version: str
    label: str
    split: Split | None
    video_id: str
    start_s: float


@dataclass(frozen=True)
class SourceFolder:
    """Listing of the source: raw files, and refused ones (missing, doubled or no media)."""

    folder: Storage
    clips: list[SourceClip]
    refused: list[Refused]


def list_source(config: Config) -> SourceFolder:
    """Lists the source folder, through VGGSound's CSV if configured. Raises UserError for no files or a bad CSV."""
    folder = Storage(config.source.folder)
    files = {i.name: i for i in folder.files(recursive=True) if not _is_hidden(i.name)}
    if not files:
        raise UserError(f"source.folder: no files in {config.source.folder!r}; give a folder of video clips")
    if config.source.csv is None:
        media = [info for info in files.values() if _suffix(info.name) in MEDIA_SUFFIXES]
        other = [
            Refused(name, "NotMedia", f"{name}: not a media file by its name; move it out of the source folder")
            for name in files
            if _suffix(name) not in MEDIA_SUFFIXES
        ]
        return SourceFolder(folder, [_from_folder(info, config.source.split) for info in media], other)
    return _from_csv(folder, files, config.source.csv, config.source.split)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _suffix(name: str) -> str:
    return "." + name.rpartition(".")[2].lower()


def _from_folder(info: FileInfo, split: Split | None) -> SourceClip:
    """Clip of a plain folder. A subfolder's name is the label, as in `datasets`' video folders."""
    label = info.name.split("/")[0] if "/" in info.name else ""
    stem = info.name.rpartition("/")[2].rpartition(".")[0]
    return SourceClip(info.name, info.size, info.version, label, split, stem, 0.0)


def _from_csv(folder: Storage, files: dict[str, FileInfo], csv_path: str, split: Split | None) -> SourceFolder:
    by_stem = {name.rpartition("/")[2].rpartition(".")[0]: info for name, info in files.items()}
    clips, refused, used = [], [], set()
    for number, fields in enumerate(_read_csv(csv_path), start=1):
        video_id, start_s, label, listed_split = _parse_line(fields, f"{csv_path} line {number}")
        stem = f"{video_id}_{int(start_s):06d}"
        if stem in used:
            refused.append(Refused(f"{stem}#{number}", "ListedTwice", f"{csv_path} line {number} repeats {stem}"))
            continue
        used.add(stem)
        info = by_stem.get(stem)
        if info is None:
            message = f"{csv_path} line {number} lists {stem}, but no file {stem}.* is in the source folder"
            refused.append(Refused(stem, "MissingFile", message))
            continue
        clips.append(
            SourceClip(info.name, info.size, info.version, label, split or listed_split, video_id, float(start_s))
        )
    return SourceFolder(folder, clips, refused)


def _read_csv(path: str) -> list[list[str]]:
    folder, _, name = path.rpartition("/")
    try:
        text = Storage(folder or ".").read_bytes(name).decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"source.csv: {path!r} does not exist; give VGGSound's CSV or leave the key out") from error
    except UnicodeDecodeError as error:
        raise UserError(f"source.csv: {path!r} is not UTF-8 text") from error
    return [row for row in csv.reader(io.StringIO(text), skipinitialspace=True) if row]


def _parse_line(fields: list[str], where: str) -> tuple[str, float, str, Split]:
    wanted = "wanted youtube_id,start_s,label,split with a split of train or test"
    if len(fields) != 4:
        raise UserError(f"source.csv: {where}: got {len(fields)} fields, {wanted}")
    video_id, start_text, label, split = (field.strip() for field in fields)
    try:
        start_s = float(start_text)
    except ValueError:
        start_s = math.nan
    if not 0 <= start_s < math.inf:
        raise UserError(f"source.csv: {where}: got the start {start_text!r}, {wanted}")
    if split not in get_args(Split):
        raise UserError(f"source.csv: {where}: got the split {split!r}, {wanted}")
    return video_id, start_s, label, cast(Split, split)


def split_of(clip: SourceClip, sha256: str, test_fraction: float) -> Split:
    """Split of a clip. Without one in the source, the content hash decides, so that it never changes."""
    if clip.split is not None:
        return clip.split
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
            return {"sha256": hashlib.sha256(self.folder.read_bytes(name)).hexdigest()}
        except OSError as error:
            return Failed("UnreadableSource", f"{name}: cannot be read: {one_line(error)}")


class SourceHashes:
    """SHA-256 of every file of a source, from the ledger `sources`."""

    def __init__(self, source: SourceFolder, storage: Storage) -> None:
        self.source, self.ledger = source, Ledger(storage, HASHES)
        rows = [
            Row(clip.name, {"name": clip.name, "size": clip.size, "version": clip.version}, {"name": clip.name})
            for clip in source.clips
        ]
        self.rows = RowSet(HASHES, HashRecipe(source.folder.url), rows, HashWorker(source.folder))
        self.known = self.ledger.read()
        self.todo = set(missing(self.rows.keys, self.known, retry_failed=False))

    @property
    def is_quick(self) -> bool:
        """True if the missing digests can be computed while planning."""
        return sum(clip.size for clip in self.source.clips if clip.name in self.todo) <= HASH_WHILE_PLANNING_BYTES

    def complete(self, workers: int, say: Callable[[str], None]) -> None:
        """Computes and stores the missing digests: in this process if that is quick, else over Ray."""
        if not self.todo:
            return
        if self.is_quick:
            entries = self.hash_here()
            self.ledger.commit(entries.values())
            self.known |= entries
        else:
            from pipelines.engine.fanout import fan_out  # `plan` starts without Ray

            ensure_ray()
            execution = Workers(workers=workers, batch_rows=64)
            items, worker = self.rows.items(self.todo), self.rows.worker
            fan_out(items, worker, ledger=self.ledger, workers=execution, label="hashing", say=say)
            self.known = self.ledger.read()
        self.todo = set()

    def hash_here(self) -> dict[str, Entry]:
        """Entries by key of the files without digest, hashed in this process. Writes nothing."""
        items = self.rows.items(self.todo)
        results = self.rows.worker.process([task for _, _, task in items])
        return {key: Entry.of(row_id, key, result) for (row_id, key, _), result in zip(items, results, strict=True)}

    def read(self) -> tuple[dict[str, str], list[Refused]]:
        """SHA-256 by file name, and the files that could not be read. All files must have been hashed."""
        good: dict[str, str] = {}
        refused: list[Refused] = []
        for name, key in self.rows.keys.items():
            entry = self.known[key]
            if entry.status == "ok":
                good[name] = entry.value["sha256"]
            else:
                refused.append(Refused(name, entry.error_class, entry.message))
        return good, refused
