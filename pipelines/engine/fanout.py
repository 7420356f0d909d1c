"""Fan-out of rows over Ray actors, which commit their results to the ledger themselves; the driver only counts.

A batch that raises, or that kills or hangs its actor, is split in halves and tried again, down to the one row that
does it. Such a row is quarantined only if other rows pass: else the machine is at fault, and the run ends.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError, WorkerCrashedError

from pipelines.engine.cluster import check_alive, ensure_ray, workers_that_fit
from pipelines.engine.ledger import Failed, Ledger, Worker
from pipelines.errors import MachineFault, RunError, machine_fault, one_line
from pipelines.progress import Progress
from pipelines.run_config import Workers

TRIES_FOR_ONE_ROW = 2
STARTS = 3
"""Starts of one worker before its place is given up."""
MACHINE_FAULTS = 3
"""Faults of machines in a row, for each worker and with no row passing, that end the run."""
MACHINE_PAUSE_S, MACHINE_PAUSES = 1.0, 10
"""Pause after each of the first faults in a row: a network may come back."""
SUSPECTS = 20
"""Rows that fail alone in a row, with no row passing, that end the run."""
START_DEADLINE_S = 3600.0  # a large model from a slow disk
SETTLE_EVERY_S = 30.0
CHECK_EVERY_S = 5.0


class RowActor:
    """Actor that holds one worker and commits each batch as a ledger part before it answers."""

    def __init__(self, worker: Worker, ledger: Ledger) -> None:
        self.worker, self.ledger = worker, ledger

    def placed(self) -> None:
        """Answers as soon as the actor has a place, before any model is loaded."""

    def ready(self) -> None:
        """Sets up the worker. Not in the constructor, so that its exception reaches the driver unchanged."""
        self.worker.setup()

    def process(self, keys: list[bytes], row_ids: list[str], tasks: list[dict[str, Any]]) -> int:
        """Computes and commits the batch's rows. Returns the number quarantined."""
        try:
            results = self.worker.process(tasks)
        except Exception as error:
            if (fault := machine_fault(error)) is not None:
                raise fault from error
            raise
        assert len(results) == len(tasks), f"worker gave {len(results)} results for {len(tasks)} tasks"
        _, quarantined = self.ledger.write(keys, row_ids, results)
        return quarantined


@dataclass
class _Batch:
    """Rows to compute at once: tasks, whose first column is the row's id, and keys."""

    tasks: pa.Table
    keys: pa.Array
    tries: int = 0

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def row_ids(self) -> list[str]:
        ids: list[str] = self.tasks.column(0).to_pylist()
        return ids

    def halves(self) -> tuple[_Batch, _Batch]:
        middle = len(self) // 2
        return self.slice(0, middle), self.slice(middle, len(self) - middle)

    def slice(self, start: int, rows: int) -> _Batch:
        return _Batch(self.tasks.slice(start, rows), self.keys.slice(start, rows))


@dataclass
class _Place:
    """Place of one worker: its actor, and calls under way in order, a batch's or (None) one of its start."""

    actor: Any = None
    calls: deque[tuple[Any, _Batch | None]] = field(default_factory=deque)
    since_s: float = 0.0
    """Time at which the first of the calls began."""
    is_placed: bool = False
    is_ready: bool = False
    starts: int = 0


def fan_out(
    tasks: pa.Table,
    keys: pa.Array,
    worker: Worker,
    *,
    ledger: Ledger,
    workers: Workers,
    check_share: Callable[[int], None] = lambda quarantined: None,
    say: Callable[[str], None],
) -> None:
    """Computes rows; afterwards the ledger holds every one of them, computed or quarantined.

    Args:
        tasks: what the worker gets, a row each; the first column is the row's id.
        keys: ledger keys of the rows.
        worker: copied into each actor.
        ledger: where the actors commit.
        workers: number, resources and batches of the actors.
        check_share: takes the number of rows quarantined so far; raises RunError for too many.
        say: takes progress lines.

    Raises:
        UserError: no node of the cluster could hold one worker.
        RunError: no worker starts (a model does not load), or a machine is at fault; nothing is quarantined for it.
    """
    _FanOut(_Batch(tasks, keys), worker, ledger, workers, check_share, say).run()


class _FanOut:
    def __init__(
        self,
        rows: _Batch,
        worker: Worker,
        ledger: Ledger,
        workers: Workers,
        check_share: Callable[[int], None],
        say: Callable[[str], None],
    ) -> None:
        self.rows, self.worker, self.ledger, self.workers = rows, worker, ledger, workers
        self.check_share = check_share
        self.progress = Progress(ledger.name, len(rows), "rows", say)
        self.taken = 0
        self.again: deque[_Batch] = deque()
        self.suspects: list[tuple[_Batch, Failed]] = []
        self.has_passed = False
        self.machine_faults: list[str] = []
        self.failed_starts: list[str] = []
        self.has_started = False
        self.places: list[_Place] = []
        self.settled_s = self.checked_s = time.monotonic()

    def run(self) -> None:
        ensure_ray()
        key = f"{self.ledger.name}: execution"
        number = workers_that_fit(self.workers.workers, self.workers.cpus_per_worker, self.workers.gpus_per_worker, key)
        self.places = [_Place() for _ in range(min(number, len(self.rows)))]
        for place in self.places:
            self._start(place)
        try:
            while self.progress.done < len(self.rows):
                self._round()
        finally:
            for place in self.places:
                ray.kill(place.actor)
        self.progress.finish()

    def _round(self) -> None:
        """One round: hands out work, waits for an answer, takes all that are there, and looks after the rest."""
        if self.suspects and not self._waiting and not any(place.calls for place in self.places if place.is_ready):
            self._judge_suspects(is_end=True)
            return
        self._feed()
        firsts = {place.calls[0][0]: place for place in self.places if place.calls}
        if ray.wait(list(firsts), num_returns=1, timeout=CHECK_EVERY_S)[0]:
            for reference in ray.wait(list(firsts), num_returns=len(firsts), timeout=0)[0]:
                self._collect(firsts[reference])
        else:
            check_alive()
        self._kill_overdue()
        self._settle_sometimes()
        self._say_who_waits()
        self.progress.tick()

    # --- places of workers --------------------------------------------------------------------------------------

    def _start(self, place: _Place) -> None:
        options = {"num_cpus": self.workers.cpus_per_worker, "num_gpus": self.workers.gpus_per_worker}
        place.actor = ray.remote(RowActor).options(**options).remote(self.worker, self.ledger)
        place.calls = deque([(place.actor.placed.remote(), None)])
        place.since_s, place.is_placed, place.is_ready = time.monotonic(), False, False
        place.starts += 1

    def _started(self, place: _Place) -> None:
        """Goes on with a start: from its place to the set-up, from the set-up to work."""
        if not place.is_placed:
            place.is_placed = True
            place.calls.append((place.actor.ready.remote(), None))
        else:
            place.is_ready = self.has_started = True
            place.starts = 0

    def _start_failed(self, place: _Place, message: str) -> None:
        """Starts a worker again elsewhere, or gives its place up. Ends the run if all starts fail alike."""
        self.failed_starts.append(message)
        is_alike = len(set(self.failed_starts)) == 1 and len(self.failed_starts) >= max(2, len(self.places))
        if not self.has_started and is_alike:
            raise RunError(f"{self.ledger.name}: no worker could start: {message}")
        if place.starts < STARTS:
            self._start(place)
            return
        self.places.remove(place)
        if not self.places:
            raise RunError(f"{self.ledger.name}: no worker could start; the last failure: {message}")
        self.progress.say(f"  {self.ledger.name}: goes on with {len(self.places)} workers; one cannot start: {message}")

    def _replace(self, place: _Place, error_class: str, message: str) -> None:
        """Replaces a dead actor. Only the batch in progress is suspect; one that waited returns to the queue."""
        (_, at_work), *waiting = place.calls
        self.again.extendleft(batch for _, batch in reversed(waiting) if batch is not None)
        if at_work is None:
            self._start_failed(place, f"{error_class}: {message}")
            return
        self._start(place)
        self._retry(at_work, Failed(error_class, message))

    def _kill_overdue(self) -> None:
        for place in list(self.places):
            if not place.calls or not place.is_placed:
                continue  # waiting for a place is no failure
            reference, batch = place.calls[0]
            limit_s = START_DEADLINE_S if batch is None else self.workers.batch_deadline_s
            is_overdue = time.monotonic() - place.since_s > limit_s
            if is_overdue and not ray.wait([reference], timeout=0)[0]:  # else only the driver is late to look
                ray.kill(place.actor)
                remedy = "" if batch is None else "; raise this stage's execution.batch_deadline_s if the row is good"
                self._replace(place, "DeadlineExceeded", f"no answer within {limit_s:g} s{remedy}")

    def _say_who_waits(self) -> None:
        waiting = sum(not place.is_placed for place in self.places)
        needs = "a GPU" if self.workers.gpus_per_worker else "CPUs"
        placed = f"{len(self.places) - waiting} of {len(self.places)} workers placed"
        self.progress.note = f"{placed}, {waiting} waiting for {needs}" if waiting else ""

    # --- batches ------------------------------------------------------------------------------------------------

    @property
    def _waiting(self) -> int:
        """Number of rows that no actor has."""
        return len(self.rows) - self.taken + sum(map(len, self.again))

    def _take(self) -> _Batch:
        """Next batch. Batches get smaller near the end, so that all workers end together."""
        if self.again:
            return self.again.popleft()
        share = -(-(len(self.rows) - self.taken) // (2 * len(self.places)))
        batch = self.rows.slice(self.taken, min(self.workers.batch_rows, share))
        self.taken += len(batch)
        return batch

    def _feed(self) -> None:
        """Gives each worker a batch, and then a second one that waits, so that none stands idle."""
        for queued in range(2):
            for place in self.places:
                if not self._waiting:
                    return
                if place.is_ready and len(place.calls) == queued:
                    batch = self._take()
                    if not queued:
                        place.since_s = time.monotonic()
                    call = place.actor.process.remote(batch.keys.to_pylist(), batch.row_ids, batch.tasks.to_pylist())
                    place.calls.append((call, batch))

    def _collect(self, place: _Place) -> None:
        reference, batch = place.calls[0]
        try:
            quarantined = ray.get(reference, timeout=0) or 0
        except RayTaskError as error:
            cause = error.cause if isinstance(getattr(error, "cause", None), Exception) else error
            if batch is None:
                self._replace_after_set_up(place, cause)
                return
            self._begin_next(place)
            if isinstance(cause, MachineFault):
                self._machine_fault(batch, one_line(cause))
            else:
                self._retry(batch, Failed(type(cause).__name__, one_line(cause)))
        except (RayActorError, WorkerCrashedError) as error:
            self._replace(place, "WorkerDied", one_line(error))
        except GetTimeoutError:  # reported ready but not fetched yet: taken in the next round
            return
        else:
            self._begin_next(place)
            if batch is None:
                self._started(place)
            else:
                self._passed(batch, quarantined)

    def _replace_after_set_up(self, place: _Place, cause: Exception) -> None:
        ray.kill(place.actor)
        self._start_failed(place, f"{type(cause).__name__}: {one_line(cause)}")

    def _begin_next(self, place: _Place) -> None:
        """Drops the call that an actor has answered; the clock of its next one begins now."""
        place.calls.popleft()
        place.since_s = time.monotonic()

    def _passed(self, batch: _Batch, quarantined: int) -> None:
        self.progress.advance(len(batch), quarantined)
        self.check_share(self.progress.quarantined)
        if quarantined < len(batch):
            self.has_passed = True
            self.machine_faults.clear()
            self._judge_suspects()

    # --- faults -------------------------------------------------------------------------------------------------

    def _machine_fault(self, batch: _Batch, message: str) -> None:
        """Tries the batch again, in halves. Ends the run after too many faults with no row passing between."""
        self.machine_faults.append(message)
        if len(self.machine_faults) <= MACHINE_PAUSES:
            time.sleep(MACHINE_PAUSE_S)
        if len(self.machine_faults) >= MACHINE_FAULTS * len(self.places):
            raise RunError(f"{self.ledger.name}: {message}; nothing is quarantined; run the same command again")
        self.again.extend(batch.halves() if len(batch) > 1 else [batch])

    def _retry(self, batch: _Batch, failure: Failed) -> None:
        """Tries a batch again in halves, a single row alone; a row that failed alone too often is a suspect."""
        if len(batch) > 1:
            self.again.extendleft(reversed(batch.halves()))
        elif batch.tries + 1 < TRIES_FOR_ONE_ROW:
            batch.tries += 1
            self.again.appendleft(batch)
        else:
            self.suspects.append((batch, failure))
            if len(self.suspects) >= SUSPECTS:
                self._judge_suspects(is_end=True)

    def _judge_suspects(self, *, is_end: bool = False) -> None:
        """Quarantines the suspects now that another row has passed. Without one, `is_end` ends the run."""
        if not self.suspects:
            return
        if is_end and (not self.has_passed or len(self.suspects) >= SUSPECTS):
            _, failure = self.suspects[-1]
            raise RunError(
                f"{self.ledger.name}: {len(self.suspects)} rows failed alone and none passed, so the machine may be at "
                f"fault: {failure.error_class}: {failure.message}; nothing is quarantined; mend it and run again"
            )
        for batch, failure in self.suspects:
            self.ledger.write(batch.keys.to_pylist(), batch.row_ids, [failure])
            self.progress.advance(1, quarantined=1)
        self.suspects.clear()

    def _settle_sometimes(self) -> None:
        if time.monotonic() - self.settled_s > SETTLE_EVERY_S:
            self.settled_s = time.monotonic()
            self.ledger.settle()
