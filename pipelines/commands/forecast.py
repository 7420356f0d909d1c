"""Forecast of a run: hours, GPU hours and money of each stage that will work, by rates that were measured before."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from pipelines.engine.plan import StagePlan
from pipelines.engine.stage import NotYetKnown, Stage
from pipelines.engine.storage import Storage
from pipelines.engine.store import Output, open_store
from pipelines.engine.usage import Projection, Usage, measured
from pipelines.errors import UserError
from pipelines.progress import human_bytes, human_time
from pipelines.run_config import Config
from pipelines.stages.captions import CaptionsStage
from pipelines.stages.listing import SourceListing
from pipelines.stages.source import list_source


@dataclass(frozen=True)
class Forecast:
    """Forecast of one stage's rows.

    Attributes:
        is_bound: the rows may be fewer.
        parts: projection of each ledger's rows; None if nothing of the kind was ever measured.
    """

    stage: str
    is_bound: bool
    parts: Sequence[Projection] | None

    @property
    def hours(self) -> float:
        return sum(part.hours for part in self.parts or ())

    @property
    def gpu_hours(self) -> float:
        return sum(part.gpu_hours for part in self.parts or ())

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts or ())

    def usd(self, prices: Mapping[str, float]) -> float | None:
        """Money, or None without a price of a device. Cores beside a GPU are paid with it."""
        if self.unpriced(prices):
            return None
        return sum(prices[part.device] * (part.gpu_hours or part.core_hours) for part in self.parts or ())

    def unpriced(self, prices: Mapping[str, float]) -> list[str]:
        """Devices without a price."""
        return sorted({part.device for part in self.parts or ()} - prices.keys())

    def words(self, prices: Mapping[str, float]) -> str:
        """Forecast in words."""
        if self.parts is None:
            return "no rate yet: a run measures one"
        usd = self.usd(prices)
        found = [human_time(3600 * self.hours)]
        found += [f"{self.gpu_hours:.2g} GPU hours"] * bool(self.gpu_hours)
        found += [human_bytes(self.bytes)] * bool(self.bytes)
        if prices:
            missing = ", ".join(self.unpriced(prices))
            found.append(f"no price of {missing} in prices" if usd is None else _usd_words(usd))
        return "up to " * self.is_bound + ", ".join(found)

    def as_json(self, prices: Mapping[str, float]) -> dict[str, Any]:
        known = self.parts is not None
        return {
            "stage": self.stage,
            "is_bound": self.is_bound,
            "hours": self.hours if known else None,
            "gpu_hours": self.gpu_hours if known else None,
            "bytes": self.bytes if known else None,
            "usd": self.usd(prices) if known and prices else None,
            "devices": sorted({part.device for part in self.parts or ()}),
        }


def _usd_words(usd: float) -> str:
    return "below 0.01 USD" if 0 < usd < 0.01 else f"{usd:,.2f} USD"


def total_words(found: Mapping[str, Forecast], prices: Mapping[str, float]) -> str:
    """Sum of all forecasts in words, or "" without any; stages without a rate are named."""
    parts = [part for one in found.values() for part in one.parts or ()]
    if not parts:
        return ""
    unknown = [name for name, one in found.items() if one.parts is None]
    whole = Forecast("all", any(one.is_bound for one in found.values()), parts)
    return f"all: {whole.words(prices)}" + (f"; besides {', '.join(unknown)}, without a rate yet" if unknown else "")


def forecast(
    stages: Sequence[Stage], plans: Sequence[StagePlan], config: Config, storage: Storage
) -> dict[str, Forecast]:
    """Forecasts of the stages that a plan lets work, by name. `curation` takes seconds on the driver and has none."""
    return {
        stage.name: Forecast(stage.name, plan.rows_to_run is None, _parts(stage, plan, config, storage))
        for stage, plan in zip(stages, plans, strict=True)
        if plan.rows_at_most and (stage.ledgers or stage.is_model)
    }


def _parts(stage: Stage, plan: StagePlan, config: Config, storage: Storage) -> list[Projection] | None:
    """Projection of each ledger's rows, or of a training's steps; None without a rate."""
    execution = getattr(config, stage.config_section).execution
    try:
        steps = stage.steps(config, storage, plan.rows_at_most or 0)
        recipes = {ledger: recipe.shared_digest for ledger, recipe in stage.work_recipes(config, storage).items()}
    except (UserError, NotYetKnown):
        return None
    most = (plan.rows_at_most or 0) * stage.tasks_a_row(config)
    found, counts = [], plan.rows_by_ledger or dict.fromkeys(recipes, most)
    if stage.is_model and steps is None:
        return []  # a given model is copied
    if steps is not None:
        recipes, counts = {stage.name: steps.recipe}, {stage.name: steps.count}
    for ledger, recipe in recipes.items():
        rows = counts[ledger]
        usage = measured(storage, stage.name, ledger, recipe, execution)
        if usage is None and rows:
            return None
        if usage is not None and rows:
            found.append(usage.of_rows(rows, min(execution.workers, rows)))
    return found or None


def projected(config: Config, canary: Output | None = None) -> str:
    """Words on what captioning all videos of the source will take, by the measured rate of this recipe.

    `canary`: the captions of one, whose own rate is told too if it measured one and another is taken.
    """
    storage, execution, name = open_store(config.root), config.captions.execution, CaptionsStage.name
    stage = CaptionsStage()
    usage = measured(storage, name, name, stage.recipe(config, storage).shared_digest, execution)
    videos = list_source(config, SourceListing(config.source.folder, rescan=False)).files.num_rows
    if usage is None:
        return f"captions: no rate is known for this model and these settings; {videos:,} videos in the source"
    captions = videos * stage.tasks_a_row(config)
    workers = min(execution.workers, captions)
    found = usage.of_rows(captions, workers)
    core_hours = "" if usage.gpus_per_worker else f", {found.core_hours:.2g} core hours"
    own = next((Usage(**record) for record in canary.committed().usage), None) if canary is not None else usage
    beside = ""
    if own is None:
        beside = " This canary had all its captions already, and measured nothing."
    elif own != usage:
        beside = f" This canary measured {own.rate:.3g} over {own.rows} captions; the rate of the most rows is taken."
    return (
        f"captions: {usage.rate:.3g} captions a second and worker on {usage.device} ({usage.rows} captions, set-up "
        f"{human_time(usage.start_s)}); all {videos:,} videos of the source with {workers} workers: "
        f"{Forecast(name, False, [found]).words(config.prices)}{core_hours}.{beside} `soundcap plan`: all stages"
    )


@dataclass(frozen=True)
class Budget:
    """Budget within which a run does not ask. None: no limit."""

    gpu_hours: float | None = None
    usd: float | None = None

    def check(self, found: Mapping[str, Forecast], prices: Mapping[str, float], *, yes: bool) -> None:
        """Asks before a run that may take more, or of which that is not known.

        Raises UserError if the answer is no, or nobody can be asked.
        """
        excess = list(self._excess(found, prices))
        if not excess or yes:
            return
        told = "; ".join(excess)
        if sys.stdin.isatty() and typer.confirm(f"{told}. Run all the same?"):
            return
        remedy = "; `soundcap run CONFIG --canary N` measures the captions" if self._lacks_rates(found) else ""
        raise UserError(f"{told}; nothing was run. Give --yes to run all the same{remedy}")

    def _lacks_rates(self, found: Mapping[str, Forecast]) -> bool:
        captions = found.get(CaptionsStage.name)
        return captions is not None and captions.parts is None

    def _excess(self, found: Mapping[str, Forecast], prices: Mapping[str, float]) -> list[str]:
        told: list[str] = []
        if (self.gpu_hours, self.usd) == (None, None):
            return told
        unknown = [name for name, one in found.items() if one.parts is None]
        if unknown:
            told.append(f"no rate was ever measured for {', '.join(unknown)}")
        gpu_hours = sum(one.gpu_hours for one in found.values())
        if self.gpu_hours is not None and gpu_hours > self.gpu_hours:
            told.append(f"the run may take {gpu_hours:.3g} GPU hours, more than --max-gpu-hours {self.gpu_hours:g}")
        if self.usd is not None:
            money = [one.usd(prices) for one in found.values() if one.parts is not None]
            unpriced = sorted({device for one in found.values() for device in one.unpriced(prices)})
            if unpriced:
                example = f"prices: {{{unpriced[0]}: USD an hour}}"
                told.append(
                    f"prices has no {', '.join(unpriced)}; it has {', '.join(sorted(prices)) or 'nothing'}: "
                    f"add {example}"
                )
            usd = sum(value or 0.0 for value in money)
            if usd > self.usd:
                told.append(f"the run may cost {usd:,.2f} USD, more than --max-usd {self.usd:g}")
        return told
