"""Fan-out of rows over Ray actors, which commit their results to the ledger themselves; the driver only counts.

A batch that raises, or that kills or hangs its actor, is split in halves and tried again, down to the one row that
does it. Such a row is quarantined only if other rows pass: else the machine is at fault, and the run ends.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError, WorkerCrashedError

from pipelines.engine.cluster import check_alive, ensure_ray, workers_that_fit
from pipelines.engine.ledger import AnyWorker, Failed, Ledger, StreamingWorker, WorkerLost
from pipelines.engine.recipe import Recipe
from pipelines.engine.row_actor import Batch, Call, Place, RowActor
from pipelines.engine.usage import CPU, Usage
from pipelines.errors import MachineFault, RunError, one_line
from pipelines.progress import Progress
from pipelines.run_config import Workers

TRIES_FOR_ONE_ROW, DEATHS_FOR_ONE_ROW = 2, 3
"""Failures alone that make a row suspect. A worker's death may have other causes: a node that is taken away."""
DIED = "WorkerDied"
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


def fan_out(
    tasks: pa.Table,
    keys: pa.Array,
    worker: AnyWorker,
    *,
    ledger: Ledger,
    recipe: Recipe,
    workers: Workers,
    check_share: Callable[[int], None] = lambda quarantined: None,
    say: Callable[[str], None],
) -> Usage:
    """Computes rows; afterwards the ledger holds every one of them, computed or quarantined. Returns what it took.

    Args:
        tasks: what the worker gets, a row each; the first column is the row's id.
        keys: ledger keys of the rows.
        worker: copied into each actor.
        ledger: where the actors commit.
        recipe: of the rows.
        workers: number, resources and batches of the actors.
        check_share: takes the number of rows quarantined so far; raises RunError for too many.
        say: takes progress lines.

    Raises:
        UserError: no node of the cluster could hold one worker.
        RunError: no worker starts (a model does not load), or a machine is at fault; nothing is quarantined for it.
    """
    work = _FanOut(Batch(tasks, keys), worker, ledger, workers, check_share, say)
    work.run()
    return Usage(
        ledger=ledger.name,
        recipe=recipe.shared_digest,
        device=work.device,
        rows=len(keys),
        worker_s=round(work.worker_s, 3),
        start_s=round(work.setup_s / max(1, work.set_ups), 3),
        workers=work.most_at_work,
        cpus_per_worker=workers.cpus_per_worker,
        gpus_per_worker=workers.gpus_per_worker,
    )


class _FanOut:
    def __init__(
        self,
        rows: Batch,
        worker: AnyWorker,
        ledger: Ledger,
        workers: Workers,
        check_share: Callable[[int], None],
        say: Callable[[str], None],
    ) -> None:
        self.rows, self.worker, self.ledger, self.workers = rows, worker, ledger, workers
        self.check_share = check_share
        self.at_once = worker.batches_at_once if isinstance(worker, StreamingWorker) else 1
        self.progress = Progress(ledger.name, len(rows), "rows", say)
        self.taken = 0
        self.again: deque[Batch] = deque()
        self.suspects: list[tuple[Batch, Failed]] = []
        self.has_passed = False
        self.machine_faults: list[str] = []
        self.failed_starts: list[str] = []
        self.has_started = False
        self.places: list[Place] = []
        self.device = CPU
        self.worker_s = self.setup_s = 0.0
        self.set_ups = self.most_at_work = 0
        self.settled_s = self.checked_s = time.monotonic()

    def run(self) -> None:
        ensure_ray()
        key = f"{self.ledger.name}: execution"
        number = workers_that_fit(self.workers.workers, self.workers.cpus_per_worker, self.workers.gpus_per_worker, key)
        self.places = [Place(self.at_once) for _ in range(min(number, len(self.rows)))]
        for place in self.places:
            self._start(place)
        try:
            while self.progress.done < len(self.rows):
                self._round()
        finally:
            for place in self.places:
                self._stop(place)
        self.progress.finish()

    def _round(self) -> None:
        """One round: hands out work, waits for an answer, takes all that are there, and looks after the rest."""
        if self.suspects and not self._waiting and not any(place.calls for place in self.places if place.is_ready):
            self._judge_suspects(is_end=True)
            return
        self._feed()
        at_work = {call.reference: (place, call) for place in self.places for call in place.at_work}
        if ray.wait(list(at_work), num_returns=1, timeout=CHECK_EVERY_S)[0]:
            for reference in ray.wait(list(at_work), num_returns=len(at_work), timeout=0)[0]:
                place, call = at_work[reference]
                if call in place.calls:  # else it went with its actor
                    self._collect(place, call)
        else:
            check_alive()
        self._kill_overdue()
        self._settle_sometimes()
        self._say_who_waits()
        self.progress.tick()

    # --- places of workers --------------------------------------------------------------------------------------

    def _start(self, place: Place) -> None:
        options = {"num_cpus": self.workers.cpus_per_worker, "num_gpus": self.workers.gpus_per_worker}
        options |= {"max_concurrency": self.at_once} if self.at_once > 1 else {}
        place.actor = ray.remote(RowActor).options(**options).remote(self.worker, self.ledger)
        place.calls, place.is_placed, place.is_ready, place.is_lost = [], False, False, False
        place.call(place.actor.placed.remote(), None)
        place.starts += 1

    def _started(self, place: Place, device: str | None) -> None:
        """Goes on with a start: from its place to the set-up, from the set-up, which names the device, to work."""
        if device is None:
            place.is_placed, place.placed_s = True, time.monotonic()
            place.call(place.actor.ready.remote(), None)
        else:
            place.is_ready = self.has_started = True
            place.starts, place.ready_s = 0, time.monotonic()
            self.device = device
            self.set_ups, self.setup_s = self.set_ups + 1, self.setup_s + place.ready_s - place.placed_s
            self.most_at_work = max(self.most_at_work, sum(one.is_ready for one in self.places))

    def _stop(self, place: Place) -> None:
        """Ends a worker, and counts its time since the set-up."""
        ray.kill(place.actor)
        if place.is_ready:
            self.worker_s += time.monotonic() - place.ready_s
            place.is_ready = False

    def _start_failed(self, place: Place, message: str) -> None:
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

    def _replace(self, place: Place, suspects: Sequence[Call], error_class: str, message: str) -> None:
        """Replaces an actor that is dead or hangs. Batches of calls that are not suspect return to the queue."""
        self._stop(place)
        for call in reversed(place.calls):
            if call not in suspects and call.batch is not None:
                self._again(call.batch)
        if suspects[0].batch is None:
            self._start_failed(place, f"{error_class}: {message}")
            return
        self._start(place)
        for call in suspects:
            if call.batch is not None:
                self._suspect(self._left(call.batch), Failed(error_class, message))

    def _kill_overdue(self) -> None:
        for place in list(self.places):
            if not place.is_placed:
                continue  # waiting for a place is no failure
            for call in place.at_work:
                limit_s = START_DEADLINE_S if call.batch is None else self.workers.batch_deadline_s
                is_overdue = call.since_s is not None and time.monotonic() - call.since_s > limit_s
                if is_overdue and not ray.wait([call.reference], timeout=0)[0]:  # else only the driver is late to look
                    remedy = "; raise this stage's execution.batch_deadline_s if the row is good"
                    message = f"no answer within {limit_s:g} s{remedy * (call.batch is not None)}"
                    self._replace(place, [call], "DeadlineExceeded", message)
                    break

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

    def _take(self, place: Place, queued: int) -> Batch | None:
        """Next batch for a worker that has `queued`. Near the end they are smaller, so that workers end together."""
        batch = next((batch for batch in self.again if place.has_room(queued, batch.is_suspect)), None)
        if batch is not None:
            self.again.remove(batch)
            return batch
        left = len(self.rows) - self.taken
        if not left or not place.has_room(queued, suspect=False):
            return None
        share = -(-left // ((self.at_once + 1) * len(self.places)))
        batch = self.rows.slice(self.taken, min(self.workers.batch_rows, share))
        self.taken += len(batch)
        return batch

    def _feed(self) -> None:
        """Gives each worker as many batches as it works on at once, and one more that waits."""
        for queued in range(self.at_once + 1):
            for place in self.places:
                if (batch := self._take(place, queued)) is not None:
                    columns = batch.keys.to_pylist(), batch.row_ids, batch.tasks.to_pylist()
                    place.call(place.actor.process.remote(*columns), batch)

    def _collect(self, place: Place, call: Call) -> None:
        batch = call.batch
        try:
            answer = ray.get(call.reference, timeout=0)
        except RayTaskError as error:
            cause = error.cause if isinstance(getattr(error, "cause", None), Exception) else error
            if batch is None:
                self._replace_after_set_up(place, cause)
                return
            place.end(call)
            if isinstance(cause, WorkerLost):
                self._worker_lost(place, batch, cause)
            elif isinstance(cause, MachineFault):
                self._machine_fault(self._left(batch), one_line(cause))
            else:
                self._retry(self._left(batch), Failed(type(cause).__name__, one_line(cause)))
            self._renew_if_lost(place)
        except (RayActorError, WorkerCrashedError) as error:
            self._replace(place, place.at_work, DIED, one_line(error))
        except GetTimeoutError:  # reported ready but not fetched yet: taken in the next round
            return
        else:
            place.end(call)
            if batch is None:
                self._started(place, answer)
            else:
                self._passed(len(batch), answer)
                self._renew_if_lost(place)

    def _replace_after_set_up(self, place: Place, cause: Exception) -> None:
        self._stop(place)
        self._start_failed(place, f"{type(cause).__name__}: {one_line(cause)}")

    def _worker_lost(self, place: Place, batch: Batch, lost: WorkerLost) -> None:
        """Takes back a batch whose worker is lost. Only rows that it names are suspect."""
        message, places = lost.args
        inside = batch.where(pa.array([place in set(places) for place in range(len(batch))], pa.bool_()))
        outside = batch.where(pa.array([place not in set(places) for place in range(len(batch))], pa.bool_()))
        place.is_lost = True
        self._again(outside)
        self._suspect(inside, Failed("WorkerLost", message))

    def _renew_if_lost(self, place: Place) -> None:
        """Starts a lost worker anew once all its calls have ended."""
        if place.is_lost and not place.calls:
            self._stop(place)
            self._start(place)

    def _again(self, batch: Batch) -> None:
        """Puts what is left of a batch back to the front of the queue."""
        if len(left := self._left(batch)):
            self.again.appendleft(left)

    def _left(self, batch: Batch) -> Batch:
        """Rows of a batch that a streaming worker has not committed. The others count as passed."""
        if self.at_once == 1:
            return batch
        known = self.ledger.read()
        places = pc.index_in(batch.keys, known["key"].combine_chunks())
        if places.null_count < len(batch):
            errors = known["error_class"].take(places.drop_null())
            self._passed(len(errors), pc.sum(pc.not_equal(errors, "")).as_py())
        return batch.where(places.is_null())

    def _passed(self, rows: int, quarantined: int) -> None:
        self.progress.advance(rows, quarantined)
        self.check_share(self.progress.quarantined)
        if quarantined < rows:
            self.has_passed = True
            self.machine_faults.clear()
            self._judge_suspects()

    # --- faults -------------------------------------------------------------------------------------------------

    def _machine_fault(self, batch: Batch, message: str) -> None:
        """Tries the batch again, in halves. Ends the run after too many faults with no row passing between."""
        if not len(batch):
            return
        self.machine_faults.append(message)
        if len(self.machine_faults) <= MACHINE_PAUSES:
            time.sleep(MACHINE_PAUSE_S)
        if len(self.machine_faults) >= MACHINE_FAULTS * len(self.places):
            raise RunError(f"{self.ledger.name}: {message}; nothing is quarantined; run the same command again")
        self.again.extend(batch.halves() if len(batch) > 1 else [batch])

    def _suspect(self, batch: Batch, failure: Failed) -> None:
        """Tries rows again that may have ended their worker: alone, where it had others beside them."""
        if not len(batch):
            return
        if self.at_once > 1 and not batch.is_suspect:
            self.again.append(replace(batch, is_suspect=True))
        else:
            self._retry(batch, failure)

    def _retry(self, batch: Batch, failure: Failed) -> None:
        """Tries a batch again in halves, a single row alone; a row that failed alone too often is a suspect."""
        if not len(batch):
            return
        if len(batch) > 1:
            self.again.extendleft(reversed(batch.halves()))
        elif batch.tries + 1 < (DEATHS_FOR_ONE_ROW if failure.error_class == DIED else TRIES_FOR_ONE_ROW):
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
