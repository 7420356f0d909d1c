"""Stage `scores`: metrics of the generated sound against the clips' original sound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.engine.fingerprint import digest
from pipelines.engine.recipe import Recipe
from pipelines.engine.stage import Context, Result, Stage, WholeWork
from pipelines.engine.storage import Storage
from pipelines.media.read import read_audio
from pipelines.run_config import Config

SCORES = "scores.json"


@dataclass(frozen=True)
class ScoresRecipe(Recipe):
    """Recipe of the scores: the sample rate of the comparison."""

    audio_hz: int


class ScoresStage(Stage):
    """Scoring stage. `scores.json` has all scores, `rows.parquet` those of each clip."""

    name = "scores"
    reads = ("samples",)

    def recipe(self, config: Config, storage: Storage) -> ScoresRecipe:
        return ScoresRecipe(config.scores.audio_hz)

    def work(self, context: Context) -> WholeWork:
        return WholeWork(context.inputs["samples"].committed().rows_out, lambda: _score(context))


def _score(context: Context) -> Result:
    from flowley.metrics import score  # imports scipy, which `plan` does not need

    hz = context.recipe.audio_hz
    samples = context.inputs["samples"].rows("clip_id", "audio", "original_audio").to_pylist()

    def waves(column: str) -> Iterator[np.ndarray]:
        for row in samples:
            with context.storage.local(row[column]) as file:
                yield read_audio(file, hz)

    scores = score(waves("audio"), waves("original_audio"), hz)
    of_clips = scores.clip_metrics
    rows = [{"clip_id": r["clip_id"], **{m: v[i] for m, v in of_clips.items()}} for i, r in enumerate(samples)]
    schema = pa.schema([("clip_id", pa.string()), *((name, pa.float64()) for name in of_clips)])
    context.output.write_rows(pa.Table.from_pylist(rows, schema=schema))
    context.output.write_json(SCORES, scores.to_dict())
    figures = {name: round(value, 4) for name, value in scores.set_metrics.items() if value is not None}
    return Result(len(samples), len(samples), digest(scores.to_dict()), figures=figures)
