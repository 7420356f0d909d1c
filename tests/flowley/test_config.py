from fractions import Fraction

import pytest
import torch

from flowley.config import PRESETS, FlowleyConfig, preset
from flowley.model import Flowley


@pytest.mark.parametrize(("name", "millions"), [("flowley_169m", 169.3), ("flowley_release", 170.9)])
def test_parameter_counts_of_the_presets(name: str, millions: float) -> None:
    """The paper says 169M; the released file is 683.6 MB of fp32, 170.9 M."""
    with torch.device("meta"):
        assert round(Flowley(preset(name)).n_parameters / 1e6, 1) == millions


def test_untied_release_is_the_size_the_paper_cannot_mean() -> None:
    with torch.device("meta"):
        untied = Flowley(preset("flowley_release", tie_single_blocks=False))
    assert round(untied.n_parameters / 1e6, 1) == 277.1


@pytest.mark.parametrize("name", PRESETS)
def test_dict_round_trip(name: str) -> None:
    assert FlowleyConfig.from_dict(PRESETS[name].to_dict()) == PRESETS[name]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"N2": 1}, "N2 - 1"),
        ({"delta": -1}, "delta = -1"),
        ({"D": 98}, "D = 98 with 2 heads"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"depth": 3}, "depth"),
        ({"N1": "two"}, "N1"),
        ({"alignment": "floor"}, "alignment"),
    ],
)
def test_bad_fields_are_named_with_the_reason(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        preset("tiny", **changes)


def test_unknown_preset_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="flowley_169m, flowley_release, tiny"):
        preset("flowley_1b")


def test_rates_stay_exact() -> None:
    assert preset("tiny", r_a=43.07).r_a == Fraction(4307, 100)
    assert preset("tiny", r_a="44100/1024").r_a == Fraction(44100, 1024)
    assert preset("tiny", r_a=31.25).r_a == Fraction(125, 4)


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
