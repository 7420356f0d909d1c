"""Stage `samples`: sound for the silent clips of the test split, muxed onto them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyarrow as pa

from pipelines.checkpoints import codec_identity, located
from pipelines.config import Config, Workers
from pipelines.sampling import SAMPLER_VERSION, SampleWorker
from pipelines.stage import Context, Refused, Row, RowStage, Spec
from pipelines.stages.flowley import MODEL_FOLDER
from pipelines.storage import Storage


class SamplesStage(RowStage):
    """Row by row through the ledger, so that an interrupted run goes on."""

    name = "samples"
    schema = pa.schema(
        [
            ("clip_id", pa.string()),
            ("label", pa.string()),
            ("caption", pa.string()),
            ("video", pa.string()),
            ("audio", pa.string()),
            ("original_audio", pa.string()),
        ]
    )

    def inputs(self, config: Config) -> tuple[str, ...]:
        return ("features", "flowley")

    def spec(self, config: Config, storage: Storage) -> Spec:
        return Spec(_meaning(config))

    def rows(self, context: Context) -> tuple[list[Row], list[Refused]]:
        flowley, features = context.inputs["flowley"].manifest(), context.inputs["features"].manifest()
        assert flowley is not None and features is not None
        rows = []
        for clip in context.inputs["features"].rows():
            if clip["split"] != "test":
                continue
            key = {
                **_meaning(context.config),
                "flowley": flowley.digest,
                "features": features.digest,
                "clip_id": clip["clip_id"],
            }
            carried = {"clip_id": clip["clip_id"], "label": clip["label"], "caption": clip["caption"]}
            carried["original_audio"] = clip["audio"]
            places = ("clip_id", "video", "av_file", "av_row", "text_file", "text_row")
            row = Row(clip["clip_id"], key, {k: clip[k] for k in places}, carried)
            rows.append(Row(row.row_id, key, {**row.task, "sample_id": row.key[:24]}, carried))
        return rows, []

    def worker(self, context: Context) -> Callable[[], SampleWorker]:
        config = context.config
        return partial(
            SampleWorker,
            context.storage,
            context.inputs["flowley"].name(MODEL_FOLDER),
            located(config.features.codec),
            config.clips.duration_s,
            config.samples,
        )

    def execution(self, config: Config) -> Workers:
        return config.samples.execution

    def meaning_of(self, row: Mapping[str, Any]) -> Any:
        return [row["clip_id"], row["video"]]


def _meaning(config: Config) -> dict[str, Any]:
    return {
        "version": SAMPLER_VERSION,
        "steps": config.samples.steps,
        "guidance": config.samples.guidance,
        "solver": config.samples.solver,
        "seed": config.samples.seed,
        "codec": codec_identity(config.features.codec),
        "duration_s": config.clips.duration_s,
    }
