"""Reasons that a plan gives for work."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import pytest

from pipelines.config_file import load_config, section_of
from pipelines.engine.plan import explain, make_plan
from pipelines.engine.recipe import Recipe
from pipelines.engine.runner import run_stages
from pipelines.engine.stage import Context, Result, Stage, WholeWork
from pipelines.engine.storage import Storage
from pipelines.run_config import Config
from pipelines.stages import STAGES

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"


@dataclass(frozen=True)
class WordsRecipe(Recipe):
    words: tuple[str, ...]
    most: int


class WordsStage(Stage):
    name = "words"
    config_keys: ClassVar[Mapping[str, str]] = {"words": "source.words"}

    def __init__(self, recipe: WordsRecipe, rows: int) -> None:
        self.now, self.n_rows = recipe, rows

    def inputs(self, config: Config) -> tuple[str, ...]:
        return ()

    def recipe(self, config: Config, storage: Storage) -> WordsRecipe:
        return self.now

    def work(self, context: Context) -> WholeWork:
        return WholeWork(self.n_rows, lambda: Result(self.n_rows, self.n_rows, "digest"))


def reason(tmp_path: Path, before: WordsRecipe, after: WordsRecipe, rows_after: int = 2) -> str:
    config = load_config(DEMO, [f"root={tmp_path}/store"])
    run_stages([WordsStage(before, 2)], config, say=lambda line: None)
    [plan] = make_plan([WordsStage(after, rows_after)], config, Storage(config.root))
    return plan.reason


def test_only_what_changed_is_named(tmp_path: Path) -> None:
    """An empty tuple is stored as a list, which is the same."""
    assert reason(tmp_path, WordsRecipe((), 3), WordsRecipe((), 4)) == "words.most: 3 -> 4"


def test_items_of_a_list_are_named_by_their_place(tmp_path: Path) -> None:
    said = reason(tmp_path, WordsRecipe(("red", "blue"), 3), WordsRecipe(("red",), 3))
    assert said == "source.words[1]: blue removed"


def test_another_number_of_rows_is_said(tmp_path: Path) -> None:
    same = WordsRecipe((), 3)
    assert reason(tmp_path, same, WordsRecipe((), 4), 1) == "words.most: 3 -> 4 (1 rows, 2 before)"


@pytest.mark.parametrize("key", sorted({key for stage in STAGES for key in stage.config_keys.values()}))
def test_named_keys_are_configuration_keys(key: str) -> None:
    section: Any = Config
    for name in key.split("."):
        section = section_of(get_type_hints(section)[name])


def _spec(*warnings: tuple[str, str], file: str = "w.yaml") -> dict[str, Any]:
    """Spec of captions with warnings (name, text)."""
    return {
        "stage": "captions",
        "inputs": {},
        "meaning": {"prompts": {"instruction": "Describe.", "warnings": [{"text": text} for _, text in warnings]}},
        "origins": {
            "prompts.instruction": "i.yaml",
            **{f"prompts.warnings[{k}]": f"{file} (warning `{name}`)" for k, (name, _) in enumerate(warnings)},
        },
    }


def test_long_values_are_shown_from_where_they_differ() -> None:
    specs = [_spec() | {"meaning": {"model": f"owner/a-model-with-a-long-name@{digit * 40}"}} for digit in "12"]
    specs = [spec | {"origins": {}} for spec in specs]
    said = explain(specs[0], specs[1], {}, has_begun=False)
    assert said == f"captions.model: ...{'1' * 18}... -> ...{'2' * 18}..."


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (_spec(("new", "N"), ("a", "A"), ("b", "B")), "w.yaml (warning `new`) added"),
        (_spec(("b", "B")), "w.yaml (warning `a`) removed"),
        (_spec(("a", "A"), ("b", "C")), "w.yaml (warning `b`) changed"),
        (_spec(("a", "A"), ("c", "C")), "w.yaml (warning `c`) added; w.yaml (warning `b`) removed"),
        (_spec(("b", "B"), ("a", "A")), "w.yaml: another order"),
        (_spec(("a", "A"), ("b", "C"), file="copy.yaml"), "copy.yaml (warning `b`) changed"),
        (_spec(), "w.yaml (warning `a`) removed; w.yaml (warning `b`) removed"),
    ],
    ids=["added in front", "removed", "changed", "another one", "order", "in a copy of the file", "all removed"],
)
def test_warnings_are_told_by_what_became_of_them(now: dict[str, Any], said: str) -> None:
    assert explain(_spec(("a", "A"), ("b", "B")), now, {}, has_begun=False) == said
