"""Remembered listing of the source: when it holds, when it does not, and what it saves."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.config_file import load_config
from pipelines.engine.plan import StagePlan, make_plan
from pipelines.engine.storage import Storage, parquet_bytes
from pipelines.engine.store import open_store
from pipelines.run_config import Config
from pipelines.stages import listing as listing_module
from pipelines.stages import wanted_stages
from pipelines.stages.clips import PlannedClipsStage
from pipelines.stages.listing import LISTING, SourceListing, cache_folder
from pipelines.stages.source import SourceHashes, list_source

DEMO = Path(__file__).parents[3] / "configs/demo.yaml"


@pytest.fixture(autouse=True)
def _own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(listing_module, "REMEMBERED_FILES", 3)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Configuration of a source of three files in two folders, all hashed."""
    for name in ("cat/a.mp4", "cat/b.mp4", "dog/c.mp4"):
        (tmp_path / "films" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "films" / name).write_text(name)
    config = load_config(DEMO, [f"root={tmp_path}/store", f"source.folder={tmp_path}/films", "source.table=null"])
    _hash(config)
    return config


def _hash(config: Config) -> None:
    SourceHashes(list_source(config), open_store(config.root, write=True)).complete(1, lambda _: None)


def _plan(config: Config, listing: SourceListing) -> StagePlan:
    return make_plan([PlannedClipsStage(listing)], config, Storage(config.root))[0]


def _counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    """Calls of a method of Storage from now on."""
    calls: list[Any] = []
    method = getattr(Storage, name)
    monkeypatch.setattr(Storage, name, lambda *args, **kwargs: (calls.append(args), method(*args, **kwargs))[1])
    return calls


def test_a_second_plan_lists_nothing_and_says_the_same(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = _plan(config, SourceListing(config.source.folder, rescan=True))
    listings = _counted(monkeypatch, "listing")
    listing = SourceListing(config.source.folder)
    assert _plan(config, listing) == fresh
    assert fresh.rows_to_run == 3
    assert not listings
    assert listing.age_s > 0
    assert "--rescan" in str(listing)


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "new folder", "filled an empty folder"])
def test_a_changed_folder_is_listed_again(config: Config, change: str) -> None:
    films = Path(config.source.folder)
    (films / "empty").mkdir()
    SourceListing(config.source.folder, rescan=True).files  # noqa: B018
    for folder in (films, *films.iterdir()):
        os.utime(folder, (1e9, 1e9))  # long ago, so that no clock's grain hides the change
    SourceListing(config.source.folder, rescan=True).files  # noqa: B018
    changes = {
        "added": lambda: (films / "dog/d.mp4").write_text("d"),
        "removed": lambda: (films / "cat/a.mp4").unlink(),
        "renamed": lambda: (films / "cat/a.mp4").rename(films / "cat/z.mp4"),
        "new folder": lambda: (films / "bird").mkdir(),
        "filled an empty folder": lambda: (films / "empty/e.mp4").write_text("e"),
    }
    changes[change]()
    listing = SourceListing(config.source.folder)
    assert listing.files.equals(Storage(config.source.folder).listing()[0])
    assert listing.age_s == 0


def test_a_file_overwritten_in_its_place_is_seen_by_rescan(config: Config) -> None:
    SourceListing(config.source.folder, rescan=True).files  # noqa: B018
    (Path(config.source.folder) / "cat/a.mp4").write_text("another film")
    assert _plan(config, SourceListing(config.source.folder)).rows_to_run == 3
    seen = _plan(config, SourceListing(config.source.folder, rescan=True))
    assert seen.reason.startswith("new or changed source files to hash: 1")


def test_what_was_derived_is_forgotten_with_what_it_derives_from(config: Config) -> None:
    films = Path(config.source.folder)
    before = _plan(config, SourceListing(config.source.folder, rescan=True))
    (films / "dog/d.mp4").write_text("d")
    new = _plan(config, SourceListing(config.source.folder))
    assert (new.rows_to_run, new.fingerprint) == (1, None)
    _hash(config)  # the ledger grows; the listing stays
    after = _plan(config, SourceListing(config.source.folder))
    assert after.rows_to_run == 4
    assert after.fingerprint != before.fingerprint
    as_test = config.model_copy(update={"source": config.source.model_copy(update={"split": "test"})})
    assert _plan(as_test, SourceListing(config.source.folder)).fingerprint != after.fingerprint


def test_another_store_of_the_same_source_has_its_own_facts(config: Config, tmp_path: Path) -> None:
    _plan(config, SourceListing(config.source.folder, rescan=True))
    other = config.model_copy(update={"root": str(tmp_path / "other")})
    assert _plan(other, SourceListing(config.source.folder)).fingerprint is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b'{"id": 1}', b"\x00" * 40])
def test_a_damaged_memory_is_made_again(config: Config, damage: bytes) -> None:
    fresh = _plan(config, SourceListing(config.source.folder, rescan=True))
    [memory] = cache_folder().iterdir()
    assert len(list(memory.iterdir())) == 2
    for file in memory.iterdir():
        file.write_bytes(damage)
        listing = SourceListing(config.source.folder)
        assert _plan(config, listing) == fresh
        assert listing.files.num_rows == 3


def test_a_listing_with_other_columns_is_made_again(config: Config) -> None:
    _plan(config, SourceListing(config.source.folder, rescan=True))
    [memory] = cache_folder().iterdir()
    (memory / LISTING).write_bytes(parquet_bytes(pa.table({"a": [1]}).replace_schema_metadata({b"soundcap": b"{}"})))
    assert SourceListing(config.source.folder).files.num_rows == 3


def test_a_source_that_shrank_is_forgotten(config: Config) -> None:
    """Else a bucket's larger listing, whose age nothing bounds, would be remembered for ever."""
    SourceListing(config.source.folder, rescan=True).files  # noqa: B018
    (Path(config.source.folder) / "cat/a.mp4").unlink()
    SourceListing(config.source.folder, rescan=True).files  # noqa: B018
    [memory] = cache_folder().iterdir()
    assert not list(memory.glob("*.parquet"))


def test_a_part_of_the_hash_ledger_that_is_damaged_or_gone_is_work_to_do(config: Config) -> None:
    _plan(config, SourceListing(config.source.folder, rescan=True))
    [part] = Path(config.root).glob("ledger/sources/*.parquet")
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    os.utime(part, (1e9, 1e9))
    assert _plan(config, SourceListing(config.source.folder)).reason.startswith(
        "new or changed source files to hash: 3"
    )
    part.unlink()
    assert _plan(config, SourceListing(config.source.folder)).reason.startswith(
        "new or changed source files to hash: 3"
    )


def test_another_server_has_another_listing(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    SourceListing(config.source.folder, rescan=True).files  # noqa: B018
    assert SourceListing(config.source.folder).age_s > 0
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert SourceListing(config.source.folder).age_s == 0


def test_where_nothing_can_be_kept_there_is_no_memory(config: Config, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        listing = SourceListing(config.source.folder)
        assert _plan(config, listing).rows_to_run == 3
        assert listing.age_s == 0


def test_a_user_without_a_home_has_no_memory(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    for _ in range(2):
        assert SourceListing(config.source.folder).files.num_rows == 3


def test_a_small_source_is_always_listed(config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(listing_module, "REMEMBERED_FILES", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty cache"))
    _plan(config, SourceListing(config.source.folder))
    assert not list(cache_folder().glob("*"))


def test_planned_stages_are_all_wanted_ones_in_order(config: Config) -> None:
    listing = SourceListing(config.source.folder)
    stages = wanted_stages(config, listing=listing)
    names = [stage.name for stage in stages]
    assert names[:3] == ["clips", "captions", "curation"]
    assert len(names) == 9
    assert isinstance(stages[0], PlannedClipsStage) and not isinstance(wanted_stages(config)[0], PlannedClipsStage)
    assert [stage.name for stage in wanted_stages(config, "captions", listing=listing)] == names[:2]
