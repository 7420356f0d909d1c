"""The comparison itself: a changed value is named with its place, and floats have the tolerance that they are given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

RECORDED = {"clip": {"caption": "a bell", "rms": 0.5, "frames": 96, "kept": True, "quarters": [0.1, 0.2]}}


@pytest.fixture
def recorded(golden: Any, tmp_path: Path) -> Any:
    """Values of a file of its own."""
    made = golden("comparison")
    made.file, made.recording = tmp_path / "comparison.json", True
    made.check("part", RECORDED)
    made.recording = False
    return made


def changed(**values: Any) -> dict[str, Any]:
    return {"clip": RECORDED["clip"] | values}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (changed(caption="a drum"), 'part / clip / caption: was "a bell", is "a drum"'),
        (changed(rms=0.56), "part / clip / rms: was 0.5, is 0.56 (may differ by 0.05)"),
        (changed(rms=None), "part / clip / rms: was 0.5, is null"),
        (changed(frames=95), "part / clip / frames: was 96, is 95"),
        (changed(kept=1), "part / clip / kept: was true, is 1"),
        (changed(quarters=[0.1, 0.3]), "part / clip / quarters / [1]: was 0.2, is 0.3"),
        (changed(quarters=[0.1]), "part / clip / quarters: had 2 items, has 1"),
        (changed(new="x"), 'part / clip / new: is new: "x"'),
        ({}, "part / clip: was {"),
    ],
)
def test_what_differs_is_named(recorded: Any, found: Any, words: str) -> None:
    with pytest.raises(pytest.fail.Exception) as failed:
        recorded.check("part", found, {"rms": (0.1, 0.0)})
    assert words in str(failed.value) and "--record" in str(failed.value)


def test_what_is_near_enough_passes(recorded: Any) -> None:
    recorded.check("part", changed(rms=0.54), {"rms": (0.1, 0.0)})
    recorded.check("part", changed(quarters=[0.15, 0.16]), {"quarters": (0.0, 0.051)})


def test_a_part_that_is_not_recorded_fails(recorded: Any) -> None:
    with pytest.raises(pytest.fail.Exception, match="has no part 'other'"):
        recorded.check("other", {})


def test_every_file_can_be_compared_with_itself(golden: Any, tmp_path: Path) -> None:
    """And each of its parts fails once one value of it is another."""
    for file in Path(__file__).parent.glob("*.json"):
        values = golden(file.stem)
        values.file, values.recording = Path(shutil.copy(file, tmp_path)), False
        for part, value in json.loads(file.read_text()).items():
            values.check(part, value)
            with pytest.raises(pytest.fail.Exception, match="1 values of"):
                values.check(part, with_another_leaf(value))


def with_another_leaf(value: Any) -> Any:
    if isinstance(value, dict) and value:
        key = next(iter(value))
        return value | {key: with_another_leaf(value[key])}
    if isinstance(value, list) and value:
        return [with_another_leaf(value[0]), *value[1:]]
    return f"not {value}"
