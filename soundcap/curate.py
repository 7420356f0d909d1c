"""Curation: which captions of the audio-visual LLM are fit to train on, and why the others are not.

The paper keeps the captioner "from learning from misaligned samples" (section 2.3) by warnings in the
prompt. Rules on the text catch what the model wrote in spite of them. A caption conditions a text encoder
that takes little notice of "no" and "without", so a *denied* sound ("no music is heard") counts as a mention.

Every pattern is a regular expression, matched without regard to case between word boundaries.
"""

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import lru_cache

from soundcap.vocabulary import (
    META_TALK,
    MUSIC_LABELS,
    MUSIC_WORDS,
    REFUSALS,
    SOUND_WORDS,
    SPEECH_LABELS,
    SPEECH_WORDS,
    VISUAL_WORDS,
)

Patterns = tuple[str, ...]


class RulesError(ValueError):
    """A rule's setting that cannot be used; names the field."""


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """A caption as the model wrote it."""

    clip_id: str
    label: str
    """The clip's label in its data set, for example "dog barking"; "" where there is none."""
    caption: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What curation decided on one caption."""

    clip_id: str
    kept: bool
    rule: str | None = None
    """The first rule that failed; None for a kept caption."""
    detail: str | None = None
    """What in the caption failed it."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Thresholds and word lists, in the order in which the rules apply. None switches a rule off."""

    min_words: int | None = 6
    """Fewer words than this: `empty` without any word, else `too_short`."""
    max_non_letter_share: float | None = 0.25
    """`not_text`: larger share of characters, white space apart, that are no letters; or any control or
    replacement character."""
    max_foreign_letter_share: float | None = 0.1
    """`foreign_script`: larger share of letters outside the Latin script (models slip into others)."""
    refusals: Patterns | None = REFUSALS
    """`refusal`: the model speaks of itself instead of the sound."""
    max_words: int | None = 60
    """`too_long`: more words than this. 77 tokens of the sound model's text encoder hold some 55 words."""
    max_ngram_repeats: int | None = 3
    """`repetition`: any three words in a row occur more often than this."""
    max_compression_ratio: float | None = 2.2
    """`repetition`: bytes of the caption / bytes of it deflated; plain captions stay below 1.7."""
    meta_talk: Patterns | None = META_TALK
    """`meta_talk`: speaks of the task, the prompt or the recording."""
    music_words: Patterns | None = MUSIC_WORDS
    """`music`: mentions music although the label does not."""
    music_labels: Patterns = MUSIC_LABELS
    """Labels, beside those that match `music_words`, of which music is the sound."""
    speech_words: Patterns | None = SPEECH_WORDS
    """`speech`: mentions someone speaking although the label does not."""
    speech_labels: Patterns = SPEECH_LABELS
    """Labels, beside those that match `speech_words`, of which a voice is the sound."""
    sound_words: Patterns | None = SOUND_WORDS
    """`no_sound`: no word of this list, so the caption names no sound."""
    visual_words: Patterns = VISUAL_WORDS
    """Words of what can be seen but not heard."""
    max_visual_words: int | None = 1
    """`visual`: more of `visual_words` than this."""
    max_duplicate_share: float | None = 0.001
    """`duplicate`: a larger share of all clips has this caption (punctuation and case apart)."""
    always_allowed_duplicates: int = 3
    """So many clips may share a caption whatever their share: in a small corpus one clip is a large share."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and value < 0:
                raise RulesError(f"{field.name} is {value}: wanted 0 or more, or None to switch the rule off")
            if isinstance(value, tuple):
                try:
                    _compiled(value)
                except re.error as error:
                    raise RulesError(f"{field.name}: not a regular expression: {error}") from error


def curate(captions: Iterable[CaptionRow], rules: Rules) -> list[Verdict]:
    """One verdict for each caption, in the order given; the order does not change any verdict."""
    rows = list(captions)
    copies = Counter(_folded(row.caption) for row in rows)
    return [_judge(row, rules, copies[_folded(row.caption)], len(rows)) for row in rows]


def _judge(row: CaptionRow, rules: Rules, copies: int, clips: int) -> Verdict:
    for name, check in _CHECKS:
        detail = check(row, rules)
        if detail is not None:
            return Verdict(row.clip_id, False, name, detail)
    detail = _duplicate(copies, clips, rules)
    return Verdict(row.clip_id, detail is None, None if detail is None else "duplicate", detail)


def _empty(row: CaptionRow, rules: Rules) -> str | None:
    return "no word" if rules.min_words and not row.caption.strip() else None


def _not_text(row: CaptionRow, rules: Rules) -> str | None:
    if rules.max_non_letter_share is None:
        return None
    for character in row.caption:
        if character == "\N{REPLACEMENT CHARACTER}" or (not character.isprintable() and not character.isspace()):
            return f"character U+{ord(character):04X}"
    characters = "".join(row.caption.split())
    share = sum(not character.isalpha() for character in characters) / max(1, len(characters))
    return f"{share:.0%} of it are no letters" if share > rules.max_non_letter_share else None


def _foreign_script(row: CaptionRow, rules: Rules) -> str | None:
    letters = [character for character in row.caption if character.isalpha()]
    if rules.max_foreign_letter_share is None or not letters:
        return None
    last_latin = 0x24F  # end of the Unicode block Latin Extended-B
    share = sum(ord(letter) > last_latin for letter in letters) / len(letters)
    return f"{share:.0%} of the letters are not Latin" if share > rules.max_foreign_letter_share else None


def _refusal(row: CaptionRow, rules: Rules) -> str | None:
    return _first_match(rules.refusals, row.caption)


def _too_short(row: CaptionRow, rules: Rules) -> str | None:
    count = len(_words(row.caption))
    return f"{count} words" if rules.min_words is not None and count < rules.min_words else None


def _too_long(row: CaptionRow, rules: Rules) -> str | None:
    count = len(_words(row.caption))
    return f"{count} words" if rules.max_words is not None and count > rules.max_words else None


def _repetition(row: CaptionRow, rules: Rules) -> str | None:
    words = _words(row.caption)
    if rules.max_ngram_repeats is not None:
        trigrams = Counter(zip(words, words[1:], words[2:], strict=False))
        for trigram, count in sorted(trigrams.items()):
            if count > rules.max_ngram_repeats:
                return f"`{' '.join(trigram)}` {count} times"
    if rules.max_compression_ratio is not None:
        raw = row.caption.encode()
        ratio = len(raw) / len(zlib.compress(raw, 9))
        if ratio > rules.max_compression_ratio:
            return f"compression ratio {ratio:.1f}"
    return None


def _meta_talk(row: CaptionRow, rules: Rules) -> str | None:
    return _first_match(rules.meta_talk, row.caption)


def _music(row: CaptionRow, rules: Rules) -> str | None:
    return _unlabelled(row, rules.music_words, rules.music_labels)


def _speech(row: CaptionRow, rules: Rules) -> str | None:
    return _unlabelled(row, rules.speech_words, rules.speech_labels)


def _unlabelled(row: CaptionRow, words: Patterns | None, labels: Patterns) -> str | None:
    """The mention of something that neither the label nor its kind speaks of."""
    if words is None or _first_match(words, row.label) or _first_match(labels, row.label):
        return None
    return _first_match(words, row.caption)


def _no_sound(row: CaptionRow, rules: Rules) -> str | None:
    silent = rules.sound_words is not None and _first_match(rules.sound_words, row.caption) is None
    return "no word of a sound" if silent else None


def _visual(row: CaptionRow, rules: Rules) -> str | None:
    if rules.max_visual_words is None:
        return None
    found = [match.group().lower() for match in _compiled(rules.visual_words).finditer(row.caption)]
    return ", ".join(found) if len(found) > rules.max_visual_words else None


def _duplicate(copies: int, clips: int, rules: Rules) -> str | None:
    if rules.max_duplicate_share is None:
        return None
    allowed = max(rules.always_allowed_duplicates, rules.max_duplicate_share * clips)
    return f"{copies} of {clips} clips" if copies > allowed else None


_CHECKS: tuple[tuple[str, Callable[[CaptionRow, Rules], str | None]], ...] = (
    ("empty", _empty),
    ("not_text", _not_text),
    ("foreign_script", _foreign_script),
    ("refusal", _refusal),
    ("too_short", _too_short),
    ("repetition", _repetition),
    ("too_long", _too_long),
    ("meta_talk", _meta_talk),
    ("music", _music),
    ("speech", _speech),
    ("no_sound", _no_sound),
    ("visual", _visual),
)


@lru_cache(maxsize=64)
def _compiled(patterns: Patterns) -> re.Pattern[str]:
    if not patterns:
        return re.compile(r"(?!)")  # matches nothing
    return re.compile(rf"\b(?:{'|'.join(patterns)})\b", re.IGNORECASE)


def _first_match(patterns: Patterns | None, text: str) -> str | None:
    match = _compiled(patterns).search(text) if patterns else None
    return None if match is None else f"`{match.group().lower()}`"


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'’-]+", text.casefold())


def _folded(caption: str) -> str:
    return " ".join(re.findall(r"\w+", caption.casefold()))
