import json
from fractions import Fraction

import pytest

from flowley.network.presets import preset


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"N2": 1}, "N2 - 1"),
        ({"delta": -1}, "delta = -1"),
        ({"D": 98}, "D = 98 with 2 heads"),
        ({"epsilon": -1e-6}, "epsilon = -1e-06"),
        ({"epsilon": 1.0}, "epsilon = 1.0"),
        ({"delta": "-0.5", "window_unit": "seconds"}, "delta = -1/2, wanted >= 0 seconds"),
        ({"omega": "wide"}, "omega"),
        ({"window_unit": "minutes"}, "window_unit"),
        ({"depth": 3}, "depth"),
        ({"N1": "two"}, "N1"),
        ({"alignment": "floor"}, "alignment"),
    ],
)
def test_bad_fields_are_named_with_the_reason(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        preset("tiny", **changes)


def test_rates_stay_exact() -> None:
    assert preset("tiny", r_a=43.07).r_a == Fraction(4307, 100)
    assert preset("tiny", r_a="44100/1024").r_a == Fraction(44100, 1024)
    assert preset("tiny", r_a=31.25).r_a == Fraction(125, 4)


def test_windows_stay_exact() -> None:
    """0.1 s is a tenth, not its nearest double; frames stay as they are."""
    config = preset("tiny", r_v=25, omega=0.1, delta="1/3", window_unit="seconds")
    assert config.window_frames == (Fraction(5, 2), Fraction(25, 3))
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert preset("tiny", r_v=25).window_frames == (0, 4)


@pytest.mark.parametrize(
    ("r_a", "r_v", "duration_s", "lengths"),
    [
        ("125/4", 8, 8.0, (250, 64)),
        (25, 8, 8.0, (200, 64)),
        ("44100/1024", 8, 8.0, (345, 64)),
        (4, 8, 8.0, (32, 64)),
        ("125/4", 8, 0.01, (1, 1)),
    ],
)
def test_lengths_follow_from_durations_and_rates(
    r_a: str, r_v: int, duration_s: float, lengths: tuple[int, int]
) -> None:
    assert preset("tiny", r_a=r_a, r_v=r_v).lengths(duration_s) == lengths


def test_no_duration_no_lengths() -> None:
    with pytest.raises(ValueError, match="0 s has no frames"):
        preset("tiny").lengths(0.0)
