"""Stage `curation`: selection of the captions that the captioner learns from, with a reason for each drop."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.engine.fingerprint import digest
from pipelines.engine.recipe import Recipe
from pipelines.engine.stage import Context, Result, Stage, WholeWork
from pipelines.engine.storage import Storage
from pipelines.engine.store import text_columns
from pipelines.run_config import Config
from pipelines.stages.captions import read_prompts
from soundcap.curate import CaptionRow, Rules, curate, curation_meaning, judged_warnings
from soundcap.prompts import NoiseWarning


@dataclass(frozen=True)
class CurationRecipe(Recipe):
    """Recipe of the verdicts: all that determines them except the captions. `warnings`: those in their prompts."""

    rules: Rules
    warnings: tuple[NoiseWarning, ...]

    def meaning(self) -> dict[str, Any]:
        return curation_meaning(self.rules, self.warnings)

    @property
    def origins(self) -> dict[str, str]:
        judged = judged_warnings(self.rules, self.warnings)
        return {f"violations[{i}]": warning.origin for i, warning in enumerate(judged)}


class CurationStage(Stage):
    """Curation stage. Dropped captions stay in the output, with `kept` false and the reason."""

    name = "curation"
    reads = ("captions",)
    schema = pa.schema(
        [*text_columns("clip_id", "label", "split", "caption"), ("kept", pa.bool_()), *text_columns("rule", "detail")]
    )

    def recipe(self, config: Config, storage: Storage) -> CurationRecipe:
        prompts = read_prompts(config.captions.instruction, config.captions.warnings)
        return CurationRecipe(config.curation.rules, prompts.warnings)

    def work(self, context: Context) -> WholeWork:
        return WholeWork(context.inputs["captions"].committed().rows_out, lambda: self._curate(context))

    def _curate(self, context: Context) -> Result:
        rows = judge(context.inputs["captions"].rows(), context.recipe)
        context.output.write_rows(rows, self.schema)
        kept = [row for row in rows if row["kept"]]
        dropped = Counter(row["rule"] for row in rows if not row["kept"])
        meaning = digest([[r["clip_id"], r["split"], r["caption"]] for r in kept])
        figures = {"kept": len(kept), "dropped": dict(sorted(dropped.items()))}
        return Result(len(rows), len(rows), meaning, figures=figures)


def judge(captions: list[dict[str, Any]], recipe: CurationRecipe) -> list[dict[str, Any]]:
    """Caption rows with their verdicts."""
    rows = [CaptionRow(r["clip_id"], r["label"], r["caption"]) for r in captions]
    verdicts = curate(rows, recipe.rules, recipe.warnings)
    return [
        {
            **{k: row[k] for k in ("clip_id", "label", "split", "caption")},
            "kept": verdict.kept,
            "rule": verdict.rule,
            "detail": verdict.detail,
        }
        for row, verdict in zip(captions, verdicts, strict=True)
    ]
