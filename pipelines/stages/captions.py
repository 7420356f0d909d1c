"""Stage `captions`: sound-aware captions by an audio-visual language model that sees and hears."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from queue import Queue
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.ledger import Failed, Result, WorkerLost
from pipelines.engine.recipe import Recipe, per_row
from pipelines.engine.row_stage import Choice, Rows, RowSet, RowStage, shared_texts
from pipelines.engine.stage import Context, Refused
from pipelines.engine.storage import Storage, parquet_bytes
from pipelines.engine.store import shared_text_column, text_columns
from pipelines.errors import one_line, user_input
from pipelines.media.faults import MediaError
from pipelines.media.read import read_audio, read_frames
from pipelines.run_config import CaptioningExecution, Config
from pipelines.stages.model_refs import Model, model_of
from soundcap.candidates import ChoiceRule, choose
from soundcap.engines import CaptionEngine, load_engine
from soundcap.engines.stream import Answer, CaptionStream, EngineLost
from soundcap.prompts import PromptSet, load_prompts
from soundcap.request import CaptionRequest, FrameSettings, Sampling

AUDIO_HZ = 16_000
PREPARED_AHEAD_BYTES = 256 * 2**20
"""Frames and sound of prepared clips that may wait for the engine: 30 clips of 8 s at 2 fps and 448 x 336 px."""
CAPTION = pa.schema(text_columns("caption"))
CANDIDATES = "candidates.parquet"
"""File of an output whose clips have several captions: all of them, with the columns CANDIDATE_COLUMNS."""
CANDIDATE_COLUMNS = pa.schema(
    [
        *text_columns("clip_id"),
        ("seed", pa.int64()),
        *text_columns("caption", "error_class", "message"),
        ("is_chosen", pa.bool_()),
    ]
)
"""`seed` is null for a silent clip, which no model hears. A candidate that failed has an error and no caption."""


@dataclass(frozen=True)
class CaptionRecipe(Recipe):
    """Recipe of a caption: all that determines it except the clip, its rendered prompt and the adapter."""

    model: Model
    frames: FrameSettings
    sampling: Sampling
    with_sound: bool
    prompts: PromptSet = per_row()
    silence: str | None = per_row(before=None, default=None)
    candidates: int = per_row(before=1, default=1)
    choose: ChoiceRule = per_row(before="first", default="first")


class CaptionStage(RowStage):
    """Base class of the captioning stages: one row for each clip."""

    schema = pa.schema([*text_columns("clip_id", "label", "split", "caption"), shared_text_column("prompt")])
    meaning = ("clip_id", "label", "split", "caption")
    is_rows_alone = True

    def finish(self, context: Context, rows: pa.Table, made: Mapping[str, pa.Table]) -> dict[str, Any]:
        words = sorted(len(caption.split()) for caption in rows["caption"].to_pylist())
        return {
            "prompts": len(rows["prompt"].unique()),
            "words_median": words[len(words) // 2] if words else 0,
            "different_captions": len(rows["caption"].unique()),
            "licence": context.recipe.model.licence or "not said",
        }


class CaptionsStage(CaptionStage):
    """Teacher's captioning stage. It captions test clips too, for scoring; training never reads those.

    With several candidates a clip, all are rows of the ledger, and one is the clip's caption. The key of the first is
    that of a single caption, so more candidates use those that are there. A clip is quarantined only if all its
    candidates failed; one that lost some is not, so `--retry-failed` tries those again only if some clip lost all.
    """

    name = "captions"
    reads = ("clips",)
    ledgers = ("captions",)
    config_keys: ClassVar[Mapping[str, str]] = {"prompts.warnings": "captions.warnings"}

    def recipe(self, config: Config, storage: Storage) -> CaptionRecipe:
        section = config.captions
        return CaptionRecipe(
            model=model_of(section.model, "captions.model", storage),
            frames=section.frames,
            sampling=section.sampling,
            with_sound=True,
            prompts=read_prompts(section.instruction, section.warnings),
            silence=section.silence,
            candidates=section.candidates,
            choose=section.choose if section.candidates > 1 else "first",
        )

    def tasks_a_row(self, config: Config) -> int:
        return config.captions.candidates

    def rows(self, context: Context) -> Rows:
        clips = context.inputs["clips"].rows()
        worker = CaptionWorker(context.recipe, context.config.captions.execution, context.storage)
        tasks, prompts, refused = caption_tasks(clips, context.recipe)
        carried = tasks.select(["clip_id", "label", "split"]).append_column("prompt", prompts)
        tasks, choice = with_candidates(tasks.select(["clip_id", "prompt", "video", "audio"]), context.recipe)
        rows = RowSet(
            self.name,
            context.recipe,
            tasks,
            ("clip_id", "prompt"),
            CAPTION,
            worker,
            order=None if choice is None else tasks["clip_id"].to_pylist(),  # a batch reads a clip once
            is_free=_is_silent(tasks),
            added_part="candidate",
            choice=choice,
        )
        return Rows(carried, [rows], refused)

    def finish(self, context: Context, rows: pa.Table, made: Mapping[str, pa.Table]) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        if context.recipe.candidates > 1:
            candidates = all_candidates(rows, made[self.name], context.recipe.sampling.seed)
            context.output.write_bytes(CANDIDATES, parquet_bytes(candidates))
            failed = pc.sum(pc.not_equal(candidates["error_class"], "")).as_py() or 0
            figures = {"candidates": candidates.num_rows} | ({"candidates_failed": failed} if failed else {})
        is_silent = pc.equal(rows["prompt"], "")
        silent = pc.sum(is_silent).as_py() or 0
        figures |= super().finish(context, rows.filter(pc.invert(is_silent)), made)
        return figures | ({"silent": silent} if silent else {})


def caption_tasks(clips: pa.Table, recipe: CaptionRecipe) -> tuple[pa.Table, pa.Array, list[Refused]]:
    """Clips as the worker takes them, with the prompts that reach the model, and the clips that are refused.

    A clip without sound, or with digital silence, never reaches the model, which would describe a sound from the
    picture. It is refused; or its task has no `audio`, and as `prompt` the caption that the worker gives it, which so
    is a part of its key. Digital silence is what stays within one step of 16 bits: a clip's `peak` is rounded.
    """
    silent = pc.or_(pc.invert(clips["has_audio"]), pc.fill_null(pc.equal(clips["peak"], 0.0), True))
    refused = []
    if recipe.silence is None:
        columns = (clips.filter(silent)[name].to_pylist() for name in ("clip_id", "source_name", "has_audio"))
        refused = [_refused_as_silent(*row) for row in zip(*columns, strict=True)]
        clips, silent = (of.filter(pc.invert(silent)) for of in (clips, silent))
    labels = zip(clips["label"].to_pylist(), silent.to_pylist(), strict=True)
    prompts = ["" if is_silent else recipe.prompts.render(label) for label, is_silent in labels]
    tasks = clips.set_column(clips.column_names.index("audio"), "audio", pc.if_else(silent, "", clips["audio"]))
    texts = [prompt or recipe.silence or "" for prompt in prompts]
    return tasks.append_column("prompt", shared_texts(texts)), shared_texts(prompts), refused


def with_candidates(tasks: pa.Table, recipe: CaptionRecipe) -> tuple[pa.Table, Choice | None]:
    """Tasks of all candidates, with `candidate` (null for the first of a clip, else its number), and their choice.

    The seed of a candidate is that of the recipe and its number. A silent clip has one: its caption is always the same.
    """
    numbers = range(1, recipe.candidates)
    heard = np.flatnonzero(~_is_silent(tasks))
    first = tasks.append_column("candidate", pa.nulls(tasks.num_rows, pa.string()))
    numbered = (pa.array([str(number)] * len(heard), pa.string()) for number in numbers)
    others = [tasks.take(heard).append_column("candidate", column) for column in numbered]
    if not others:
        return first, None
    row_of = np.concatenate([np.arange(tasks.num_rows), *[heard for _ in numbers]])
    return pa.concat_tables([first, *others]), Choice(row_of, partial(_chosen, recipe.choose))


def _is_silent(tasks: pa.Table) -> np.ndarray:
    return np.array([not audio for audio in tasks["audio"].to_pylist()], bool)


def _chosen(rule: ChoiceRule, row_of: np.ndarray, made: pa.Table) -> dict[int, int]:
    """Place of the chosen caption among those made, for each row."""
    captions, places = made["caption"].to_pylist(), dict[int, list[int]]()
    for place, row in enumerate(row_of.tolist()):
        places.setdefault(row, []).append(place)
    return {row: of[choose([captions[place] for place in of], rule)] for row, of in places.items()}


def all_candidates(rows: pa.Table, made: pa.Table, first_seed: int) -> pa.Table:
    """Candidates of all clips, with CANDIDATE_COLUMNS, clip by clip in the order of their seeds.

    Args:
        rows: clip_id, prompt and chosen caption of the clips that have one. Of equal captions the first was chosen.
        made: candidates, in the order of the tasks.
    """
    chosen = dict(zip(rows["clip_id"].to_pylist(), rows["caption"].to_pylist(), strict=True))
    silent = set(rows.filter(pc.equal(rows["prompt"], ""))["clip_id"].to_pylist())
    found: dict[str, list[dict[str, Any]]] = {}
    for row in made.select(["row_id", "caption", "error_class", "message"]).to_pylist():
        clip_id = row.pop("row_id")
        of = found.setdefault(clip_id, [])
        is_chosen = row["caption"] is not None and chosen.get(clip_id) == row["caption"]
        if is_chosen:
            del chosen[clip_id]
        seed = None if clip_id in silent else first_seed + len(of)
        of.append({"clip_id": clip_id, "seed": seed, **row, "is_chosen": is_chosen})
    return pa.Table.from_pylist([row for of in found.values() for row in of], CANDIDATE_COLUMNS)


def _refused_as_silent(clip_id: str, name: str, has_audio: bool) -> Refused:
    error_class, found = ("SilentClip", "its sound is digital silence") if has_audio else ("NoAudioStream", "no sound")
    remedy = "leave it out, or say in captions.silence what such clips are captioned with"
    return Refused(clip_id, error_class, f"{name}: {found}, so there is nothing to describe; {remedy}")


def read_prompts(instruction: str, warnings: str | None) -> PromptSet:
    """Prompt set of the files that the configuration names. Raises UserError."""
    with user_input():
        return load_prompts(Path(instruction), None if warnings is None else Path(warnings))


@dataclass
class CaptionWorker:
    """Captioning worker: engine and clip reader.

    adapter: storage name of a LoRA adapter's folder, or None. answer_column: the ledger's, for the model's answers.
    """

    recipe: CaptionRecipe
    execution: CaptioningExecution
    storage: Storage
    adapter: str | None = None
    answer_column: str = "caption"
    _stream: CaptionStream = field(init=False, repr=False)
    _readers: ThreadPoolExecutor = field(init=False, repr=False)

    @property
    def batches_at_once(self) -> int:
        return self.execution.batches_at_once

    def setup(self) -> None:
        self._stream = CaptionStream(self.load(), ahead_bytes=PREPARED_AHEAD_BYTES)
        self._readers = ThreadPoolExecutor(max(1, int(self.execution.cpus_per_worker)), "reader")

    def load(self) -> CaptionEngine:
        """Engine with the recipe's model and the adapter."""
        with ExitStack() as stack:
            adapter = None if self.adapter is None else str(stack.enter_context(self.storage.local(self.adapter)))
            model = self.recipe.model.on_node(self.storage)
            return load_engine(
                model.path,
                model.revision,
                adapter,
                frames=self.recipe.frames,
                sampling=self.recipe.sampling,
                execution=self.execution,
            )

    def stream(self, tasks: list[dict[str, Any]]) -> Iterator[tuple[int, Result]]:
        answers: Queue[tuple[int, Answer | Failed | _ReadingFault]] = Queue()
        self._stream.expect(len(tasks))
        for _, of_clip in groupby(range(len(tasks)), key=lambda place: tasks[place]["clip_id"]):
            self._readers.submit(self._bring, {place: tasks[place] for place in of_clip}, answers)
        lost: dict[int, EngineLost] = {}
        fault: Exception | None = None
        for _ in tasks:
            place, answer = answers.get()
            if isinstance(answer, EngineLost):
                lost[place] = answer
            elif isinstance(answer, _ReadingFault):
                fault = answer.error
            else:
                yield place, self._row(answer)
        if fault is not None:
            raise fault
        if lost:
            message = next(iter(lost.values())).message
            raise WorkerLost(message, [place for place, answer in lost.items() if answer.was_inside])

    def _bring(self, tasks: Mapping[int, Mapping[str, Any]], answers: Queue[tuple[int, Any]]) -> None:
        """Reads the clip of its candidates' tasks, by their places, and brings each to the engine.

        In a thread of the readers. A silent clip has its caption.
        """
        request: CaptionRequest | Failed | str | _ReadingFault
        try:
            request = self._read(next(iter(tasks.values())))
        except Exception as error:  # noqa: BLE001 - it is raised where the batch ends
            request = _ReadingFault(error)
        for place, task in tasks.items():
            if isinstance(request, CaptionRequest):
                seeded = replace(request, seed=self.recipe.sampling.seed + int(task.get("candidate") or 0))
                self._stream.ask(seeded, partial(_answer, answers, place))
            else:
                self._stream.expect(-1)
                answers.put((place, request))

    def _read(self, task: Mapping[str, Any]) -> CaptionRequest | Failed | str:
        if self.recipe.with_sound and not task["audio"]:
            return str(task["prompt"])
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

    def _row(self, answer: str | Exception | Failed) -> Result:
        if isinstance(answer, Failed):
            return answer
        if isinstance(answer, Exception):
            return Failed(type(answer).__name__, one_line(answer))
        return {self.answer_column: answer}


@dataclass(frozen=True)
class _ReadingFault:
    """Exception of reading a clip that is not about the clip."""

    error: Exception


def _answer(answers: Queue[tuple[int, Any]], place: int, answer: Answer) -> None:
    answers.put((place, answer))
