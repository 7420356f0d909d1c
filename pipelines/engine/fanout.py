"""Fan-out of rows over Ray actors, which commit their results to the ledger themselves; the driver only counts.

A batch that kills or hangs its actor is split in halves and tried again, down to the one row that does it, and
that row is quarantined: one bad row costs itself, never the run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError, WorkerCrashedError

from pipelines.engine.ledger import Entry, Failed, Ledger, Worker
from pipelines.errors import MachineFault, RunError, one_line
from pipelines.progress import Progress
from pipelines.run_config import Workers

Item = tuple[str, str, dict[str, Any]]
"""(row id, key, task)."""

TRIES_FOR_ONE_ROW = 2
START_DEADLINE_S = 3600.0  # a large model from a slow disk
IDLE_BATCHES_PER_ACTOR = 2  # one at work and one waiting, so that an actor never stands idle


class RowActor:
    """Actor that holds one worker and commits each batch as a ledger part before it answers."""

    def __init__(self, worker: Worker, ledger: Ledger) -> None:
        self.worker, self.ledger = worker, ledger

    def ready(self) -> None:
        """Sets up the worker. Not in the constructor, so that its exception reaches the driver unchanged."""
        self.worker.setup()

    def process(self, batch: list[Item]) -> int:
        """Computes and commits the batch's rows. Returns the number quarantined."""
        results = self.worker.process([task for _, _, task in batch])
        assert len(results) == len(batch), f"worker gave {len(results)} results for {len(batch)} tasks"
        entries = [Entry.of(row_id, key, result) for (row_id, key, _), result in zip(batch, results, strict=True)]
        self.ledger.commit(entries)
        return sum(entry.status == "quarantined" for entry in entries)


@dataclass
class _Batch:
    items: list[Item]
    tries: int = 0
    started_s: float = field(default_factory=time.monotonic)


def fan_out(
    items: list[Item], worker: Worker, *, ledger: Ledger, workers: Workers, label: str, say: Callable[[str], None]
) -> None:
    """Computes `items`; afterwards the ledger holds every one of them, computed or quarantined.

    Raises RunError if the worker's set-up fails (a model does not load), or a machine is at fault.
    """
    _FanOut(items, worker, ledger, workers, Progress(label, len(items), "rows", say)).run()


class _FanOut:
    def __init__(self, items: list[Item], worker: Worker, ledger: Ledger, workers: Workers, progress: Progress) -> None:
        self.worker, self.ledger, self.workers, self.progress = worker, ledger, workers, progress
        # Small jobs get smaller batches, so that every actor has one.
        size = max(1, min(workers.batch_rows, -(-len(items) // workers.workers)))
        self.waiting = deque(_Batch(items[i : i + size]) for i in range(0, len(items), size))
        self.actors: dict[Any, deque[tuple[Any, _Batch]]] = {}

    def run(self) -> None:
        for _ in range(min(self.workers.workers, len(self.waiting))):
            self._start_actor()
        while self.waiting or any(self.actors.values()):
            self._feed()
            heads = {queue[0][0]: actor for actor, queue in self.actors.items() if queue}
            done, _ = ray.wait(list(heads), num_returns=1, timeout=5)
            for reference in done:
                self._collect(heads[reference])
            self._kill_overdue()
            self.progress.tick()
        for actor in self.actors:
            ray.kill(actor)
        self.progress.finish()

    def _start_actor(self) -> None:
        options = {"num_cpus": self.workers.cpus_per_worker, "num_gpus": self.workers.gpus_per_worker}
        actor = ray.remote(RowActor).options(**options).remote(self.worker, self.ledger)
        self.actors[actor] = deque([(actor.ready.remote(), _Batch([]))])

    def _feed(self) -> None:
        for queue_length in range(IDLE_BATCHES_PER_ACTOR):
            for actor, queue in self.actors.items():
                is_starting = bool(queue) and not queue[0][1].items
                if self.waiting and len(queue) == queue_length and not is_starting:
                    batch = self.waiting.popleft()
                    batch.started_s = time.monotonic()
                    queue.append((actor.process.remote(batch.items), batch))

    def _collect(self, actor: Any) -> None:
        reference, batch = self.actors[actor][0]
        try:
            quarantined = ray.get(reference, timeout=0) or 0
        except RayTaskError as error:
            if not batch.items:
                raise RunError(f"{self.progress.label}: the worker could not start: {_cause(error)}") from error
            if isinstance(error.cause, MachineFault):
                raise RunError(f"{self.progress.label}: {one_line(error.cause)}") from error
            self._begin_next(actor)
            self._retry(batch, type(error.cause).__name__, _cause(error))
        except (RayActorError, WorkerCrashedError) as error:
            self._replace(actor, "WorkerDied", one_line(error))
        except GetTimeoutError:  # reported ready but not fetched yet: retried in the next round
            return
        else:
            self._begin_next(actor)
            self.progress.advance(len(batch.items), quarantined)

    def _begin_next(self, actor: Any) -> None:
        """Drops the batch that an actor has answered; the deadline of its next one begins now."""
        self.actors[actor].popleft()
        if self.actors[actor]:
            self.actors[actor][0][1].started_s = time.monotonic()

    def _kill_overdue(self) -> None:
        for actor, queue in list(self.actors.items()):
            limit_s = self.workers.batch_deadline_s if queue and queue[0][1].items else START_DEADLINE_S
            if queue and time.monotonic() - queue[0][1].started_s > limit_s:
                ray.kill(actor)
                self._replace(
                    actor,
                    "DeadlineExceeded",
                    f"no answer within {limit_s:g} s; raise this stage's execution.batch_deadline_s if the row is good",
                )

    def _replace(self, actor: Any, error_class: str, message: str) -> None:
        """Replaces a dead actor. Only the batch in progress is suspect; waiting ones return to the queue."""
        queue = self.actors.pop(actor)
        _, at_work = queue.popleft()
        self.waiting.extendleft(batch for _, batch in reversed(queue))
        if at_work.items:
            self._retry(at_work, error_class, message)
        elif message:
            raise RunError(f"{self.progress.label}: a worker died while starting: {message}")
        if self.waiting:
            self._start_actor()

    def _retry(self, batch: _Batch, error_class: str, message: str) -> None:
        if len(batch.items) > 1:
            middle = len(batch.items) // 2
            self.waiting.extendleft([_Batch(batch.items[middle:]), _Batch(batch.items[:middle])])
        elif batch.tries + 1 < TRIES_FOR_ONE_ROW:
            self.waiting.appendleft(_Batch(batch.items, tries=batch.tries + 1))
        else:
            [(row_id, key, _)] = batch.items
            self.ledger.commit([Entry.of(row_id, key, Failed(error_class, message))])
            self.progress.advance(1, quarantined=1)


def _cause(error: RayTaskError) -> str:
    cause = error.cause if isinstance(getattr(error, "cause", None), BaseException) else error
    return f"{type(cause).__name__}: {one_line(cause)}"
