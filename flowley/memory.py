"""Memory that a training on a CPU frees in one step is what it wants in the next."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Lets this process keep what it frees, so that gradients and activations need no new pages every step.

    Returns whether that was possible: elsewhere than under glibc nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    never = -1  # any other number would give back what is free beyond 2 GiB, after every backward pass of 16 clips
    return bool(mallopt(_M_MMAP_THRESHOLD, 2**30) and mallopt(_M_TRIM_THRESHOLD, never))
