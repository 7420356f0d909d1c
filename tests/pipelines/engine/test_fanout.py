"""Fan-out over real Ray actors: bad rows cost themselves, never the run, and no row is lost or doubled."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.engine.fanout import fan_out
from pipelines.engine.ledger import Failed, Ledger, Result, WorkerLost
from pipelines.engine.recipe import KEY, Recipe
from pipelines.engine.storage import Storage
from pipelines.errors import MachineFault, RunError, UserError
from pipelines.run_config import Workers

pytestmark = pytest.mark.usefixtures("local_ray")


class FaultyWorker:
    """Squares numbers; does harm on command."""

    def __init__(self, harm_at: dict[int, str]) -> None:
        self.harm_at = harm_at

    def setup(self) -> None:
        if self.harm_at.get(-1) == "cannot start":
            raise ValueError("no such checkpoint")

    def process(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any] | Failed]:
        return [self._one(task["n"]) for task in tasks]

    def _one(self, n: int) -> dict[str, Any] | Failed:
        harm = self.harm_at.get(n)
        if harm == "fail":
            return Failed("BadRow", f"{n} is bad")
        if harm == "raise":
            raise RuntimeError(f"{n} blew up")
        if harm == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if harm == "machine":
            raise MachineFault("ffmpeg is not installed")
        if harm == "hang":
            time.sleep(3600)
        return {"square": n * n}


SQUARE = pa.schema([("square", pa.int64())])


def _key(n: int) -> bytes:
    return n.to_bytes(KEY.byte_width)


def _run(tmp_path: Path, harm_at: dict[int, str], rows: int = 20, **workers: Any) -> Ledger:
    ledger = Ledger(Storage(str(tmp_path)), "squares", SQUARE)
    tasks = pa.table({"id": [f"row{n}" for n in range(rows)], "n": range(rows)})
    settings = Workers(**{"workers": 2, "batch_rows": 4, **workers})
    keys = pa.array([_key(n) for n in range(rows)], KEY)
    fan_out(tasks, keys, FaultyWorker(harm_at), ledger=ledger, recipe=Recipe(), workers=settings, say=lambda _: None)
    return ledger


def _check(ledger: Ledger, bad: dict[int, str], rows: int = 20) -> None:
    entries = {row.pop("key"): row for row in ledger.read(("row_id", "message", "square")).to_pylist()}
    assert entries.keys() == {_key(n) for n in range(rows)}, "every row is in the ledger, made or quarantined"
    for n in range(rows):
        entry = entries[_key(n)]
        assert entry["row_id"] == f"row{n}"
        assert entry["error_class"] == bad.get(n, ""), entry
        assert bool(entry["message"]) == (n in bad), entry
        assert entry["square"] == (None if n in bad else n * n), entry


def test_every_kind_of_bad_row_costs_itself(tmp_path: Path) -> None:
    ledger = _run(tmp_path, {3: "fail", 9: "raise", 14: "die"})
    _check(ledger, {3: "BadRow", 9: "RuntimeError", 14: "WorkerDied"})


def test_a_row_that_hangs_is_found_and_quarantined(tmp_path: Path) -> None:
    ledger = _run(tmp_path, {2: "hang"}, rows=4, batch_rows=2, batch_deadline_s=2)
    _check(ledger, {2: "DeadlineExceeded"}, rows=4)


def test_a_worker_that_cannot_start_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no worker could start: ValueError: no such checkpoint"):
        _run(tmp_path, {-1: "cannot start"})


def test_a_fault_of_the_machine_ends_the_run_and_quarantines_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="squares: ffmpeg is not installed; nothing is quarantined"):
        _run(tmp_path, dict.fromkeys(range(4), "machine"), rows=4)
    assert Ledger(Storage(str(tmp_path)), "squares", SQUARE).read().num_rows == 0


def test_rows_that_all_fail_alike_are_the_machines_fault(tmp_path: Path) -> None:
    """Without one row that passes nothing tells a bad row from a machine on which nothing works."""
    with pytest.raises(RunError, match="4 rows failed alone and none passed.*RuntimeError: 3 blew up"):
        _run(tmp_path, dict.fromkeys(range(4), "raise"), rows=4, workers=1)
    assert Ledger(Storage(str(tmp_path)), "squares", SQUARE).read().num_rows == 0


def test_more_workers_than_fit_use_those_that_fit(tmp_path: Path) -> None:
    """Four logical CPUs hold two of these workers; six that could never have a place keep nobody waiting."""
    _check(_run(tmp_path, {}, workers=8, cpus_per_worker=2), {})


def test_a_worker_too_large_for_any_node_is_an_error_in_seconds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="squares: execution: one worker wants 64 CPUs, and no node.*at most 4 CPUs"):
        _run(tmp_path, {}, cpus_per_worker=64)


def test_a_start_that_fails_is_tried_again(tmp_path: Path) -> None:
    """The first start dies (as beside an OOM killer), the second works."""
    worker = DiesOnce(str(tmp_path / "died"))
    ledger = Ledger(Storage(str(tmp_path / "store")), "squares", SQUARE)
    tasks = pa.table({"id": ["row0"], "n": [3]})
    keys = pa.array([_key(0)], KEY)
    fan_out(tasks, keys, worker, ledger=ledger, recipe=Recipe(), workers=Workers(workers=1), say=lambda _: None)
    assert ledger.read(("square",))["square"].to_pylist() == [9]


def test_a_row_whose_worker_is_killed_twice_is_not_at_fault(tmp_path: Path) -> None:
    """As where nodes are taken away: chance may hit one row's worker twice."""
    ledger = Ledger(Storage(str(tmp_path / "store")), "squares", SQUARE)
    tasks, keys = pa.table({"id": ["row0", "row1"], "n": [0, 1]}), pa.array([_key(0), _key(1)], KEY)
    worker = DiesTwiceAtOne(tmp_path / "deaths")
    fan_out(
        tasks,
        keys,
        worker,
        ledger=ledger,
        recipe=Recipe(),
        workers=Workers(workers=1, batch_rows=1),
        say=lambda _: None,
    )
    _check(ledger, {}, rows=2)
    assert worker.deaths.read_text() == "xx"


class DiesTwiceAtOne(FaultyWorker):
    """Kills its process at the first two tries of row 1."""

    def __init__(self, deaths: Path) -> None:
        super().__init__({})
        self.deaths = deaths

    def process(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any] | Failed]:
        if tasks[0]["n"] == 1:
            with self.deaths.open("a+") as file:
                file.seek(0)
                if len(file.read()) < 2:
                    file.write("x")
                    file.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
        return super().process(tasks)


class DiesOnce(FaultyWorker):
    """Kills its process at its first start."""

    def __init__(self, mark: str) -> None:
        super().__init__({})
        self.mark = Path(mark)

    def setup(self) -> None:
        if not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class FaultyStream:
    """Squares numbers as they come, several batches at once; an engine that they share is lost on command."""

    def __init__(self, folder: Path, harm_at: dict[int, str]) -> None:
        self.batches_at_once, self.folder, self.harm_at = 3, folder, harm_at

    def setup(self) -> None:
        self.lost: list[int] = []

    def stream(self, tasks: list[dict[str, Any]]) -> Iterator[tuple[int, Result]]:
        numbers = [task["n"] for task in tasks]
        for place, n in reversed(list(enumerate(numbers))):  # done in another order than asked
            harm = self.harm_at.get(n)
            with (self.folder / "tries").open("a") as file:
                file.write(f"{n}\n")
            time.sleep(0.02)
            if harm == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if harm == "lose":
                self.lost.append(n)
            if self.lost:
                raise WorkerLost("the engine is lost", [place for place, m in enumerate(numbers) if m in self.lost])
            yield place, Failed("BadRow", f"{n} is bad") if harm == "fail" else {"square": n * n}


def _run_stream(tmp_path: Path, harm_at: dict[int, str], **workers: Any) -> tuple[Ledger, list[int]]:
    ledger = Ledger(Storage(str(tmp_path / "store")), "squares", SQUARE)
    tasks = pa.table({"id": [f"row{n}" for n in range(40)], "n": range(40)})
    keys = pa.array([_key(n) for n in range(40)], KEY)
    settings = Workers(**{"workers": 1, "batch_rows": 4, **workers})
    fan_out(
        tasks,
        keys,
        FaultyStream(tmp_path, harm_at),
        ledger=ledger,
        recipe=Recipe(),
        workers=settings,
        say=lambda _: None,
    )
    return ledger, [int(line) for line in (tmp_path / "tries").read_text().split()]


def test_an_engine_that_is_lost_costs_the_row_that_does_it(tmp_path: Path) -> None:
    """Rows of other batches, and rows that were done, are no suspects: they are not tried in a worker of their own."""
    ledger, tries = _run_stream(tmp_path, {7: "fail", 17: "lose"})
    _check(ledger, {7: "BadRow", 17: "WorkerLost"}, rows=40)
    assert tries.count(17) == 3, "once among others, then twice alone"


def test_a_process_that_dies_costs_the_row_that_does_it(tmp_path: Path) -> None:
    """All batches at work are suspects, each tried in a worker of its own; none of their other rows is lost."""
    ledger, tries = _run_stream(tmp_path, {13: "die"})
    _check(ledger, {13: "WorkerDied"}, rows=40)
    assert max(tries.count(n) for n in range(40) if n != 13) <= 7


def test_what_a_streaming_worker_has_committed_is_not_made_again(tmp_path: Path) -> None:
    """The first row of each batch is its last to be done: nine rows are done when the engine is lost."""
    ledger, tries = _run_stream(tmp_path, {0: "lose"}, batch_rows=40)
    _check(ledger, {0: "WorkerLost"}, rows=40)
    assert all(tries.count(n) == 1 for n in range(1, 10)), "they were committed when the engine was lost"


def test_the_time_of_all_workers_is_told(tmp_path: Path) -> None:
    """Two workers that sleep: their time is the rows' sleep and little more, whatever the clock says."""
    ledger = Ledger(Storage(str(tmp_path)), "squares", SQUARE)
    tasks = pa.table({"id": [f"row{n}" for n in range(20)], "n": range(20)})
    keys = pa.array([_key(n) for n in range(20)], KEY)
    settings = Workers(workers=2, batch_rows=2)
    usage = fan_out(tasks, keys, SleepyWorker({}), ledger=ledger, recipe=Recipe(), workers=settings, say=lambda _: None)
    assert (usage.ledger, usage.device, usage.rows) == ("squares", "CPU", 20)
    assert usage.recipe == Recipe().shared_digest
    assert 1 <= usage.workers <= 2 and usage.start_s >= 0.5
    assert usage.worker_s >= 20 * 0.1, "the rows' own time at least"


class SleepyWorker(FaultyWorker):
    """Sleeps for half a second at its start, and a tenth for each row."""

    def setup(self) -> None:
        time.sleep(0.5)

    def process(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any] | Failed]:
        time.sleep(0.1 * len(tasks))
        return super().process(tasks)
