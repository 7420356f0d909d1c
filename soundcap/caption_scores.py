"""Scorecard of captions: measures of each clip, and a paired comparison of two sets of captions of the same clips.

All measures come from the texts, the labels, the warnings, measured agreements, a judge's verdicts and people's labels;
no model is asked. Two sets are compared clip by clip: the clips are drawn again (bootstrap), and a measure parts the
sets only where the interval of the mean difference leaves zero out and enough clips differ.
"""

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from soundcap.curate import CaptionRow, Rules, curate
from soundcap.human_labels import ADDED, HumanLabels, is_named, label_stems, stems
from soundcap.prompts import NoiseWarning, first_match, label_matches

LEVEL = 0.99
"""Share of the drawn differences that an interval holds: of 100 measures that do not differ,
one or two part by chance."""
DRAWS = 20_000
LEAST_DIFFERENT = 8
"""Clips that must differ for a verdict: fewer all fall to one side by chance more often than once in a hundred."""
AGREEMENT = "agreement with the sound"
"""Measure that is a mean cosine, and no share."""
JUDGED = "judged true"
"""Measure of a judge's verdicts."""
COMPARED = 2000
"""Words of a text up to which its changes are found one by one, which takes the square of their number."""
BY_PEOPLE = "VGGSounder: "
"""Beginning of the names of measures that people's labels of the clips decide."""

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


def measure(
    rows: Sequence[CaptionRow],
    rules: Rules,
    warnings: Sequence[NoiseWarning],
    by_people: Mapping[str, HumanLabels] | None = None,
) -> list[Measure]:
    """Measures of a set of captions, with values in the order of `rows`.

    - `kept`: share that curation keeps; `drop: R`: share that rule R drops, the first that fails.
    - `violates W`: of the clips that warning W reaches, share whose caption says what W forbids.
    - `silences W`: of the clips whose label is spared from W, because there the sound is true, share whose caption
      says nothing of it: over-suppression.
    - `names label`: share whose caption has a word of the label, in any regular inflection.
    - `words`: length of a caption.
    - AGREEMENT: of the caption; `below the label's own`: share of captions that agree less than their label. Both only
      if any row tells of it.
    - JUDGED: share of the clear verdicts that are true, if any row has one.
    - BY_PEOPLE and the like: :func:`_measures_by_people`, by clip id, of those clips that have such labels.
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
    if any(row.judged_true is not None for row in rows):
        found.append(Measure(JUDGED, "higher", _flags(row.judged_true for row in rows)))
    return found + _measures_by_people(rows, warnings, by_people or {})


def _measures_by_people(
    rows: Sequence[CaptionRow], warnings: Sequence[NoiseWarning], by_people: Mapping[str, HumanLabels]
) -> list[Measure]:
    """Measures that people's labels decide, as far as any clip has some.

    A warning named in ADDED is against a sound that people flag where it was added. A label is of that sound if the
    warning spares it or its own words say it. Where the sound was added, labels of it that are only heard tell of what
    was added, and belong to no scene.

    - `violates W`: of the clips with W's sound added and no label of it on screen, share whose caption says it.
    - `silences W`: of the clips whose scene has a label that says W's sound, share whose caption says nothing of it.
    - `names heard`: share of the scene's audible labels that the caption names; mean over clips.
    - `names unheard`: of the clips with a label that is only seen, share whose caption names one.
    """
    of = [(row.caption, by_people.get(row.clip_id, HumanLabels())) for row in rows]
    flagged = [warning for warning in warnings if warning.name in ADDED and warning.violations]
    found: list[Measure] = []
    for warning in flagged:
        says = [first_match(warning.violations, caption) is not None for caption, _ in of]
        added = [_is_only_added(warning, labels) for _, labels in of]
        true = [any(first_match(warning.violations, label) for label in _of_scene(labels, flagged)) for _, labels in of]
        violates = _flags(said if is_added else None for said, is_added in zip(says, added, strict=True))
        silences = _flags(not said if is_true else None for said, is_true in zip(says, true, strict=True))
        found.append(Measure(f"violates {warning.name}", "lower", violates))
        found.append(Measure(f"silences {warning.name}", "lower", silences))
    heard = [_share_named(_of_scene(labels, flagged), caption) for caption, labels in of]
    unheard = [any(is_named(one, text) for one in labels.unheard) if labels.unheard else None for text, labels in of]
    found.append(Measure("names heard", "higher", np.array(heard, float)))
    found.append(Measure("names unheard", "lower", _flags(unheard)))
    return [replace(one, name=BY_PEOPLE + one.name) for one in found if one.clips]


def _is_of(warning: NoiseWarning, label: str) -> bool:
    """True if a label is of the sound that a warning is against elsewhere."""
    return label_matches(label, warning.except_labels) or first_match(warning.violations, label) is not None


def _is_only_added(warning: NoiseWarning, labels: HumanLabels) -> bool:
    return warning.name in labels.added and not any(_is_of(warning, label) for label in labels.on_screen)


def _of_scene(labels: HumanLabels, flagged: Sequence[NoiseWarning]) -> list[str]:
    """Audible labels, without those that tell of an added sound."""
    added = [warning for warning in flagged if warning.name in labels.added]
    return [*labels.on_screen, *(one for one in labels.off_screen if not any(_is_of(w, one) for w in added))]


def _share_named(labels: Sequence[str], caption: str) -> float:
    return sum(is_named(label, caption) for label in labels) / len(labels) if labels else float("nan")


def distinct(captions: Sequence[str], n: int) -> float:
    """Different runs of `n` words, as a share of all (distinct-n); NaN without any. More captions have less.

    Case and punctuation are no difference.
    """
    grams = [gram for caption in captions for gram in _grams(re.findall(r"[\w'’-]+", caption.casefold()), n)]
    return len(set(grams)) / len(grams) if grams else float("nan")


@dataclass(frozen=True)
class Comparison:
    """Measure of two sets over the clips of which it says something in both.

    Attributes:
        a, b: means; NaN without a clip.
        low, high: interval of b - a that holds LEVEL of the drawn differences.
        verdict: "better" or "worse" (b than a), "parts" where neither is better, or "" without a verdict.
        clips_needed: how many clips like these a verdict would take; None with a verdict or without a difference.
        different: clips in which the two differ; a verdict takes LEAST_DIFFERENT.
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
    different: int = 0


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
        known.name, known.better, len(left), float(left.mean()), float(right.mean()), low, high, verdict, needed, differ
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
    if warning.labels is not None or not row.label or not _is_of(warning, row.label):
        return None
    return first_match(warning.violations, row.caption) is None


def _names_label(row: CaptionRow) -> bool | None:
    words = label_stems(row.label)
    return bool(words & stems(row.caption)) if words else None


def _below_label(row: CaptionRow) -> bool | None:
    if row.agreement is None or row.agreement.label is None:
        return None
    gain = row.agreement.caption - row.agreement.label
    return None if np.isnan(gain) else gain < 0


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[k:] for k in range(n)), strict=False))
