"""What a stage is. A stage says what it means (its spec), which rows it has to make, and makes them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Protocol

import pyarrow as pa

from pipelines.config import Config, Workers
from pipelines.fingerprint import digest
from pipelines.ledger import Entry, Ledger, missing
from pipelines.storage import Storage
from pipelines.store import Manifest, Output


@dataclass(frozen=True)
class Spec:
    """`meaning` is hashed into the fingerprint. `origins` maps its dotted paths to the file a person would edit."""

    meaning: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Counts:
    """Rows a stage covers, rows it would still have to compute, and rows it refuses before any work."""

    total: int
    to_run: int
    refused: int = 0


@dataclass(frozen=True)
class Context:
    """All that a stage may use: the configuration, the storage and its inputs' committed outputs."""

    config: Config
    storage: Storage
    inputs: Mapping[str, Output]
    output: Output
    say: Callable[[str], None] = print
    retry_failed: bool = False


class NotYetKnown(Exception):
    """A spec that cannot be told before some work is done; `counts` is the best that can be said."""

    def __init__(self, reason: str, counts: Counts) -> None:
        super().__init__(reason)
        self.counts = counts


class Stage(ABC):
    """One step of the pipeline. Subclasses are stateless; all state lives in the store and the ledger."""

    name: ClassVar[str]
    code_version: ClassVar[int] = 1

    @abstractmethod
    def inputs(self, config: Config) -> tuple[str, ...]:
        """Names of the stages whose outputs this one reads."""

    def prepare(self, config: Config, storage: Storage, say: Callable[[str], None]) -> None:  # noqa: B027
        """Work that has to come before the spec is known; most stages have none."""

    @abstractmethod
    def spec(self, config: Config, storage: Storage) -> Spec:
        """What the stage means under this configuration. Raises NotYetKnown before `prepare`, UserError for
        files or checkpoints that are missing."""

    @abstractmethod
    def counts(self, context: Context) -> Counts: ...

    @abstractmethod
    def run(self, context: Context) -> Manifest: ...


@dataclass(frozen=True)
class Row:
    """One row to make. `key_parts` are all that decides its value; `task` is what the worker needs;
    `carried` are columns that the output keeps beside the value but that do not decide it."""

    row_id: str
    key_parts: Mapping[str, Any]
    task: Mapping[str, Any]
    carried: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        return digest(self.key_parts)


@dataclass(frozen=True)
class Refused:
    """A row that is quarantined before any work: its input is missing, doubled, or not fit for the stage."""

    row_id: str
    error_class: str
    message: str


@dataclass(frozen=True)
class Failed:
    """A worker's report of a row it could not make."""

    error_class: str
    message: str


class Worker(Protocol):
    """Lives in an actor: built once, given batches of tasks, answers in the same order."""

    def process(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any] | Failed]: ...


class RowStage(Stage):
    """A stage whose rows are computed one by one, each at most once, through the ledger."""

    schema: ClassVar[pa.Schema]

    @abstractmethod
    def rows(self, context: Context) -> tuple[list[Row], list[Refused]]:
        """All rows of this stage, cheaply: no model is loaded and no media is read."""

    @abstractmethod
    def worker(self, context: Context) -> Callable[[], Worker]:
        """A picklable recipe of the worker, run inside each actor."""

    @abstractmethod
    def execution(self, config: Config) -> Workers: ...

    @abstractmethod
    def meaning_of(self, row: Mapping[str, Any]) -> Any:
        """What later stages depend on in a finished row, as plain data: goes into the output digest."""

    def figures(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Extra figures for the manifest."""
        return {}

    def counts(self, context: Context) -> Counts:
        rows, refused = self.rows(context)
        todo = self._missing(rows, context)
        return Counts(len(rows) + len(refused), len(todo), len(refused))

    def run(self, context: Context) -> Manifest:
        from pipelines.fanout import fan_out

        started = time.monotonic()
        rows, refused = self.rows(context)
        todo = self._missing(rows, context)
        ledger = Ledger(context.storage, self.name)
        if todo:
            fan_out(
                [(row.row_id, row.key, dict(row.task)) for row in rows if row.row_id in todo],
                self.worker(context),
                ledger=ledger,
                workers=self.execution(context.config),
                label=self.name,
                say=context.say,
            )
            ledger.compact()
        return self._assemble(context, rows, refused, len(todo), time.monotonic() - started)

    def _missing(self, rows: Iterable[Row], context: Context) -> set[str]:
        known = Ledger(context.storage, self.name).read()
        return set(missing({row.row_id: row.key for row in rows}, known, retry_failed=context.retry_failed))

    def _assemble(
        self, context: Context, rows: list[Row], refused: list[Refused], computed: int, seconds: float
    ) -> Manifest:
        known = Ledger(context.storage, self.name).read()
        made: list[dict[str, Any]] = []
        quarantined = [
            {"row_id": r.row_id, "stage": self.name, "error_class": r.error_class, "message": r.message}
            for r in refused
        ]
        for row in sorted(rows, key=lambda row: row.row_id):
            entry: Entry = known[row.key]
            if entry.status == "ok":
                made.append({**row.carried, **entry.value})
            else:
                quarantined.append(
                    {
                        "row_id": row.row_id,
                        "stage": self.name,
                        "error_class": entry.error_class,
                        "message": entry.message,
                    }
                )
        context.output.write_rows(made, self.schema)
        context.output.write_quarantine(quarantined)
        return Manifest(
            stage=self.name,
            fingerprint=context.output.fingerprint,
            digest=digest([self.meaning_of(row) for row in made]),
            rows_in=len(rows) + len(refused),
            rows_out=len(made),
            rows_quarantined=len(quarantined),
            rows_computed=computed,
            seconds=round(seconds, 3),
            figures=self.figures(made),
        )
