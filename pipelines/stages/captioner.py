"""Stage `captioner`: LoRA fine-tuning of a vision-language model on silent video (paper, section 2.3)."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checkpoints import model_identity, model_location
from pipelines.config import Config
from pipelines.fingerprint import digest, file_sha256
from pipelines.given import given_files, take_over
from pipelines.stage import Context, Counts, Spec, Stage
from pipelines.stages.captions import read_prompts
from pipelines.storage import Storage
from pipelines.store import Manifest

if TYPE_CHECKING:
    import numpy as np

ADAPTER_FOLDER = "adapter"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
RUNS_FOLDER = "runs"


class CaptionerStage(Stage):
    """Trains on curated captions of the train split only; the test split is never seen."""

    name = "captioner"

    def inputs(self, config: Config) -> tuple[str, ...]:
        return ("clips", "curation") if config.captioner.adapter is None else ()

    def spec(self, config: Config, storage: Storage) -> Spec:
        if config.captioner.adapter is not None:
            return Spec({"adapter": given_files(config.captioner.adapter, ADAPTER_FILES, "captioner.adapter")})
        prompts = read_prompts(config.captioner.instruction, None)
        meaning = {
            "model": model_identity(config.captioner.model, "captioner.model"),
            "prompts": prompts.meaning(),
            "training": asdict(config.captioner.training),
        }
        return Spec(meaning, {f"prompts.{place}": origin for place, origin in prompts.origins.items()})

    def counts(self, context: Context) -> Counts:
        count = len(training_rows(context)) if context.config.captioner.adapter is None else 1
        return Counts(count, count)

    def run(self, context: Context) -> Manifest:
        from pipelines.training.captioner_worker import train_captioner
        from pipelines.training.run import TrainingRun
        from soundcap.finetune_data import TrainExample

        section = context.config.captioner
        if section.adapter is not None:
            meaning = _adapter_digest(Path(section.adapter))
            return take_over(context, section.adapter, ADAPTER_FILES, ADAPTER_FOLDER, meaning)
        started = time.monotonic()
        rows = training_rows(context)
        prompt = read_prompts(section.instruction, None).render("")
        examples = [TrainExample(r["clip_id"], prompt, r["caption"], r["video"]) for r in rows]
        with tempfile.TemporaryDirectory(prefix="soundcap-adapter-") as folder:
            result = train_captioner(
                model=model_location(section.model),
                revision=section.model.revision,
                examples=examples,
                read_frames=frame_reader(context.storage, section.training.frames_fps),
                settings=section.training,
                execution=section.execution.settings,
                run=TrainingRun(
                    name=context.output.fingerprint,
                    storage_path=context.storage.address(f"{RUNS_FOLDER}/{self.name}"),
                    num_workers=section.execution.workers,
                    cpus_per_worker=int(section.execution.cpus_per_worker),
                    max_failures=section.execution.max_failures,
                ),
                output_dir=Path(folder),
                say=context.say,
            )
            meaning = _adapter_digest(Path(folder))
            context.storage.upload_folder(Path(folder), context.output.name(ADAPTER_FOLDER))
        curve = [asdict(point) for point in result.loss_curve]
        context.storage.write_json(context.output.name("loss.json"), curve)
        dropped = [_dropped(self.name, d.clip_id, d.reason) for d in result.examples_dropped]
        context.output.write_quarantine(dropped)
        return Manifest(
            stage=self.name,
            fingerprint=context.output.fingerprint,
            digest=meaning,
            rows_in=len(rows),
            rows_out=len(rows) - len(dropped),
            rows_quarantined=len(dropped),
            rows_computed=len(rows),
            seconds=round(time.monotonic() - started, 3),
            figures={"steps": curve[-1]["step"], "first_loss": curve[0]["loss"], "last_loss": curve[-1]["loss"]},
        )


def training_rows(context: Context) -> list[dict[str, Any]]:
    """Kept captions of the train split, with the clip's video, in a fixed order."""
    videos = {clip["clip_id"]: clip["video"] for clip in context.inputs["clips"].rows()}
    kept = [row for row in context.inputs["curation"].rows() if row["kept"] and row["split"] == "train"]
    return [{**row, "video": videos[row["clip_id"]]} for row in sorted(kept, key=lambda row: str(row["clip_id"]))]


def frame_reader(storage: Storage, fps: float) -> Callable[[str], np.ndarray]:
    """Video name in the storage -> frames (T, H, W, 3) uint8; can be sent to other processes."""
    return partial(_read_frames, storage, fps)


def _read_frames(storage: Storage, fps: float, name: str) -> np.ndarray:
    from pipelines.media.read import read_frames

    with storage.local(name) as video:
        return read_frames(video, fps)


def _adapter_digest(folder: Path) -> str:
    """Of the weights and of what they attach to; not of the base model's path, which the config also holds."""
    config = json.loads((folder / "adapter_config.json").read_text())
    kept = {k: config[k] for k in ("r", "lora_alpha", "target_modules", "peft_type")}
    return digest([kept, file_sha256(folder / "adapter_model.safetensors")])


def _dropped(stage: str, clip_id: str, reason: str) -> dict[str, Any]:
    return {"row_id": clip_id, "stage": stage, "error_class": "CannotTrainOn", "message": reason}
