"""Captioning engine in a thread of its own: it takes requests while it works on others, and never waits for a batch."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Queue
from typing import Any

from soundcap.engines import CaptionEngine, EngineError
from soundcap.request import CaptionRequest


@dataclass(frozen=True)
class EngineLost:
    """Answer of a request whose engine is lost. `was_inside`: the engine had it, so that it may be the cause."""

    message: str
    was_inside: bool


Answer = str | Exception | EngineLost
Answered = Callable[[Answer], None]


class CaptionStream:
    """Stream of requests into an engine and of answers out of it.

    Args:
        engine: used by the stream alone, but for `prepare`.
        ahead_bytes: frames and sound of prepared requests that may wait for the engine; whoever brings more is kept
            waiting. One request may always wait, however large.
    """

    def __init__(self, engine: CaptionEngine, ahead_bytes: int) -> None:
        self.engine = engine
        self._room = _Room(ahead_bytes)
        self._ready: Queue[tuple[Any, Answered, int] | None] = Queue()
        self._inside: dict[str, Answered] = {}
        self._lock = threading.Lock()
        self._expected = 0
        threading.Thread(target=self._work, name="caption-engine", daemon=True).start()

    def expect(self, requests: int) -> None:
        """Announces requests, negative for those that will not come, so that a batch may wait until it is full."""
        with self._lock:
            self._expected += requests
        if requests < 0:
            self._ready.put(None)  # wakes up who waits for one of them

    def ask(self, request: CaptionRequest, answered: Answered) -> None:
        """Prepares an announced request in the caller's thread, and waits until there is room for it.

        `answered` is called once, in any thread.
        """
        try:
            prepared = self.engine.prepare(request)
        except Exception as error:  # noqa: BLE001 - whatever a request raises is its answer, or nobody would have one
            self.expect(-1)
            answered(error)
            return
        size = request.frames.nbytes + (0 if request.audio is None else request.audio.nbytes)
        self._room.take(size)
        self._ready.put((prepared, answered, size))

    def _work(self) -> None:
        numbers = itertools.count()
        try:
            while True:
                while self.engine.has_room and self._should_take:
                    item = self._ready.get()
                    if item is None:
                        continue
                    prepared, answered, size = item
                    self._room.give(size)
                    key = str(next(numbers))
                    self._inside[key] = answered
                    try:
                        self.engine.add(key, prepared)
                    except ValueError as error:
                        self._answer(key, error)
                for key, answer in self.engine.step() if self._inside else ():
                    self._answer(key, answer)
        except EngineError as error:
            self._end(str(error))
        except Exception as error:  # noqa: BLE001 - whatever ends this thread ends the engine
            self._end(f"{type(error).__name__}: {error}")

    @property
    def _should_take(self) -> bool:
        """Whether to take what is ready, or to wait for it: for the first request, or to fill a batch."""
        if not self._ready.empty() or not self._inside:
            return True
        with self._lock:
            return self.engine.fills_batches and self._expected > len(self._inside)

    def _answer(self, key: str, answer: Answer) -> None:
        with self._lock:
            self._expected -= 1
        self._inside.pop(key)(answer)

    def _end(self, message: str) -> None:
        """Answers all that were asked, and all that will be: the engine is lost."""
        for answered in self._inside.values():
            answered(EngineLost(message, was_inside=True))
        while True:
            item = self._ready.get()
            if item is not None:
                self._room.give(item[2])
                item[1](EngineLost(message, was_inside=False))


class _Room:
    """Bytes that may wait. Takers wait until theirs fit, or nothing else is there."""

    def __init__(self, limit: int) -> None:
        self._limit, self._taken = limit, 0
        self._changed = threading.Condition()

    def take(self, size: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + size <= self._limit)
            self._taken += size

    def give(self, size: int) -> None:
        with self._changed:
            self._taken -= size
            self._changed.notify_all()
