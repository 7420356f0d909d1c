"""A row stage as a whole: too many failures stop a run; a source that changes on the way is planned again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from miniature.world.corpus import generate_corpus
from miniature.world.film import World
from pipelines.config_file import load_config
from pipelines.engine.ledger import Failed, counted_rows
from pipelines.engine.recipe import Recipe
from pipelines.engine.row_stage import Rows, RowSet, RowStage
from pipelines.engine.runner import run_stages
from pipelines.engine.stage import Context
from pipelines.engine.storage import Storage
from pipelines.errors import RunError
from pipelines.run_config import Config
from pipelines.stages.clips import ClipsStage

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
ROWS = 40
SQUARE = pa.schema([("square", pa.int64())])
pytestmark = pytest.mark.usefixtures("local_ray")


class PickyWorker:
    """Squares numbers, and refuses those below a limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def setup(self) -> None:
        pass

    def process(self, tasks: list[dict[str, Any]]) -> Sequence[dict[str, Any] | Failed | None]:
        numbers = [int(task["id"]) for task in tasks]
        return [Failed("TooSmall", f"{n} is small") if n < self.limit else {"square": n * n} for n in numbers]


class SquaresStage(RowStage):
    name = "clips"  # whose execution it uses
    ledgers = ("squares",)
    schema = pa.schema([("id", pa.string()), *SQUARE])
    meaning = ("id", "square")

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def recipe(self, config: Config, storage: Storage) -> Recipe:
        return Recipe()

    def rows(self, context: Context) -> Rows:
        ids = pa.table({"id": [str(n) for n in range(ROWS)]})
        return Rows(ids, [RowSet("squares", context.recipe, ids, ("id",), SQUARE, PickyWorker(self.limit))])


def test_too_many_quarantined_rows_end_the_run_before_the_stage_is_committed(tmp_path: Path) -> None:
    config = load_config(DEMO, [f"root={tmp_path}/store"])
    said = r"of 40 rows quarantined, more than clips.execution.max_quarantined_share \(0.1\).*TooSmall \(such as: \d+"
    with pytest.raises(RunError, match=said):
        run_stages([SquaresStage(limit=20)], config, say=lambda _: None)
    assert not Storage(config.root).exists("clips/latest.json")


def test_few_quarantined_rows_do_not(tmp_path: Path) -> None:
    config = load_config(DEMO, [f"root={tmp_path}/store"])
    [one] = run_stages([SquaresStage(limit=10)], config, say=lambda _: None)
    assert (one.manifest.rows_out, one.manifest.rows_quarantined) == (ROWS - 10, 10)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    generate_corpus(folder, clips=3, seed=2, workers=1, world=World(duration_s=2.0))
    return folder


def test_the_bytes_that_are_normalised_are_those_that_were_hashed(corpus: Path, tmp_path: Path) -> None:
    """One film is replaced by another between hashing and normalising: it gets no row under the old identity."""
    config = load_config(
        DEMO, [f"root={tmp_path}/store", f"source.folder={corpus}/videos", "source.table=null", "clips.duration_s=1.5"]
    )
    first, *_, last = sorted((corpus / "videos").iterdir())
    replaced = first.read_bytes()

    def replace_first(line: str) -> None:
        if line.endswith("rows to run"):  # hashed, and not normalised yet
            first.write_bytes(last.read_bytes() + b"\0")

    storage = Storage(config.root)
    with pytest.raises(RunError, match="clips: 1 rows changed under way .* plans them again"):
        run_stages([ClipsStage()], config, say=replace_first)
    assert sum(counted_rows(storage, "clips")) == 2
    first.write_bytes(replaced)
    [one] = run_stages([ClipsStage()], config, say=lambda _: None)
    assert (one.manifest.rows_out, one.rows_computed) == (3, 1)
