"""Stage `scores`: metrics of the generated sound against the clips' own."""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa

from pipelines.config import Config
from pipelines.fingerprint import digest
from pipelines.stage import Context, Counts, Spec, Stage
from pipelines.storage import Storage
from pipelines.store import Manifest

SCORES = "scores.json"


class ScoresStage(Stage):
    """The table is `scores.json`; `rows.parquet` has each clip's own figures."""

    name = "scores"

    def inputs(self, config: Config) -> tuple[str, ...]:
        return ("samples",)

    def spec(self, config: Config, storage: Storage) -> Spec:
        return Spec({"audio_hz": config.scores.audio_hz})

    def counts(self, context: Context) -> Counts:
        manifest = context.inputs["samples"].manifest()
        assert manifest is not None
        return Counts(manifest.rows_out, manifest.rows_out)

    def run(self, context: Context) -> Manifest:
        from flowley.metrics import score
        from pipelines.media.read import read_audio

        started = time.monotonic()
        hz = context.config.scores.audio_hz
        samples = context.inputs["samples"].rows()
        generated, original = [], []
        for row in samples:
            with context.storage.local(row["audio"]) as file:
                generated.append(read_audio(file, hz))
            with context.storage.local(row["original_audio"]) as file:
                original.append(read_audio(file, hz))
        scores = score(generated, original, hz)
        rows: list[dict[str, Any]] = [
            {"clip_id": row["clip_id"], **{name: values[i] for name, values in scores.clip_metrics.items()}}
            for i, row in enumerate(samples)
        ]
        fields = [("clip_id", pa.string()), *((name, pa.float64()) for name in scores.clip_metrics)]
        context.output.write_rows(rows, pa.schema(fields))
        context.output.write_quarantine([])
        context.storage.write_json(context.output.name(SCORES), scores.to_dict())
        figures = {k: round(v, 4) for k, v in scores.set_metrics.items() if v is not None}
        return Manifest(
            stage=self.name,
            fingerprint=context.output.fingerprint,
            digest=digest(scores.to_dict()),
            rows_in=len(samples),
            rows_out=len(rows),
            rows_quarantined=0,
            rows_computed=len(rows),
            seconds=round(time.monotonic() - started, 3),
            figures=figures,
        )
