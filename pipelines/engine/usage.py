"""Use of machines by rows that were computed, as manifests record it, and what more rows will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.engine.storage import Storage
from pipelines.engine.store import committed_outputs
from pipelines.run_config import TrainingExecution, Workers

CPU = "CPU"
"""Device of workers without a GPU."""


@dataclass(frozen=True)
class Usage:
    """Use of workers by the rows of one ledger, or by the steps of a training.

    Attributes:
        ledger: its name, or that of the training's stage.
        recipe: digest of what the rows' keys share, so that rows of equal usage cost the same; of a step likewise.
        device: name of the workers' GPU, or CPU.
        rows: rows computed, those that failed included; or steps.
        worker_s: time of all workers together, from their set-up to the end.
        start_s: mean time of a worker's set-up.
        workers: number of them at most at once.
        cpus_per_worker, gpus_per_worker: what each reserved.
    """

    ledger: str
    recipe: str
    device: str
    rows: int
    worker_s: float
    start_s: float
    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    bytes: int = 0
    """Written: files of the rows, and the rows themselves before compression; by a training, its output."""

    @property
    def rate(self) -> float:
        """Rows a second of one worker."""
        return self.rows / self.worker_s

    def of_rows(self, rows: int, workers: int) -> Projection:
        """Projection of so many rows, or steps, on so many workers of this kind."""
        busy_s = rows / self.rate
        total_s = busy_s + workers * self.start_s
        hours = (busy_s / workers + self.start_s) / 3600
        gpu_hours, core_hours = (total_s / 3600 * each for each in (self.gpus_per_worker, self.cpus_per_worker))
        return Projection(hours, gpu_hours, core_hours, self.device, round(self.bytes * rows / self.rows))


@dataclass(frozen=True)
class Projection:
    """Projection of what rows will take: hours on the clock, of GPUs and of cores; bytes that they will write.

    `device` is that on which it was measured.
    """

    hours: float
    gpu_hours: float
    core_hours: float
    device: str
    bytes: int = 0


@dataclass(frozen=True)
class Steps:
    """Optimiser steps of a training, and the digest of what decides the time of one."""

    count: int
    recipe: str


def device_name() -> str:
    """Name of the GPU of this Ray worker, or CPU."""
    import ray

    if not ray.get_gpu_ids():
        return CPU
    import torch

    return str(torch.cuda.get_device_name())


def measured(
    storage: Storage, stage: str, ledger: str, recipe: str, execution: Workers | TrainingExecution
) -> Usage | None:
    """Usage in the manifests of a stage for rows of this recipe on workers of this kind; None if none was recorded.

    That of the most rows, of several the latest: a run of a few rows tells little. A rate of CPUs says nothing of GPUs.
    """
    gpus = float(execution.use_gpu) if isinstance(execution, TrainingExecution) else execution.gpus_per_worker
    on_gpu = gpus > 0 or str(getattr(execution, "device", "cpu")).startswith("cuda")
    manifests = [output.committed() for output in committed_outputs(storage, stage)]
    fitting = [
        (usage.rows, manifest.finished_at_s, usage)
        for manifest in manifests
        for usage in (Usage(**record) for record in manifest.usage)
        if (usage.ledger, usage.recipe) == (ledger, recipe)
        and (usage.device != CPU) == on_gpu
        and usage.gpus_per_worker == gpus
    ]
    return max(fitting, key=lambda one: one[:2])[2] if fitting else None


def as_records(found: Sequence[Usage]) -> list[dict[str, Any]]:
    """Usages as a manifest records them; those without a row tell nothing."""
    return [asdict(usage) for usage in found if usage.rows and usage.worker_s > 0]
