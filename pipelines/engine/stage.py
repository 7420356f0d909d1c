"""Stages: a recipe, rows, and the work that computes them. Stages are stateless; store and ledger hold all state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa

from pipelines.engine.fingerprint import digest
from pipelines.engine.ledger import Entry, Ledger, Worker, missing
from pipelines.engine.recipe import Recipe
from pipelines.engine.storage import Storage
from pipelines.engine.store import Output
from pipelines.run_config import Config


@dataclass(frozen=True)
class Counts:
    """Row counts of a stage: all rows, rows still to compute, and rows refused before any work."""

    total: int
    to_run: int
    refused: int = 0


@dataclass(frozen=True)
class Context:
    """Context of a stage's work: its recipe, the configuration, the storage and its inputs' committed outputs."""

    config: Config
    storage: Storage
    inputs: Mapping[str, Output]
    output: Output
    recipe: Any
    say: Callable[[str], None] = print
    retry_failed: bool = False


class NotYetKnown(Exception):
    """Recipe that is unknown before `prepare` has run; `counts` is the best estimate until then."""

    def __init__(self, reason: str, counts: Counts) -> None:
        super().__init__(reason)
        self.counts = counts


@dataclass(frozen=True)
class Refused:
    """Quarantined row: refused before any work (its input is missing, doubled or unfit), or failed in it."""

    row_id: str
    error_class: str
    message: str


@dataclass(frozen=True)
class Result:
    """Result of a stage's work; its files are already in the output folder.

    Attributes:
        rows_in: all rows of the stage, quarantined ones included.
        computed: rows that this run computed.
        digest: digest of all that later stages depend on.
        quarantined: rows refused or failed.
        figures: extra figures for the manifest.
    """

    rows_in: int
    computed: int
    digest: str
    quarantined: Sequence[Refused] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)


class Stage(ABC):
    """Base class of pipeline stages."""

    name: ClassVar[str]
    code_version: ClassVar[int] = 1
    ledgers: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = ()

    def inputs(self, config: Config) -> tuple[str, ...]:
        """Names of the stages whose outputs this one reads under a configuration."""
        return self.reads

    def prepare(self, config: Config, storage: Storage, say: Callable[[str], None]) -> None:  # noqa: B027
        """Hook for work that must precede the recipe; most stages have none."""

    @abstractmethod
    def recipe(self, config: Config, storage: Storage) -> Recipe:
        """Recipe of the stage's rows under this configuration.

        Raises:
            NotYetKnown: before `prepare`.
            UserError: a file or checkpoint is missing.
        """

    @abstractmethod
    def work(self, context: Context) -> WholeWork | RowWork:
        """Work of the stage in `context`. Cheap: no model is loaded and no media are read before `make`."""


@dataclass(frozen=True)
class WholeWork:
    """Work of a stage that is computed as a whole, all rows or none. `make` fills the output folder."""

    total: int
    make: Callable[[], Result]

    @property
    def counts(self) -> Counts:
        return Counts(self.total, self.total)


# --- stages whose rows are computed one by one ----------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Row to compute. `parts` and the recipe determine its value; `task` is sent to the worker."""

    row_id: str
    parts: Mapping[str, Any]
    task: Mapping[str, Any]


@dataclass(frozen=True)
class RowSet:
    """Rows of one ledger, with their recipe and worker."""

    ledger: str
    recipe: Recipe
    rows: Sequence[Row]
    worker: Worker

    @cached_property
    def keys(self) -> dict[str, str]:
        """Ledger key by row id."""
        return {row.row_id: self.recipe.key(row.parts) for row in self.rows}

    def items(self, todo: Iterable[str]) -> list[tuple[str, str, dict[str, Any]]]:
        """(row id, key, task) of the rows whose ids are in `todo`."""
        wanted = set(todo)
        return [(row.row_id, self.keys[row.row_id], dict(row.task)) for row in self.rows if row.row_id in wanted]


@dataclass(frozen=True)
class Rows:
    """All rows of a stage.

    Attributes:
        carried: pass-through columns by row id, in output order. The workers' values of each set supply the other
            columns. Row ids that occur only in a set are not part of the output.
        sets: rows to compute, by ledger.
        refused: rows quarantined before any work.
    """

    carried: Mapping[str, Mapping[str, Any]]
    sets: Sequence[RowSet]
    refused: Sequence[Refused] = ()


class RowStage(Stage):
    """Base class of stages whose rows are computed one by one, each at most once, through ledgers.

    The `execution` block of the stage's configuration section controls the fan-out.
    """

    schema: ClassVar[pa.Schema]

    @abstractmethod
    def rows(self, context: Context) -> Rows:
        """All rows of this stage."""

    @abstractmethod
    def meaning_of(self, row: Mapping[str, Any], keys: Sequence[str]) -> Any:
        """Part of a finished row that later stages depend on, as plain data. `keys`: the row's key in each set."""

    def figures(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Extra figures for the manifest."""
        return {}

    def finish(self, context: Context, made: Mapping[str, Mapping[str, Entry]]) -> None:
        """Hook before the commit. `made`: entries by ledger and row id, rows outside the output included."""

    def work(self, context: Context) -> RowWork:
        return RowWork(self, context)


class RowWork:
    """Work of a row stage: fan-out of the rows missing from its ledgers, then assembly of the output."""

    def __init__(self, stage: RowStage, context: Context) -> None:
        self.stage, self.context = stage, context
        self.rows = stage.rows(context)
        self.known = {one.ledger: Ledger(context.storage, one.ledger).read() for one in self.rows.sets}
        self.todo = {
            one.ledger: missing(one.keys, self.known[one.ledger], retry_failed=context.retry_failed)
            for one in self.rows.sets
        }

    @property
    def counts(self) -> Counts:
        """Row counts of the output; a row that any set lacks is still to run."""
        todo = {row_id for ids in self.todo.values() for row_id in ids if row_id in self.rows.carried}
        refused = len(self.rows.refused)
        return Counts(len(self.rows.carried) + refused, len(todo), refused)

    def make(self) -> Result:
        """Computes missing rows and fills the output folder."""
        computed = self.counts.to_run
        for one in self.rows.sets:
            if self.todo[one.ledger]:
                self._compute(one)
        return self._assemble(computed)

    def _compute(self, one: RowSet) -> None:
        from pipelines.engine.fanout import fan_out  # `plan` starts without Ray

        ledger = Ledger(self.context.storage, one.ledger)
        fan_out(
            one.items(self.todo[one.ledger]),
            one.worker,
            ledger=ledger,
            workers=getattr(self.context.config, self.stage.name).execution,
            label=one.ledger,
            say=self.context.say,
        )
        ledger.compact()
        self.known[one.ledger] = ledger.read()

    def _assemble(self, computed: int) -> Result:
        context, sets = self.context, self.rows.sets
        made: list[dict[str, Any]] = []
        meanings: list[Any] = []
        quarantined = list(self.rows.refused)
        for row_id in self.rows.carried:
            keys = [one.keys[row_id] for one in sets]
            entries = [self.known[one.ledger][key] for one, key in zip(sets, keys, strict=True)]
            bad = next((entry for entry in entries if entry.status != "ok"), None)
            if bad is not None:
                quarantined.append(Refused(row_id, bad.error_class, bad.message))
                continue
            row = dict(self.rows.carried[row_id])
            for entry in entries:
                row |= entry.value
            made.append(row)
            meanings.append(self.stage.meaning_of(row, keys))
        context.output.write_rows(made, self.stage.schema)
        self.stage.finish(
            context, {one.ledger: {r: self.known[one.ledger][k] for r, k in one.keys.items()} for one in sets}
        )
        total = len(self.rows.carried) + len(self.rows.refused)
        return Result(total, computed, digest(meanings), quarantined, self.stage.figures(made))
