"""Stage `agreement`: agreement of each caption, and of its clip's label, with the clip's sound, by CLAP."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.ledger import Failed, Result
from pipelines.engine.recipe import Recipe
from pipelines.engine.row_stage import Rows, RowSet, RowStage
from pipelines.engine.stage import Context
from pipelines.engine.storage import Storage
from pipelines.engine.store import text_columns
from pipelines.errors import one_line
from pipelines.media.faults import MediaError
from pipelines.media.read import read_audio
from pipelines.run_config import AgreementConfig, AgreementExecution, Config
from pipelines.stages.model_refs import Model, model_of
from soundcap.curate import Agreement, CaptionRow
from soundcap.judging import judged_true

if TYPE_CHECKING:
    from flowley.metrics.clap import Clap

LEDGER = "agreements"
"""Not the stage's name, which is that of a column."""
COSINES = pa.schema([("agreement", pa.float32()), ("label_agreement", pa.float32())])
"""Cosines of the caption and of the label with the sound; the label's is null where there is none."""


@dataclass(frozen=True)
class AgreementRecipe(Recipe):
    """Recipe of an agreement: all that determines it except the clip, its caption and its label."""

    model: Model


class AgreementStage(RowStage):
    """Agreement stage, where the configuration has its section: one row for each caption of a clip with sound."""

    name = "agreement"
    reads = ("clips", "captions")
    ledgers = (LEDGER,)
    schema = pa.schema([*text_columns("clip_id", "label", "split", "caption"), *COSINES])
    meaning = ("clip_id", "caption", "agreement", "label_agreement")
    is_rows_alone = True
    is_aside = True

    def is_wanted(self, config: Config) -> bool:
        return config.agreement is not None

    def recipe(self, config: Config, storage: Storage) -> AgreementRecipe:
        return AgreementRecipe(model_of(_section(config).model, "agreement.model", storage))

    def rows(self, context: Context) -> Rows:
        tasks = agreement_tasks(context.inputs["captions"].rows(), context.inputs["clips"].rows("clip_id", "audio"))
        worker = AgreementWorker(context.recipe, _section(context.config).execution, context.storage)
        parts = ("clip_id", "caption", "label")
        rows = RowSet(LEDGER, context.recipe, tasks.select([*parts, "audio"]), parts, COSINES, worker)
        return Rows(tasks.select(["clip_id", "label", "split", "caption"]), [rows])

    def finish(self, context: Context, rows: pa.Table, made: Mapping[str, pa.Table]) -> dict[str, Any]:
        """Figures: captions of clips without sound, which have no row, and of the others mean and share below label."""
        figures: dict[str, Any] = {}
        silent = context.inputs["captions"].committed().rows_out - made[LEDGER].num_rows
        if silent:
            figures["without_sound"] = silent
        if rows.num_rows:
            figures["agreement_mean"] = round(pc.mean(rows["agreement"]).as_py(), 4)
        gain = pc.drop_null(pc.subtract(rows["agreement"], rows["label_agreement"])).to_numpy()
        if len(gain):
            figures["below_label_share"] = round(float((gain < 0).mean()), 4)
        return figures


def agreement_tasks(captions: pa.Table, clips: pa.Table) -> pa.Table:
    """Captions of clips with sound (clip_id, label, split, caption, audio), in order.

    A caption without a prompt is the one that `captions.silence` gives: its clip has no sound that it could agree with.
    """
    heard = captions.filter(is_heard(captions))
    places = pc.index_in(heard["clip_id"], value_set=clips["clip_id"].combine_chunks())
    return heard.select(["clip_id", "label", "split", "caption"]).append_column("audio", clips["audio"].take(places))


def is_heard(captions: pa.Table) -> pa.ChunkedArray:
    """Mask of the captions that a model gave to a clip with sound."""
    return pc.not_equal(captions["prompt"], "")


def caption_rows(
    captions: pa.Table,
    clips: pa.Table | None = None,
    agreement: pa.Table | None = None,
    judgements: pa.Table | None = None,
) -> list[CaptionRow]:
    """Captions (clip_id, label, caption, prompt), with what was measured of their clips.

    Args:
        captions: rows of stage `captions`.
        clips: rows of stage `clips` (clip_id, peak).
        agreement: rows of this stage for the same captions; one that lacks a caption with sound could not measure it.
        judgements: rows of stage `judgements` (clip_id, answer) for the same captions.
    """
    # A caption without a prompt was given: nobody was to hear its clip.
    peaks = {} if clips is None else dict(zip(*(clips[name].to_pylist() for name in ("clip_id", "peak")), strict=True))
    found: dict[str, Agreement | None] = {}
    if agreement is not None:
        heard = captions.filter(is_heard(captions))
        columns = (heard[name].to_pylist() for name in ("clip_id", "label"))
        found |= {clip: Agreement(math.nan, math.nan if label else None) for clip, label in zip(*columns, strict=True)}
        columns = (agreement[name].to_pylist() for name in ("clip_id", "agreement", "label_agreement"))
        found |= {clip: Agreement(*cosines) for clip, *cosines in zip(*columns, strict=True)}
    verdicts: dict[str, bool | None] = {}
    if judgements is not None:
        answers = zip(*(judgements[name].to_pylist() for name in ("clip_id", "answer")), strict=True)
        verdicts = {clip: judged_true(answer) for clip, answer in answers}
    columns = (captions[name].to_pylist() for name in ("clip_id", "label", "caption", "prompt"))
    return [
        CaptionRow(clip, label, caption, found.get(clip), peaks.get(clip) if prompt else None, verdicts.get(clip))
        for clip, label, caption, prompt in zip(*columns, strict=True)
    ]


def _section(config: Config) -> AgreementConfig:
    assert config.agreement is not None, "the stage is not wanted without its section"
    return config.agreement


@dataclass
class AgreementWorker:
    """Worker for agreements: the CLAP model, which hears each clip once for its caption and its label."""

    recipe: AgreementRecipe
    execution: AgreementExecution
    storage: Storage
    clap: Clap = field(init=False, repr=False)

    def setup(self) -> None:
        from flowley.metrics.clap import Clap

        model = self.recipe.model.on_node(self.storage)
        self.clap = Clap(model.path, revision=model.revision, device=self.execution.device)

    def process(self, tasks: list[dict[str, Any]]) -> list[Result]:
        sounds = [self._read(task["audio"]) for task in tasks]
        waves = [sound for sound in sounds if not isinstance(sound, Failed)]
        heard = [task for task, sound in zip(tasks, sounds, strict=True) if not isinstance(sound, Failed)]
        found = iter(self._agreements(heard, waves) if heard else ())
        return [sound if isinstance(sound, Failed) else next(found) for sound in sounds]

    def _read(self, audio: str) -> np.ndarray | Failed:
        try:
            with self.storage.local(audio) as file:
                return read_audio(file, self.clap.hz)
        except MediaError as error:
            return Failed(type(error).__name__, one_line(error))

    def _agreements(self, tasks: Sequence[Mapping[str, Any]], waves: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Values of rows, each with its own sound."""
        heard = self.clap.embed_sounds(waves, self.clap.hz)
        captions = self.clap.embed_texts([task["caption"] for task in tasks])
        labels = self.clap.embed_texts([task["label"] for task in tasks])
        return [
            {"agreement": float(sound @ caption), "label_agreement": float(sound @ label) if task["label"] else None}
            for task, sound, caption, label in zip(tasks, heard, captions, labels, strict=True)
        ]
