"""Share of their time that workers of a fan-out are busy: a sleeping engine on a local Ray cluster of several nodes.

`python -m benchmarks.fanout [--rows N] [--workers N] [--json]`. A row sleeps for a lognormal time (mean 1 s, sigma .6).
Busy is the time slept over the time that all workers had, from the last worker's start to the moment at which fewer
rows than workers were left; start and tail are stated beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.engine.fanout import fan_out
from pipelines.engine.ledger import Ledger
from pipelines.engine.recipe import KEY, Recipe
from pipelines.engine.storage import Storage
from pipelines.run_config import Workers

NODES, BATCH_ROWS, SIGMA = 4, 8, 0.6
SLEPT = pa.schema([("seconds", pa.float64())])


class SleepingWorker:
    """Engine that sleeps for each row, and notes its start and each sleep in a file of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self) -> None:
        self._note(time.time(), time.time())

    def process(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"seconds": self._sleep(task["id"])} for task in tasks]

    def _sleep(self, row_id: str) -> float:
        seconds = random.Random(row_id).lognormvariate(-(SIGMA**2) / 2, SIGMA)
        started = time.time()
        time.sleep(seconds)
        self._note(started, time.time())
        return seconds

    def _note(self, started: float, ended: float) -> None:
        with (self.folder / str(os.getpid())).open("a") as file:
            file.write(f"{started} {ended}\n")


def main() -> None:
    """Prints the figures, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = measure(arguments.rows, arguments.workers)
    print(json.dumps(figures) if arguments.json else "\n".join(f"{k:16} {v}" for k, v in figures.items()))


def measure(rows: int, workers: int) -> dict[str, float]:
    """Busy share, start and tail (s), and the driver's peak memory (GB)."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ.setdefault("RAY_worker_niceness", "0")
    cluster = Cluster()
    for _ in range(NODES):
        cluster.add_node(num_cpus=-(-workers // NODES), include_dashboard=False)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        with tempfile.TemporaryDirectory(prefix="soundcap-fanout-") as name:
            notes = Path(name) / "notes"
            notes.mkdir()
            ledger = Ledger(Storage(f"{name}/store"), "sleeps", SLEPT)
            tasks = pa.table({"id": [f"row{n}" for n in range(rows)]})
            keys = pa.array([n.to_bytes(KEY.byte_width) for n in range(rows)], KEY)
            settings = Workers(workers=workers, batch_rows=BATCH_ROWS)
            began = time.time()
            fan_out(tasks, keys, SleepingWorker(notes), ledger=ledger, recipe=Recipe(), workers=settings, say=print)
            assert ledger.read().num_rows == rows
            return _figures(notes, began, rows, workers)
    finally:
        ray.shutdown()
        cluster.shutdown()


def _figures(notes: Path, began: float, rows: int, workers: int) -> dict[str, float]:
    times = [[tuple(map(float, line.split())) for line in file.open()] for file in notes.iterdir()]
    first = max(own[0][0] for own in times)
    ends = sorted(end for own in times for start, end in own[1:])
    last = ends[rows - workers]
    slept = sum(max(0.0, min(end, last) - max(start, first)) for own in times for start, end in own[1:])
    return {
        "rows": rows,
        "workers": len(times),
        "busy": round(slept / (len(times) * (last - first)), 4),
        "start_s": round(first - began, 1),
        "steady_s": round(last - first, 1),
        "tail_s": round(ends[-1] - last, 1),
        "driver_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


if __name__ == "__main__":
    main()
