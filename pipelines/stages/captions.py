"""Stage `captions`: an audio-visual language model that sees and hears writes sound-aware captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.captioning import CAPTION_SCHEMA, CAPTIONER_VERSION, CaptionWorker, caption_key
from pipelines.checkpoints import model_identity, model_location
from pipelines.config import Config, Workers
from pipelines.errors import UserError
from pipelines.stage import Context, Refused, Row, RowStage, Spec
from pipelines.stages.clips import normaliser_meaning
from pipelines.storage import Storage
from soundcap.prompts import PromptError, PromptSet, load_prompts


def read_prompts(instruction: str, warnings: str | None) -> PromptSet:
    """The prompt files named by the configuration. Raises UserError."""
    try:
        return load_prompts(Path(instruction), None if warnings is None else Path(warnings))
    except PromptError as error:
        raise UserError(str(error)) from error


class CaptionsStage(RowStage):
    """The teacher may caption test clips too, for scoring; training never reads those (stage `captioner`)."""

    name = "captions"
    schema = CAPTION_SCHEMA

    def inputs(self, config: Config) -> tuple[str, ...]:
        return ("clips",)

    def spec(self, config: Config, storage: Storage) -> Spec:
        section = config.captions
        prompts = read_prompts(section.instruction, section.warnings)
        meaning = {
            "captioner_version": CAPTIONER_VERSION,
            "model": model_identity(section.model, "captions.model"),
            "frames": section.frames.model_dump(),
            "sampling": section.sampling.model_dump(),
            "prompts": prompts.meaning(),
        }
        origins = {f"prompts.{place}": origin for place, origin in prompts.origins.items()}
        return Spec(meaning, origins)

    def rows(self, context: Context) -> tuple[list[Row], list[Refused]]:
        section = context.config.captions
        prompts = read_prompts(section.instruction, section.warnings)
        model = model_identity(section.model, "captions.model")
        normaliser = normaliser_meaning(context.config.clips)
        rows, refused = [], []
        for clip in context.inputs["clips"].rows():
            if not clip["has_audio"]:
                message = f"{clip['source_name']}: no sound to describe; an audio-visual caption needs some"
                refused.append(Refused(clip["clip_id"], "NoAudioStream", message))
                continue
            prompt = prompts.render(clip["label"])
            key = caption_key(
                clip,
                model=model,
                adapter=None,
                frames=section.frames,
                prompt=prompt,
                sampling=section.sampling,
                normaliser=normaliser,
                with_sound=True,
            )
            task = {"video": clip["video"], "audio": clip["audio"], "prompt": prompt}
            rows.append(Row(clip["clip_id"], key, task, {k: clip[k] for k in ("clip_id", "label", "split")}))
        return rows, refused

    def worker(self, context: Context) -> Callable[[], CaptionWorker]:
        section = context.config.captions
        return partial(
            CaptionWorker,
            storage=context.storage,
            model=model_location(section.model),
            revision=section.model.revision,
            adapter=None,
            frames=section.frames,
            sampling=section.sampling,
            execution=section.execution,
            with_sound=True,
        )

    def execution(self, config: Config) -> Workers:
        return config.captions.execution

    def meaning_of(self, row: Mapping[str, Any]) -> Any:
        return [row["clip_id"], row["label"], row["split"], row["caption"]]

    def figures(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return caption_figures(rows)


def caption_figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of a caption stage's manifest."""
    words = sorted(len(row["caption"].split()) for row in rows)
    return {
        "prompts": len({row["prompt"] for row in rows}),
        "words_median": words[len(words) // 2] if words else 0,
        "different_captions": len({row["caption"] for row in rows}),
    }
