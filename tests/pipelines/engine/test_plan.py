"""Reasons that a plan gives for work."""

from dataclasses import dataclass
from pathlib import Path

from pipelines.engine.plan import make_plan
from pipelines.engine.recipe import Recipe
from pipelines.engine.runner import run_stages
from pipelines.engine.stage import Context, Result, Stage, WholeWork
from pipelines.engine.storage import Storage
from pipelines.run_config import Config, load_config

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"


@dataclass(frozen=True)
class WordsRecipe(Recipe):
    words: tuple[str, ...]
    most: int


class WordsStage(Stage):
    name = "words"

    def __init__(self, recipe: WordsRecipe) -> None:
        self.now = recipe

    def inputs(self, config: Config) -> tuple[str, ...]:
        return ()

    def recipe(self, config: Config, storage: Storage) -> WordsRecipe:
        return self.now

    def work(self, context: Context) -> WholeWork:
        return WholeWork(1, lambda: Result(1, 1, "digest"))


def reason(tmp_path: Path, before: WordsRecipe, after: WordsRecipe) -> str:
    config = load_config(DEMO, [f"root={tmp_path}/store"])
    run_stages([WordsStage(before)], config, say=lambda line: None)
    [plan] = make_plan([WordsStage(after)], config, Storage(config.root))
    return plan.reason


def test_only_what_changed_is_named(tmp_path: Path) -> None:
    """An empty tuple is stored as a list, which is the same."""
    assert reason(tmp_path, WordsRecipe((), 3), WordsRecipe((), 4)) == "most: 3 -> 4"


def test_items_of_a_list_are_named_by_their_place(tmp_path: Path) -> None:
    said = reason(tmp_path, WordsRecipe(("red", "blue"), 3), WordsRecipe(("red",), 3))
    assert said == "words[1]: blue removed"
