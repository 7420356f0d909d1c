"""Check of a store: every byte in it against the digests that were recorded when it was written.

A row names its files in columns that have companions: beside `video` stand `video_bytes` and `video_sha256`
(`store.file_columns`). So files are found without knowing any stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.exclusion import EXCLUSION, read_exclusion
from pipelines.engine.ledger import DAMAGED, LEDGERS, LIVE, Damage, Ledger, Part, names_any
from pipelines.engine.model_files import FILES, MODELS, mirrored_file
from pipelines.engine.model_pins import PINS
from pipelines.engine.storage import Storage
from pipelines.engine.store import LATEST, MANIFEST, ROWS, SHA256_SUFFIX, Output
from pipelines.errors import RunError, UserError


@dataclass(frozen=True)
class Finding:
    """Damaged or missing file, with what is wrong and the rows or the output that it costs."""

    name: str
    problem: str
    cost: str


def gone_files(output: Output) -> list[str]:
    """Storage names of files that a committed output needs and that are gone: its own, and those that its rows name."""
    storage, manifest = output.storage, output.committed()
    there = {info.name for info in storage.files(output.folder, recursive=True)}
    gone = [output.name(file) for file in manifest.files if output.name(file) not in there]
    if ROWS in manifest.files and output.name(ROWS) not in gone:
        try:
            rows = output.rows()
        except RunError:  # not what was written
            return [*gone, output.name(ROWS)]
        named = set(files_of(rows)["name"].to_pylist())
        for folder in sorted({name.partition("/")[0] for name in named}):
            named -= storage.names(folder)
        gone += sorted(named)
    return gone


def files_of(rows: pa.Table) -> pa.Table:
    """Different files that rows name, with their recorded digests (name, sha256)."""
    tables = [pa.table({"name": pa.array([], pa.string()), "sha256": pa.array([], pa.string())})]
    for column in rows.column_names:
        if f"{column}{SHA256_SUFFIX}" in rows.column_names:
            table = pa.table(
                {
                    "name": rows[column].cast(pa.string()),
                    "sha256": rows[f"{column}{SHA256_SUFFIX}"].cast(pa.string()),
                }
            )
            tables.append(table.filter(pc.not_equal(pc.coalesce(table["name"], pa.scalar("")), "")))
    return pa.concat_tables(tables).group_by(["name", "sha256"]).aggregate([])


def forget_rows(storage: Storage, files: list[str]) -> int:
    """Takes the rows that name any of these files out of all ledgers, so that they are made again; returns how many."""
    if not files:
        return 0
    return sum(Ledger.of_any_schema(storage, name).forget(files) for name in ledger_names(storage))


def fsck(storage: Storage) -> Iterator[Finding]:
    """Reads every file of the store that has a recorded digest, and yields what is damaged or gone. Changes nothing."""
    for name in ledger_names(storage):
        ledger = Ledger.of_any_schema(storage, name)
        tables, damaged = ledger.load(ledger.parts())
        yield from (_damaged_part(ledger, damage) for damage in damaged)
        for table in tables:
            for file, sha256 in zip(*files_of(table).columns, strict=True):
                problem = _problem(storage, file.as_py(), sha256.as_py())
                if problem:
                    rows = table.filter(pa.array(names_any(table, [file.as_py()])))["row_id"].to_pylist()
                    yield Finding(file.as_py(), problem, f"{len(rows)} rows of ledger {name}, such as {rows[0]}")
    for manifest in _manifests(storage):
        yield from _check_output(storage, manifest)
    for record in _mirrors(storage):
        for name, sha256 in (storage.find_record(record) or {"files": {}})["files"].items():
            problem = _problem(storage, mirrored_file(record, name), sha256)
            if problem:
                yield Finding(mirrored_file(record, name), problem, "a model: --repair, then `soundcap fetch-models`")
    for info in storage.files(recursive=True):
        if info.name.rpartition("/")[2] in (LIVE, LATEST) and storage.find_record(info.name) is None:
            yield Finding(info.name, "its content is not what was written", "nothing: --repair writes it again")
    try:
        read_exclusion(storage)
    except UserError:
        yield Finding(EXCLUSION, "it is gone, or not what was written", "no run starts: put it back from a copy")
    if storage.exists(PINS) and storage.find_record(PINS) is None:
        cost = "the commits of branches: after --repair the next run asks the hub for them"
        yield Finding(PINS, "its content is not what was written", cost)


def repair(storage: Storage, findings: list[Finding]) -> None:
    """Sets damaged files aside, so that the next run makes what they cost. The caller holds the root's lease."""
    for name in ledger_names(storage):
        ledger = Ledger.of_any_schema(storage, name)
        _, ledger.damaged = ledger.load(ledger.parts())
        ledger.settle()
    names = [finding.name for finding in findings if finding.name != EXCLUSION]  # without it videos would come back
    files = [name for name in names if not name.startswith(f"{LEDGERS}/")]
    forget_rows(storage, files)
    outdated = [manifest for manifest in _manifests(storage) if _needs_any(storage, manifest, files)]
    outdated += [record for record in _mirrors(storage) if any(mirrored_file(record, "") in name for name in files)]
    for name in dict.fromkeys([*files, *outdated]):
        storage.move(name, f"{DAMAGED}/{name}")
    if PINS in files:
        storage.write_record(PINS, {})  # else it would seem to be gone by accident


def _needs_any(storage: Storage, manifest: str, files: list[str]) -> bool:
    """True for an output of which one of these files is a part, or whose rows name one: it is no longer whole."""
    folder = manifest.removesuffix(MANIFEST)
    if any(name.startswith(folder) for name in files):
        return True
    stage, fingerprint, _ = manifest.split("/")
    output = Output(storage, stage, fingerprint)
    record = output.manifest()
    return record is not None and ROWS in record.files and bool(names_any(output.rows(), files).any())


def _check_output(storage: Storage, manifest: str) -> Iterator[Finding]:
    folder = manifest.removesuffix(f"/{MANIFEST}")
    stage, _, fingerprint = folder.partition("/")
    output, cost = Output(storage, stage, fingerprint), f"output {folder}, which is made again from the ledger"
    record = output.manifest()
    if record is None:
        yield Finding(manifest, "it is not a manifest", cost)
        return
    for file, sha256 in record.files.items():
        problem = _problem(storage, output.name(file), sha256)
        if problem:
            yield Finding(output.name(file), problem, cost)


def _damaged_part(ledger: Ledger, damage: Damage) -> Finding:
    part, problem = damage
    return Finding(f"{ledger.folder}/{part}", problem, f"{_rows(part)} rows of ledger {ledger.name}")


def _rows(part: Part) -> int:
    return part.ok + part.quarantined


def _problem(storage: Storage, name: str, sha256: str) -> str:
    try:
        return "" if storage.sha256(name) == sha256 else "its bytes are not those that were written"
    except FileNotFoundError:
        return "it is gone"
    except IsADirectoryError:
        return "a folder is in its place"


def ledger_names(storage: Storage) -> list[str]:
    """Names of the ledgers that are there."""
    places = [info.name.split("/") for info in storage.files(LEDGERS, recursive=True)]
    return sorted({place[1] for place in places if len(place) == 3})  # others are none of ours


def _mirrors(storage: Storage) -> list[str]:
    """Records of mirrored models."""
    return [info.name for info in storage.files(MODELS, recursive=True) if info.name.endswith(f"/{FILES}")]


def manifest_places(storage: Storage) -> list[tuple[str, str]]:
    """Stage and fingerprint of each output that has a manifest, damaged ones too."""
    places = [name.split("/") for name in _manifests(storage)]
    return [(stage, fingerprint) for stage, fingerprint, _ in places]


def _manifests(storage: Storage) -> list[str]:
    return [info.name for info in storage.files(recursive=True) if info.name.split("/")[2:] == [MANIFEST]]
