"""Stages: a recipe, and the work that computes its rows. Stages are stateless; store and ledger hold all state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pipelines.engine.recipe import Recipe
from pipelines.engine.storage import Storage
from pipelines.engine.store import Output
from pipelines.engine.usage import Steps, Usage
from pipelines.run_config import Config


@dataclass(frozen=True)
class Counts:
    """Row counts of a stage: all rows, rows still to compute, and rows refused before any work."""

    total: int
    to_run: int
    refused: int = 0

    @property
    def has_begun(self) -> bool:
        """True if some rows that are worked on are there already."""
        return self.to_run < self.total - self.refused


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
    """Recipe that is unknown until some work is done; `counts` is the best estimate until then."""

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
        usage: of the workers that computed rows.
    """

    rows_in: int
    computed: int
    digest: str
    quarantined: Sequence[Refused] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    usage: Sequence[Usage] = ()


class Stage(ABC):
    """Base class of pipeline stages.

    Attributes:
        section: section of the configuration, where it has not the stage's name.
        config_keys: configuration key of a part of the recipe's meaning, where it is not `<stage>.<part>`.
        is_model: its output is a model: its rows are examples of a training, and bound nobody else's.
        split: the split whose clips it works on; empty: all.
        is_aside: it tells of some rows of another stage, perhaps of none, and its number of rows bounds nobody else's.
    """

    name: ClassVar[str]
    section: ClassVar[str] = ""
    config_keys: ClassVar[Mapping[str, str]] = {}
    ledgers: ClassVar[tuple[str, ...]] = ()
    is_model: ClassVar[bool] = False
    is_aside: ClassVar[bool] = False
    split: ClassVar[str] = ""
    reads: ClassVar[tuple[str, ...]] = ()

    @property
    def config_section(self) -> str:
        """Name of its section in the configuration."""
        return self.section or self.name

    def is_wanted(self, config: Config) -> bool:
        """Whether a configuration has this stage. Plan, run and report pass over one that is not wanted."""
        return True

    def inputs(self, config: Config) -> tuple[str, ...]:
        """Names of the stages whose outputs this one reads under a configuration."""
        return self.reads

    @abstractmethod
    def recipe(self, config: Config, storage: Storage) -> Recipe:
        """Recipe of the stage's rows under this configuration.

        Raises:
            NotYetKnown: work must be done before, which `recipe_to_run` does.
            UserError: a file or checkpoint is missing.
        """

    def check(self, config: Config, storage: Storage) -> None:
        """Raises UserError for what a run would miss later: called for all stages before the first one runs."""
        self.recipe(config, storage)

    def recipe_to_run(self, config: Config, storage: Storage, say: Callable[[str], None]) -> Recipe:
        """Recipe as of `recipe`, after the work, if any, that must be done before it is known."""
        return self.recipe(config, storage)

    def tasks_a_row(self, config: Config) -> int:
        """Tasks that one row takes in each ledger, at most."""
        return 1

    def work_recipes(self, config: Config, storage: Storage) -> Mapping[str, Recipe]:
        """Recipes of the rows by ledger, as far as they say what a row takes. No work is done before."""
        return dict.fromkeys(self.ledgers, self.recipe(config, storage))

    def steps(self, config: Config, storage: Storage, rows: int) -> Steps | None:
        """Steps of a training on so many rows; None for other stages, and for a given model. Errors: as `recipe`."""
        return None

    @abstractmethod
    def work(self, context: Context) -> Work:
        """Work of the stage in `context`. Cheap: no model is loaded and no media are read before `make`."""


class Work(ABC):
    """Work of a stage in a context."""

    @property
    @abstractmethod
    def counts(self) -> Counts:
        """Row counts of the output."""

    @property
    def rows_by_ledger(self) -> Mapping[str, int] | None:
        """Rows that each ledger lacks; None for work without ledgers."""
        return None

    @abstractmethod
    def make(self) -> Result:
        """Computes missing rows and fills the output folder."""

    def preview(self) -> Output | None:
        """Output that a run would commit without computing a row; None if it is not known. Nothing is written."""
        return None


@dataclass(frozen=True)
class WholeWork(Work):
    """Work of a stage that is computed as a whole, all rows or none."""

    total: int
    fill: Callable[[], Result]
    """Fills the output folder."""

    @property
    def counts(self) -> Counts:
        return Counts(self.total, self.total)

    def make(self) -> Result:
        return self.fill()
