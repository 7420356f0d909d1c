"""Places of the workers of a fan-out: the actor in each, the batches that it has, and what it does with them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from pipelines.engine.ledger import AnyWorker, Ledger, Result, StreamingWorker
from pipelines.engine.usage import device_name
from pipelines.errors import machine_fault

PART_ROWS, PART_S = 64, 20.0
"""Rows, and time, after which a streaming worker's rows are committed: the most that a crash costs."""


class RowActor:
    """Actor that holds one worker and commits each batch, as one or more ledger parts, before it answers."""

    def __init__(self, worker: AnyWorker, ledger: Ledger) -> None:
        self.worker, self.ledger = worker, ledger

    def placed(self) -> None:
        """Answers as soon as the actor has a place, before any model is loaded."""

    def ready(self) -> str:
        """Sets up the worker; returns the device's name. An exception in a constructor would come out changed."""
        self.worker.setup()
        return device_name()

    def process(self, keys: list[bytes], row_ids: list[str], tasks: list[dict[str, Any]]) -> int:
        """Computes and commits the batch's rows. Returns the number quarantined."""
        try:
            if isinstance(self.worker, StreamingWorker):
                return sum(self._stream(self.worker, keys, row_ids, tasks))
            results = self.worker.process(tasks)
        except Exception as error:
            if (fault := machine_fault(error)) is not None:
                raise fault from error
            raise
        assert len(results) == len(tasks), f"worker gave {len(results)} results for {len(tasks)} tasks"
        return self.ledger.write(keys, row_ids, results)[1]

    def _stream(
        self, worker: StreamingWorker, keys: list[bytes], row_ids: list[str], tasks: list[dict[str, Any]]
    ) -> Iterator[int]:
        """Commits rows in parts as they are done, whatever ends the batch. Yields the number quarantined in each."""
        done: dict[int, Result] = {}
        since_s = time.monotonic()

        def commit() -> int:
            places, results = list(done), list(done.values())
            done.clear()
            return self.ledger.write([keys[p] for p in places], [row_ids[p] for p in places], results)[1]

        try:
            for place, result in worker.stream(tasks):
                done[place] = result
                if len(done) >= PART_ROWS or time.monotonic() - since_s > PART_S:
                    yield commit()
                    since_s = time.monotonic()
        finally:
            last = commit()
        yield last


@dataclass
class Batch:
    """Rows to compute at once: tasks, whose first column is the row's id, and keys.

    is_suspect: it was at work when a worker with several batches died; it is tried again in a worker of its own.
    """

    tasks: pa.Table
    keys: pa.Array
    tries: int = 0
    is_suspect: bool = False

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def row_ids(self) -> list[str]:
        ids: list[str] = self.tasks.column(0).to_pylist()
        return ids

    def halves(self) -> tuple[Batch, Batch]:
        middle = len(self) // 2
        return self.slice(0, middle), self.slice(middle, len(self) - middle)

    def slice(self, start: int, rows: int) -> Batch:
        return Batch(self.tasks.slice(start, rows), self.keys.slice(start, rows), 0, self.is_suspect)

    def where(self, chosen: pa.Array) -> Batch:
        """Rows that a mask chooses."""
        return replace(self, tasks=self.tasks.filter(chosen), keys=self.keys.filter(chosen))


@dataclass(eq=False)
class Call:
    """Call of an actor: a batch's or (None) one of its start. `since_s`: time at which it began, if it has."""

    reference: Any
    batch: Batch | None
    since_s: float | None = None


@dataclass
class Place:
    """Place of one worker: its actor, and its calls in order. The first `at_once` are at work, the others wait."""

    at_once: int
    actor: Any = None
    calls: list[Call] = field(default_factory=list)
    is_placed: bool = False
    is_ready: bool = False
    is_lost: bool = False
    """The worker cannot go on: it is started anew when all its calls have ended."""
    starts: int = 0
    placed_s: float = 0.0
    ready_s: float = 0.0

    @property
    def at_work(self) -> list[Call]:
        return self.calls[: self.at_once]

    def call(self, reference: Any, batch: Batch | None) -> None:
        self.calls.append(Call(reference, batch))
        self._note_times()

    def end(self, call: Call) -> None:
        """Drops a call that has ended; the time of one that waited begins now."""
        self.calls.remove(call)
        self._note_times()

    def has_room(self, queued: int, suspect: bool) -> bool:
        """Whether it takes a batch behind `queued` others. A suspect is alone in its worker."""
        has_suspect = any(call.batch is not None and call.batch.is_suspect for call in self.calls)
        return (
            self.is_ready
            and not self.is_lost
            and len(self.calls) == queued
            and not has_suspect
            and not (suspect and queued)
        )

    def _note_times(self) -> None:
        for call in self.at_work:
            call.since_s = call.since_s or time.monotonic()
