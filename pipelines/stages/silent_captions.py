"""Stage `silent_captions`: the fine-tuned captioner describes the sound of every clip without hearing it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pipelines.captioning import CAPTION_SCHEMA, CAPTIONER_VERSION, CaptionWorker, caption_key
from pipelines.checkpoints import model_identity, model_location
from pipelines.config import Config, FramesConfig, Workers
from pipelines.stage import Context, Refused, Row, RowStage, Spec
from pipelines.stages.captioner import ADAPTER_FOLDER
from pipelines.stages.captions import caption_figures, read_prompts
from pipelines.stages.clips import normaliser_meaning
from pipelines.storage import Storage


def silent_frames(config: Config) -> FramesConfig:
    """How the captioner sees a clip: as in its training."""
    training = config.captioner.training
    return FramesConfig(fps=training.frames_fps, min_px=training.min_frame_px, max_px=training.max_frame_px)


class SilentCaptionsStage(RowStage):
    """Model, instruction and frames are the captioner's; a clip's sound is never opened."""

    name = "silent_captions"
    schema = CAPTION_SCHEMA

    def inputs(self, config: Config) -> tuple[str, ...]:
        return ("clips", "captioner")

    def spec(self, config: Config, storage: Storage) -> Spec:
        prompts = read_prompts(config.captioner.instruction, None)
        meaning = {
            "captioner_version": CAPTIONER_VERSION,
            "model": model_identity(config.captioner.model, "captioner.model"),
            "frames": silent_frames(config).model_dump(),
            "sampling": config.silent_captions.sampling.model_dump(),
            "prompts": prompts.meaning(),
        }
        return Spec(meaning, {f"prompts.{place}": origin for place, origin in prompts.origins.items()})

    def rows(self, context: Context) -> tuple[list[Row], list[Refused]]:
        config = context.config
        captioner = context.inputs["captioner"].manifest()
        assert captioner is not None
        prompt = read_prompts(config.captioner.instruction, None).render("")
        model = model_identity(config.captioner.model, "captioner.model")
        normaliser = normaliser_meaning(config.clips)
        rows = []
        for clip in context.inputs["clips"].rows():
            key = caption_key(
                clip,
                model=model,
                adapter=captioner.digest,
                frames=silent_frames(config),
                prompt=prompt,
                sampling=config.silent_captions.sampling,
                normaliser=normaliser,
                with_sound=False,
            )
            task = {"video": clip["video"], "prompt": prompt}
            rows.append(Row(clip["clip_id"], key, task, {k: clip[k] for k in ("clip_id", "label", "split")}))
        return rows, []

    def worker(self, context: Context) -> Callable[[], CaptionWorker]:
        config = context.config
        return partial(
            CaptionWorker,
            storage=context.storage,
            model=model_location(config.captioner.model),
            revision=config.captioner.model.revision,
            adapter=context.inputs["captioner"].name(ADAPTER_FOLDER),
            frames=silent_frames(config),
            sampling=config.silent_captions.sampling,
            execution=config.silent_captions.execution,
            with_sound=False,
        )

    def execution(self, config: Config) -> Workers:
        return config.silent_captions.execution

    def meaning_of(self, row: Mapping[str, Any]) -> Any:
        return [row["clip_id"], row["label"], row["split"], row["caption"]]

    def figures(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return caption_figures(rows)
