"""Scorecard of captions: what each measure counts, and when two sets part."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from soundcap.caption_scores import (
    AGREEMENT,
    JUDGED,
    LEAST_DIFFERENT,
    LEVEL,
    Measure,
    changed_share,
    compare,
    distinct,
    expanded_tail,
    measure,
    word_changes,
)
from soundcap.curate import Agreement, CaptionRow, Rules
from soundcap.prompts import NoiseWarning

MUSIC = NoiseWarning("music", "No music.", "w.yaml", except_labels=("playing *",), violations=("music", "violins?"))
NO_RULES = Rules(min_words=2, refusals=None, meta_talk=None, sound_words=None, max_visual_words=None)
ROWS = [
    CaptionRow("a", "dog barking", "Loud barks and soft music."),
    CaptionRow("b", "dog barking", "An engine idles."),
    CaptionRow("c", "playing violin", "A violin sings."),
    CaptionRow("d", "playing violin", "A bow scrapes slowly."),
    CaptionRow("e", "music box", "A bell."),
    CaptionRow("f", "", "Nothing"),
]


def test_what_each_measure_counts() -> None:
    found = {one.name: one for one in measure(ROWS, NO_RULES, [MUSIC])}
    nan = np.nan
    # a is reached and says it; c and d are spared; e is reached, but its label says the like
    assert np.array_equal(found["violates music"].values, [1, 0, nan, nan, 0, 0], equal_nan=True)
    # d and e are true music of which the caption says nothing
    assert np.array_equal(found["silences music"].values, [nan, nan, 0, 1, 1, nan], equal_nan=True)
    assert np.array_equal(found["names label"].values, [1, 0, 1, 0, 0, nan], equal_nan=True)
    assert found["words"].values.tolist() == [5, 3, 3, 4, 2, 1]
    assert found["kept"].values.tolist() == [0, 1, 1, 1, 1, 0]
    assert found["drop: music"].mean == pytest.approx(1 / 6) and found["drop: too_short"].values[5] == 1
    assert found["silences music"].clips == 3 and found["silences music"].mean == pytest.approx(2 / 3)


def test_agreement_is_measured_where_it_is_known() -> None:
    nan = np.nan
    agreements = [Agreement(0.5, 0.25), Agreement(0.25, 0.5), Agreement(0.3, 0.3), Agreement(0.1, None), None]
    rows = [replace(row, agreement=one) for row, one in zip(ROWS, [*agreements, Agreement(nan, nan)], strict=True)]
    found = {one.name: one for one in measure(rows, NO_RULES, [MUSIC])}
    assert np.array_equal(found[AGREEMENT].values, [0.5, 0.25, 0.3, 0.1, nan, nan], equal_nan=True)
    assert np.array_equal(found["below the label's own"].values, [0, 1, 0, nan, nan, nan], equal_nan=True)
    assert found[AGREEMENT].mean == pytest.approx(0.2875) and found[AGREEMENT].clips == 4
    assert (found[AGREEMENT].better, found["below the label's own"].better) == ("higher", "lower")
    assert AGREEMENT not in {one.name for one in measure(ROWS, NO_RULES, [MUSIC])}


def test_verdicts_are_a_measure_where_one_is_clear() -> None:
    verdicts = [True, False, None, True, None, True]
    rows = [replace(row, judged_true=one) for row, one in zip(ROWS, verdicts, strict=True)]
    found = {one.name: one for one in measure(rows, NO_RULES, [MUSIC])}[JUDGED]
    assert np.array_equal(found.values, [1, 0, np.nan, 1, np.nan, 1], equal_nan=True)
    assert (found.mean, found.clips, found.better) == (0.75, 4, "higher")
    assert JUDGED not in {one.name for one in measure(ROWS, NO_RULES, [MUSIC])}


def test_distinct_runs_of_words() -> None:
    assert distinct(["a dog barks", "a dog barks"], 2) == 0.5
    assert distinct(["a dog", "A cat"], 1) == 0.75
    assert np.isnan(distinct(["word"], 2))


def _pair(a: list[float], b: list[float], better: str = "lower") -> tuple[list[Measure], list[Measure]]:
    return [Measure("m", better, np.array(a, float))], [Measure("m", better, np.array(b, float))]  # type: ignore[arg-type]


def test_a_clear_difference_parts_and_a_small_one_says_what_it_would_take() -> None:
    [clear] = compare(*_pair([1] * 60 + [0] * 40, [0] * 50 + [1] * 10 + [0] * 40))
    assert clear.verdict == "better" and clear.clips_needed is None
    assert (clear.a, clear.b) == (0.6, 0.1) and clear.low < -0.5 < clear.high < 0
    [small] = compare(*_pair([1, 0] * 50, [1, 0] * 48 + [0, 0] * 2))
    assert small.verdict == "" and small.clips_needed is not None and small.clips_needed > 300
    [same] = compare(*_pair([1, 0], [1, 0]))
    assert (same.verdict, same.clips_needed, same.low, same.high) == ("", None, 0, 0)


def test_few_clips_give_no_verdict_however_they_fall() -> None:
    few = LEAST_DIFFERENT - 1
    [found] = compare(*_pair([1] * few, [0] * few))
    assert found.verdict == "" and found.clips_needed == LEAST_DIFFERENT
    [found] = compare(*_pair([1] * LEAST_DIFFERENT, [0] * LEAST_DIFFERENT))
    assert found.verdict == "better"
    assert 2 * 0.5**LEAST_DIFFERENT < 1 - LEVEL <= 2 * 0.5**few


def test_verdicts_know_what_is_better() -> None:
    a, b = [0.0] * 20, [1.0] * 20
    assert [compare(*_pair(a, b, better))[0].verdict for better in ("higher", "lower", "")] == [
        "better",
        "worse",
        "parts",
    ]


def test_clips_of_which_one_set_says_nothing_are_left_out() -> None:
    [found] = compare(*_pair([1, np.nan, 0], [1, 1, np.nan]))
    assert found.clips == 1 and found.a == found.b == 1
    [nothing] = compare(*_pair([np.nan], [np.nan]))
    assert nothing.clips == 0 and nothing.verdict == "" and np.isnan(nothing.a)


def test_a_rule_that_drops_nothing_in_one_set_counts_as_zero() -> None:
    [found] = compare([], [Measure("drop: music", "lower", np.ones(30))])
    assert (found.a, found.b, found.verdict) == (0, 1, "worse")


def test_agreement_that_one_set_lacks_is_no_zero() -> None:
    [found] = compare([], [Measure(AGREEMENT, "higher", np.ones(30))])
    assert found.clips == 0 and found.verdict == "" and np.isnan(found.a)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_intervals_are_those_of_scipy(seed: int) -> None:
    """The same percentile bootstrap, drawn clip by clip: ends agree within the noise of the draws."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 2, 80).astype(float), rng.integers(0, 2, 80).astype(float)
    [ours] = compare(*_pair(a.tolist(), b.tolist()))
    theirs = stats.bootstrap(
        (b - a,),
        np.mean,
        n_resamples=2000,
        confidence_level=1 - 2 * expanded_tail(80),
        method="percentile",
        random_state=seed,
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.05) and ours.high == pytest.approx(theirs.high, abs=0.05)


def test_equal_sets_seldom_part() -> None:
    """Of 300 pairs of sets that differ by chance alone, about one in a hundred parts."""
    rng = np.random.default_rng(1)
    pairs = (_pair(*rng.integers(0, 2, (2, 100)).astype(float).tolist()) for _ in range(300))
    assert sum(compare(*pair)[0].verdict != "" for pair in pairs) <= 9


@pytest.mark.parametrize("clips", [10, 12, 16, 40])
def test_verdicts_on_lengths_of_few_clips_are_no_more_often_false_than_said(clips: int) -> None:
    """1,000 pairs of sets whose lengths differ by chance alone: 10 part on average, and seldom more than 20."""
    rng = np.random.default_rng(clips)
    pairs = (_pair([0.0] * clips, np.round(rng.normal(0, 3, clips), 1).tolist(), "") for _ in range(1000))
    assert sum(compare(*pair)[0].verdict != "" for pair in pairs) <= 20


def test_an_interval_of_many_clips_is_the_plain_one() -> None:
    assert expanded_tail(100_000) == pytest.approx((1 - LEVEL) / 2, rel=1e-3) and expanded_tail(10) < 0.0005


def test_words_that_change() -> None:
    assert word_changes("A dog barks twice", "A dog howls twice loudly") == [
        ("same", "A dog"),
        ("out", "barks"),
        ("in", "howls"),
        ("same", "twice"),
        ("in", "loudly"),
    ]
    assert changed_share("a b", "a b") == 0 and changed_share("a", "b") == 1 and changed_share("", "") == 0


def test_changes_of_a_caption_without_an_end_are_told_whole() -> None:
    """A model that repeats itself: one by one, these would take a minute."""
    a, b = "A dog " + "barking " * 15_000 + "ends here", "A dog " + "howling " * 14_000 + "ends here"
    kinds = [(kind, len(words.split())) for kind, words in word_changes(a, b)]
    assert kinds == [("same", 2), ("out", 15_000), ("in", 14_000), ("same", 2)]
    assert [kind for kind, _ in word_changes(a, a)] == ["same"] and word_changes("x " * 3000, "") == [
        ("out", " ".join("x" * 3000))
    ]
    assert word_changes("x " * 3000, "x " * 2999) == [("same", " ".join("x" * 2999)), ("out", "x")]


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_word_changes_hold_both_texts(old: list[str], new: list[str]) -> None:
    runs = word_changes(" ".join(old), " ".join(new))
    assert " ".join(words for kind, words in runs if kind != "in").split() == old
    assert " ".join(words for kind, words in runs if kind != "out").split() == new
