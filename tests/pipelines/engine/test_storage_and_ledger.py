"""Storage and ledger behave alike on a disk and in a bucket."""

import os
import pickle
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.engine.ledger import MERGED_PARTS, Failed, Ledger, counted_rows
from pipelines.engine.local_listing import PARTIAL
from pipelines.engine.recipe import KEY
from pipelines.engine.row_stage import is_missing
from pipelines.engine.storage import Storage
from pipelines.engine.store import (
    QUARANTINE_SCHEMA,
    Manifest,
    Output,
    latest_spec,
    mark_latest,
    open_store,
    unmark_empty_store,
)
from pipelines.errors import RunError, UserError


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
    Output(storage, "stage", "f").upload_folder(local, "adapter")
    with storage.local("stage/f/adapter") as folder:
        assert {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()} == {"w.bin", "deep/c.json"}
    with storage.local("stage/f/adapter/w.bin") as file:
        assert file.read_bytes() == b"w"


def test_pickles_and_tables(storage: Storage) -> None:
    copy = pickle.loads(pickle.dumps(storage))
    copy.write_table("t.parquet", pa.table({"a": [1, 2]}))
    assert storage.read_table("t.parquet").to_pylist() == [{"a": 1}, {"a": 2}]


def test_unknown_scheme_is_a_user_error() -> None:
    with pytest.raises(UserError, match="local folder, or s3://bucket/prefix"):
        Storage("nosuch://x").files()


CAPTION = pa.schema([("caption", pa.string())])


def _key(name: str) -> bytes:
    return name.encode().ljust(KEY.byte_width)


def _write(ledger: Ledger, **rows: str | Failed) -> None:
    """One part: captions, or failures, by key."""
    values = [row if isinstance(row, Failed) else {"caption": row} for row in rows.values()]
    ledger.write([_key(name) for name in rows], [f"row-{name}" for name in rows], values)


def _read(ledger: Ledger) -> dict[str, tuple[str, str | None]]:
    """Error class and caption by key."""
    rows = ledger.read(("caption",)).to_pylist()
    return {row["key"].decode().strip(): (row["error_class"], row["caption"]) for row in rows}


def test_ledger_keeps_the_first_good_row_and_else_the_last_failure(storage: Storage) -> None:
    ledger = Ledger(storage, "captions", CAPTION)
    _write(ledger, k1=Failed("Bad", "1"), k2="first", k3=Failed("Bad", "1"))
    ledger.settle()
    _write(ledger, k1="good at last", k2="second", k3=Failed("Worse", "2"))
    ledger.settle()
    assert _read(ledger) == {"k1": ("", "good at last"), "k2": ("", "first"), "k3": ("Worse", None)}


def test_order_is_that_of_the_manifest_not_of_names_or_clocks(storage: Storage) -> None:
    """A value that a stage has used stays, whatever the name or the time of a part that comes later."""
    for round_ in range(8):
        ledger = Ledger(storage, f"s{round_}", CAPTION)
        _write(ledger, k="used")
        ledger.settle()
        _write(ledger, k="late")
        assert _read(ledger) == {"k": ("", "used")}


def test_missing_rows(storage: Storage) -> None:
    ledger = Ledger(storage, "s", CAPTION)
    _write(ledger, k1="a", k2=Failed("Bad", "row"))
    keys = pa.array([_key(name) for name in ("k1", "k2", "k3")], KEY)
    assert is_missing(keys, ledger.read(), retry_failed=False).tolist() == [False, False, True]
    assert is_missing(keys, ledger.read(), retry_failed=True).tolist() == [False, True, True]


def test_rows_are_counted_without_reading_parts(storage: Storage) -> None:
    ledger = Ledger(storage, "s", CAPTION)
    _write(ledger, k1="a", k2=Failed("Bad", "row"), k3="c")
    _write(ledger, k4="d")
    assert counted_rows(storage, "s") == (3, 1)


def test_merging_loses_and_doubles_nothing(storage: Storage) -> None:
    ledger = Ledger(storage, "s", CAPTION)
    for number in range(MERGED_PARTS + 3):
        _write(ledger, **{f"k{number}": str(number)}, shared=str(number))
        if number == 0:
            ledger.settle()
    before = _read(ledger)
    assert len(before) == MERGED_PARTS + 4 and before["shared"] == ("", "0")
    ledger.settle()
    assert _read(ledger) == before
    assert len(ledger.parts()) == 4, "one merged part and three small ones"


def test_a_reader_with_the_old_manifest_misses_nothing(storage: Storage) -> None:
    """Merged parts stay for a while; once they are gone a reader starts again with the new manifest."""
    ledger = Ledger(storage, "s", CAPTION)
    for number in range(MERGED_PARTS):
        _write(ledger, **{f"k{number}": str(number)})
    reader = Ledger(storage, "s", CAPTION)
    old = reader.parts()
    ledger.settle()
    assert len(ledger.parts()) == 1
    for part in old:
        storage.remove(f"ledger/s/{part}")
    listings = iter([old, ledger.parts()])
    reader.parts = lambda live=None: next(listings)  # type: ignore[method-assign]
    assert len(_read(reader)) == MERGED_PARTS


def test_forgotten_rows_stay_forgotten_if_a_removal_fails(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part leaves the manifest's list of retired ones only when it is gone; else it would count as a new one."""
    ledger = Ledger(storage, "s", CAPTION)
    _write(ledger, k1="media/1.mp4", k2="media/2.mp4")
    assert ledger.forget(["media/1.mp4"]) == 1
    monkeypatch.setattr("pipelines.engine.ledger.RETIRED_FOR_S", -1.0)
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "remove_many", _refused)
        with pytest.raises(PermissionError):
            ledger.settle()
    assert _read(ledger).keys() == {"k2"}
    ledger.settle()
    assert _read(ledger).keys() == {"k2"}
    assert len(storage.files("ledger/s")) == 2, "the part and the manifest"


def _refused(storage: Storage, names: list[str]) -> None:
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("damage", ["cut", "empty", "a bit"])
def test_a_damaged_part_costs_its_rows_and_is_set_aside(storage: Storage, damage: str) -> None:
    ledger = Ledger(storage, "s", CAPTION)
    _write(ledger, k1="a")
    [first] = ledger.parts()
    _write(ledger, k2="b")
    ledger.settle()
    name = f"ledger/s/{first}"
    data = storage.read_bytes(name)
    middle = len(data) // 2
    broken = {
        "cut": data[:middle],
        "empty": b"",
        "a bit": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
    }
    storage.write_bytes(name, broken[damage])
    assert _read(ledger) == {"k2": ("", "b")}
    assert [part for part, _ in ledger.damaged] == [first]
    ledger.settle()
    assert storage.exists(f"ledger/s/damaged/{first}") and not storage.exists(name)
    assert _read(ledger) == {"k2": ("", "b")} and not ledger.damaged


def test_parts_written_at_once_do_not_meet(tmp_path: Path) -> None:
    ledger = Ledger(Storage(str(tmp_path)), "s", CAPTION)
    threads = [threading.Thread(target=lambda i=i: _write(ledger, **{f"k{i}": "x"})) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(_read(ledger)) == 16


def _manifest(rows_in: int, rows_out: int, quarantined: int) -> Manifest:
    return Manifest("s", "f", "d", rows_in, rows_out, quarantined, rows_out, 0.1)


def test_output_exists_from_its_manifest_on(storage: Storage) -> None:
    output = Output(storage, "s", "f")
    output.write_rows(pa.table({"a": [1]}))
    assert output.manifest() is None, "rows without a manifest are an interrupted run"
    output.commit(_manifest(1, 1, 0), QUARANTINE_SCHEMA.empty_table(), {"meaning": {}})
    manifest = Output(storage, "s", "f").manifest()
    assert manifest is not None and set(manifest.files) == {"rows.parquet", "quarantine.parquet", "spec.json"}
    assert latest_spec(storage, "s") is None
    mark_latest(storage, "s", "f")
    assert latest_spec(storage, "s") == {"meaning": {}}


def test_changed_bytes_of_an_output_are_not_read_in_silence(storage: Storage) -> None:
    output = Output(storage, "s", "f")
    output.write_rows(pa.table({"a": [1]}))
    output.commit(_manifest(1, 1, 0), QUARANTINE_SCHEMA.empty_table(), {})
    storage.write_table("s/f/rows.parquet", pa.table({"a": [2]}))
    with pytest.raises(RunError, match="rows.parquet holds other bytes than were written"):
        output.rows()


def test_a_lost_row_cannot_be_committed() -> None:
    with pytest.raises(AssertionError, match="5 rows in, but 3 out and 1 quarantined"):
        _manifest(5, 3, 1)


@pytest.mark.parametrize("root", ["file", "file/below", "/proc/none"])
def test_a_root_that_cannot_be_is_one_line(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="no folder, or one that cannot be written"):
        open_store(str(tmp_path / root), write=True)


def test_home_is_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Storage("~/store").url == str(tmp_path / "store")


def test_what_a_killed_process_began_to_write_is_seen_by_nobody_and_goes_when_it_is_old(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("a/whole", b"x")
    old, young = (tmp_path / PARTIAL / name for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"begun")
    os.utime(old, (1e9, 1e9))
    assert [info.name for info in storage.files(recursive=True)] == ["a/whole"]
    assert storage.listing()[0]["name"].to_pylist() == ["a/whole"]
    storage.remove_partial()
    assert not old.exists() and young.exists()
    assert storage.read_bytes("a/whole") == b"x"


def test_a_mark_is_taken_out_of_a_root_that_holds_nothing_else(tmp_path: Path) -> None:
    for name in ("fresh", "used", "linked"):
        open_store(str(tmp_path / name), write=True)
    (tmp_path / "linked/clips").symlink_to(tmp_path / "used")
    Storage(str(tmp_path / "used")).write_bytes("ledger/words/part", b"x")
    for name in ("fresh", "used", "linked"):
        unmark_empty_store(Storage(str(tmp_path / name)), "lease.json")
    assert not list((tmp_path / "fresh").iterdir())
    assert (tmp_path / "used/store.json").exists()
    assert (tmp_path / "linked/store.json").exists()


def test_names_are_never_taken_for_patterns(storage: Storage) -> None:
    names = ["run[1]/a*.mp4", "run1/ab.mp4", "run1/a?.mp4", "run1/ax.mp4"]
    for name in names:
        storage.write_bytes(name, name.encode())
    assert [info.name for info in storage.files(recursive=True)] == sorted(names)
    storage.remove("run[1]/a*.mp4")
    storage.remove_many(["run1/a?.mp4", "run1/none.mp4"])
    storage.move("run1/a[b].mp4", "moved")
    assert storage.names("") == {"run1/ab.mp4", "run1/ax.mp4"}
    storage.move("run1/ab.mp4", "run[2]/b.mp4")
    assert storage.names("") == {"run[2]/b.mp4", "run1/ax.mp4"}
    storage.remove("run[2]")
    assert storage.names("") == {"run1/ax.mp4"}


def test_a_bucket_that_refuses_to_remove_is_an_error(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(f"{s3_url}/{tmp_path.name}")
    storage.write_bytes("kept", b"x")
    answer = {"Errors": [{"Key": "kept", "Code": "AccessDenied"}]}
    monkeypatch.setattr(storage._fs, "call_s3", lambda *args, **kwargs: answer)
    with pytest.raises(PermissionError, match="cannot remove kept from bucket bucket: AccessDenied"):
        storage.remove("kept")


def test_odd_names_in_a_bucket_are_listed_once(s3_url: str, tmp_path: Path) -> None:
    """Double slashes, and the empty objects that a console makes for folders."""
    storage = Storage(f"{s3_url}/{tmp_path.name}")
    storage._fs.call_s3("put_object", Bucket="bucket", Key=f"{tmp_path.name}/", Body=b"")
    assert storage.is_empty()
    assert open_store(storage.url).url == storage.url
    for key in ("a.mp4", "cat/b.mp4", "/c.mp4", "cat/"):
        body = b"" if key.endswith("/") else b"x"
        storage._fs.call_s3("put_object", Bucket="bucket", Key=f"{tmp_path.name}/{key}", Body=body)
    names = [info.name for info in storage.files(recursive=True)]
    assert names == sorted(set(names))
    assert {"a.mp4", "cat/b.mp4"} <= set(names)
    assert not [name for name in names if not name or name.endswith("/")]
    assert storage.listing()[0]["name"].to_pylist() == names
