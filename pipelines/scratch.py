"""Scratch folders: private, gone when their work ends, and after a kill at the next start on the machine.

Each is locked while it is in use. So another process, in another container too, can tell one that was left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

PREFIX = "soundcap.scratch-"
YOUNG_S = 60.0
"""Age up to which a folder without a lock may be one that is just being made."""


@contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """Empty private folder on a local disk, removed when the block ends. `purpose` is a part of its name."""
    _remove_abandoned()
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{purpose}-", ignore_cleanup_errors=True) as name:
        lock = os.open(name, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield Path(name)
        finally:
            os.close(lock)


@cache
def _remove_abandoned() -> None:
    """Removes this user's scratch folders that no process has locked; once a process."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            if status.st_uid != os.getuid() or time.time() - status.st_ctime < YOUNG_S:
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
