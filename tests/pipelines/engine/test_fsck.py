"""Damage in a store is found, named with what it costs, set aside and made again; nothing else is touched."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.config_file import load_config
from pipelines.engine.fsck import DAMAGED, fsck, repair
from pipelines.engine.ledger import Failed
from pipelines.engine.plan import make_plan
from pipelines.engine.recipe import Recipe
from pipelines.engine.row_stage import Rows, RowSet, RowStage
from pipelines.engine.runner import run_stages
from pipelines.engine.stage import Context
from pipelines.engine.storage import Storage
from pipelines.engine.store import file_columns, keep_file
from pipelines.run_config import Config

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
ROWS = 6
pytestmark = pytest.mark.usefixtures("local_ray")


class NoteWorker:
    """Writes each row's note into the storage."""

    def __init__(self, storage: Storage, folder: Path) -> None:
        self.storage, self.folder = storage, folder

    def setup(self) -> None:
        pass

    def process(self, tasks: list[dict[str, Any]]) -> Sequence[dict[str, Any] | Failed | None]:
        made = []
        for task in tasks:
            local = self.folder / f"{task['id']}.txt"
            local.write_text(f"note of {task['id']}")
            made.append(keep_file(self.storage, local, f"notes/{task['id']}.txt", "note"))
        return made


@dataclass(frozen=True)
class NoteRecipe(Recipe):
    """Nothing but the rows decides a note."""


class NotesStage(RowStage):
    """A stage with a file for each row, in the place of `clips`, whose execution it uses."""

    name = "clips"
    ledgers = ("notes",)
    schema = pa.schema([("id", pa.string()), *file_columns("note")])
    meaning = ("id",)

    def recipe(self, config: Config, storage: Storage) -> NoteRecipe:
        return NoteRecipe()

    def rows(self, context: Context) -> Rows:
        ids = pa.table({"id": [f"row{n}" for n in range(ROWS)]})
        folder = Path(context.storage.path()).parent
        worker = NoteWorker(context.storage, folder)
        return Rows(ids, [RowSet("notes", context.recipe, ids, ("id",), pa.schema(file_columns("note")), worker)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store of a finished run."""
    store = tmp_path_factory.mktemp("finished") / "store"
    run(configured(store))
    return store


@pytest.fixture
def config(finished: Path, tmp_path: Path) -> Config:
    """Configuration of a copy of that store."""
    shutil.copytree(finished, tmp_path / "store")
    return configured(tmp_path / "store")


def configured(store: Path) -> Config:
    return load_config(DEMO, [f"root={store}", "clips.execution.batch_rows=2"])


def run(config: Config) -> tuple[int, list[dict[str, Any]]]:
    """Rows computed by a run, and all rows of its output."""
    [one] = run_stages([NotesStage()], config, say=lambda _: None)
    storage = Storage(config.root)
    rows = storage.read_table(f"clips/{one.manifest.fingerprint}/rows.parquet")
    return one.rows_computed, rows.to_pylist()


def _part(storage: Storage) -> str:
    return next(i.name for i in storage.files("ledger/notes") if i.name.endswith(".parquet"))


def _rows_file(storage: Storage) -> str:
    return next(i.name for i in storage.files("clips", recursive=True) if i.name.endswith("rows.parquet"))


def _manifest(storage: Storage) -> str:
    return next(i.name for i in storage.files("clips", recursive=True) if i.name.endswith("manifest.json"))


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def test_a_sound_store_has_no_findings(config: Config) -> None:
    before = {i.name: i.version for i in Storage(config.root).files(recursive=True)}
    assert list(fsck(Storage(config.root))) == []
    assert {i.name: i.version for i in Storage(config.root).files(recursive=True)} == before


@pytest.mark.parametrize("change", [_flip, lambda data: data[:7], lambda data: b""], ids=["a bit", "cut", "empty"])
@pytest.mark.parametrize(
    "place", [_part, _rows_file, _manifest, lambda storage: "notes/row3.txt"], ids=["part", "rows", "manifest", "media"]
)
def test_damage_is_named_set_aside_and_made_again(
    config: Config, place: Callable[[Storage], str], change: Callable[[bytes], bytes]
) -> None:
    storage = Storage(config.root)
    _, whole = run(config)
    name = place(storage)
    storage.write_bytes(name, change(storage.read_bytes(name)))
    before = {i.name: i.version for i in storage.files(recursive=True)}
    found = list(fsck(storage))
    assert name in [one.name for one in found], found
    assert all(one.problem and one.cost for one in found)
    assert {i.name: i.version for i in storage.files(recursive=True)} == before, "fsck alone changes nothing"
    repair(storage, found)
    assert DAMAGED in "".join(i.name for i in storage.files(recursive=True))
    _, rows = run(config)
    assert rows == whole
    assert list(fsck(storage)) == []


def test_files_that_vanished_are_made_again_and_no_others(config: Config) -> None:
    storage = Storage(config.root)
    _, whole = run(config)
    storage.remove("notes/row1.txt")
    storage.remove("notes/row4.txt")
    computed, rows = run(config)
    assert computed == 2 and rows == whole
    assert storage.read_bytes("notes/row4.txt") == b"note of row4"
    assert run(config)[0] == 0
    assert [plan.state for plan in make_plan([NotesStage()], config, storage)] == ["done"]


def test_a_repaired_store_is_planned_as_one_that_lacks_rows(config: Config) -> None:
    """Who looks at `plan` after a repair is not told that there is nothing to do."""
    storage = Storage(config.root)
    storage.remove("notes/row1.txt")
    storage.write_bytes("notes/row4.txt", b"damaged")
    repair(storage, list(fsck(storage)))
    [plan] = make_plan([NotesStage()], config, storage)
    assert (plan.state, plan.rows_to_run) == ("partial", 2)
    assert run(config)[0] == 2


@pytest.mark.parametrize(
    ("pattern", "content"),
    [
        ("clips/latest.json", "{}"),
        ("ledger/notes/live.json", '{"parts": null, "retired": {}}'),
        ("ledger/notes/live.json", '{"parts": [], "retired": [1]}'),
        ("clips/*/manifest.json", None),
    ],
)
def test_a_record_of_another_content_is_named_and_written_again(
    config: Config, pattern: str, content: str | None
) -> None:
    [file] = Path(config.root).glob(pattern)
    file.write_text(content or file.read_text().replace('"rows_in": 6', '"rows_in": 5'))
    storage = Storage(config.root)
    [finding] = fsck(storage)
    assert finding.name == file.relative_to(config.root).as_posix()
    before = Path(config.root, "notes", "row0.txt").stat().st_mtime_ns
    computed, rows = run(config)
    assert computed == 0 and len(rows) == ROWS
    assert Path(config.root, "notes", "row0.txt").stat().st_mtime_ns == before
    repair(storage, list(fsck(storage)))
    assert list(fsck(storage)) == []


def test_what_is_none_of_the_stores_is_left_alone(config: Config) -> None:
    (Path(config.root) / "ledger" / ".DS_Store").write_text("x")
    storage = Storage(config.root)
    assert list(fsck(storage)) == []
    repair(storage, [])


def test_a_folder_in_the_place_of_a_file_is_named(config: Config) -> None:
    note = Path(config.root, "notes", "row0.txt")
    note.unlink()
    note.mkdir()
    storage = Storage(config.root)
    findings = list(fsck(storage))
    assert [(one.name, one.problem) for one in findings] == [("notes/row0.txt", "a folder is in its place")]
    repair(storage, findings)
    assert run(config)[0] == 1 and note.is_file()
