"""Storage and ledger behave alike on a disk and in a bucket."""

import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.engine.ledger import COMPACT_ABOVE_PARTS, Entry, Ledger, missing
from pipelines.engine.storage import Storage
from pipelines.engine.store import Manifest, Output, latest_spec, mark_latest
from pipelines.errors import UserError


@pytest.fixture(params=["disk", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "disk":
        yield Storage(str(tmp_path / "root"))
    else:
        url = request.getfixturevalue("s3_url")
        yield Storage(f"{url}/{tmp_path.name}")


def test_files_round_trip_and_list(storage: Storage) -> None:
    assert storage.files("a") == [] and not storage.exists("a/x")
    storage.write_bytes("a/x", b"1")
    storage.write_bytes("a/b/y", b"22")
    storage.write_bytes("a/x", b"333")
    assert storage.read_bytes("a/x") == b"333"
    assert [(f.name, f.size) for f in storage.files("a")] == [("a/x", 3)]
    assert [f.name for f in storage.files("a", recursive=True)] == ["a/b/y", "a/x"]
    storage.remove("a/b")
    storage.remove("a/b")
    assert [f.name for f in storage.files("", recursive=True)] == ["a/x"]
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("a/none")


def test_version_changes_with_the_content(storage: Storage) -> None:
    storage.write_bytes("f", b"one")
    first = storage.files()[0].version
    storage.write_bytes("f", b"two")
    assert storage.files()[0].version != first


def test_folders_go_up_and_come_back(storage: Storage, tmp_path: Path) -> None:
    local = tmp_path / "made"
    (local / "deep").mkdir(parents=True)
    (local / "w.bin").write_bytes(b"w")
    (local / "deep" / "c.json").write_bytes(b"{}")
    storage.upload_folder(local, "stage/adapter")
    with storage.local("stage/adapter") as folder:
        assert {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()} == {"w.bin", "deep/c.json"}
    with storage.local("stage/adapter/w.bin") as file:
        assert file.read_bytes() == b"w"


def test_pickles_and_tables(storage: Storage) -> None:
    copy = pickle.loads(pickle.dumps(storage))
    copy.write_table("t.parquet", pa.table({"a": [1, 2]}))
    assert storage.read_table("t.parquet").to_pylist() == [{"a": 1}, {"a": 2}]


def test_unknown_scheme_is_a_user_error() -> None:
    with pytest.raises(UserError, match="local folder or an s3:// address"):
        Storage("nosuch://x").files()


def _entry(key: str, status: str = "ok", at: float = 0.0, **value: object) -> Entry:
    return Entry(key, f"row-{key}", status, value, written_at_s=at)  # type: ignore[arg-type]


def test_ledger_keeps_the_first_good_row(storage: Storage) -> None:
    ledger = Ledger(storage, "captions")
    ledger.commit([_entry("k1", "quarantined", 1.0), _entry("k2", at=2.0, caption="first")])
    ledger.commit([_entry("k1", at=3.0, caption="good at last"), _entry("k2", at=4.0, caption="second")])
    rows = ledger.read()
    assert rows["k1"].status == "ok" and rows["k1"].value == {"caption": "good at last"}
    assert rows["k2"].value == {"caption": "first"}, "a stored caption is the record; it must not be replaced"


def test_missing_rows(storage: Storage) -> None:
    ledger = Ledger(storage, "s")
    ledger.commit([_entry("k1"), _entry("k2", "quarantined")])
    keys = {"a": "k1", "b": "k2", "c": "k3"}
    assert missing(keys, ledger.read(), retry_failed=False) == ["c"]
    assert missing(keys, ledger.read(), retry_failed=True) == ["b", "c"]


def test_compaction_loses_and_doubles_nothing(storage: Storage) -> None:
    ledger = Ledger(storage, "s")
    for i in range(COMPACT_ABOVE_PARTS + 1):
        ledger.commit([_entry(f"k{i}", n=i), _entry("shared", at=float(i), n=i)])
    before = ledger.read()
    ledger.compact()
    assert ledger.read() == before
    assert len(storage.files("ledger/s")) == 1


def test_parts_written_at_once_do_not_meet(tmp_path: Path) -> None:
    ledger = Ledger(Storage(str(tmp_path)), "s")
    threads = [threading.Thread(target=lambda i=i: ledger.commit([_entry(f"k{i}")])) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.read()) == 16


def _manifest(rows_in: int, rows_out: int, quarantined: int) -> Manifest:
    return Manifest("s", "f", "d", rows_in, rows_out, quarantined, rows_out, 0.1)


def test_output_exists_from_its_manifest_on(storage: Storage) -> None:
    output = Output(storage, "s", "f")
    output.write_rows([{"a": 1}], pa.schema([("a", pa.int64())]))
    output.write_quarantine([])
    assert output.manifest() is None, "rows without a manifest are an interrupted run"
    output.commit(_manifest(1, 1, 0), {"meaning": {}})
    manifest = output.manifest()
    assert manifest is not None and set(manifest.files) == {"rows.parquet", "quarantine.parquet", "spec.json"}
    assert latest_spec(storage, "s") is None
    mark_latest(storage, "s", "f")
    assert latest_spec(storage, "s") == {"meaning": {}}


def test_a_lost_row_cannot_be_committed() -> None:
    with pytest.raises(AssertionError, match="5 rows in, but 3 out and 1 quarantined"):
        _manifest(5, 3, 1)
