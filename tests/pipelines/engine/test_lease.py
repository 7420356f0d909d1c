"""One driver a root, on a disk and in a bucket: a living one is named, a dead one is taken over."""

import json
import re
import subprocess
import sys
import threading
from dataclasses import asdict

import pytest

from pipelines.engine import lease as module
from pipelines.engine.lease import LEASE, Holder, Lease, lease, read_holder
from pipelines.engine.storage import Storage
from pipelines.errors import RunError, UserError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.1)
    monkeypatch.setattr(module, "SILENT_S", 1.0)


def test_a_living_holder_is_named_and_nothing_is_written(storage: Storage) -> None:
    with lease(storage, print) as held:
        with pytest.raises(UserError, match=f"is in use by process {held.holder.pid} on .*; wait for its end"):
            Lease(storage).take(print)
        holder = read_holder(storage)
        assert holder is not None and holder.id == held.holder.id
        held.check()
    assert read_holder(storage) is None, "given back at the end"


def test_a_dead_process_of_this_machine_is_replaced_at_once(storage: Storage) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    storage.write_bytes(LEASE, json.dumps(asdict(Holder(pid=ended.pid))).encode())
    said: list[str] = []
    with lease(storage, said.append) as held:
        held.check()
    assert not said


@pytest.mark.parametrize("content", [json.dumps(asdict(Holder(host="elsewhere"))).encode(), b"", b"{"])
def test_a_silent_holder_is_taken_over_and_the_wait_is_said(storage: Storage, content: bytes) -> None:
    storage.write_bytes(LEASE, content)
    said: list[str] = []
    with lease(storage, said.append) as held:
        held.check()
    assert "waiting up to 1 s to see whether it lives" in said[0] and "taking over" in said[1]


def test_who_lost_the_root_stops(storage: Storage) -> None:
    with lease(storage, print) as held:
        storage.write_bytes(LEASE, json.dumps(asdict(Holder(host="elsewhere"))).encode())
        told = ""
        for _ in range(200):  # the beat comes late on busy cores
            threading.Event().wait(0.1)
            try:
                held.check()
            except RunError as error:
                told = str(error)
                break
        assert re.search("taken over by process .* on elsewhere", told), f"still held: {told!r}"
    holder = read_holder(storage)
    assert holder is not None and holder.host == "elsewhere", "the other's lease is left alone"


def test_of_many_at_once_one_gets_it(storage: Storage) -> None:
    start, got, refused = threading.Barrier(8), [], []

    def race() -> None:
        mine = Lease(storage)
        start.wait()
        if storage.create(LEASE, mine._content()):
            got.append(mine)
        else:
            refused.append(mine)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 7
