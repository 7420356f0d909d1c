"""Training under Ray Train: processes, resumption from the last checkpoint, and worker logs on the driver.

Ray is imported where it is used, so that stages can be planned without it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.engine.cluster import ensure_ray, workers_that_fit
from pipelines.engine.store import RUNS, Output
from pipelines.engine.usage import CPU, Usage, device_name
from pipelines.errors import RunError, UserError, one_line
from pipelines.run_config import TrainingExecution

POLL_EVERY_S = 1.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """Steps that a training process has done since it began or resumed, and the time of its start and of the steps."""

    device: str = CPU
    steps: int = 0
    start_s: float = 0.0
    seconds: float = 0.0

    def usage(self, output: Output, recipe: str, run: TrainingRun) -> Usage:
        """Use of all processes, which a manifest records; `recipe`: as in `Steps`."""
        return Usage(
            ledger=output.stage,
            recipe=recipe,
            device=self.device,
            rows=self.steps,
            worker_s=round(self.seconds * run.num_workers, 3),
            start_s=round(self.start_s, 3),
            workers=run.num_workers,
            cpus_per_worker=run.cpus_per_worker,
            gpus_per_worker=float(run.use_gpu),
            bytes=sum(info.size for info in output.storage.files(output.folder, recursive=True)),
        )


class StepClock:
    """Clock of one training process, started with it. `begin` and `end` bound its steps."""

    def __init__(self) -> None:
        self.born_s = self.begun_s = time.monotonic()
        self.first = 0

    def begin(self, step: int) -> None:
        """Before the first step; `step` counts those of the checkpoint that it resumes from."""
        self.begun_s, self.first = time.monotonic(), step

    def end(self, step: int) -> Trained:
        """After the last step, of which `step` is the number."""
        seconds = time.monotonic() - self.begun_s
        return Trained(device_name(), step - self.first, self.begun_s - self.born_s, seconds)


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """Location and resources of a training run. They do not affect the weights."""

    name: str
    """Run name. The same name and storage resume an earlier run; use the stage's fingerprint."""
    storage_path: str
    """Checkpoint storage: a folder on a disk that all nodes share, or an address such as s3://bucket/prefix."""
    num_workers: int = 1
    """Training processes; with `use_gpu`, one GPU each."""
    cpus_per_worker: int = 1
    """Cores that Ray reserves per process, and threads that torch uses."""
    use_gpu: bool = False
    max_failures: int = 2
    """Restarts after a crash, each from the latest checkpoint."""

    @classmethod
    def of(cls, output: Output, execution: TrainingExecution) -> TrainingRun:
        """Training run for a stage's output."""
        return cls(
            name=output.fingerprint,
            storage_path=output.storage.address(f"{RUNS}/{output.stage}"),
            num_workers=execution.workers,
            cpus_per_worker=execution.cpus_per_worker,
            use_gpu=execution.use_gpu,
            max_failures=execution.max_failures,
        )


def fitted(run: TrainingRun, key: str, say: Say) -> TrainingRun:
    """Run with as many processes as the cluster could ever hold, of those that are wanted.

    Raises UserError, which names the configuration section `key`, if not even one fits.
    """
    ensure_ray()
    number = workers_that_fit(run.num_workers, run.cpus_per_worker, float(run.use_gpu), key)
    if number < run.num_workers:
        say(f"  {key}: the cluster holds {number} of {run.num_workers} training processes; goes on with those")
    return replace(run, num_workers=number)


def train_under_ray(
    label: str, work: Callable[[Say], str | Trained], run: TrainingRun, output_dir: Path, say: Say
) -> Trained:
    """Starts or resumes `run` with `work` in every process, and puts the last checkpoint into `output_dir`.

    Args:
        work: picklable body of one process. Takes a function whose lines reach `say`. Returns a message that the
            user must act on, for an exception would only be retried; or what it has done.
        run: location and resources, as of `fitted`.
        output_dir: local folder.
        say: receives progress lines, in this process.

    Returns what the first process has done.

    Raises:
        UserError: `work` returned a message.
        RunError: training failed more often than `run.max_failures`.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    def one_process() -> str | Trained:
        if not run.use_gpu:
            import torch  # in the process that trains

            torch.set_num_threads(run.cpus_per_worker)
        return work(say_from_worker)

    resources = {"CPU": run.cpus_per_worker} | ({"GPU": 1} if run.use_gpu else {})
    try:
        with lines_from_workers(say) as say_from_worker:
            result = TorchTrainer(
                one_process,
                scaling_config=ScalingConfig(
                    num_workers=run.num_workers, use_gpu=run.use_gpu, resources_per_worker=resources
                ),
                run_config=RunConfig(
                    name=run.name,
                    storage_path=run.storage_path,
                    failure_config=FailureConfig(max_failures=run.max_failures),
                    checkpoint_config=CheckpointConfig(num_to_keep=1),
                ),
            ).fit()
    except TrainingFailedError as error:
        raise RunError(f"{label}: {_cause_of(error)}") from error
    trained: str | Trained = result.return_value
    if isinstance(trained, str):
        raise UserError(f"{label}: {trained}")
    assert result.checkpoint is not None, "a process that returns no message has reported its last checkpoint"
    result.checkpoint.to_directory(str(output_dir))
    return trained


def _cause_of(error: Exception) -> str:
    """Error of the lowest-ranked failed worker, on one line."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    cause = failures[min(failures)] if failures else error
    return f"{type(cause).__name__}: {one_line(cause)}"


# --- lines of workers -----------------------------------------------------------------------------------------


class LineBox:
    """Actor that buffers workers' log lines until the driver polls."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def put(self, line: str) -> None:
        self.lines.append(line)

    def take(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


@contextmanager
def lines_from_workers(say: Say) -> Iterator[Say]:
    """Picklable function that forwards log lines from workers to `say` in this process.

    It never blocks, so training does not depend on a listener.
    """
    import ray

    box: Any = ray.remote(num_cpus=0, max_restarts=-1)(LineBox).remote()
    done = threading.Event()

    def forward() -> None:
        last = False
        while not last:
            last = done.wait(POLL_EVERY_S)  # poll once more after the end
            try:
                lines = ray.get(box.take.remote())
            except ray.exceptions.RayError:
                continue  # the actor died; it restarts empty, and training goes on
            for line in lines:
                say(line)

    thread = threading.Thread(target=forward, name="lines-from-workers", daemon=True)
    thread.start()
    try:
        yield lambda line: box.put.remote(line)
    finally:
        done.set()
        thread.join()
        ray.kill(box)
