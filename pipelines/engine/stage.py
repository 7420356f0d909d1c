"""Stages: a recipe, rows, and the work that makes them. Stages are stateless; state lies in store and ledger."""

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
    """Rows a stage covers, rows it would still compute, and rows it refuses before any work."""

    total: int
    to_run: int
    refused: int = 0


@dataclass(frozen=True)
class Context:
    """Everything a stage's work may use: its recipe, the configuration, the storage, its inputs' committed outputs."""

    config: Config
    storage: Storage
    inputs: Mapping[str, Output]
    output: Output
    recipe: Any
    say: Callable[[str], None] = print
    retry_failed: bool = False


class NotYetKnown(Exception):
    """A recipe that cannot be told before some work is done; `counts` is the best that can be said."""

    def __init__(self, reason: str, counts: Counts) -> None:
        super().__init__(reason)
        self.counts = counts


@dataclass(frozen=True)
class Refused:
    """A row quarantined before any work: its input is missing, doubled, or not fit for the stage."""

    row_id: str
    error_class: str
    message: str


@dataclass(frozen=True)
class Result:
    """The finished work of a stage; its files are already in the output's folder.

    Attributes:
        rows_in: rows the stage was asked for, quarantined ones included.
        computed: rows of them that were computed now.
        digest: digest of all that later stages depend on.
        quarantined: rows that could not be made.
        figures: extra figures for the manifest.
    """

    rows_in: int
    computed: int
    digest: str
    quarantined: Sequence[Refused] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)


class Stage(ABC):
    """One stage of the pipeline."""

    name: ClassVar[str]
    code_version: ClassVar[int] = 1
    ledgers: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = ()

    def inputs(self, config: Config) -> tuple[str, ...]:
        """Names of the stages whose outputs this one reads under a configuration."""
        return self.reads

    def prepare(self, config: Config, storage: Storage, say: Callable[[str], None]) -> None:  # noqa: B027
        """Work that has to come before the recipe is known; most stages have none."""

    @abstractmethod
    def recipe(self, config: Config, storage: Storage) -> Recipe:
        """Recipe of the stage's rows under this configuration.

        Raises:
            NotYetKnown: before `prepare`.
            UserError: a file or checkpoint is missing.
        """

    @abstractmethod
    def work(self, context: Context) -> WholeWork | RowWork:
        """The stage's work in one context. Cheap: no model is loaded and no media is read before `make`."""


@dataclass(frozen=True)
class WholeWork:
    """Work of a stage that is computed as a whole: all of its rows or none. `make` fills the output's folder."""

    total: int
    make: Callable[[], Result]

    @property
    def counts(self) -> Counts:
        return Counts(self.total, self.total)


# --- stages whose rows are computed one by one ----------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One row to make. `parts` decide its value together with the recipe; `task` is what the worker is sent."""

    row_id: str
    parts: Mapping[str, Any]
    task: Mapping[str, Any]


@dataclass(frozen=True)
class RowSet:
    """Rows of one ledger: one recipe, one worker."""

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
        carried: by row id, in the order of the output, columns that decide nothing. A row's other columns are the
            values that its worker made in each set. Row ids that only a set has are no rows of the output.
        sets: what is to be computed.
        refused: rows quarantined before any work.
    """

    carried: Mapping[str, Mapping[str, Any]]
    sets: Sequence[RowSet]
    refused: Sequence[Refused] = ()


class RowStage(Stage):
    """Stage whose rows are computed one by one, each at most once, through its ledgers.

    They are fanned out as `execution` of the configuration's section of the stage's name says.
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
        """Hook before the commit. `made`: entries by ledger and row id, for rows that are not in the output."""

    def work(self, context: Context) -> RowWork:
        return RowWork(self, context)


class RowWork:
    """Work of a row stage: the rows that its ledgers lack, fanned out, then assembled into the output."""

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
        """Rows of the output, and those of them that some set still has to compute."""
        todo = {row_id for ids in self.todo.values() for row_id in ids if row_id in self.rows.carried}
        refused = len(self.rows.refused)
        return Counts(len(self.rows.carried) + refused, len(todo), refused)

    def make(self) -> Result:
        """Computes what is missing and fills the output's folder."""
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
