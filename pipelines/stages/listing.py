"""Remembered listing of the source, for `plan` and `status`: 200,000 files take seconds, in a bucket minutes.

It lies in the user's cache folder; where that cannot be written to there is none. A run always lists. Small sources are
always listed, and so is a local one in which a folder has changed since: only a file that was overwritten in its place
goes unnoticed until the next run or `--rescan`.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.engine.fingerprint import digest
from pipelines.engine.storage import Storage, json_bytes, parquet_bytes, parquet_table
from pipelines.progress import human_time

REMEMBERED_FILES = 10_000
"""Files from which on a listing is remembered."""
FORMAT = 1
LISTING, RECORD = "listing.parquet", "listing.json"


class SourceListing:
    """Listing of a source folder, remembered or made now, and facts that were derived from it.

    Attributes:
        age_s: age of a remembered listing; 0 for one of now.
    """

    def __init__(self, folder: str, *, rescan: bool = False) -> None:
        self.source = Storage(folder)
        self.memory = cache_folder() / digest([FORMAT, self.source.url])[:16]
        self._record = None if rescan else _valid_record(self.memory / RECORD)
        self.age_s = 0.0 if self._record is None else max(0.0, time.time() - self._record["listed_at_s"])

    def __str__(self) -> str:
        return f"source listed {human_time(self.age_s)} ago; --rescan lists it again"

    @cached_property
    def files(self) -> pa.Table:
        """Files of the source, as of `Storage.listing`."""
        if self._record is not None:
            with contextlib.suppress(OSError, pa.ArrowInvalid):
                return parquet_table((self.memory / LISTING).read_bytes())
            self._record, self.age_s = None, 0.0
        self.source.check_answers()
        listed_at_s = time.time()
        files, folders = self.source.listing()
        record = {"id": uuid.uuid4().hex, "listed_at_s": listed_at_s, "folders": folders}
        if files.num_rows >= REMEMBERED_FILES and _keep(self.memory / LISTING, parquet_bytes(files)):
            self._record = record if _keep(self.memory / RECORD, json_bytes(record)) else None
        return files

    def fact(self, name: str, of: Any, find: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Plain data that `find` derives from the listing and from `of`, from memory if both are as they were."""
        path = self.memory / f"{name}.json"
        if self._record is not None:
            known = _read(path)
            if known is not None and known["of"] == digest([self._record["id"], of]):
                found: Mapping[str, Any] = known["fact"]
                return found
        found = find()
        if self._record is not None:
            _keep(path, json_bytes({"of": digest([self._record["id"], of]), "fact": found}))
        return found


def cache_folder() -> Path:
    """Folder of what this user's commands remember."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "soundcap"


def _valid_record(path: Path) -> dict[str, Any] | None:
    """Record of a listing, unless one of the folders has changed since."""
    record = _read(path)
    if record is None or record["folders"] != {name: _time_of(name) for name in record["folders"]}:
        return None
    return record


def _time_of(folder: str) -> int:
    try:
        return Path(folder).stat().st_mtime_ns
    except OSError:
        return -1


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


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
