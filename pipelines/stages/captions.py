"""Stage `captions`: sound-aware captions by an audio-visual language model that sees and hears."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.ledger import Failed
from pipelines.engine.recipe import Recipe, per_row
from pipelines.engine.stage import Context, Refused, Rows, RowSet, RowStage, shared_texts
from pipelines.engine.storage import Storage
from pipelines.engine.store import shared_text_column, text_columns
from pipelines.errors import one_line, user_input
from pipelines.media.faults import MediaError
from pipelines.media.read import read_audio, read_frames
from pipelines.run_config import CaptioningExecution, Config
from pipelines.stages.model_refs import Model, model_of
from soundcap.engines import CaptionEngine, EngineError, load_engine
from soundcap.prompts import PromptSet, load_prompts
from soundcap.request import CaptionRequest, FrameSettings, Sampling

AUDIO_HZ = 16_000
CAPTION = pa.schema(text_columns("caption"))


@dataclass(frozen=True)
class CaptionRecipe(Recipe):
    """Recipe of a caption: all that determines it except the clip, its rendered prompt and the adapter."""

    model: Model
    frames: FrameSettings
    sampling: Sampling
    with_sound: bool
    prompts: PromptSet = per_row()


class CaptionStage(RowStage):
    """Base class of the captioning stages: one row for each clip."""

    schema = pa.schema([*text_columns("clip_id", "label", "split", "caption"), shared_text_column("prompt")])
    meaning = ("clip_id", "label", "split", "caption")

    def finish(self, context: Context, rows: pa.Table, made: Mapping[str, pa.Table]) -> dict[str, Any]:
        words = sorted(len(caption.split()) for caption in rows["caption"].to_pylist())
        return {
            "prompts": len(rows["prompt"].unique()),
            "words_median": words[len(words) // 2] if words else 0,
            "different_captions": len(rows["caption"].unique()),
        }


class CaptionsStage(CaptionStage):
    """Teacher's captioning stage. It captions test clips too, for scoring; training never reads those."""

    name = "captions"
    reads = ("clips",)
    ledgers = ("captions",)
    config_keys: ClassVar[Mapping[str, str]] = {"prompts.warnings": "captions.warnings"}

    def recipe(self, config: Config, storage: Storage) -> CaptionRecipe:
        section = config.captions
        return CaptionRecipe(
            model=model_of(section.model, "captions.model"),
            frames=section.frames,
            sampling=section.sampling,
            with_sound=True,
            prompts=read_prompts(section.instruction, section.warnings),
        )

    def rows(self, context: Context) -> Rows:
        recipe: CaptionRecipe = context.recipe
        clips = context.inputs["clips"].rows()
        silent = clips.filter(pc.invert(clips["has_audio"]))
        refused = [
            Refused(clip_id, "NoAudioStream", f"{name}: no sound to describe; an audio-visual caption needs some")
            for clip_id, name in zip(silent["clip_id"].to_pylist(), silent["source_name"].to_pylist(), strict=True)
        ]
        clips = clips.filter(clips["has_audio"])
        prompts = [recipe.prompts.render(label) for label in clips["label"].to_pylist()]
        clips = clips.append_column("prompt", shared_texts(prompts))
        worker = CaptionWorker(recipe, context.config.captions.execution, context.storage)
        tasks = clips.select(["clip_id", "prompt", "video", "audio"])
        rows = RowSet(self.name, recipe, tasks, ("clip_id", "prompt"), CAPTION, worker)
        return Rows(clips.select(["clip_id", "label", "split", "prompt"]), [rows], refused)


def read_prompts(instruction: str, warnings: str | None) -> PromptSet:
    """Prompt set of the files that the configuration names. Raises UserError."""
    with user_input():
        return load_prompts(Path(instruction), None if warnings is None else Path(warnings))


@dataclass
class CaptionWorker:
    """Captioning worker: engine and clip reader. `adapter`: storage name of a LoRA adapter's folder, or None."""

    recipe: CaptionRecipe
    execution: CaptioningExecution
    storage: Storage
    adapter: str | None = None
    engine: CaptionEngine = field(init=False, repr=False)

    def setup(self) -> None:
        with ExitStack() as stack:
            adapter = None if self.adapter is None else str(stack.enter_context(self.storage.local(self.adapter)))
            self.engine = load_engine(
                self.recipe.model.path,
                self.recipe.model.revision,
                adapter,
                frames=self.recipe.frames,
                sampling=self.recipe.sampling,
                execution=self.execution,
            )

    def process(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any] | Failed]:
        read = [self._read(task) for task in tasks]
        answers = iter(self._ask([request for request in read if not isinstance(request, Failed)]))
        return [request if isinstance(request, Failed) else _row(next(answers)) for request in read]

    def _ask(self, requests: list[CaptionRequest]) -> list[str | Exception]:
        try:
            return self.engine.caption(requests) if requests else []
        except EngineError as error:
            # A lost engine fails every row. Ending the process makes the driver start a new actor with a new engine;
            # only rows that end it repeatedly are quarantined.
            print(f"engine lost: {one_line(error)}", file=sys.stderr, flush=True)
            os._exit(1)

    def _read(self, task: Mapping[str, Any]) -> CaptionRequest | Failed:
        fps = self.recipe.frames.fps
        try:
            with self.storage.local(task["video"]) as video:
                frames = read_frames(video, fps)
            audio = None
            if self.recipe.with_sound:
                with self.storage.local(task["audio"]) as file:
                    audio = read_audio(file, AUDIO_HZ)
            return CaptionRequest(task["prompt"], frames, fps, audio, AUDIO_HZ)
        except (MediaError, ValueError) as error:
            return Failed(type(error).__name__, one_line(error))


def _row(answer: str | Exception) -> dict[str, Any] | Failed:
    if isinstance(answer, Exception):
        return Failed(type(answer).__name__, one_line(answer))
    return {"caption": answer}
