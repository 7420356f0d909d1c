"""Stage `curation`: selection of the captions that the captioner learns from, with a reason for each drop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.fingerprint import table_digest
from pipelines.engine.recipe import Recipe
from pipelines.engine.stage import Context, Result, Stage, WholeWork
from pipelines.engine.storage import Storage
from pipelines.engine.store import text_columns
from pipelines.run_config import Config
from pipelines.stages.agreement import AgreementStage, caption_rows
from pipelines.stages.captions import read_prompts
from soundcap.curate import Rules, curate, curation_meaning, judged_warnings
from soundcap.prompts import NoiseWarning

EATEN_SHARE, EATEN_CLIPS = 0.5, 10
"""Share of a label's captions that one rule drops, and least number of them, from which a run says so."""


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
    config_keys: ClassVar[Mapping[str, str]] = {"violations": "captions.warnings"}
    schema = pa.schema(
        [*text_columns("clip_id", "label", "split", "caption"), ("kept", pa.bool_()), *text_columns("rule", "detail")]
    )

    def inputs(self, config: Config) -> tuple[str, ...]:
        rules = config.curation.rules
        measured = {"clips": rules.min_peak, AgreementStage.name: rules.agreement_margin}
        return ("captions", *(name for name, threshold in measured.items() if threshold is not None))

    def recipe(self, config: Config, storage: Storage) -> CurationRecipe:
        prompts = read_prompts(config.captions.instruction, config.captions.warnings)
        return CurationRecipe(config.curation.rules, prompts.warnings)

    def work(self, context: Context) -> WholeWork:
        return WholeWork(context.inputs["captions"].committed().rows_out, lambda: self._curate(context))

    def _curate(self, context: Context) -> Result:
        inputs, measured = context.inputs, {}
        if "clips" in inputs:
            measured["clips"] = inputs["clips"].rows("clip_id", "peak")
        if AgreementStage.name in inputs:
            measured["agreement"] = inputs[AgreementStage.name].rows()
        captions = inputs["captions"].rows("clip_id", "label", "split", "caption", "prompt")
        rows = judge(captions, context.recipe, **measured).select(self.schema.names)
        context.output.write_rows(rows.cast(self.schema))
        kept = rows.filter(rows["kept"])
        dropped = Counter(rows.filter(pc.invert(rows["kept"]))["rule"].to_pylist())
        for one in drops_by_label(rows):
            if one.dropped >= EATEN_SHARE * one.clips and one.clips >= EATEN_CLIPS:
                context.say(
                    f"curation: the rule {one.rule} drops {one.dropped} of {one.clips} captions of the label "
                    f"{one.label!r}; is the sound true there? Then spare the label, or mend the rule"
                )
        figures = {"kept": kept.num_rows, "dropped": dict(sorted(dropped.items()))}
        meaning = table_digest(kept.select(["clip_id", "split", "caption"]))
        return Result(rows.num_rows, rows.num_rows, meaning, figures=figures)


class LabelDrops(NamedTuple):
    """Captions of one label that one rule drops."""

    label: str
    rule: str
    dropped: int
    clips: int


def drops_by_label(rows: pa.Table) -> list[LabelDrops]:
    """Drops of each rule on each label (label, kept, rule), largest share first: a rule that eats one label shows."""
    clips = Counter(rows["label"].to_pylist())
    bad = rows.filter(pc.invert(rows["kept"]))
    drops = Counter(zip(bad["label"].to_pylist(), bad["rule"].to_pylist(), strict=True))
    found = [LabelDrops(label, rule, count, clips[label]) for (label, rule), count in drops.items()]
    return sorted(found, key=lambda one: (-one.dropped / one.clips, one.label, one.rule))


def judge(captions: pa.Table, recipe: CurationRecipe, **measured: pa.Table) -> pa.Table:
    """Caption rows (clip_id, label, caption, prompt ...) with their verdicts: kept, rule, detail.

    measured: what rules ask for of the clips, as of `caption_rows`.
    """
    verdicts = curate(caption_rows(captions, **measured), recipe.rules, recipe.warnings)
    for name in ("kept", "rule", "detail"):
        captions = captions.append_column(name, pa.array([getattr(verdict, name) for verdict in verdicts]))
    return captions
