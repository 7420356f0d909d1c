"""Fan-out over real Ray actors: bad rows cost themselves, never the run, and no row is lost or doubled."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.engine.fanout import fan_out
from pipelines.engine.ledger import Failed, Ledger
from pipelines.engine.storage import Storage
from pipelines.errors import MachineFault, RunError
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


def _run(tmp_path: Path, harm_at: dict[int, str], rows: int = 20, **workers: Any) -> Ledger:
    ledger = Ledger(Storage(str(tmp_path)), "squares")
    items = [(f"row{n}", f"key{n}", {"n": n}) for n in range(rows)]
    settings = Workers(**{"workers": 2, "batch_rows": 4, **workers})
    fan_out(items, FaultyWorker(harm_at), ledger=ledger, workers=settings, label="test", say=lambda _: None)
    return ledger


def _check(ledger: Ledger, bad: dict[int, str], rows: int = 20) -> None:
    entries = ledger.read()
    assert entries.keys() == {f"key{n}" for n in range(rows)}, "every row is in the ledger, made or quarantined"
    for n in range(rows):
        entry = entries[f"key{n}"]
        if n in bad:
            assert (entry.status, entry.error_class) == ("quarantined", bad[n]), entry
            assert entry.message
        else:
            assert entry.status == "ok" and entry.value == {"square": n * n}, entry


def test_every_kind_of_bad_row_costs_itself(tmp_path: Path) -> None:
    ledger = _run(tmp_path, {3: "fail", 9: "raise", 14: "die"})
    _check(ledger, {3: "BadRow", 9: "RuntimeError", 14: "WorkerDied"})


def test_a_row_that_hangs_is_found_and_quarantined(tmp_path: Path) -> None:
    ledger = _run(tmp_path, {2: "hang"}, rows=4, batch_rows=2, batch_deadline_s=2)
    _check(ledger, {2: "DeadlineExceeded"}, rows=4)


def test_a_worker_that_cannot_start_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the worker could not start: ValueError: no such checkpoint"):
        _run(tmp_path, {-1: "cannot start"})


def test_a_fault_of_the_machine_ends_the_run_and_quarantines_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="test: ffmpeg is not installed"):
        _run(tmp_path, {1: "machine"}, rows=4)
    entries = Ledger(Storage(str(tmp_path)), "squares").read()
    assert all(entry.status == "ok" for entry in entries.values())
