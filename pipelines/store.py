"""Stage outputs at `{root}/{stage}/{fingerprint}/`, committed by the manifest, which is written last."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from pipelines.storage import Storage

MANIFEST = "manifest.json"
SPEC = "spec.json"
ROWS = "rows.parquet"
QUARANTINE = "quarantine.parquet"

QUARANTINE_SCHEMA = pa.schema(
    [("row_id", pa.string()), ("stage", pa.string()), ("error_class", pa.string()), ("message", pa.string())]
)


@dataclass(frozen=True)
class Manifest:
    """What a finished stage made. `digest` is of meaning and is all that later stages depend on."""

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
    """The folder of one stage output, committed or being made."""

    def __init__(self, storage: Storage, stage: str, fingerprint: str) -> None:
        self.storage, self.stage, self.fingerprint = storage, stage, fingerprint
        self.folder = f"{stage}/{fingerprint}"

    def name(self, file: str) -> str:
        """`file` of this output, relative to the storage root."""
        return f"{self.folder}/{file}"

    def manifest(self) -> Manifest | None:
        """The manifest, or None while the output is not committed."""
        try:
            return Manifest(**self.storage.read_json(self.name(MANIFEST)))
        except FileNotFoundError:
            return None

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.storage.read_table(self.name(ROWS)).to_pylist()
        return rows

    def quarantine(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.storage.read_table(self.name(QUARANTINE)).to_pylist()
        return rows

    def write_rows(self, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
        self.storage.write_table(self.name(ROWS), pa.Table.from_pylist(rows, schema=schema))

    def write_quarantine(self, rows: list[dict[str, Any]]) -> None:
        self.storage.write_table(self.name(QUARANTINE), pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA))

    def commit(self, manifest: Manifest, spec: Mapping[str, Any]) -> Manifest:
        """Makes the output final. Files written before, except training's working files, are recorded."""
        self.storage.write_json(self.name(SPEC), spec)
        files = {
            info.name[len(self.folder) + 1 :]: hashlib.sha256(self.storage.read_bytes(info.name)).hexdigest()
            for info in self.storage.files(self.folder)
        }
        manifest = Manifest(**{**asdict(manifest), "files": files})
        self.storage.write_json(self.name(MANIFEST), asdict(manifest))
        return manifest


def latest_spec(storage: Storage, stage: str) -> dict[str, Any] | None:
    """The spec of the output this stage used last: what a change is explained against."""
    try:
        fingerprint = storage.read_json(f"{stage}/latest.json")["fingerprint"]
        spec: dict[str, Any] = storage.read_json(f"{stage}/{fingerprint}/{SPEC}")
        return spec
    except FileNotFoundError:
        return None


def mark_latest(storage: Storage, stage: str, fingerprint: str) -> None:
    """Records that `fingerprint` is what the last run of this stage stands on."""
    name = f"{stage}/latest.json"
    if not storage.exists(name) or storage.read_json(name)["fingerprint"] != fingerprint:
        storage.write_json(name, {"fingerprint": fingerprint})
