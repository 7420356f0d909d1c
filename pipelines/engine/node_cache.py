"""Copies of a bucket's files on a node's disk, shared by all processes of a user there.

Each file is downloaded once a node, by one process while the others take the next file or wait. Copies stay for the
next start, until space is needed: the longest unused go first, and a tenth of the disk is left free.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipelines.engine.fingerprint import digest
from pipelines.engine.storage import FileInfo, Storage
from pipelines.errors import MachineFault

FREE_SHARE = 0.1
"""Share of the disk that copies leave free."""
UNUSED_S = 7 * 86_400.0
"""Time after which an unused copy goes in any case."""
DOWNLOADS = 8
USES, PARTIAL = "uses", ".partial"


@contextmanager
def on_this_node(storage: Storage, names: Sequence[str], say: Callable[[str], None]) -> Iterator[dict[str, Path]]:
    """Local paths, by name, of files that never change; valid until the block ends. A disk's files are not copied.

    `say` takes a line about what is copied.

    Raises:
        FileNotFoundError: a file is not in the storage.
        MachineFault: the node's disk is too small.
    """
    if storage.is_local:
        yield {name: Path(storage.path(name)) for name in names}
        return
    cache = _Cache(copies_folder())
    infos = {cache.place(storage, info): info for info in _infos(storage, names)}
    with cache.in_use([place.name for place in infos]):
        missing = [info.size for place, info in infos.items() if not _is_whole(place, info)]
        if missing:
            say(f"  {len(missing)} files, {sum(missing) / 2**30:.2f} GiB, to {cache.folder} on {socket.gethostname()}")
        cache.make_room(sum(missing))
        cache.fetch(storage, infos)
        yield {info.name: place for place, info in infos.items()}


def copies_folder() -> Path:
    """Folder of this user's copies on this node. It need not exist."""
    return Path(tempfile.gettempdir()) / f"soundcap.cache-{os.getuid()}"


def drop_copies(names: Collection[str]) -> int:
    """Removes this node's copies of files by the last part of their names, of any store; returns how many."""
    wanted = {Path(name).name for name in names}
    copies = [path for path in copies_folder().glob("*-*") if path.name.partition("-")[2] in wanted]
    for path in copies:
        path.unlink(missing_ok=True)
    return len(copies)


def _infos(storage: Storage, names: Sequence[str]) -> list[FileInfo]:
    """Size and version of each file, from one listing a folder."""
    folders = sorted({name.rpartition("/")[0] for name in names})
    found = {info.name: info for folder in folders for info in storage.files(folder)}
    missing = [name for name in names if name not in found]
    if missing:
        raise FileNotFoundError(f"{storage.address(missing[0])} is gone; `soundcap run` makes it again")
    return [found[name] for name in names]


def _is_whole(place: Path, info: FileInfo) -> bool:
    """True if a copy is there; a power loss may have cut it."""
    try:
        return place.stat().st_size == info.size
    except FileNotFoundError:
        return False


class _Cache:
    """Folder of copies. `uses/` holds a locked list of the copies that each process uses."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.uses = folder, folder / USES
        self.uses.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)

    def place(self, storage: Storage, info: FileInfo) -> Path:
        """Place of a copy. The file's version is in its name, so that no copy of an older file is taken for it."""
        return self.folder / f"{digest([storage.url, *info])[:24]}-{Path(info.name).name}"

    @contextmanager
    def in_use(self, copies: Sequence[str]) -> Iterator[None]:
        """Context in which no process removes these copies."""
        path = self.uses / f"{uuid.uuid4().hex}.json"
        with self._lock("uses.lock"), ExitStack() as stack:
            file = stack.enter_context(path.open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
            json.dump(copies, file)
            file.flush()
            held = stack.pop_all()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            held.close()

    def make_room(self, needed: int) -> None:
        """Removes unused copies: old ones, and as many as `needed` bytes take. Raises MachineFault if that fails."""
        with self._lock("uses.lock"):
            disk = shutil.disk_usage(self.folder)
            missing = needed - (disk.free - FREE_SHARE * disk.total)
            for path, status in self._unused():
                if missing > 0 or time.time() - status.st_mtime > UNUSED_S:
                    path.unlink(missing_ok=True)
                    missing -= status.st_size
        if missing > 0:
            raise MachineFault(
                f"{self.folder}: copies of {needed / 2**30:.1f} GiB would leave less than {FREE_SHARE:.0%} of the disk "
                f"free, {missing / 2**30:.1f} GiB too much; set TMPDIR on the nodes to a larger disk"
            )

    def fetch(self, storage: Storage, infos: dict[Path, FileInfo]) -> None:
        """Downloads what is missing; files that another process downloads are left to the end."""
        todo = list(infos)
        random.shuffle(todo)  # so that processes that start together share the work
        with ThreadPoolExecutor(DOWNLOADS) as pool:
            is_made = pool.map(lambda place: self._fetch_one(storage, infos[place], place, wait=False), todo)
            for place, made in zip(todo, list(is_made), strict=True):
                if not made:
                    self._fetch_one(storage, infos[place], place, wait=True)

    def _fetch_one(self, storage: Storage, info: FileInfo, place: Path, *, wait: bool) -> bool:
        """Makes one copy, if it is missing; False if another process is at it and `wait` is not set."""
        if not _is_whole(place, info):
            try:
                with self._lock(f"{place.name}.lock", wait=wait):
                    if not _is_whole(place, info):
                        partial = place.with_name(place.name + PARTIAL)
                        storage.download(info.name, partial)
                        if (size := partial.stat().st_size) != info.size:
                            raise MachineFault(f"{storage.address(info.name)}: got {size} of {info.size} bytes")
                        partial.replace(place)
                    (self.folder / f"{place.name}.lock").unlink(missing_ok=True)
            except BlockingIOError:
                return False
        os.utime(place)
        return True

    def _unused(self) -> list[tuple[Path, os.stat_result]]:
        """Copies, whole or begun, that no living process uses, the longest unused first."""
        used, unused = self._used(), []
        for path in self.folder.iterdir():
            if path.suffix != ".lock" and path != self.uses and path.name.removesuffix(PARTIAL) not in used:
                with contextlib.suppress(FileNotFoundError):  # just become whole
                    unused.append((path, path.stat()))
        return sorted(unused, key=lambda one: one[1].st_mtime)

    def _used(self) -> set[str]:
        """Names of the copies that living processes use. Lists of dead ones are removed."""
        used: set[str] = set()
        for path in self.uses.iterdir():
            with contextlib.suppress(FileNotFoundError), path.open("r+") as file:  # else its process has just ended
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    used |= set(json.load(file))
                else:
                    path.unlink()
        return used

    @contextmanager
    def _lock(self, name: str, *, wait: bool = True) -> Iterator[None]:
        with (self.folder / name).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield
