"""Stage `scores`: metrics of the generated sound against the clips' original sound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from flowley.metrics import CLIP_METRICS, score_pair, summarise
from flowley.metrics.distances import log_mel_statistics
from pipelines.engine.ledger import Failed
from pipelines.engine.recipe import Recipe
from pipelines.engine.row_stage import Rows, RowSet, RowStage
from pipelines.engine.stage import Context
from pipelines.engine.storage import Storage
from pipelines.errors import RunError, one_line
from pipelines.media.faults import MediaError
from pipelines.media.read import read_audio
from pipelines.run_config import Config

SCORES = "scores.json"
METRICS = pa.schema([(name, pa.float64()) for name in CLIP_METRICS])
EMBEDDINGS = pa.schema([(name, pa.list_(pa.float64())) for name in ("generated_embedding", "original_embedding")])


@dataclass(frozen=True)
class ScoresRecipe(Recipe):
    """Recipe of a clip's scores: the sample rate of the comparison. The sample's id stands for all else."""

    audio_hz: int


class ScoresStage(RowStage):
    """Scoring stage: one row for each sample. `scores.json` has the scores of the set."""

    name = "scores"
    split = "test"
    reads = ("samples",)
    ledgers = ("scores",)
    schema = pa.schema([("clip_id", pa.string()), *METRICS])
    meaning = ("clip_id", "scores")

    def recipe(self, config: Config, storage: Storage) -> ScoresRecipe:
        return ScoresRecipe(config.scores.audio_hz)

    def rows(self, context: Context) -> Rows:
        tasks = context.inputs["samples"].rows("clip_id", "audio", "original_audio")
        worker = ScoresWorker(context.recipe.audio_hz, context.storage)
        values = pa.schema([*METRICS, *EMBEDDINGS])
        return Rows(
            tasks.select(["clip_id"]),
            [RowSet(self.name, context.recipe, tasks, tuple(tasks.column_names), values, worker)],
        )

    def finish(self, context: Context, rows: pa.Table, made: Mapping[str, pa.Table]) -> dict[str, Any]:
        if not rows.num_rows:
            raise RunError(
                f"scores: none of {made[self.name].num_rows} samples can be scored, such as: "
                f"{made[self.name]['message'][0]}; mend that, then run again with --retry-failed"
            )
        generated, original = (np.array(rows[name].to_pylist()) for name in EMBEDDINGS.names)
        clip_metrics = {name: rows[name].to_pylist() for name in CLIP_METRICS}
        scores = summarise(clip_metrics, generated, original, context.recipe.audio_hz)
        context.output.write_json(SCORES, scores.to_dict())
        return {name: round(value, 4) for name, value in scores.set_metrics.items() if value is not None}


@dataclass
class ScoresWorker:
    """Scoring worker: clip metrics and embeddings of pairs of sounds."""

    audio_hz: int
    storage: Storage

    def setup(self) -> None:
        """Nothing to load."""

    def process(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any] | Failed]:
        return [self._score(task["audio"], task["original_audio"]) for task in tasks]

    def _score(self, audio: str, original_audio: str) -> dict[str, Any] | Failed:
        try:
            generated, original = (self._read(name) for name in (audio, original_audio))
            metrics = score_pair(generated, original, self.audio_hz)
        except (MediaError, ValueError) as error:
            return Failed(type(error).__name__, one_line(error))
        embedded = (log_mel_statistics(wave, self.audio_hz).tolist() for wave in (generated, original))
        return metrics | dict(zip(EMBEDDINGS.names, embedded, strict=True))

    def _read(self, name: str) -> np.ndarray:
        with self.storage.local(name) as file:
            return read_audio(file, self.audio_hz)
