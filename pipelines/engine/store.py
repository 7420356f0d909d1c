"""Store of stage outputs: `{root}/{stage}/{fingerprint}/`, committed by the manifest, which is written last."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.engine.fingerprint import file_sha256
from pipelines.engine.local_listing import PARTIAL
from pipelines.engine.storage import NO_SUCH_FILE, Storage, json_bytes, parquet_bytes, parquet_table
from pipelines.errors import RunError, UserError

FORMAT = 1
"""Version of the store's layout. A store of another version is refused, never read."""

STORE, MANIFEST, SPEC, LATEST = "store.json", "manifest.json", "spec.json", "latest.json"
ROWS, QUARANTINE = "rows.parquet", "quarantine.parquet"
RUNS = "runs"
"""Folder for the working files of training runs: `runs/{stage}/{fingerprint}...`."""


def text_columns(*names: str) -> list[pa.Field]:
    """String columns of an Arrow schema."""
    return [pa.field(name, pa.string()) for name in names]


SHA256_SUFFIX, BYTES_SUFFIX = "_sha256", "_bytes"


def file_columns(name: str) -> list[pa.Field]:
    """Columns of an Arrow schema for a stored file: its storage name (or nothing), its size and its SHA-256."""
    text = pa.dictionary(pa.int32(), pa.string())
    return [pa.field(name, text), pa.field(name + BYTES_SUFFIX, pa.int64()), pa.field(name + SHA256_SUFFIX, text)]


def keep_file(storage: Storage, local: Path, name: str, column: str) -> dict[str, Any]:
    """Moves a local file into the storage. Returns its values for `file_columns(column)`."""
    kept = {column: name, column + BYTES_SUFFIX: local.stat().st_size, column + SHA256_SUFFIX: file_sha256(local)}
    storage.upload(local, name)
    return kept


def shared_text_column(name: str) -> pa.Field:
    """String column of an Arrow schema of which many values are equal; each is stored once."""
    return pa.field(name, pa.dictionary(pa.int32(), pa.string()))


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
    usage: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.rows_in == self.rows_out + self.rows_quarantined, (
            f"{self.stage}: {self.rows_in} rows in, but {self.rows_out} out and {self.rows_quarantined} quarantined"
        )


class Output:
    """Folder of one stage output, committed or in progress. Files are written through it, which notes their digests."""

    def __init__(self, storage: Storage, stage: str, fingerprint: str) -> None:
        self.storage, self.stage, self.fingerprint = storage, stage, fingerprint
        self.folder = f"{stage}/{fingerprint}"
        self._written: dict[str, str] = {}
        self._manifest: Manifest | None = None

    def name(self, file: str) -> str:
        """Name of this output's `file`, relative to the storage root."""
        return f"{self.folder}/{file}"

    def manifest(self) -> Manifest | None:
        """Manifest, or None while the output is not committed."""
        if self._manifest is None:
            found = self.storage.find_record(self.name(MANIFEST))
            self._manifest = None if found is None else Manifest(**found)
        return self._manifest

    def committed(self) -> Manifest:
        """Manifest of an output that is known to be committed."""
        manifest = self.manifest()
        assert manifest is not None, f"{self.folder} is taken for finished and has no manifest"
        return manifest

    def rows(self, *columns: str) -> pa.Table:
        """Rows of the output, all columns or the given ones."""
        return parquet_table(self.read_bytes(ROWS), columns or None)

    def quarantine(self) -> pa.Table:
        """Quarantined rows, as in QUARANTINE_SCHEMA."""
        return parquet_table(self.read_bytes(QUARANTINE))

    def spec(self) -> dict[str, Any]:
        """Spec of the output: stage, meaning, inputs and origins, which explain later changes."""
        spec: dict[str, Any] = json.loads(self.read_bytes(SPEC))
        return spec

    def read_bytes(self, file: str) -> bytes:
        """Content of a file of the committed output.

        Raises RunError if it is gone, or not what was written.
        """
        try:
            data = self.storage.read_bytes(self.name(file))
        except NO_SUCH_FILE:
            data = None
        if data is None or hashlib.sha256(data).hexdigest() != self.committed().files.get(file):
            what = "is gone" if data is None else "holds other bytes than were written"
            raise RunError(
                f"{self.storage.address(self.name(file))} {what}; `soundcap fsck CONFIG --repair` sets it aside, and "
                "`soundcap run CONFIG` makes it again from the ledger"
            )
        return data

    def write_bytes(self, file: str, data: bytes) -> None:
        self.storage.write_bytes(self.name(file), data)
        self._written[file] = hashlib.sha256(data).hexdigest()

    def write_json(self, file: str, value: Any) -> None:
        self.write_bytes(file, json_bytes(value))

    def write_rows(self, rows: pa.Table) -> None:
        self.write_bytes(ROWS, parquet_bytes(rows))

    def upload(self, local: Path, file: str) -> None:
        """Moves a local file into the output."""
        self._written[file] = file_sha256(local)
        self.storage.upload(local, self.name(file))

    def upload_folder(self, local: Path, name: str) -> None:
        """Moves every file below a local folder to below `name`."""
        for file in sorted(local.rglob("*")):
            if file.is_file():
                self.upload(file, f"{name}/{file.relative_to(local).as_posix()}")

    def commit(self, manifest: Manifest, quarantine: pa.Table, spec: Mapping[str, Any]) -> Manifest:
        """Commits the output: writes the manifest, with the SHA-256 of each file, after everything else."""
        self.write_bytes(QUARANTINE, parquet_bytes(quarantine))
        self.write_json(SPEC, spec)
        self._manifest = replace(manifest, files=dict(sorted(self._written.items())))
        self.storage.write_record(self.name(MANIFEST), asdict(self._manifest))
        return self._manifest


class PreviewedOutput(Output):
    """Output as a run would commit it. It has its rows and its manifest, and no files."""

    def __init__(self, storage: Storage, manifest: Manifest, rows: pa.Table) -> None:
        super().__init__(storage, manifest.stage, manifest.fingerprint)
        self._manifest, self._rows = manifest, rows

    def rows(self, *columns: str) -> pa.Table:
        return self._rows.select(columns) if columns else self._rows


def committed_outputs(storage: Storage, stage: str) -> list[Output]:
    """All committed outputs of a stage, by fingerprint, whatever configuration made them."""
    names = sorted(name for name in storage.names(stage) if name.endswith(f"/{MANIFEST}"))
    return [Output(storage, stage, name.split("/")[1]) for name in names]


def open_store(root: str, *, write: bool = False) -> Storage:
    """Storage of a run. With `write`, an empty root is marked with the format version.

    Raises UserError if the root holds a store of another format, or something else. Nothing in it is touched.
    """
    storage = Storage(root)
    if storage.is_local and not _may_hold_a_store(Path(storage.url), write=write):
        raise UserError(f"root {root!r}: no folder, or one that cannot be written; give another, or an s3:// address")
    try:
        storage.check_answers()
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


def mark_store(storage: Storage) -> None:
    """Marks a root that `open_store` took; no change if it is marked already."""
    storage.create(STORE, json_bytes({"format": FORMAT}))


def unmark_empty_store(storage: Storage, lease: str) -> None:
    """Takes the mark out of a root that holds nothing but it and the file `lease`, of whose holder this is called."""
    allowed = {STORE, lease}
    with contextlib.suppress(OSError):  # then it cannot be seen that the root holds nothing else
        if storage.is_local:
            root, partial = Path(storage.path()), Path(storage.path(PARTIAL))
            if {path.name for path in root.iterdir()} <= allowed | {PARTIAL} and not any(partial.iterdir()):
                storage.remove(STORE)
                partial.rmdir()
        elif storage.names("") <= allowed:
            storage.remove(STORE)


def _may_hold_a_store(root: Path, *, write: bool) -> bool:
    """True if a local folder is there, or can be made; with `write`, if it can be written to."""
    nearest = next(folder for folder in (root, *root.parents) if folder.exists())
    if not nearest.is_dir():
        return False
    if not write:
        return True
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(root, os.W_OK)


def latest(storage: Storage, stage: str) -> str | None:
    """Fingerprint of the output that this stage used last, or None."""
    found = storage.find_record(f"{stage}/{LATEST}")
    return None if found is None else str(found["fingerprint"])


def latest_spec(storage: Storage, stage: str) -> dict[str, Any] | None:
    """Spec of the output that this stage used last, the reference for explaining changes."""
    fingerprint = latest(storage, stage)
    output = Output(storage, stage, fingerprint) if fingerprint else None
    with contextlib.suppress(RunError):  # it is gone or damaged
        return output.spec() if output is not None and output.manifest() is not None else None
    return None


def mark_latest(storage: Storage, stage: str, fingerprint: str) -> None:
    """Records `fingerprint` as the output that this stage used last."""
    if latest(storage, stage) != fingerprint:
        storage.write_record(f"{stage}/{LATEST}", {"fingerprint": fingerprint})
