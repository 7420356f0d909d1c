"""Row ledger: every row a stage has ever computed, so that only missing rows are computed.

Append-only Parquet parts under `ledger/{stage}/`. A worker commits its rows as one part before it returns. A crash
loses only rows in flight, and rows computed twice are deduplicated by key when read.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pyarrow as pa

from pipelines.engine.storage import Storage
from pipelines.engine.store import text_columns

Status = Literal["ok", "quarantined"]

SCHEMA = pa.schema(
    [
        *text_columns("key", "row_id", "status", "value", "error_class", "message"),
        ("written_at_s", pa.float64()),
    ]
)
COMPACT_ABOVE_PARTS = 64


@dataclass(frozen=True)
class Failed:
    """Failure of one row, as its worker reports it."""

    error_class: str
    message: str


@dataclass(frozen=True)
class Entry:
    """Ledger entry of one row. `key` is the digest of all that determines `value`, which is plain JSON data."""

    key: str
    row_id: str
    status: Status
    value: dict[str, Any] = field(default_factory=dict)
    error_class: str = ""
    message: str = ""
    written_at_s: float = field(default_factory=time.time)

    @classmethod
    def of(cls, row_id: str, key: str, result: dict[str, Any] | Failed) -> Entry:
        """Entry of a worker's result."""
        if isinstance(result, Failed):
            return cls(key, row_id, "quarantined", error_class=result.error_class, message=result.message)
        return cls(key, row_id, "ok", value=result)


class Worker(Protocol):
    """Picklable row worker: sent to an actor, set up there once, then fed batches of tasks."""

    def setup(self) -> None:
        """Loads models, if any. An exception here ends the run."""

    def process(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any] | Failed]:
        """Computes rows, in the order of their tasks."""


class Ledger:
    """Append-only ledger of rows, stored as Parquet parts."""

    def __init__(self, storage: Storage, stage: str) -> None:
        self.storage = storage
        self.folder = f"ledger/{stage}"

    def commit(self, entries: Iterable[Entry]) -> None:
        """Writes `entries` as one new part, durable when this returns."""
        rows = [{**vars(entry), "value": json.dumps(entry.value, ensure_ascii=False)} for entry in entries]
        if rows:
            # The name sorts by time, which makes listings readable; uniqueness is the UUID's.
            name = f"{self.folder}/{time.time_ns():020d}-{uuid.uuid4().hex[:12]}.parquet"
            self.storage.write_table(name, pa.Table.from_pylist(rows, schema=SCHEMA))

    def read(self) -> dict[str, Entry]:
        """All entries by key. Of several with one key, an ok one wins, then the earliest."""
        entries: dict[str, Entry] = {}
        for info in self.storage.files(self.folder):
            try:
                table = self.storage.read_table(info.name)
            except FileNotFoundError:
                continue  # compacted away by another driver between listing and reading; its rows come later
            for row in table.to_pylist():
                entry = Entry(**{**row, "value": json.loads(row["value"])})
                known = entries.get(entry.key)
                if known is None or _rank(entry) < _rank(known):
                    entries[entry.key] = entry
        return entries

    def compact(self) -> None:
        """Merges many small parts into one. Safe to interrupt: duplicate rows are dropped when read."""
        parts = self.storage.files(self.folder)
        if len(parts) <= COMPACT_ABOVE_PARTS:
            return
        self.commit(sorted(self.read().values(), key=lambda entry: (entry.row_id, entry.key)))
        for info in parts:
            self.storage.remove(info.name)


def missing(keys: Mapping[str, str], known: Mapping[str, Entry], *, retry_failed: bool) -> list[str]:
    """Row ids among `keys` (row id -> key) that have no entry yet, or a quarantined one to be tried again."""
    return [
        row_id
        for row_id, key in keys.items()
        if (entry := known.get(key)) is None or (retry_failed and entry.status == "quarantined")
    ]


def _rank(entry: Entry) -> tuple[bool, float]:
    return entry.status != "ok", entry.written_at_s
