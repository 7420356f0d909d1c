"""Remembered listing of the source, for `plan` and `status`: 200,000 files take seconds, in a bucket minutes.

It lies in the user's cache folder; where that cannot be written to there is none. A run always lists. Small sources are
always listed, and so are local ones in which a folder has changed, and all whose CSV or hashes are others: unnoticed,
until the next run or `--rescan`, go changes in a bucket, and on a disk a file that was overwritten in its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.engine.fingerprint import digest
from pipelines.engine.storage import Storage, json_bytes, parquet_bytes, parquet_table
from pipelines.progress import human_time

REMEMBERED_FILES = 10_000
"""Files from which on a listing is remembered."""
FORMAT = 4
LISTING, KEY = "listing.parquet", b"soundcap"
"""Remembered listing, and the key of its metadata: its id, its time, and when each folder was changed."""
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
UNREADABLE = (OSError, ValueError, TypeError, KeyError, pa.ArrowException)


class SourceListing:
    """Listing of a source folder, remembered or made now, and facts that were derived from it.

    Attributes:
        age_s: age of a remembered listing; 0 for one of now.
    """

    def __init__(self, folder: str, *, rescan: bool = False) -> None:
        self.source = Storage(folder)
        endpoints = [os.environ.get(name) for name in ENDPOINTS]  # a bucket's name says nothing without its server
        self.memory = cache_folder() / digest([FORMAT, self.source.url, endpoints])[:16]
        self._record = None if rescan else _valid_record(self.memory / LISTING)
        self._files: pa.Table | None = None
        self.age_s = 0.0 if self._record is None else max(0.0, time.time() - self._record["listed_at_s"])

    def __str__(self) -> str:
        return f"source listed {human_time(self.age_s)} ago; --rescan lists it again"

    @property
    def files(self) -> pa.Table:
        """Files of the source, as of `Storage.listing`."""
        if self._files is None and self._record is not None:
            with contextlib.suppress(*UNREADABLE):
                table = parquet_table((self.memory / LISTING).read_bytes())
                if _record_of(table.schema)["id"] == self._record["id"]:
                    self._files = table.replace_schema_metadata(None)
        if self._files is None:
            self._list()
        return self._files

    def _list(self) -> None:
        """Lists the source, and remembers that if there is much of it."""
        self.source.check_answers()
        listed_at_s = time.time()
        self._files, folders = self.source.listing()
        self._record, self.age_s = None, 0.0
        record = {"id": uuid.uuid4().hex, "listed_at_s": listed_at_s, "folders": folders}
        if self._files.num_rows < REMEMBERED_FILES:
            with contextlib.suppress(OSError):
                (self.memory / LISTING).unlink()
            return
        table = self._files.replace_schema_metadata({KEY: json.dumps(record)})
        self._record = record if _keep(self.memory / LISTING, parquet_bytes(table)) else None

    def fact(self, name: str, of: Any, find: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Plain data that `find` derives from the listing and from `of`, from memory if both are as they were.

        If `of` is not, the source is listed again: the change may have come with new files.
        """
        path = self.memory / f"{name}.json"
        known = None if self._record is None else _read(path)
        if known is not None and self._record is not None and known["id"] == self._record["id"]:
            if known["of"] == digest(of):
                found: Mapping[str, Any] = known["fact"]
                return found
            self._list()
        found = find()
        if self._record is not None:
            _keep(path, json_bytes({"id": self._record["id"], "of": digest(of), "fact": found}))
        return found


def cache_folder() -> Path:
    """Folder of what this user's commands remember. It need not exist, nor be one that can be written to."""
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(named) if named else Path.home() / ".cache") / "soundcap"
    except RuntimeError:  # a user without a home
        return Path(os.devnull) / "soundcap"


def _valid_record(path: Path) -> dict[str, Any] | None:
    """Record of a listing, unless one of the folders has changed since."""
    with contextlib.suppress(*UNREADABLE):
        record = _record_of(pq.read_schema(path))
        if record["folders"] == {name: _time_of(name) for name in record["folders"]}:
            return record
    return None


def _record_of(schema: pa.Schema) -> dict[str, Any]:
    record = json.loads(schema.metadata[KEY])
    return {name: record[name] for name in ("id", "listed_at_s", "folders")}


def _time_of(folder: str) -> int:
    try:
        return Path(folder).stat().st_mtime_ns
    except OSError:
        return -1


def _read(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(*UNREADABLE):
        found = json.loads(path.read_bytes())
        return {name: found[name] for name in ("id", "of", "fact")}
    return None


def _keep(path: Path, data: bytes) -> bool:
    """Writes a file of the memory, for this user alone; False where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = path.with_name(f".{uuid.uuid4().hex}")
        partial.write_bytes(data)
        partial.replace(path)
    except OSError:
        return False
    return True
