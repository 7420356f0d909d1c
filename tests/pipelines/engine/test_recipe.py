"""Recipes: what is in a key, and that keys of stored rows outlive a new field."""

from dataclasses import dataclass, field
from typing import Any

from pipelines.engine.fingerprint import canonical, stage_fingerprint
from pipelines.engine.recipe import Recipe, added, per_row, unhashed


@dataclass(frozen=True)
class Sampling:
    temperature: float = 0.5


@dataclass(frozen=True)
class LaterSampling(Sampling):
    top_k: int = field(default=40, metadata={"before": 0})


class SlottedSettings:
    @dataclass(frozen=True, slots=True)
    class Before:
        steps: int = 3

    @dataclass(frozen=True, slots=True)
    class Later:
        steps: int = 3
        warmup: int = field(default=0, metadata={"before": 0})

        def to_dict(self) -> dict[str, Any]:
            return {"steps": self.steps, "warmup": self.warmup}


@dataclass(frozen=True)
class Caption(Recipe):
    model: str
    sampling: Any
    prompts: str = per_row(default="listen")
    folder: str = unhashed(default="/data")


@dataclass(frozen=True)
class LaterCaption(Caption):
    loudness_db: float = added(before=0.0, default=0.0)


def _identity(recipe: Recipe) -> tuple[Any, ...]:
    return stage_fingerprint("s", canonical(recipe.meaning()), {}), recipe.keys(["a", "b"], ["x", "y"])


def test_a_new_field_with_the_value_of_before_changes_no_key_and_no_fingerprint() -> None:
    before = _identity(Caption("m", Sampling()))
    assert _identity(LaterCaption("m", Sampling())) == before
    assert _identity(LaterCaption("m", LaterSampling(top_k=0))) == before
    settings = _identity(Caption("m", SlottedSettings.Before()))
    assert _identity(LaterCaption("m", SlottedSettings.Later())) == settings
    for other in (
        LaterCaption("m", Sampling(), loudness_db=1.0),
        Caption("m", LaterSampling()),  # its default is another than the value of before: rows are made again
        Caption("m", SlottedSettings.Later(warmup=1)),
    ):
        fingerprint, keys = _identity(other)
        assert fingerprint not in (before[0], settings[0]), other
        assert not set(keys) & {*before[1], *settings[1]}, other


def test_keys_of_stored_rows_are_frozen() -> None:
    """A failure here means that every store's rows would be made again: raise a `code_version` instead."""
    recipe = Caption("m", Sampling())
    assert recipe.keys(["a"], ["long" * 40]) == [bytes.fromhex("3ba24875fafac8048bc0c56a5d09c859")]
    assert stage_fingerprint("captions", recipe.meaning(), {"clips": "0" * 64}) == "957902c59c5a"


def test_roles_say_what_is_in_the_key_and_what_in_the_fingerprint() -> None:
    recipe = Caption("m", Sampling())
    reworded, moved = Caption("m", Sampling(), prompts="hear"), Caption("m", Sampling(), folder="/other")
    assert reworded.keys(["a"]) == recipe.keys(["a"])
    assert reworded.meaning() != recipe.meaning()
    assert moved.meaning() == recipe.meaning()


def test_texts_of_a_key_cannot_run_into_each_other() -> None:
    recipe = Caption("m", Sampling())
    columns = ["ab", "a", "", "1:a"], ["c", "bc", "abc", "c"]
    assert len(set(recipe.keys(*columns))) == 4


def test_a_part_that_is_newer_than_stored_rows_is_in_no_key_where_it_is_none() -> None:
    recipe = Caption("m", Sampling())
    before = recipe.keys(["a", "a", "b"], ["x", "x", "y"])
    first, second, other = recipe.keys(["a", "a", "b"], ["x", "x", "y"], added=[None, "1", None])
    assert [first, other] == [before[0], before[2]] and second != first
    assert recipe.keys(["a"], ["x"], added=[""]) != [first], "no text is a text too"
    assert recipe.keys(["a"], ["x"], added=["1"]) == [second] == recipe.keys(["a"], ["x"], ["1"])


def test_a_new_field_of_a_rows_parts_changes_the_fingerprint_only_if_it_is_not_as_before() -> None:
    @dataclass(frozen=True)
    class WithSilence(Caption):
        silence: str | None = per_row(before=None, default=None)

    before = _identity(Caption("m", Sampling()))
    assert _identity(WithSilence("m", Sampling())) == before
    fingerprint, keys = _identity(WithSilence("m", Sampling(), silence="Silence."))
    assert fingerprint != before[0] and keys == before[1]


def test_a_raised_code_version_changes_keys() -> None:
    class Again(Caption):
        code_version = 2

    again, recipe = Again("m", Sampling()), Caption("m", Sampling())
    assert not set(again.keys(["a"])) & set(recipe.keys(["a"]))
    assert again.meaning() != recipe.meaning()
