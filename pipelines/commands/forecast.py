"""Forecast of a run: hours, GPU hours and money of each stage that will work, by rates that were measured before."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from pipelines.engine.fingerprint import canonical
from pipelines.engine.plan import StagePlan
from pipelines.engine.stage import NotYetKnown, Stage
from pipelines.engine.storage import Storage
from pipelines.engine.store import Output, latest, latest_spec
from pipelines.engine.usage import CPU, Projection, measured
from pipelines.errors import UserError
from pipelines.progress import human_time
from pipelines.run_config import Config

GPU = "GPU"
"""Device of a training, whose manifest does not name it."""


@dataclass(frozen=True)
class Forecast:
    """What the rows of a stage will take.

    Attributes:
        is_bound: the rows may be fewer.
        parts: projection of each ledger's rows, or of a training; None if nothing of the kind was ever measured.
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

    def usd(self, prices: Mapping[str, float]) -> float | None:
        """Money, or None without a price of a device. Cores beside a GPU are paid with it."""
        if self.unpriced(prices):
            return None
        return sum(prices[part.device] * (part.gpu_hours or part.core_hours) for part in self.parts or ())

    def unpriced(self, prices: Mapping[str, float]) -> list[str]:
        """Devices without a price."""
        return sorted({part.device for part in self.parts or ()} - prices.keys())

    def words(self, prices: Mapping[str, float]) -> str:
        """For people."""
        if self.parts is None:
            return "no rate yet"
        usd = self.usd(prices)
        found = [human_time(3600 * self.hours)]
        found += [f"{self.gpu_hours:.2g} GPU hours"] * bool(self.gpu_hours)
        if prices:
            missing = ", ".join(self.unpriced(prices))
            found.append(f"no price of {missing} in prices" if usd is None else f"{usd:,.2f} USD")
        return "up to " * self.is_bound + ", ".join(found)

    def as_json(self, prices: Mapping[str, float]) -> dict[str, Any]:
        known = self.parts is not None
        return {
            "stage": self.stage,
            "is_bound": self.is_bound,
            "hours": self.hours if known else None,
            "gpu_hours": self.gpu_hours if known else None,
            "usd": self.usd(prices) if known and prices else None,
            "devices": sorted({part.device for part in self.parts or ()}),
        }


def forecast(
    stages: Sequence[Stage], plans: Sequence[StagePlan], config: Config, storage: Storage
) -> dict[str, Forecast]:
    """Forecasts of the stages that a plan lets work, by name. `curation` takes seconds on the driver and has none."""
    found = {}
    for stage, plan in zip(stages, plans, strict=True):
        if plan.rows_at_most and stage.name != "curation":
            parts = _parts(stage, plan.rows_at_most, config, storage)
            found[stage.name] = Forecast(stage.name, plan.rows_to_run is None, parts)
    return found


def _parts(stage: Stage, rows: int, config: Config, storage: Storage) -> list[Projection] | None:
    execution = getattr(config, stage.name).execution
    try:
        if not stage.ledgers:
            training = _training(stage, execution, config, storage)
            return None if training is None else [training]
        recipes = stage.work_recipes(config, storage)
    except (UserError, NotYetKnown):
        return None
    found = [
        measured(storage, stage.name, ledger, recipe.shared_digest, execution) for ledger, recipe in recipes.items()
    ]
    known = [usage for usage in found if usage is not None]
    if not known or len(known) < len(stage.ledgers):
        return None
    return [usage.of_rows(rows, min(execution.workers, rows)) for usage in known]


def _training(stage: Stage, execution: Any, config: Config, storage: Storage) -> Projection | None:
    """A training takes what the last one of the same settings took."""
    spec, fingerprint = latest_spec(storage, stage.name), latest(storage, stage.name)
    if spec is None or fingerprint is None or spec["meaning"] != canonical(stage.recipe(config, storage).meaning()):
        return None
    hours = Output(storage, stage.name, fingerprint).committed().seconds / 3600
    all_hours, cores = hours * execution.workers, execution.cpus_per_worker
    device = GPU if execution.use_gpu else CPU
    return Projection(hours, all_hours * execution.use_gpu, all_hours * cores, device)


@dataclass(frozen=True)
class Budget:
    """What a run may take without a question. None: no limit."""

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
        raise UserError(f"{told}; nothing was run. Give --yes to run all the same, or measure with --canary N")

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
                told.append(f"prices has no {', '.join(unpriced)}; it has {', '.join(sorted(prices)) or 'nothing'}")
            usd = sum(value or 0.0 for value in money)
            if usd > self.usd:
                told.append(f"the run may cost {usd:,.2f} USD, more than --max-usd {self.usd:g}")
        return told
