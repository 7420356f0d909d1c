"""Scorecard of captions: measures of each clip, and a paired comparison of two sets of captions of the same clips.

All measures come from the texts, the labels, the warnings and measured agreements; no model is asked. Two sets are
compared clip by clip: the clips are drawn again (bootstrap), and a measure parts the sets only where the interval of
the mean difference leaves zero out and enough clips differ.
"""

import difflib
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from soundcap.curate import CaptionRow, Rules, curate
from soundcap.prompts import NoiseWarning, first_match

LEVEL = 0.99
"""Share of the drawn differences that an interval holds: of 100 measures that do not differ,
one or two part by chance."""
DRAWS = 20_000
LEAST_DIFFERENT = 8
"""Clips that must differ for a verdict: fewer all fall to one side by chance more often than once in a hundred."""
AGREEMENT = "agreement with the sound"
"""Measure that is a mean cosine, and no share."""
COMPARED = 2000
"""Words of a text up to which its changes are found one by one, which takes the square of their number."""
PLAYED = frozenset({"playing", "people", "sound", "sounds", "other", "with", "from", "and", "the"})
"""Words of labels that name no sound of their own."""

Better = Literal["higher", "lower", ""]
Run = tuple[Literal["same", "out", "in"], str]
"""Words that stay, go out or come in."""


@dataclass(frozen=True)
class Measure:
    """Measure of captions, one value a clip; NaN where it says nothing of a clip. `better`: "" for neither."""

    name: str
    better: Better
    values: np.ndarray

    @property
    def clips(self) -> int:
        """Number of clips of which it says something."""
        return int((~np.isnan(self.values)).sum())

    @property
    def mean(self) -> float:
        """Mean over those clips; NaN without any."""
        return float(np.nanmean(self.values)) if self.clips else float("nan")


def measure(rows: Sequence[CaptionRow], rules: Rules, warnings: Sequence[NoiseWarning]) -> list[Measure]:
    """Measures of a set of captions, with values in the order of `rows`.

    - `kept`: share that curation keeps; `drop: R`: share that rule R drops, the first that fails.
    - `violates W`: of the clips that warning W reaches, share whose caption says what W forbids.
    - `silences W`: of the clips whose label is spared from W, because there the sound is true, share whose caption
      says nothing of it: over-suppression.
    - `names label`: share whose caption has a word of the label, or one that begins like it.
    - `words`: length of a caption.
    - AGREEMENT: of the caption; `below the label's own`: share of captions that agree less than their label. Both only
      if any row tells of it.
    """
    verdicts = curate(rows, rules, warnings)
    found = [Measure("kept", "higher", _flags(verdict.kept for verdict in verdicts))]
    for rule in sorted({verdict.rule for verdict in verdicts if verdict.rule is not None}):
        found.append(Measure(f"drop: {rule}", "lower", _flags(verdict.rule == rule for verdict in verdicts)))
    for warning in warnings:
        if warning.violations:
            found.append(Measure(f"violates {warning.name}", "lower", _flags(_violates(warning, row) for row in rows)))
            found.append(Measure(f"silences {warning.name}", "lower", _flags(_silences(warning, row) for row in rows)))
    found.append(Measure("names label", "higher", _flags(_names_label(row) for row in rows)))
    found.append(Measure("words", "", np.array([len(row.caption.split()) for row in rows], float)))
    if any(row.agreement is not None for row in rows):
        agreements = [row.agreement.caption if row.agreement is not None else np.nan for row in rows]
        found.append(Measure(AGREEMENT, "higher", np.array(agreements, float)))
        found.append(Measure("below the label's own", "lower", _flags(_below_label(row) for row in rows)))
    return found


def distinct(captions: Sequence[str], n: int) -> float:
    """Different runs of `n` words, as a share of all (distinct-n); NaN without any. More captions have less."""
    grams = [gram for caption in captions for gram in _grams(caption.casefold().split(), n)]
    return len(set(grams)) / len(grams) if grams else float("nan")


@dataclass(frozen=True)
class Comparison:
    """Measure of two sets over the clips of which it says something in both.

    Attributes:
        a, b: means; NaN without a clip.
        low, high: interval of b - a that holds LEVEL of the drawn differences.
        verdict: "better" or "worse" (b than a), "parts" where neither is better, or "" without a verdict.
        clips_needed: how many clips like these a verdict would take; None with a verdict or without a difference.
    """

    name: str
    better: Better
    clips: int
    a: float
    b: float
    low: float
    high: float
    verdict: Literal["better", "worse", "parts", ""]
    clips_needed: int | None


def compare(a: Sequence[Measure], b: Sequence[Measure]) -> list[Comparison]:
    """Comparison of each measure of two sets of captions of the same clips, in the same order."""
    of_a, of_b = ({one.name: one for one in side} for side in (a, b))
    names = list(dict.fromkeys([one.name for one in a] + [one.name for one in b]))
    return [_compare(of_a.get(name), of_b.get(name)) for name in sorted(names, key=_place)]


def _place(name: str) -> int:
    return 0 if name == "kept" else 1 if name.startswith("drop: ") else 2


def _compare(a: Measure | None, b: Measure | None) -> Comparison:
    """Comparison of one measure. A rule that drops nothing in one set is not among that set's measures."""
    known = a or b
    assert known is not None
    absent = 0.0 if known.name.startswith("drop: ") else np.nan
    left, right = (np.full(len(known.values), absent) if one is None else one.values for one in (a, b))
    both = ~np.isnan(left) & ~np.isnan(right)
    left, right = left[both], right[both]
    if not len(left):
        nan = float("nan")
        return Comparison(known.name, known.better, 0, nan, nan, nan, nan, "", None)
    differences = right - left
    low, high = _interval(differences)
    differ, mean = int((differences != 0).sum()), float(differences.mean())
    verdict, needed = _verdict(known.better, mean, low, high, differ), None
    if not verdict and mean:
        by_interval = ((high - low) / 2 / abs(mean)) ** 2
        needed = int(np.ceil(len(left) * max(1.0, by_interval, LEAST_DIFFERENT / differ)))
    return Comparison(
        known.name, known.better, len(left), float(left.mean()), float(right.mean()), low, high, verdict, needed
    )


def _interval(differences: np.ndarray) -> tuple[float, float]:
    """Percentile interval of the mean of clips that are drawn again. Clips of one difference are drawn as a group.

    It is expanded for few clips, of which the plain one is too narrow (Hesterberg, What Teachers Should Know About
    the Bootstrap, 2015, section 3.3).
    """
    values, counts = np.unique(differences, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(differences), counts / len(differences), DRAWS)
    tail = expanded_tail(len(differences))
    low, high = np.quantile(drawn @ values / len(differences), [tail, 1 - tail])
    return float(low), float(high)


def expanded_tail(n: int) -> float:
    """Share of the draws beyond each end of an interval of `n` clips, so that it holds LEVEL as one by Student's t."""
    from scipy.special import ndtr, stdtrit  # commands start without SciPy

    if n < 2:
        return 0.0
    return float(ndtr(np.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - LEVEL) / 2)))


def _verdict(
    better: Better, mean: float, low: float, high: float, differ: int
) -> Literal["better", "worse", "parts", ""]:
    if low <= 0 <= high or differ < LEAST_DIFFERENT:
        return ""
    if not better:
        return "parts"
    return "better" if (mean > 0) == (better == "higher") else "worse"


def word_changes(a: str, b: str) -> list[Run]:
    """Words that change from text `a` to text `b`, in runs; of texts beyond COMPARED words, all between equal ends."""
    old, new = a.split(), b.split()
    runs: list[Run] = []
    parts: list[tuple[Literal["same", "out", "in"], list[str]]]
    if max(len(old), len(new)) > COMPARED:
        start = _common(old, new)
        end = _common(old[start:][::-1], new[start:][::-1])
        gone, come = old[start : len(old) - end], new[start : len(new) - end]
        parts = [("same", old[:start]), ("out", gone), ("in", come), ("same", old[len(old) - end :])]
        return [(kind, " ".join(words)) for kind, words in parts if words]
    for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            runs.append(("same", " ".join(old[i:j])))
            continue
        if i < j:
            runs.append(("out", " ".join(old[i:j])))
        if k < m:
            runs.append(("in", " ".join(new[k:m])))
    return runs


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """Number of words that two texts begin with alike."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def paragraph_changes(old: Sequence[str], new: Sequence[str]) -> list[list[Run]]:
    """Words that change in paragraphs; one that is new or gone is a single run, one that moved is both."""
    changes: list[list[Run]] = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            changes += [[("same", text)] for text in old[i:j]]
        else:
            changes += [word_changes(a, b) for a, b in itertools.zip_longest(old[i:j], new[k:m], fillvalue="")]
    return changes


def changed_share(a: str, b: str) -> float:
    """Share of the words of two texts that are not in both; 0 for equal texts."""
    of = {"same": 0, "out": 0, "in": 0}
    for kind, words in word_changes(a, b):
        of[kind] += len(words.split())
    total = 2 * of["same"] + of["out"] + of["in"]
    return (of["out"] + of["in"]) / total if total else 0.0


def _flags(values: Iterable[bool | None]) -> np.ndarray:
    return np.array([np.nan if value is None else float(value) for value in values], float)


def _violates(warning: NoiseWarning, row: CaptionRow) -> bool | None:
    return warning.violation(row.caption, row.label) is not None if warning.reaches(row.label) else None


def _silences(warning: NoiseWarning, row: CaptionRow) -> bool | None:
    """True if a caption says nothing of the sound that its label has, which the warning is against elsewhere."""
    is_true = row.label and (not warning.reaches(row.label) or first_match(warning.violations, row.label) is not None)
    if warning.labels is not None or not is_true:
        return None
    return first_match(warning.violations, row.caption) is None


def _names_label(row: CaptionRow) -> bool | None:
    words = [word for word in re.findall(r"\w{3,}", row.label.casefold()) if word not in PLAYED]
    if not words:
        return None
    said = re.findall(r"\w+", row.caption.casefold())
    return any(word.startswith(_beginning(of)) for of in words for word in said)


def _below_label(row: CaptionRow) -> bool | None:
    if row.agreement is None or row.agreement.label is None:
        return None
    gain = row.agreement.caption - row.agreement.label
    return None if np.isnan(gain) else gain < 0


def _beginning(word: str) -> str:
    """Beginning that inflected forms share: bark of barking, hammer of hammering, dog of dog."""
    return word[: max(4, len(word) - 3)]


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[k:] for k in range(n)), strict=False))
