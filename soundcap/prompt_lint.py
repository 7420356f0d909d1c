"""Lint of a prompt set against the labels of a corpus, and the differences of two sets with the clips they reach."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

from soundcap.caption_scores import Run, word_changes
from soundcap.prompts import NoiseWarning, PromptSet, first_match, label_matches

TOKENS_A_WORD = 1.4
"""Tokens of CLIP's text encoder a word of a sound caption: 77 tokens hold some 55 words."""
NEGATION = re.compile(r"\b(?:not|never|no|nor|without|leave|ignore|omit|avoid|exclude)\b", re.IGNORECASE)
ASKED_WORDS = re.compile(r"\b(\d+)\s+words\b", re.IGNORECASE)
EXAMPLES = 3
ASKING = re.compile(r"\b(?:describe|mention|include|name|report|say|tell)\b", re.IGNORECASE)
ALIKE = 0.85
"""Likeness of a pattern and a label, of 1, from which one is taken for a misspelt other."""


@dataclass(frozen=True)
class Finding:
    """Finding of lint, on one line: where it is, what is wrong, what to do. A note may well be meant."""

    text: str
    is_fault: bool = True


def lint(
    prompts: PromptSet, labels: Mapping[str, int], *, text_tokens: int | None, max_new_tokens: int
) -> list[Finding]:
    """Faults of a prompt set, and notes behind them.

    Args:
        prompts: instruction and warnings.
        labels: clips of each label of the corpus; "" for clips without one.
        text_tokens: tokens that the sound model's text encoder reads; None where that is not known.
        max_new_tokens: most tokens of a caption.
    """
    found = [Finding(text) for text in _length(prompts, text_tokens, max_new_tokens)]
    found += [Finding(text) for text in _contradictions(prompts, labels)]
    for warning in prompts.warnings if any(labels) else ():
        found += _patterns(warning, labels)
    return sorted(found, key=lambda one: not one.is_fault)


def _length(prompts: PromptSet, text_tokens: int | None, max_new_tokens: int) -> list[str]:
    if text_tokens is None:
        return []
    asked = [int(number) for number in ASKED_WORDS.findall(prompts.instruction.text)]
    where = prompts.instruction.origin
    if not asked:
        limit = int(text_tokens / TOKENS_A_WORD)
        if max_new_tokens <= text_tokens:
            return []
        return [
            f"{where}: asks for no number of words, and a caption may have {max_new_tokens} tokens; the sound model's "
            f"text encoder reads {text_tokens}, so ask for at most {limit} words"
        ]
    words = max(asked)
    if words * TOKENS_A_WORD <= text_tokens:
        return []
    return [
        f"{where}: asks for up to {words} words, some {round(words * TOKENS_A_WORD)} tokens; the sound model's text "
        f"encoder reads {text_tokens}, and what is behind them is lost: ask for at most "
        f"{int(text_tokens / TOKENS_A_WORD)} words"
    ]


def _patterns(warning: NoiseWarning, labels: Mapping[str, int]) -> list[Finding]:
    """Label patterns without a label, faults where a label is much alike, and warnings without a clip."""
    patterns = (*(warning.labels or ()), *warning.except_labels)
    idle = [pattern for pattern in patterns if not any(label_matches(label, (pattern,)) for label in labels)]
    alike = {pattern: difflib.get_close_matches(pattern, labels, 1, ALIKE) for pattern in idle}
    misspelt = {
        pattern: near[0]
        for pattern, near in alike.items()
        if near and not any(label_matches(near[0], (other,)) for other in patterns)
    }
    found = [
        Finding(f"{warning.origin}: `{pattern}` matches no label of the corpus; is `{near}` meant?")
        for pattern, near in misspelt.items()
    ]
    if others := [pattern for pattern in idle if pattern not in misspelt]:
        text = f"{len(others)} of {len(patterns)} label patterns match no label of this corpus, such as `{others[0]}`"
        found.append(Finding(f"{warning.origin}: {text}", is_fault=False))
    if not any(warning.reaches(label) for label in labels):
        found.append(Finding(f"{warning.origin}: reaches no clip of this corpus", is_fault=False))
    return found


def _contradictions(prompts: PromptSet, labels: Mapping[str, int]) -> list[str]:
    found = []
    for warning in prompts.warnings:
        true = {
            label: mention
            for label in labels
            if warning.reaches(label) and (mention := first_match(warning.violations, label)) is not None
        }
        if true:
            found.append(
                f"{warning.origin}: tells the model to leave out what {_listed(list(true))} "
                f"{'is' if len(true) == 1 else 'are'} about (`{next(iter(true.values()))}`): put them into "
                "`except_labels`, or curation keeps captions that the model was told not to write"
            )
        for text, origin in ((sentence, prompts.instruction.origin) for sentence in _asks(prompts.instruction.text)):
            if (mention := first_match(warning.violations, text)) is not None:
                found.append(f"{origin}: asks for `{mention}`, which {warning.origin} forbids: say one thing")
    for one, other in combinations(prompts.warnings, 2):
        both = [label for label in labels if one.reaches(label) and other.reaches(label)]
        if not both:
            continue
        if one.text == other.text:
            found.append(f"{other.origin}: the same text as {one.origin}, twice for {_listed(both)}: keep one")
        for asking, forbidding in ((one, other), (other, one)):
            for sentence in _asks(asking.text):
                if (mention := first_match(forbidding.violations, sentence)) is not None:
                    found.append(
                        f"{asking.origin}: asks for `{mention}`, which {forbidding.origin} forbids, both for "
                        f"{_listed(both)}: part them by labels"
                    )
    return found


def _asks(text: str) -> list[str]:
    """Clauses that tell the model to say something."""
    found = []
    for sentence in re.split(r"[.!?\n]", text):
        # What is described stands before a colon ("Rain is real: describe it"), or in the clause of the verb.
        clauses = re.split(r"[;,]", sentence) if ":" not in sentence else sentence.split(";")
        verbs = [place for place, clause in enumerate(clauses) if ASKING.search(clause)]
        found += [clauses[place] for place in verbs if not NEGATION.search(clauses[place])]
    return found


def _listed(labels: Sequence[str]) -> str:
    shown = ", ".join(f"`{label}`" if label else "clips without a label" for label in sorted(labels)[:EXAMPLES])
    more = len(labels) - EXAMPLES
    return shown + (f" and {more} more labels" if more > 0 else "")


# --- differences of two prompt sets ----------------------------------------------------------------------------


@dataclass(frozen=True)
class PromptChange:
    """Change of an instruction or of a warning.

    Attributes:
        what: "instruction", or the warning's name.
        kind: added, removed, or changed; moved, where only its place among the warnings is another.
        words: words that change.
        clips: clips whose prompt it changes.
        reach: labels that it reaches now and did not, and those that it reaches no more.
    """

    what: str
    kind: Literal["added", "removed", "changed", "moved"]
    words: Sequence[Run]
    clips: int
    reach: tuple[Sequence[str], Sequence[str]] = ((), ())


def prompt_changes(old: PromptSet, new: PromptSet, labels: Mapping[str, int]) -> list[PromptChange]:
    """Changes from one prompt set to another, with the clips of the corpus that each reaches.

    `labels`: clips of each label. What reaches no model (violations, comments, names) is no change.
    """
    total, found = sum(labels.values()), []
    if old.instruction.text != new.instruction.text:
        words = word_changes(old.instruction.text, new.instruction.text)
        found.append(PromptChange("instruction", "changed", words, total))
    gone, come = _unmatched(old.warnings, new.warnings), _unmatched(new.warnings, old.warnings)
    after = {warning.name: warning for warning in come}
    for warning in gone:
        if warning.name in after:
            found.append(_changed(warning, after[warning.name], labels))
        else:
            found.append(PromptChange(warning.name, "removed", [("out", warning.text)], _count(labels, warning)))
    for warning in come:
        if warning.name not in {one.name for one in gone}:
            found.append(PromptChange(warning.name, "added", [("in", warning.text)], _count(labels, warning)))
    kept = [
        replace(prompts, warnings=tuple(warning for warning in prompts.warnings if warning not in changed))
        for prompts, changed in ((old, gone), (new, come))
    ]
    moved = next((b for a, b in zip(*(one.warnings for one in kept), strict=True) if _sent(a) != _sent(b)), None)
    if moved is not None:
        clips = changed_clips(kept[0], replace(kept[1], instruction=old.instruction), labels)
        found.append(PromptChange(moved.name, "moved", [("same", moved.text)], clips))
    return found


def _sent(warning: NoiseWarning) -> tuple[Any, ...]:
    """Part of a warning that reaches models."""
    return warning.text, warning.labels, warning.except_labels


def _unmatched(these: Sequence[NoiseWarning], others: Sequence[NoiseWarning]) -> list[NoiseWarning]:
    """Warnings that have no like among others, whatever their names; each is the like of one at most."""
    left, pool = [], [_sent(warning) for warning in others]
    for warning in these:
        if _sent(warning) in pool:
            pool.remove(_sent(warning))
        else:
            left.append(warning)
    return left


def _changed(was: NoiseWarning, now: NoiseWarning, labels: Mapping[str, int]) -> PromptChange:
    gained = [label for label in labels if now.reaches(label) and not was.reaches(label)]
    lost = [label for label in labels if was.reaches(label) and not now.reaches(label)]
    touched = labels if was.text != now.text else (*gained, *lost)
    clips = sum(labels[label] for label in touched if was.reaches(label) or now.reaches(label))
    return PromptChange(now.name, "changed", word_changes(was.text, now.text), clips, (gained, lost))


def changed_clips(old: PromptSet, new: PromptSet, labels: Mapping[str, int]) -> int:
    """Clips of the corpus whose prompt is another: those that are captioned again."""
    return sum(count for label, count in labels.items() if old.render(label) != new.render(label))


def changed_violations(old: PromptSet, new: PromptSet) -> list[str]:
    """Names of the warnings by whose violations curation judges otherwise, though their texts may be the same."""
    before, after = ({one.name: (one.violations, one.reach()) for one in prompts.warnings} for prompts in (old, new))
    nothing: tuple[Any, ...] = ((), {})
    names = sorted(before.keys() | after.keys())
    pairs = {name: (before.get(name, nothing), after.get(name, nothing)) for name in names}
    return [name for name, (a, b) in pairs.items() if a != b and (a[0] or b[0])]


def _count(labels: Mapping[str, int], warning: NoiseWarning) -> int:
    return sum(count for label, count in labels.items() if warning.reaches(label))
