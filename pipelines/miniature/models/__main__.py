"""Train the shipped models from scratch, and write down what they are worth.

`python -m pipelines.miniature.models [MODEL ...] [--workers N]`: all, or those named. About an hour on one core.
`checkpoints/models.json` has each one's digest, held-out scores and training time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.miniature.models.captioners import train_base, train_teacher
from pipelines.miniature.models.judge import judge_base, judge_teacher

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
RECORD = CHECKPOINTS / "models.json"
SEED = 0

Say = Callable[[str], None]


def build_omni(folder: Path, workers: int, say: Say) -> dict[str, Any]:
    """The teacher."""
    train_teacher(folder, seed=SEED, workers=workers, say=say)
    return judge_teacher(folder, seed=SEED)


def build_vl(folder: Path, workers: int, say: Say) -> dict[str, Any]:
    """The base that LoRA tunes."""
    train_base(folder, seed=SEED, workers=workers, say=say)
    return judge_base(folder, seed=SEED)


def build_clip(folder: Path, workers: int, say: Say) -> dict[str, Any]:
    """The encoder pair."""
    from pipelines.miniature.models.encoders import train

    return train(folder, seed=SEED, say=say)


def build_codec(folder: Path, workers: int, say: Say) -> dict[str, Any]:
    """The sound codec: principal components of the world's log-mel frames."""
    from pipelines.miniature.models.codec import train

    return train(folder, seed=SEED, say=say)


def build_listener(folder: Path, workers: int, say: Say) -> dict[str, Any]:
    """The audio classifier."""
    from pipelines.miniature.models.listener import train

    return train(folder, seed=SEED, say=say)


def build_alignment(folder: Path, workers: int, say: Say) -> dict[str, Any]:
    """The classifier of alignment; it needs encoder and codec."""
    from pipelines.miniature.models.alignment import train

    return train(folder, seed=SEED, say=say)


BUILDERS = {
    "omni": build_omni,
    "vl": build_vl,
    "clip": build_clip,
    "codec": build_codec,
    "listener": build_listener,
    "alignment": build_alignment,
}


def rebuild(name: str, workers: int, say: Say) -> None:
    """Train one model; it takes its place among the shipped ones when it is whole."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soundcap-models-") as scratch:
        folder = Path(scratch) / name
        folder.mkdir()
        scores = BUILDERS[name](folder, workers, say)
        target = CHECKPOINTS / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record[name] = {
        "sha256": weights_digest(CHECKPOINTS / name),
        "date": date.today().isoformat(),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "scores": scores,
    }
    RECORD.write_text(json.dumps({key: record[key] for key in sorted(record)}, indent=1) + "\n")
    say(f"{name}: {json.dumps(scores)}")


def weights_digest(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(BUILDERS)}; all if none is named")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that make films")
    given = parser.parse_args()
    unknown = set(given.models) - BUILDERS.keys()
    if unknown or given.workers < 1:
        parser.error(
            f"got models {', '.join(given.models) or 'all'} with {given.workers} workers, "
            f"wanted some of {', '.join(BUILDERS)} and at least 1 worker"
        )
    for name in given.models or BUILDERS:
        rebuild(name, given.workers, partial(print, flush=True))


if __name__ == "__main__":
    main()
