"""Lease of a root: at most one driver writes to it at a time.

The file LEASE holds its owner and a beat that the owner raises every BEAT_S. It is created exclusively, and whether an
owner lives is judged by its beats, never by comparing clocks of two machines.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

from pipelines.engine.storage import Storage
from pipelines.errors import RunError, UserError, machine_fault

LEASE = "lease.json"
BEAT_S = 2.0
SILENT_S = 12.0
"""Time without a beat after which an owner is taken for dead; a slow bucket answers within it."""


@dataclass(frozen=True)
class Holder:
    """Owner of a lease, and its number of beats so far."""

    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    since: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))
    beat: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def is_dead_here(self) -> bool:
        """True for a process of this machine that has ended."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


def read_holder(storage: Storage) -> Holder | None:
    """Holder of the root's lease, dead or alive, or None. An unreadable lease is one of an unknown holder."""
    try:
        return Holder(**json.loads(storage.read_bytes(LEASE)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return Holder(host="unknown", pid=0, id="unreadable", since="unknown")


class Lease:
    """Lease that this process holds. `check` raises RunError once it is lost."""

    def __init__(self, storage: Storage) -> None:
        self.storage, self.holder = storage, Holder()
        self._lost_to = ""
        self._ended = threading.Event()

    def check(self) -> None:
        """Raises RunError if another driver has taken the root over."""
        if self._lost_to:
            raise RunError(
                f"root {self.storage.url!r}: taken over by {self._lost_to}, because this process gave no sign of life "
                f"for {SILENT_S:g} s; nothing is lost: the other run goes on"
            )

    def take(self, say: Callable[[str], None]) -> None:
        """Takes the lease; waits up to SILENT_S to see whether another holder lives.

        Raises UserError that names a living holder.
        """
        while not self.storage.create(LEASE, self._content()):
            other = read_holder(self.storage)
            if other is None:
                continue
            if not other.is_dead_here:
                self._watch(other, say)
            self.storage.remove(LEASE)
        if (now := read_holder(self.storage)) is not None and now.id != self.holder.id:
            self._refuse(now)  # both saw the dead holder's lease, and the other one was later

    def beat(self) -> None:
        """Raises the beat until `end`; notes when another holder is there."""
        while not self._ended.wait(BEAT_S):
            try:
                now = read_holder(self.storage)
                if now is not None and now.id != self.holder.id:
                    self._lost_to = str(now)
                    return
                self.holder = replace(self.holder, beat=self.holder.beat + 1)
                self.storage.write_bytes(LEASE, self._content())
            except Exception as error:
                if machine_fault(error) is None:
                    raise
                # A bucket that does not answer for a moment; after SILENT_S another driver may take over.

    def end(self) -> None:
        """Stops the beat."""
        self._ended.set()

    def release(self) -> None:
        """Gives the lease back, unless it is lost."""
        now = read_holder(self.storage)
        if now is not None and now.id == self.holder.id:
            self.storage.remove(LEASE)

    def _content(self) -> bytes:
        return json.dumps(asdict(self.holder)).encode()

    def _watch(self, other: Holder, say: Callable[[str], None]) -> None:
        """Returns once the other holder has shown no beat for SILENT_S."""
        say(f"root {self.storage.url!r} is held by {other}; waiting up to {SILENT_S:g} s to see whether it lives")
        until_s = time.monotonic() + SILENT_S
        while time.monotonic() < until_s:
            time.sleep(BEAT_S / 4)
            now = read_holder(self.storage)
            if now is None:
                return
            if now != other:
                self._refuse(now)
        say(f"root {self.storage.url!r}: {other} gives no sign of life; taking over")

    def _refuse(self, other: Holder) -> None:
        raise UserError(
            f"root {self.storage.url!r} is in use by {other}; wait for its end, or stop it; `soundcap status` shows it"
        )


@contextmanager
def lease(storage: Storage, say: Callable[[str], None]) -> Iterator[Lease]:
    """Context in which this process holds the root's lease. Raises UserError if another process does."""
    held = Lease(storage)
    held.take(say)
    thread = threading.Thread(target=held.beat, name="lease", daemon=True)
    thread.start()
    try:
        yield held
    finally:
        held.end()
        thread.join()
        held.release()
