"""Store of stage outputs: `{root}/{stage}/{fingerprint}/`, committed by the manifest, which is written last."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from pipelines.engine.storage import Storage
from pipelines.errors import UserError

FORMAT = 1
"""Version of the store's layout. A store of another version is refused, never read."""

STORE, MANIFEST, SPEC = "store.json", "manifest.json", "spec.json"
ROWS, QUARANTINE = "rows.parquet", "quarantine.parquet"
RUNS = "runs"
"""Folder for the working files of training runs: `runs/{stage}/{fingerprint}...`."""


def text_columns(*names: str) -> list[pa.Field]:
    """String columns of an Arrow schema."""
    return [pa.field(name, pa.string()) for name in names]


QUARANTINE_SCHEMA = pa.schema(text_columns("row_id", "stage", "error_class", "message"))


@dataclass(frozen=True)
class Manifest:
    """Record of a committed output. `digest` covers its meaning and is all that later stages depend on."""

    stage: str
    fingerprint: str
    digest: str
    rows_in: int
    rows_out: int
    rows_quarantined: int
    rows_computed: int
    seconds: float
    finished_at_s: float = field(default_factory=time.time)
    figures: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.rows_in == self.rows_out + self.rows_quarantined, (
            f"{self.stage}: {self.rows_in} rows in, but {self.rows_out} out and {self.rows_quarantined} quarantined"
        )


class Output:
    """Folder of one stage output, committed or in progress."""

    def __init__(self, storage: Storage, stage: str, fingerprint: str) -> None:
        self.storage, self.stage, self.fingerprint = storage, stage, fingerprint
        self.folder = f"{stage}/{fingerprint}"

    def name(self, file: str) -> str:
        """Name of this output's `file`, relative to the storage root."""
        return f"{self.folder}/{file}"

    def manifest(self) -> Manifest | None:
        """Manifest, or None while the output is not committed."""
        found = self.storage.find_json(self.name(MANIFEST))
        return None if found is None else Manifest(**found)

    def committed(self) -> Manifest:
        """Manifest of an output that is known to be committed."""
        manifest = self.manifest()
        assert manifest is not None, f"{self.folder} is taken for finished and has no manifest"
        return manifest

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.storage.read_table(self.name(ROWS)).to_pylist()
        return rows

    def quarantine(self) -> list[dict[str, Any]]:
        """Quarantined rows: row_id, stage, error_class, message."""
        rows: list[dict[str, Any]] = self.storage.read_table(self.name(QUARANTINE)).to_pylist()
        return rows

    def write_rows(self, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
        self.storage.write_table(self.name(ROWS), pa.Table.from_pylist(rows, schema=schema))

    def write_quarantine(self, rows: list[dict[str, Any]]) -> None:
        self.storage.write_table(self.name(QUARANTINE), pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA))

    def commit(self, manifest: Manifest, spec: Mapping[str, Any]) -> Manifest:
        """Commits the output: writes the manifest, with the SHA-256 of each file directly in the folder."""
        self.storage.write_json(self.name(SPEC), spec)
        files = {
            info.name[len(self.folder) + 1 :]: hashlib.sha256(self.storage.read_bytes(info.name)).hexdigest()
            for info in self.storage.files(self.folder)
        }
        manifest = Manifest(**{**asdict(manifest), "files": files})
        self.storage.write_json(self.name(MANIFEST), asdict(manifest))
        return manifest


def open_store(root: str, *, write: bool = False) -> Storage:
    """Storage of a run. With `write`, an empty root is marked with the format version.

    Raises UserError if the root holds a store of another format, or something else. Nothing in it is touched.
    """
    storage = Storage(root)
    try:
        found = storage.read_json(STORE).get("format")
    except FileNotFoundError:
        if not storage.is_empty():
            raise UserError(
                f"root {root!r} holds files but no {STORE}: not a store of format {FORMAT}; start in an empty root"
            ) from None
        if write:
            storage.write_json(STORE, {"format": FORMAT})
        return storage
    except (ValueError, AttributeError):
        found = None
    if found != FORMAT:
        raise UserError(f"root {root!r} is a store of format {found}, wanted {FORMAT}; start in an empty root")
    return storage


def latest(storage: Storage, stage: str) -> str | None:
    """Fingerprint of the output that this stage used last, or None."""
    found = storage.find_json(f"{stage}/latest.json")
    return None if found is None else str(found["fingerprint"])


def latest_spec(storage: Storage, stage: str) -> dict[str, Any] | None:
    """Spec of the output that this stage used last, the reference for explaining changes."""
    fingerprint = latest(storage, stage)
    spec: dict[str, Any] | None = storage.find_json(f"{stage}/{fingerprint}/{SPEC}") if fingerprint else None
    return spec


def mark_latest(storage: Storage, stage: str, fingerprint: str) -> None:
    """Records `fingerprint` as the output that this stage used last."""
    if latest(storage, stage) != fingerprint:
        storage.write_json(f"{stage}/latest.json", {"fingerprint": fingerprint})
