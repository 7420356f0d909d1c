"""Stage `judgements`: a judge model's answers whether captions say only what can be heard in their clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.row_stage import Rows, RowSet, RowStage
from pipelines.engine.stage import Context
from pipelines.engine.storage import Storage
from pipelines.engine.store import text_columns
from pipelines.run_config import Config, JudgeConfig
from pipelines.stages.agreement import is_heard
from pipelines.stages.captions import CaptionRecipe, CaptionWorker, read_prompts
from pipelines.stages.model_refs import model_of
from soundcap.judging import judge_prompt, judged_true
from soundcap.prompts import PromptSet

ANSWER = pa.schema(text_columns("answer"))


class JudgementsStage(RowStage):
    """Judging stage, where the configuration has the section `judge`: a row a caption of a clip with sound.

    A row's key holds the judge's recipe, the clip and the prompt, in which the caption is. An empty caption says
    nothing that could be judged and has no row.
    """

    name = "judgements"
    section = "judge"
    config_keys: ClassVar[Mapping[str, str]] = {
        "model": "judge.model",
        "frames": "judge.frames",
        "sampling": "judge.sampling",
        "prompts": "judge",
    }
    reads = ("clips", "captions")
    ledgers = ("judgements",)
    schema = pa.schema([*text_columns("clip_id", "label", "split", "caption"), *ANSWER])
    meaning = ("clip_id", "caption", "answer")
    is_rows_alone = True
    is_aside = True

    def is_wanted(self, config: Config) -> bool:
        return config.judge is not None

    def recipe(self, config: Config, storage: Storage) -> CaptionRecipe:
        section = _section(config)
        return CaptionRecipe(
            model=model_of(section.model, "judge.model", storage),
            frames=section.frames,
            sampling=section.sampling,
            with_sound=True,
            prompts=read_prompts(section.instruction, None),
        )

    def rows(self, context: Context) -> Rows:
        recipe: CaptionRecipe = context.recipe
        clips = context.inputs["clips"].rows("clip_id", "video", "audio")
        tasks = judgement_tasks(context.inputs["captions"].rows(), clips, recipe.prompts)
        worker = CaptionWorker(recipe, _section(context.config).execution, context.storage, answer_column="answer")
        parts = ("clip_id", "prompt")
        rows = RowSet(self.ledgers[0], recipe, tasks.select([*parts, "video", "audio"]), parts, ANSWER, worker)
        return Rows(tasks.select(["clip_id", "label", "split", "caption"]), [rows])

    def finish(self, context: Context, rows: pa.Table, made: Mapping[str, pa.Table]) -> dict[str, Any]:
        """Figures: captions without a row, unclear answers, and the share of yes over the others."""
        verdicts = [judged_true(answer) for answer in rows["answer"].to_pylist()]
        clear = [verdict for verdict in verdicts if verdict is not None]
        figures: dict[str, Any] = {"licence": context.recipe.model.licence or "not said"}
        not_asked = context.inputs["captions"].committed().rows_out - made[self.ledgers[0]].num_rows
        if not_asked:
            figures["without_sound_or_words"] = not_asked
        figures["unclear"] = len(verdicts) - len(clear)
        if clear:
            figures["judged_true_share"] = round(sum(clear) / len(clear), 4)
        return figures


def judgement_tasks(captions: pa.Table, clips: pa.Table, instruction: PromptSet) -> pa.Table:
    """Captions with words, of clips with sound (clip_id, label, split, caption, prompt, video, audio), in order."""
    has_words = pa.array([bool(caption.strip()) for caption in captions["caption"].to_pylist()], pa.bool_())
    asked = captions.filter(pc.and_(is_heard(captions), has_words)).select(["clip_id", "label", "split", "caption"])
    prompts = [judge_prompt(instruction, caption) for caption in asked["caption"].to_pylist()]
    tasks = asked.append_column("prompt", pa.array(prompts, pa.string()))
    places = pc.index_in(asked["clip_id"], value_set=clips["clip_id"].combine_chunks())
    for name in ("video", "audio"):
        tasks = tasks.append_column(name, clips[name].take(places))
    return tasks


def _section(config: Config) -> JudgeConfig:
    assert config.judge is not None, "the stage is not wanted without its section"
    return config.judge
