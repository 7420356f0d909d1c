"""Any sequence of edits, runs, kills, reverts, retries, merges, damage and repairs leaves a store from which the same
command gives the same rows, and no row is computed twice.

The engine is the product's own but for Ray: rows are computed in this process, so that a kill can fall on any write.
"""

import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.config_file import load_config
from pipelines.engine import fanout, ledger
from pipelines.engine.fsck import fsck, repair
from pipelines.engine.ledger import Failed, Ledger
from pipelines.engine.plan import make_plan
from pipelines.engine.recipe import Recipe, per_row
from pipelines.engine.row_stage import Rows, RowSet, RowStage
from pipelines.engine.runner import run_stages
from pipelines.engine.stage import Context, Stage
from pipelines.engine.storage import Storage
from pipelines.engine.store import Output
from pipelines.engine.usage import CPU, Usage
from pipelines.errors import RunError
from pipelines.run_config import Config

pytestmark = pytest.mark.first

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
IDS = range(6)
VALUE = pa.schema([("value", pa.string())])


class Killed(BaseException):
    """What a kill looks like from within: nothing handles it."""


@dataclass
class World:
    """Everything outside the engine: what the user asks for, which rows fail, and when the process is killed."""

    factor: int = 0
    prompt: int = 0
    rows: frozenset[int] = frozenset(IDS)
    bad: frozenset[tuple[str, int]] = frozenset()
    ever_bad: set[tuple[str, int]] = field(default_factory=set)
    writes_left: int | None = None
    computed: Counter[tuple[str, bytes]] = field(default_factory=Counter)

    def on_write(self) -> None:
        """Counts a write by the driver or a worker; the last one that is left is never made."""
        if self.writes_left is not None and threading.current_thread() is threading.main_thread():
            self.writes_left -= 1
            if self.writes_left <= 0:
                self.writes_left = None
                raise Killed


@dataclass
class Worker:
    world: World
    stage: str

    def setup(self) -> None:
        pass

    def process(self, tasks: list[dict[str, Any]]) -> Sequence[dict[str, Any] | Failed]:
        return [self._value(task) for task in tasks]

    def _value(self, task: dict[str, Any]) -> dict[str, Any] | Failed:
        if (self.stage, int(task["id"])) in self.world.bad:
            return Failed("Bad", "not today")
        return {"value": expected(self.stage, task, self.world)}


def expected(stage: str, task: dict[str, Any], world: World) -> str:
    return f"{world.factor} x {task['id']}" if stage == "clips" else f"{task['prompt']}: {task['source']}"


@dataclass(frozen=True)
class FactorRecipe(Recipe):
    factor: int
    rows: tuple[int, ...] = per_row()


@dataclass(frozen=True)
class PromptRecipe(Recipe):
    prompt: str = per_row()


class Products(RowStage):
    """First stage, in the place of `clips`."""

    name = "clips"
    ledgers = ("products",)
    schema = pa.schema([("id", pa.string()), *VALUE])
    meaning = ("id", "products")

    def __init__(self, world: World) -> None:
        self.world = world

    def recipe(self, config: Config, storage: Storage) -> FactorRecipe:
        return FactorRecipe(self.world.factor, tuple(sorted(self.world.rows)))

    def check(self, config: Config, storage: Storage) -> None:
        pass

    def rows(self, context: Context) -> Rows:
        ids = pa.table({"id": [str(one) for one in sorted(self.world.rows)]})
        return Rows(ids, [RowSet("products", context.recipe, ids, ("id",), VALUE, Worker(self.world, "clips"))])


class Echoes(RowStage):
    """Second stage, in the place of `captions`: an odd row's prompt differs from an even one's."""

    name = "captions"
    reads = ("clips",)
    ledgers = ("echoes",)
    schema = pa.schema([("id", pa.string()), *VALUE])
    meaning = ("id", "echoes")

    def __init__(self, world: World) -> None:
        self.world = world

    def recipe(self, config: Config, storage: Storage) -> PromptRecipe:
        return PromptRecipe(f"prompt {self.world.prompt}")

    def check(self, config: Config, storage: Storage) -> None:
        pass

    def rows(self, context: Context) -> Rows:
        rows = context.inputs["clips"].rows("id", "value")
        prompts = [f"{self.world.prompt if int(one) % 2 else 0}" for one in rows["id"].to_pylist()]
        tasks = pa.table({"id": rows["id"], "source": rows["value"], "prompt": prompts})
        worker = Worker(self.world, "captions")
        parts = ("id", "source", "prompt")
        return Rows(rows.select(["id"]), [RowSet("echoes", context.recipe, tasks, parts, VALUE, worker)])


def compute_here(
    tasks: pa.Table,
    keys: pa.Array,
    worker: Worker,
    *,
    ledger: Ledger,
    recipe: Recipe,
    workers: Any,
    check_share: Any,
    say: Any,
) -> Usage:
    """Stands for `fan_out`: batches of two rows, each committed, and the ledger settled between them."""
    for start in range(0, len(keys), 2):
        batch, names = tasks.slice(start, 2), keys.slice(start, 2).to_pylist()
        results = worker.process(batch.to_pylist())
        ledger.write(names, batch["id"].to_pylist(), results)
        for key, result in zip(names, results, strict=True):
            worker.world.computed[worker.stage, key] += not isinstance(result, Failed)
        ledger.settle()
    return Usage(ledger.name, recipe.shared_digest, CPU, len(keys), 1.0, 0.0, 1, 1, 0)


@contextmanager
def engine_of(world: World) -> Iterator[None]:
    """Engine whose every write may be the last, and which merges its parts early and removes them at once."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("write_bytes", "move", "remove", "remove_many"):
            patch.setattr(Storage, name, _counted(world, getattr(Storage, name)))
        patch.setattr(fanout, "fan_out", compute_here)
        patch.setattr(ledger, "MERGED_PARTS", 2)
        patch.setattr(ledger, "RETIRED_FOR_S", -1.0)
        yield


def _counted(world: World, method: Any) -> Any:
    def counted(self: Storage, *args: Any) -> Any:
        if args[0] and not str(args[0]).startswith("lease"):
            world.on_write()
        return method(self, *args)

    return counted


class Store:
    """Store of the two stages, with the commands that work on it."""

    def __init__(self, folder: Path, world: World) -> None:
        self.world = world
        self.config = load_config(DEMO, [f"root={folder}/store"])
        self.storage = Storage(self.config.root)
        self.stages: list[Stage] = [Products(world), Echoes(world)]

    def run(self, kill_at: int | None, *, retry: bool = False) -> dict[str, list[dict[str, Any]]] | None:
        """Rows of both stages, or None if the run was killed, or no row was left to work on."""
        self.world.writes_left = kill_at
        try:
            run_stages(self.stages, self.config, retry_failed=retry, say=lambda _: None)
        except Killed:
            return None
        except RunError as error:
            assert "got no rows" in str(error)
            return None
        finally:
            self.world.writes_left = None
        return {stage.name: self._checked_rows(stage, retry=retry) for stage in self.stages}

    def _checked_rows(self, stage: Stage, *, retry: bool) -> list[dict[str, Any]]:
        [plan] = [one for one in make_plan(self.stages, self.config, self.storage) if one.name == stage.name]
        assert plan.state == "done" and plan.fingerprint is not None, plan
        output = Output(self.storage, stage.name, plan.fingerprint)
        rows, quarantined = output.rows().to_pylist(), output.quarantine().to_pylist()
        ids = [int(row["id"]) for row in rows]
        lost = [int(row["row_id"]) for row in quarantined]
        assert len(ids) == len(set(ids)), f"{stage.name}: rows twice"
        if stage.name == "clips":
            assert sorted(ids + lost) == sorted(self.world.rows)
            assert all(row["value"] == f"{self.world.factor} x {row['id']}" for row in rows)
        allowed = self.world.bad if retry else self.world.ever_bad
        assert {(stage.name, one) for one in lost} <= allowed, "quarantined without a fault of its own"
        return rows

    def damage(self, place: int) -> None:
        """Flips one bit of a file, then repairs."""
        files = [i.name for i in self.storage.files(recursive=True) if i.name.endswith((".parquet", "manifest.json"))]
        if files:
            path = Path(self.storage.path(files[place % len(files)]))
            data = bytearray(path.read_bytes())
            data[(place * 7919) % len(data)] ^= 1 << (place % 8)
            path.write_bytes(data)
            repair(self.storage, list(fsck(self.storage)))

    def lose(self, place: int) -> None:
        """Removes a file."""
        files = [i.name for i in self.storage.files(recursive=True) if i.name != "store.json"]
        if files:
            Path(self.storage.path(files[place % len(files)])).unlink()


STEPS = st.one_of(
    st.tuples(st.just("run"), st.none()),
    st.tuples(st.just("run"), st.integers(1, 40)),
    st.tuples(st.just("retry"), st.integers(1, 40)),
    st.tuples(st.just("factor"), st.integers(0, 1)),
    st.tuples(st.just("prompt"), st.integers(0, 2)),
    st.tuples(st.just("rows"), st.frozensets(st.sampled_from(IDS), min_size=1)),
    st.tuples(st.just("bad"), st.frozensets(st.tuples(st.sampled_from(["clips", "captions"]), st.sampled_from(IDS)))),
    st.tuples(st.sampled_from(["damage", "lose"]), st.integers(0, 1000)),
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, min_size=2, max_size=9))
def test_the_same_command_gives_the_same_rows_whatever_happened_before(steps: list[tuple[str, Any]]) -> None:
    world = World()
    with tempfile.TemporaryDirectory() as name, engine_of(world):
        store = Store(Path(name), world)
        is_whole = True
        for step, value in steps:
            if step in ("run", "retry"):
                store.run(value, retry=step == "retry")
            elif step in ("damage", "lose"):
                getattr(store, step)(value)
                is_whole = False
            else:
                setattr(world, step, value)
                world.ever_bad |= world.bad
        world.bad = frozenset()
        rows = store.run(None, retry=True)
        if is_whole:
            twice = {key: times for key, times in world.computed.items() if times > 1}
            assert not twice, "rows that were computed twice"
        before = world.computed.total()
        assert store.run(None, retry=True) == rows
        assert world.computed.total() == before, "a run with nothing to do computed rows"
        undisturbed = Store(Path(name) / "undisturbed", world)
        assert undisturbed.run(None) == rows
