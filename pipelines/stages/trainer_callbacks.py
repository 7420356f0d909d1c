"""Callbacks of transformers' Trainer under Ray Train. For workers only: importing transformers takes long."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipelines.engine.ray_train import StepClock
from pipelines.progress import Progress


class CheckpointToStorage(TrainerCallback):  # type: ignore[misc]
    """Trainer callback that keeps each checkpoint in Ray Train's storage, uploaded once per node.

    All processes of a node write their shards into one folder. Its first process uploads them, and Ray Train
    merges the nodes' folders. A barrier ensures that all have written.
    """

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            return  # the finished adapter follows at once
        torch.distributed.barrier()
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        first_of_node = int(os.environ["LOCAL_RANK"]) == 0
        ray.train.report(
            {"step": state.global_step, "epoch": state.epoch, "loss": _latest_loss(state)},
            checkpoint=ray.train.Checkpoint.from_directory(str(folder)) if first_of_node else None,
        )


class StartClock(TrainerCallback):  # type: ignore[misc]
    """Trainer callback that tells a clock when the first step begins."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.clock.begin(state.global_step)


class SayProgress(TrainerCallback):  # type: ignore[misc]
    """Trainer callback that prints rate, time left and the final loss, from rank 0 only."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.progress: Progress | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            label = f"captioner from step {state.global_step}" if state.global_step else "captioner"
            self.progress = Progress(label, state.max_steps - state.global_step, "steps", self.say)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.progress is not None:
            self.progress.advance(1)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.progress is not None:
            clips = self.progress.done * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            seconds = max(time.monotonic() - self.progress.started_s, 1e-9)
            self.say(f"{self.progress.line()}, {clips / seconds:.2g} clips/s, loss {_latest_loss(state):.3f}")


def _latest_loss(state: TrainerState) -> float:
    return next((float(entry["loss"]) for entry in reversed(state.log_history) if "loss" in entry), float("nan"))
