"""Stage `flowley`: training of the video-to-audio model on the features of the train split."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.checkpoints import located
from pipelines.config import Config
from pipelines.feature_spec import feature_spec
from pipelines.fingerprint import digest, file_sha256
from pipelines.given import given_files, take_over
from pipelines.stage import Context, Counts, Spec, Stage
from pipelines.stages.captioner import RUNS_FOLDER
from pipelines.stages.features import NULL_TEXT
from pipelines.storage import Storage
from pipelines.store import Manifest

MODEL_FOLDER = "model"
GIVEN_FILES = ("config.json", "model.safetensors")
MODEL_FILES = (*GIVEN_FILES, "README.md")
SOUNDS_FOLDER = "sounds"
"""What the network drew for a few test clips over its training."""


class FlowleyStage(Stage):
    """The test split is never trained on; its loss on fixed noise is the validation loss of the curve."""

    name = "flowley"
    code_version = 2

    def inputs(self, config: Config) -> tuple[str, ...]:
        return ("features",) if config.flowley.checkpoint is None else ()

    def spec(self, config: Config, storage: Storage) -> Spec:
        from flowley.presets import preset

        if config.flowley.checkpoint is not None:
            return Spec({"checkpoint": given_files(config.flowley.checkpoint, GIVEN_FILES, "flowley.checkpoint")})
        network = preset(config.flowley.preset, **config.flowley.overrides)
        training = asdict(config.flowley.training)
        return Spec({"network": network.to_dict(), "training": training})

    def counts(self, context: Context) -> Counts:
        if context.config.flowley.checkpoint is not None:
            return Counts(1, 1)
        count = sum(row["split"] == "train" for row in context.inputs["features"].rows())
        return Counts(count, count)

    def run(self, context: Context) -> Manifest:
        from flowley.ema import SNAPSHOTS
        from flowley.presets import preset
        from pipelines.training.flowley_worker import Places, Task, train_flowley
        from pipelines.training.run import TrainingRun

        section = context.config.flowley
        if section.checkpoint is not None:
            meaning = digest(given_files(section.checkpoint, GIVEN_FILES, "flowley.checkpoint"))
            return take_over(context, section.checkpoint, GIVEN_FILES, MODEL_FOLDER, meaning)
        started = time.monotonic()
        rows = context.inputs["features"].rows()
        train = [row for row in rows if row["split"] == "train"]
        with tempfile.TemporaryDirectory(prefix="soundcap-flowley-") as folder:
            history = train_flowley(
                task=Task(
                    config=preset(section.preset, **section.overrides),
                    settings=section.training,
                    execution=section.execution.settings,
                    features=feature_spec(context.config),
                    codec=located(context.config.features.codec),
                ),
                storage=context.storage,
                places=Places(
                    snapshots=context.output.name(f"{MODEL_FOLDER}/{SNAPSHOTS}"),
                    sounds=context.output.name(SOUNDS_FOLDER),
                    tensorboard=f"{RUNS_FOLDER}/tensorboard/{context.output.fingerprint}",
                ),
                train=train,
                validation=[row for row in rows if row["split"] == "test"],
                null_text=context.storage.read_json(context.inputs["features"].name(NULL_TEXT)),
                run=TrainingRun(
                    name=context.output.fingerprint,
                    storage_path=context.storage.address(f"{RUNS_FOLDER}/{self.name}"),
                    num_workers=section.execution.workers,
                    cpus_per_worker=int(section.execution.cpus_per_worker),
                    max_failures=section.execution.max_failures,
                ),
                use_gpu=section.execution.use_gpu,
                output_dir=Path(folder),
                say=context.say,
            )
            weights = file_sha256(Path(folder) / "model.safetensors")
            for name in MODEL_FILES:
                context.storage.upload(Path(folder) / name, context.output.name(f"{MODEL_FOLDER}/{name}"))
        curve: list[dict[str, Any]] = [asdict(report) for report in history]
        context.storage.write_json(context.output.name("loss.json"), curve)
        context.output.write_quarantine([])
        validated = [report["validation_loss"] for report in curve if report["validation_loss"] is not None]
        return Manifest(
            stage=self.name,
            fingerprint=context.output.fingerprint,
            digest=digest([context.output.fingerprint, weights]),
            rows_in=len(train),
            rows_out=len(train),
            rows_quarantined=0,
            rows_computed=len(train),
            seconds=round(time.monotonic() - started, 3),
            figures={
                "steps": curve[-1]["step"],
                "first_loss": round(curve[0]["loss"], 4),
                "last_loss": round(curve[-1]["loss"], 4),
                **({"validation_loss": round(validated[-1], 4)} if validated else {}),
            },
        )
