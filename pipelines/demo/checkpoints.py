"""The demo's tiny checkpoints: ordinary folders in the real architectures, built from seeds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path


def build_checkpoints(folder: Path, seed: int, say: Callable[[str], None]) -> None:
    """Builds what is not there yet. A folder appears whole or not at all."""
    from flowley.tiny import build_tiny_clip, build_tiny_t5
    from soundcap.tiny import build_tiny_omni, build_tiny_vl

    builders: dict[str, Callable[[Path, int], None]] = {
        "omni": build_tiny_omni,
        "vl": build_tiny_vl,
        "clip": build_tiny_clip,
        "t5": build_tiny_t5,
    }
    for name, build in builders.items():
        target = folder / name
        if target.is_dir():
            continue
        say(f"demo: building the tiny checkpoint {target}")
        partial = folder / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        build(partial, seed)
        partial.rename(target)
