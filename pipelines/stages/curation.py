"""Stage `curation`: which captions the captioner may learn from, each drop with its reason."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from pipelines.config import Config
from pipelines.fingerprint import digest
from pipelines.stage import Context, Counts, Spec, Stage
from pipelines.storage import Storage
from pipelines.store import Manifest
from soundcap.curate import CaptionRow, Rules, curate

SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("caption", pa.string()),
        ("kept", pa.bool_()),
        ("rule", pa.string()),
        ("detail", pa.string()),
    ]
)


class CurationStage(Stage):
    """Dropped captions stay in the output, with `kept` false: nothing is lost without a reason."""

    name = "curation"

    def inputs(self, config: Config) -> tuple[str, ...]:
        return ("captions",)

    def spec(self, config: Config, storage: Storage) -> Spec:
        return Spec({"rules": asdict(config.curation.rules)})

    def counts(self, context: Context) -> Counts:
        manifest = context.inputs["captions"].manifest()
        assert manifest is not None
        return Counts(manifest.rows_out, manifest.rows_out)

    def run(self, context: Context) -> Manifest:
        started = time.monotonic()
        captions = context.inputs["captions"].rows()
        rows = judge(captions, context.config.curation.rules)
        context.output.write_rows(rows, SCHEMA)
        context.output.write_quarantine([])
        kept = [row for row in rows if row["kept"]]
        dropped = Counter(row["rule"] for row in rows if not row["kept"])
        return Manifest(
            stage=self.name,
            fingerprint=context.output.fingerprint,
            digest=digest([[r["clip_id"], r["split"], r["caption"]] for r in kept]),
            rows_in=len(captions),
            rows_out=len(rows),
            rows_quarantined=0,
            rows_computed=len(rows),
            seconds=round(time.monotonic() - started, 3),
            figures={"kept": len(kept), "dropped": dict(sorted(dropped.items()))},
        )


def judge(captions: list[dict[str, Any]], rules: Rules) -> list[dict[str, Any]]:
    """Each caption's row with its verdict."""
    verdicts = curate([CaptionRow(r["clip_id"], r["label"], r["caption"]) for r in captions], rules)
    return [
        {
            **{k: row[k] for k in ("clip_id", "label", "split", "caption")},
            "kept": verdict.kept,
            "rule": verdict.rule,
            "detail": verdict.detail,
        }
        for row, verdict in zip(captions, verdicts, strict=True)
    ]
