"""What rows took, and what more of them will take."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.engine.row_stage import written_bytes
from pipelines.engine.storage import Storage
from pipelines.engine.store import QUARANTINE_SCHEMA, Manifest, Output
from pipelines.engine.usage import Usage, as_records, measured
from pipelines.progress import human_bytes
from pipelines.run_config import CaptioningExecution, Workers

HALF_GPU = Usage(
    "captions",
    "r1",
    "NVIDIA H100",
    rows=720,
    worker_s=3600,
    start_s=90,
    workers=4,
    cpus_per_worker=6,
    gpus_per_worker=0.5,
)


def test_rows_take_what_the_measured_ones_took() -> None:
    """0.2 rows a second each: 14,400 rows are 72,000 s of work; ten workers, each set up once."""
    found = HALF_GPU.of_rows(14_400, workers=10)
    assert found.hours == pytest.approx((7200 + 90) / 3600)
    assert found.gpu_hours == pytest.approx(10 * (7200 + 90) / 3600 / 2)
    assert found.core_hours == pytest.approx(10 * (7200 + 90) / 3600 * 6)


def test_bytes_are_those_of_different_files_and_of_the_values() -> None:
    rows = pa.table({"f": ["a", "a", "b", ""], "f_bytes": [700, 700, 40, 0], "n": pa.array([1, 2, 3, 4], pa.int32())})
    assert written_bytes(rows) == rows.nbytes + 740
    assert HALF_GPU.of_rows(72, 1).bytes == 0 and replace(HALF_GPU, bytes=7200).of_rows(72, 1).bytes == 720


@pytest.mark.parametrize(
    ("size", "said"), [(999, "1.0 kB"), (12_345, "12 kB"), (3_440_000, "3.4 MB"), (56e9, "56 GB"), (5e15, "5000 TB")]
)
def test_sizes_are_readable(size: int, said: str) -> None:
    assert human_bytes(size) == said


def _commit(storage: Storage, fingerprint: str, at_s: float, *found: Usage) -> None:
    manifest = Manifest("captions", fingerprint, "d", 1, 1, 0, 1, 1.0, finished_at_s=at_s, usage=as_records(found))
    Output(storage, "captions", fingerprint).commit(manifest, QUARANTINE_SCHEMA.empty_table(), {})


GPUS, CPUS = Workers(gpus_per_worker=0.5), Workers()


def test_the_usage_of_most_rows_of_the_same_recipe_counts(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert measured(storage, "captions", "captions", "r1", GPUS) is None
    later = replace(HALF_GPU, worker_s=1800)
    _commit(storage, "new", 2.0, later)
    _commit(storage, "old", 1.0, HALF_GPU)
    _commit(storage, "few", 3.0, replace(HALF_GPU, rows=2, worker_s=0.3))
    _commit(storage, "other", 4.0, replace(HALF_GPU, recipe="r2"))
    _commit(storage, "idle", 5.0, replace(HALF_GPU, rows=0))
    assert measured(storage, "captions", "captions", "r1", GPUS) == later
    assert measured(storage, "captions", "captions", "r3", GPUS) is None
    assert measured(storage, "clips", "captions", "r1", GPUS) is None


def test_a_rate_of_other_workers_says_nothing(tmp_path: Path) -> None:
    """Else a run on GPUs would be taken for one that needs none, and pass its budget."""
    storage = Storage(str(tmp_path))
    on_cpu = replace(HALF_GPU, device="CPU", gpus_per_worker=0)
    _commit(storage, "cpu", 1.0, on_cpu)
    assert measured(storage, "captions", "captions", "r1", CPUS) == on_cpu
    assert measured(storage, "captions", "captions", "r1", GPUS) is None
    assert measured(storage, "captions", "captions", "r1", CaptioningExecution(device="cuda")) is None
    assert measured(storage, "captions", "captions", "r1", CaptioningExecution(device="cpu")) == on_cpu
