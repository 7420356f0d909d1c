"""Stage `curation`: selection of the captions that the captioner learns from, with a reason for each drop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.fingerprint import table_digest
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
    config_keys: ClassVar[Mapping[str, str]] = {"violations": "captions.warnings"}
    schema = pa.schema(
        [*text_columns("clip_id", "label", "split", "caption"), ("kept", pa.bool_()), *text_columns("rule", "detail")]
    )

    def recipe(self, config: Config, storage: Storage) -> CurationRecipe:
        prompts = read_prompts(config.captions.instruction, config.captions.warnings)
        return CurationRecipe(config.curation.rules, prompts.warnings)

    def work(self, context: Context) -> WholeWork:
        return WholeWork(context.inputs["captions"].committed().rows_out, lambda: self._curate(context))

    def _curate(self, context: Context) -> Result:
        rows = judge(context.inputs["captions"].rows("clip_id", "label", "split", "caption"), context.recipe)
        context.output.write_rows(rows.cast(self.schema))
        kept = rows.filter(rows["kept"])
        dropped = Counter(rows.filter(pc.invert(rows["kept"]))["rule"].to_pylist())
        figures = {"kept": kept.num_rows, "dropped": dict(sorted(dropped.items()))}
        meaning = table_digest(kept.select(["clip_id", "split", "caption"]))
        return Result(rows.num_rows, rows.num_rows, meaning, figures=figures)


def judge(captions: pa.Table, recipe: CurationRecipe) -> pa.Table:
    """Caption rows (clip_id, label, caption ...) with their verdicts: kept, rule, detail."""
    columns = (captions[name].to_pylist() for name in ("clip_id", "label", "caption"))
    verdicts = curate([CaptionRow(*row) for row in zip(*columns, strict=True)], recipe.rules, recipe.warnings)
    for name in ("kept", "rule", "detail"):
        captions = captions.append_column(name, pa.array([getattr(verdict, name) for verdict in verdicts]))
    return captions
