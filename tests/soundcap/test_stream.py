"""Requests stream into an engine and answers out of it: it waits for no batch, and what waits for it is bounded."""

import threading
import time
from queue import Queue
from typing import Any

import numpy as np
import pytest

from soundcap.engines import CaptionEngine, EngineError
from soundcap.engines.stream import Answer, CaptionStream, EngineLost
from soundcap.request import CaptionRequest

REQUEST_BYTES = 28 * 28 * 3


class StandIn(CaptionEngine):
    """Engine whose step answers the oldest request, or a whole batch, with its prompt. A prompt may do harm."""

    def __init__(self, room: int = 4, fills_batches: bool = False) -> None:
        self.room, self.fills_batches = room, fills_batches
        self.inside: dict[str, str] = {}
        self.steps: list[list[str]] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def prepare(self, request: CaptionRequest) -> str:
        if request.prompt == "not prepared":
            raise ValueError("cannot be prepared")
        if request.prompt == "breaks":
            raise RuntimeError("a fault of a library")
        return request.prompt

    @property
    def has_room(self) -> bool:
        return len(self.inside) < self.room

    def add(self, key: str, prepared: Any) -> None:
        if prepared == "not added":
            raise ValueError("does not fit")
        self.inside[key] = prepared

    def step(self) -> list[tuple[str, str | Exception]]:
        self.go_on.wait()
        done = dict(self.inside) if self.fills_batches else dict([next(iter(self.inside.items()))])
        self.steps.append(list(done.values()))
        if "kill" in done.values():
            raise EngineError("out of memory")
        for key in done:
            del self.inside[key]
        return [(key, KeyError("bad") if prompt == "bad" else prompt) for key, prompt in done.items()]

    def close(self) -> None:
        pass


def request(prompt: str) -> CaptionRequest:
    return CaptionRequest(prompt, np.zeros((1, 28, 28, 3), np.uint8), 2.0, None)


def ask(stream: CaptionStream, answers: "Queue[tuple[str, Answer]]", prompt: str) -> None:
    stream.ask(request(prompt), lambda answer: answers.put((prompt, answer)))


def asked(engine: StandIn, prompts: list[str]) -> dict[str, Answer]:
    answers: Queue[tuple[str, Answer]] = Queue()
    stream = CaptionStream(engine, ahead_bytes=2 * REQUEST_BYTES)
    stream.expect(len(prompts))
    for prompt in prompts:
        ask(stream, answers, prompt)
    return dict(answers.get(timeout=10) for _ in prompts)


def test_every_request_has_its_own_answer() -> None:
    answers = asked(StandIn(), ["a", "not prepared", "b", "bad", "not added", "breaks", "c"])
    assert {prompt: str(answer) for prompt, answer in answers.items()} == {
        "a": "a", "b": "b", "c": "c", "bad": "'bad'", "not prepared": "cannot be prepared", "not added": "does not fit",
        "breaks": "a fault of a library",
    }  # fmt: skip


def test_an_engine_that_is_lost_names_what_was_inside() -> None:
    engine = StandIn(room=2, fills_batches=True)  # so that both are inside before its step
    engine.go_on.clear()
    answers: Queue[tuple[str, Answer]] = Queue()
    stream = CaptionStream(engine, ahead_bytes=2 * REQUEST_BYTES)
    stream.expect(4)
    for prompt in ("kill", "inside", "ready"):
        ask(stream, answers, prompt)
    engine.go_on.set()
    found = dict(answers.get(timeout=10) for _ in range(3))
    assert found["kill"] == found["inside"] == EngineLost("out of memory", was_inside=True)
    assert found["ready"] == EngineLost("out of memory", was_inside=False)
    ask(stream, answers, "later")
    assert answers.get(timeout=10)[1] == EngineLost("out of memory", was_inside=False)


def test_who_brings_too_much_waits() -> None:
    engine = StandIn(room=1)
    engine.go_on.clear()
    answers: Queue[tuple[str, Answer]] = Queue()
    stream = CaptionStream(engine, ahead_bytes=2 * REQUEST_BYTES)
    stream.expect(6)
    brought: list[str] = []

    def bring() -> None:
        for prompt in "abcdef":
            ask(stream, answers, prompt)
            brought.append(prompt)

    thread = threading.Thread(target=bring, daemon=True)
    thread.start()
    thread.join(0.5)
    assert len(brought) == 3, "one is inside, two wait, and the fourth has no room"
    engine.go_on.set()
    assert {answers.get(timeout=10)[0] for _ in range(6)} == set("abcdef")


def test_a_request_larger_than_all_room_may_wait_alone() -> None:
    engine = StandIn(room=1)
    answers: Queue[tuple[str, Answer]] = Queue()
    stream = CaptionStream(engine, ahead_bytes=REQUEST_BYTES // 2)
    stream.expect(3)
    for prompt in "abc":
        ask(stream, answers, prompt)
    assert {answers.get(timeout=10)[0] for _ in range(3)} == set("abc")


def test_requests_enter_while_the_engine_works_on_others() -> None:
    engine = StandIn(room=3)
    engine.go_on.clear()
    answers: Queue[tuple[str, Answer]] = Queue()
    stream = CaptionStream(engine, ahead_bytes=2 * REQUEST_BYTES)
    ask(stream, answers, "a")
    engine.go_on.set()
    assert answers.get(timeout=10) == ("a", "a")
    engine.go_on.clear()
    for prompt in "bc":
        ask(stream, answers, prompt)
    engine.go_on.set()
    assert [answers.get(timeout=10)[0] for _ in range(2)] == ["b", "c"]


@pytest.mark.parametrize("failing", [0, 1], ids=["all come", "one cannot be read"])
def test_an_engine_of_batches_gets_full_ones(failing: int) -> None:
    engine = StandIn(room=4, fills_batches=True)
    answers: Queue[tuple[str, Answer]] = Queue()
    stream = CaptionStream(engine, ahead_bytes=8 * REQUEST_BYTES)
    stream.expect(6 + failing)
    for prompt in "abcdef":
        time.sleep(0.02)
        ask(stream, answers, prompt)
    if failing:
        stream.expect(-1)
    assert {answers.get(timeout=10)[0] for _ in range(6)} == set("abcdef")
    assert engine.steps == [list("abcd"), list("ef")]


def test_all_at_once_is_the_same() -> None:
    answers = StandIn(room=2).caption([request(prompt) for prompt in ("a", "not prepared", "bad", "not added", "b")])
    assert [str(answer) for answer in answers] == ["a", "cannot be prepared", "'bad'", "does not fit", "b"]
    assert StandIn().caption([]) == []
    with pytest.raises(EngineError):
        StandIn().caption([request("kill")])
