"""Stage `captions`: sound-aware captions by an audio-visual language model that sees and hears."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.ledger import Failed, Result, WorkerLost
from pipelines.engine.recipe import Recipe, per_row
from pipelines.engine.stage import Context, Refused, Rows, RowSet, RowStage, shared_texts
from pipelines.engine.storage import Storage
from pipelines.engine.store import shared_text_column, text_columns
from pipelines.errors import one_line, user_input
from pipelines.media.faults import MediaError
from pipelines.media.read import read_audio, read_frames
from pipelines.run_config import CaptioningExecution, Config
from pipelines.stages.model_refs import Model, model_of
from soundcap.engines import CaptionEngine, load_engine
from soundcap.engines.stream import Answer, CaptionStream, EngineLost
from soundcap.prompts import PromptSet, load_prompts
from soundcap.request import CaptionRequest, FrameSettings, Sampling

AUDIO_HZ = 16_000
PREPARED_AHEAD = 32
"""Prepared clips that may wait for the engine; each holds its frames."""
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
    _stream: CaptionStream = field(init=False, repr=False)
    _readers: ThreadPoolExecutor = field(init=False, repr=False)

    @property
    def batches_at_once(self) -> int:
        return self.execution.batches_at_once

    def setup(self) -> None:
        self._stream = CaptionStream(self.load(), ahead=PREPARED_AHEAD)
        self._readers = ThreadPoolExecutor(max(1, int(self.execution.cpus_per_worker)), "reader")

    def load(self) -> CaptionEngine:
        """Engine with the recipe's model and the adapter."""
        with ExitStack() as stack:
            adapter = None if self.adapter is None else str(stack.enter_context(self.storage.local(self.adapter)))
            return load_engine(
                self.recipe.model.path,
                self.recipe.model.revision,
                adapter,
                frames=self.recipe.frames,
                sampling=self.recipe.sampling,
                execution=self.execution,
            )

    def stream(self, tasks: list[dict[str, Any]]) -> Iterator[tuple[int, Result]]:
        answers: Queue[tuple[int, Answer | Failed | _ReadingFault]] = Queue()
        self._stream.expect(len(tasks))
        for place, task in enumerate(tasks):
            self._readers.submit(self._bring, place, task, answers)
        lost: dict[int, EngineLost] = {}
        fault: Exception | None = None
        for _ in tasks:
            place, answer = answers.get()
            if isinstance(answer, EngineLost):
                lost[place] = answer
            elif isinstance(answer, _ReadingFault):
                fault = answer.error
            else:
                yield place, _row(answer)
        if fault is not None:
            raise fault
        if lost:
            message = next(iter(lost.values())).message
            raise WorkerLost(message, [place for place, answer in lost.items() if answer.was_inside])

    def _bring(self, place: int, task: Mapping[str, Any], answers: Queue[tuple[int, Any]]) -> None:
        """Reads a clip and brings it to the engine, in a thread of the readers."""
        try:
            request = self._read(task)
        except Exception as error:  # noqa: BLE001 - it is raised where the batch ends
            self._stream.expect(-1)
            answers.put((place, _ReadingFault(error)))
            return
        if isinstance(request, Failed):
            self._stream.expect(-1)
            answers.put((place, request))
        else:
            self._stream.ask(request, lambda answer: answers.put((place, answer)))

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


@dataclass(frozen=True)
class _ReadingFault:
    """Exception of reading a clip that is not about the clip."""

    error: Exception


def _row(answer: str | Exception | Failed) -> Result:
    if isinstance(answer, Failed):
        return answer
    if isinstance(answer, Exception):
        return Failed(type(answer).__name__, one_line(answer))
    return {"caption": answer}
