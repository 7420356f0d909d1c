"""Stages whose rows are computed one by one, each at most once, and the work that makes what their ledgers lack."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.fingerprint import table_digest
from pipelines.engine.ledger import AnyWorker, Ledger
from pipelines.engine.recipe import KEY, Recipe
from pipelines.engine.stage import Context, Counts, Refused, Result, Stage, Work
from pipelines.engine.store import BYTES_SUFFIX, Manifest, Output, PreviewedOutput
from pipelines.engine.usage import Usage
from pipelines.errors import RunError
from pipelines.run_config import Workers

ALWAYS_ALLOWED_FAILURES = 10


@dataclass(frozen=True)
class Choice:
    """Choice among several tasks of one row: candidates, all of which are computed and kept in the ledger.

    A row takes the values of one of them. It fails only if all of them failed, with the error of its first.

    Attributes:
        row_of: for each task, the place of its row in `Rows.carried`. The first tasks are one of each row, in order.
        choose: takes the rows of the candidates that did not fail, and their values; returns the place among them of
            the chosen one for each row that has any.
    """

    row_of: np.ndarray
    choose: Callable[[np.ndarray, pa.Table], Mapping[int, int]]

    def places(self, made: pa.Table, rows: int) -> np.ndarray:
        """Place among the tasks, made in their order, of the one whose values each row takes."""
        good = np.flatnonzero(pc.equal(made["error_class"], "").to_numpy())
        chosen = self.choose(self.row_of[good], made.take(good))
        places = np.arange(rows)
        places[list(chosen)] = good[list(chosen.values())]
        return places


@dataclass(frozen=True)
class RowSet:
    """Rows of one ledger, with their recipe and worker.

    Attributes:
        ledger: its name.
        recipe: with a row's parts it determines the row's value.
        tasks: what the worker gets, a row each. The first column is the row's id.
        parts: names of the text columns of `tasks` that are hashed into the row's key.
        values: columns that the worker supplies.
        worker: computes the values.
        order: sort keys of the rows, in whose order they go to the workers; by default that of `tasks`.
        is_free: mask of rows that take no work, and so say nothing of a rate.
        added_part: text column of `tasks` that is a part newer than stored rows; null where the key is that of before.
        choice: among several tasks of one row, if rows have several.
    """

    ledger: str
    recipe: Recipe
    tasks: pa.Table
    parts: tuple[str, ...]
    values: pa.Schema
    worker: AnyWorker
    order: Sequence[str] | None = None
    is_free: np.ndarray | None = None
    added_part: str | None = None
    choice: Choice | None = None

    @cached_property
    def keys(self) -> pa.Array:
        """Ledger keys, in the order of `tasks`."""
        added = None if self.added_part is None else self.tasks[self.added_part].to_pylist()
        return pa.array(self.recipe.keys(*(_texts(self.tasks[part]) for part in self.parts), added=added), KEY)

    def rows_with(self, mask: np.ndarray, rows: int) -> np.ndarray:
        """Mask of the output's rows that have a task in a mask of tasks."""
        if self.choice is None:
            return mask[:rows]
        return np.bincount(self.choice.row_of[mask], minlength=rows).astype(bool)


@dataclass(frozen=True)
class Rows:
    """All rows of a stage.

    Attributes:
        carried: pass-through columns, in output order; the first is the row's id. The sets supply the other columns
            of the stage's schema.
        sets: rows to compute, in the order of `carried`. More rows behind these are computed; they are no part of the
            output, unless the set has a choice among them.
        refused: rows quarantined before any work.
    """

    carried: pa.Table
    sets: Sequence[RowSet]
    refused: Sequence[Refused] = ()


class RowStage(Stage):
    """Base class of stages whose rows are computed one by one, each at most once, through ledgers.

    The `execution` block of the stage's configuration section controls the fan-out. `meaning` names the columns that
    later stages depend on; a ledger's name in it stands for the rows' keys there. `is_rows_alone`: later stages read
    nothing else of the output, so that a plan knows it once no row is missing.
    """

    schema: ClassVar[pa.Schema]
    meaning: ClassVar[tuple[str, ...]]
    is_rows_alone: ClassVar[bool] = False

    @abstractmethod
    def rows(self, context: Context) -> Rows:
        """All rows of this stage."""

    def unwanted(self, context: Context, rows: pa.Table) -> Mapping[int, Refused]:
        """Hook before `finish`: rows that were made and that the configuration does not want, by their place."""
        return {}

    def finish(self, context: Context, rows: pa.Table, made: Mapping[str, pa.Table]) -> dict[str, Any]:
        """Hook before the commit; returns extra figures for the manifest.

        Args:
            rows: rows that did not fail, with all columns that were carried or made.
            made: row_id, error_class, message and values by ledger, in the order of its tasks; failed rows too.
        """
        return {}

    def work(self, context: Context) -> RowWork:
        return RowWork(self, context)


class RowWork(Work):
    """Work of a row stage: fan-out of the rows missing from its ledgers, then assembly of the output."""

    def __init__(self, stage: RowStage, context: Context) -> None:
        self.stage, self.context = stage, context
        self.rows = stage.rows(context)
        self.ledgers = [Ledger(context.storage, one.ledger, one.values) for one in self.rows.sets]
        self.is_missing = [
            is_missing(one.keys, ledger.read(), retry_failed=context.retry_failed)
            for one, ledger in zip(self.rows.sets, self.ledgers, strict=True)
        ]

    @property
    def counts(self) -> Counts:
        """A row that any set lacks is still to run."""
        rows, refused = self.rows.carried.num_rows, len(self.rows.refused)
        to_run = np.zeros(rows, bool)
        for one, mask in zip(self.rows.sets, self.is_missing, strict=True):
            to_run |= one.rows_with(mask, rows)
        return Counts(rows + refused, int(to_run.sum()), refused)

    @property
    def rows_by_ledger(self) -> dict[str, int]:
        return {one.ledger: int(mask.sum()) for one, mask in zip(self.rows.sets, self.is_missing, strict=True)}

    def make(self) -> Result:
        computed = self.counts.to_run
        usage = []
        for one, ledger, mask in zip(self.rows.sets, self.ledgers, self.is_missing, strict=True):
            for part, problem in ledger.damaged:
                self.context.say(f"{ledger.folder}/{part}: {problem}; set aside, its rows are made again")
            if mask.any():
                usage.append(self._compute(one, ledger, mask))
            ledger.settle()
        return replace(self._assemble(computed), usage=usage)

    def _compute(self, one: RowSet, ledger: Ledger, mask: np.ndarray) -> Usage:
        from pipelines.engine.fanout import fan_out  # `plan` starts without Ray

        todo = np.flatnonzero(mask)
        if one.order is not None:
            todo = todo[np.argsort(np.array(one.order)[todo], kind="stable")]
        usage = fan_out(
            one.tasks.take(todo),
            one.keys.take(todo),
            one.worker,
            ledger=ledger,
            recipe=one.recipe,
            workers=self._execution,
            check_share=partial(self._check_share, tasks=None if one.choice is None else one.tasks.num_rows),
            say=self.context.say,
        )
        usage = replace(usage, bytes=written_bytes(made_rows(one, ledger).take(pa.array(todo))))
        return usage if one.is_free is None else replace(usage, rows=usage.rows - int(one.is_free[todo].sum()))

    @property
    def _execution(self) -> Workers:
        execution: Workers = getattr(self.context.config, self.stage.config_section).execution
        return execution

    def _check_share(self, failed: int, tasks: int | None = None) -> None:
        """Raises RunError if more rows failed in the work than the configuration allows; of a choice's, more tasks."""
        rows, share = self.rows.carried.num_rows, self._execution.max_quarantined_share
        total = rows if tasks is None else tasks
        if failed > max(ALWAYS_ALLOWED_FAILURES * total / max(1, rows), share * total):
            name, section = self.stage.name, self.stage.config_section
            raise RunError(
                f"{name}: {failed} of {total} rows quarantined, more than {section}.execution.max_quarantined_share "
                f"({share:g}) allows, mostly for {self._commonest_failure()}; no later stage starts. Mend it and run "
                "again with --retry-failed, or raise that key"
            )

    def _commonest_failure(self) -> str:
        failures: Counter[str] = Counter()
        example: dict[str, str] = {}
        for one, ledger in zip(self.rows.sets, self.ledgers, strict=True):
            rows = ledger.read(("message",))
            failed = pc.and_(pc.not_equal(rows["error_class"], ""), pc.is_in(rows["key"], value_set=one.keys))
            for row in rows.filter(failed).select(["error_class", "message"]).to_pylist():
                failures[row["error_class"]] += 1
                example[row["error_class"]] = row["message"]
        [(error_class, _)] = failures.most_common(1)
        return f"{error_class} (such as: {example[error_class]})"

    def _assemble(self, computed: int) -> Result:
        """Fills the output folder with the rows, all of which are there."""
        made = {ledger.name: made_rows(one, ledger) for one, ledger in zip(self.rows.sets, self.ledgers, strict=True)}
        rows, quarantined, failed = self._assembled(made)
        self._check_share(failed)
        self.context.output.write_rows(rows.select(self.stage.schema.names).cast(self.stage.schema))
        figures = self.stage.finish(self.context, rows, made)
        total = self.rows.carried.num_rows + len(self.rows.refused)
        return Result(total, computed, table_digest(rows.select(self.stage.meaning)), quarantined, figures)

    def preview(self) -> Output | None:
        if not self.stage.is_rows_alone or any(mask.any() for mask in self.is_missing):
            return None
        made = {ledger.name: made_rows(one, ledger) for one, ledger in zip(self.rows.sets, self.ledgers, strict=True)}
        rows, quarantined, _ = self._assembled(made)
        total, fingerprint = self.rows.carried.num_rows + len(self.rows.refused), self.context.output.fingerprint
        digest, bad = table_digest(rows.select(self.stage.meaning)), len(quarantined)
        manifest = Manifest(self.stage.name, fingerprint, digest, total, total - bad, bad, 0, 0.0)
        return PreviewedOutput(
            self.context.storage, manifest, rows.select(self.stage.schema.names).cast(self.stage.schema)
        )

    def _assembled(self, made: Mapping[str, pa.Table]) -> tuple[pa.Table, list[Refused], int]:
        """Rows of the output with all columns that were carried or made, quarantined ones, and how many failed."""
        carried, stage = self.rows.carried, self.stage
        rows, bad = carried, np.zeros(carried.num_rows, bool)
        quarantined = list(self.rows.refused)
        for one in self.rows.sets:
            places = np.arange(rows.num_rows)
            if one.choice is not None:
                places = one.choice.places(made[one.ledger], rows.num_rows)
            table = made[one.ledger].take(places)
            for name in one.values.names:
                rows = rows.append_column(name, table[name])
            failed = pc.not_equal(table["error_class"], "").to_numpy() & ~bad
            quarantined += _refused(carried.column(0), table, failed)
            bad |= failed
            rows = rows.append_column(one.ledger, one.keys.take(pa.array(places)))
        rows = rows.filter(pa.array(~bad))
        unwanted = stage.unwanted(self.context, rows)
        quarantined += unwanted.values()
        rows = rows.take(pa.array([place for place in range(rows.num_rows) if place not in unwanted], pa.int64()))
        return rows, quarantined, int(bad.sum())


def is_missing(keys: pa.Array, known: pa.Table, *, retry_failed: bool) -> np.ndarray:
    """Mask of the keys that a ledger's table `known` lacks, or has as quarantined ones to be tried again."""
    if retry_failed:
        known = known.filter(pc.equal(known["error_class"], ""))
    mask: np.ndarray = ~pc.is_in(keys, value_set=known["key"].combine_chunks()).to_numpy(zero_copy_only=False)
    return mask


def _texts(column: pa.ChunkedArray) -> list[str]:
    """Texts of a column; equal ones of a column of shared texts are one object."""
    if not pa.types.is_dictionary(column.type):
        texts: list[str] = column.to_pylist()
        return texts
    column = column.unify_dictionaries().combine_chunks()
    values = column.dictionary.to_pylist()
    return [values[index] for index in column.indices.to_pylist()]


def made_rows(one: RowSet, ledger: Ledger) -> pa.Table:
    """Ledger rows of a set, in the order of its tasks."""
    known = ledger.read(("message", *one.values.names))
    places = pc.index_in(one.keys, value_set=known["key"].combine_chunks())
    if places.null_count:
        raise RunError(
            f"{one.ledger}: {places.null_count} rows changed under way (files that were replaced, or a damaged part of "
            "the ledger); the same command plans them again"
        )
    return known.take(places).append_column("row_id", one.tasks.column(0))


def written_bytes(rows: pa.Table) -> int:
    """Bytes of rows: of the different files that they name, and of their values before compression."""
    total: int = rows.nbytes
    for column in rows.column_names:
        if column + BYTES_SUFFIX in rows.column_names:
            sizes = rows.group_by(column).aggregate([(column + BYTES_SUFFIX, "max")])
            total += pc.sum(sizes.column(sizes.num_columns - 1)).as_py() or 0
    return total


def _refused(ids: pa.ChunkedArray, table: pa.Table, failed: np.ndarray) -> list[Refused]:
    columns = (ids, table["error_class"], table["message"])
    return [Refused(*row) for row in zip(*(c.filter(pa.array(failed)).to_pylist() for c in columns), strict=True)]


def with_constants(table: pa.Table, **columns: str) -> pa.Table:
    """Table with more columns, each of one text in all rows."""
    for name, text in columns.items():
        table = table.append_column(name, shared_texts([text] * table.num_rows))
    return table


def shared_texts(texts: Sequence[str]) -> pa.Array:
    """Column of texts of which many are equal; each is stored once."""
    places: dict[str, int] = {}
    indices = [places.setdefault(text, len(places)) for text in texts]
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(list(places), pa.string()))
