"""Curation rules: drop captions of the audio-visual LLM that are not fit to train on, each with its reason.

The paper keeps the captioner "from learning from misaligned samples" (section 2.3) by warnings in the
prompt. Rules on the text catch what the model wrote in spite of them. A caption conditions a text encoder
that takes little notice of "no" and "without", so a *denied* sound ("no music is heard") counts as a mention.

Every pattern is a regular expression, matched without regard to case between word boundaries.
"""

import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from soundcap.near_duplicates import near_copies
from soundcap.prompts import NoiseWarning, compiled, first_match, pattern_fault

# The lists hold what a sound caption has no good reason to say. Words that also serve to describe sound are left out
# on purpose: a siren is a *warning* siren, hooves go *clip*-clop, a window *frame* rattles. Words of added music and
# speech stand with the warnings against them, in prompts/warnings.yaml.
REFUSALS = (
    r"as an? (?:AI|artificial|language model|assistant)",
    r"I(?:'m| am) (?:sorry|unable|not able|an AI)",
    r"I (?:cannot|can't|can ?not|do not|don't|couldn't|could not|am unable to|apologi[sz]e)",
    r"(?:unable|not possible|impossible) to (?:determine|describe|provide|identify|hear|tell)",
    r"(?:please|could you) (?:provide|upload|share)",
    r"no (?:audio|sound|video|clip) (?:was|is|has been) (?:provided|attached|available|given)",
)

META_TALK = (
    r"(?:the|this|these|your|my|any) warnings?"
    r"(?! (?:siren|signal|beep|tone|horn|call|bell|alarm|growl|hiss|cry|cries|shot)s?\b)",
    r"warn(?:ed|ing|ings) (?:about|against|above|given|not to|in the (?:prompt|instruction))",
    r"(?:the|this|your) (?:instruction|prompt|caption|description|question|request|task)s?",
    r"(?:the|this) (?:video|clip(?!-clop)|footage|audio|recording|soundtrack|image|photo)s?",
    r"(?:the|this|each|every|first|second|last|next|final|single|one) frames?",
    r"(?:in|off|out of|across) frames?",
    r"as (?:instructed|requested|asked)",
    r"(?:(?:to|behind|towards?|near|at) the camera|the camera (?:pans|moves|shows|zooms|follows))",
    r"here(?: is|'s) (?:a|an|the|your) (?:\w+ )?(?:caption|description|paragraph)",
    r"(?:I|we|you) (?:can |could |also )?(?:hear|see|notice)",
    r"(?:caption|answer|output|assistant|user) ?:",
)

_SOUND_STEMS = (
    r"bang|bark|beat|beep|bellow|blar|blast|bleat|boom|bubbl|burbl|buzz|cackl|caw|"
    r"chatter|chim|chirp|chug|clack|clang|clank|clap|clatter|click|clink|clop|clunk|coo|"
    r"cough|crackl|crash|creak|cri|croak|crow|crunch|drip|dron|echo|fizz|grind|groan|"
    r"growl|grunt|gurgl|hiss|honk|hoot|howl|hum|jangl|jingl|knock|laugh|moan|moo|murmur|"
    r"neigh|patter|peal|pluck|pop|purr|quack|rasp|rattl|resonat|reverberat|ring|roar|"
    r"rumbl|rustl|scrap|scratch|scream|screech|shout|shriek|sigh|sing|sizzl|slam|slap|"
    r"slosh|snap|snarl|sneez|snor|snort|splash|splatter|squawk|squeak|squeal|strum|swish|"
    r"swoosh|tap|thrum|thud|thump|thunder|tick|tinkl|toll|toot|trickl|trill|trumpet|"
    r"twang|tweet|wail|warbl|whimper|whin|whir|whirr|whisper|whistl|whoosh|yap|yelp"
)

SOUND_WORDS = (
    rf"(?:{_SOUND_STEMS})(?:[pmngt]?(?:ed|ing)|e?s|e|ies|l?y)?",
    r"sounds?|sounding|nois(?:e|es|y)|audible|hear[ds]?|hearing|loud(?:ly|er)?|quiet(?:ly|er)?|silen(?:ce|t)|muffled",
    r"hollow|metallic|shrill|deep|high-pitched|low-pitched|pitch(?:ed)?|tone|tonal|rhythmic(?:ally)?|percussive",
    r"music|song|melody|speech|speak(?:s|ing)?|talk(?:s|ing)?|voices?|sirens?|engines?|horns?|bells?",
)

VISUAL_WORDS = (
    r"(?:red|blue|green|yellow|orange|purple|pink|brown|black|white|gr[ae]y|colou?r(?:s|ed|ful)?)",
    r"(?:wear(?:s|ing)|dressed|shirt|jacket|dress|blond|bearded)",
    r"(?:visib(?:le|ly)|seen|look(?:s|ing) (?:at|into|up|down|like)|appears? (?:on|in)|shown|depict(?:s|ed))",
    r"(?:foreground|close-up|bright(?:ly)? lit|sunlit|sunny|shadows?|scenery|landscape|logo)",
)


# Beside VISUAL_WORDS, words that one or two of do no harm in a caption of sounds. Left out are those that serve to
# describe sound: a dog pants, a pan clatters, a cap pops, boots crunch, a tone is dark, a hum uniform.
INAUDIBLE_WORDS = (
    r"(?:beige|maroon|turquoise|teal|striped|plaid|checkered|floral|transparent|blurr(?:y|ed))",
    r"(?:wears?|wore|clothe[sd]|clothing|outfits?|shirts?|t-shirts?|sweaters?|hoodies?|coats?|jackets?)",
    r"(?:jeans|trousers|skirts?|dresses|(?<!hi-)hats?|scar(?:f|ves)|sunglasses|necklaces?|beards?|moustaches?|tattoos?)",
    r"(?:appear(?:s|ed|ing|ances?)?|sees?|seeing|view(?:s|ed)?|show(?:s|ing)?|display(?:s|ed|ing)?|looks?|looking)",
    r"(?:gaz(?:es?|ing)|star(?:es|ing)|smil(?:es?|ing)|poses?|posing|stands?|standing|sits?|sitting|seated|lean(?:s|ing))",
    r"(?:camera(?! shutter)s?|zoom(?:s|ed|ing)?|lens(?:es)?|filmed|filming|on-?screen|sky|clouds?|sunlight|sunset)",
    r"(?:posters?|banners?|watermarks?|subtitles?)",
)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of texts with a clip's sound: cosines, -1 to 1; NaN where it could not be measured."""

    caption: float
    label: float | None
    """None where there is no label."""


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """Caption as the model wrote it."""

    clip_id: str
    label: str
    """The clip's label in its data set, for example "dog barking"; "" where there is none."""
    caption: str
    agreement: Agreement | None = None
    """None where there is no sound to agree with, or nobody measured."""
    peak: float | None = None
    """Largest level of the clip's sound, of 1; None where it has none, or nobody measured."""
    judged_true: bool | None = None
    """A judge's verdict, as of `soundcap.judging`; None where it was unclear, or nobody judged."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Curation's decision on one caption."""

    clip_id: str
    kept: bool
    rule: str | None = None
    """The first rule that failed; None for a kept caption."""
    detail: str | None = None
    """Mention or figure of the caption that failed it."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Thresholds and word lists, in the order in which the rules apply. None switches a rule off.

    Raises ValueError for a threshold below 0, or a pattern that is no regular expression; it names the field.
    """

    min_words: int | None = 6
    """Fewer words than this: `empty` without any word, else `too_short`."""
    max_non_letter_share: float | None = 0.25
    """`not_text`: larger share of characters, white space apart, that are no letters; or any control or
    replacement character."""
    max_foreign_letter_share: float | None = 0.1
    """`foreign_script`: larger share of letters outside the Latin script (models slip into others)."""
    refusals: tuple[str, ...] | None = REFUSALS
    """`refusal`: the model speaks of itself instead of the sound."""
    max_words: int | None = 60
    """`too_long`: more words than this. 77 tokens of the sound model's text encoder hold some 55 words."""
    max_ngram_repeats: int | None = 3
    """`repetition`: any three words in a row occur more often than this."""
    max_compression_ratio: float | None = 2.2
    """`repetition`: bytes of the caption / bytes of it deflated; plain captions stay below 1.7."""
    meta_talk: tuple[str, ...] | None = META_TALK
    """`meta_talk`: speaks of the task, the prompt or the recording."""
    violations: bool = True
    """`music`, `speech` and other names of warnings: says what that warning forbids."""
    sound_words: tuple[str, ...] | None = SOUND_WORDS
    """`no_sound`: no word of this list, so the caption names no sound."""
    visual_words: tuple[str, ...] = VISUAL_WORDS
    """Words of what can be seen but not heard."""
    max_visual_words: int | None = 1
    """`visual`: more of `visual_words` than this."""
    inaudible_words: tuple[str, ...] = INAUDIBLE_WORDS
    """More such words, a few of which do no harm: clothes, postures, looks, the camera."""
    max_inaudible_share: float | None = field(default=0.2, metadata={"before": None})
    """`inaudible`: larger share of the words is of `visual_words` or `inaudible_words`. One of six words is less."""
    agreement_margin: float | None = field(default=None, metadata={"before": None})
    """`below_label`: agreement with the sound that exceeds that of the clip's label by less than this, or that could
    not be measured. It takes the section `agreement`, and spares clips without sound or label."""
    min_peak: float | None = field(default=0.001, metadata={"before": None})
    """`quiet`: the largest level of the clip's sound, of 1, is below this (0.001: -60 dBFS), so that hardly anything in
    it can be heard. It spares clips without sound."""
    max_duplicate_share: float | None = 0.001
    """`duplicate`: a larger share of all clips has this caption (punctuation and case apart)."""
    near_duplicate_similarity: float | None = field(default=0.8, metadata={"before": None})
    """`near_duplicate`: a share beyond `max_duplicate_share` has nearly this caption. From 0.2 to 1: least Jaccard
    index of word bigrams; of 20 words one may differ at 0.8."""
    always_allowed_duplicates: int = 3
    """Number of clips that may share a caption whatever their share: in a small corpus one clip is a large share."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, int | float) and not value >= 0:
                raise ValueError(f"{one.name}: got {value}, wanted 0 or more, or none to switch the rule off")
            if isinstance(value, tuple) and (fault := pattern_fault(value)):
                raise ValueError(f"{one.name}: {fault}")
        if self.near_duplicate_similarity is not None and not 0.2 <= self.near_duplicate_similarity <= 1:
            got = self.near_duplicate_similarity
            raise ValueError(f"near_duplicate_similarity: got {got}, wanted 0.2 to 1, or none")


def curate(captions: Iterable[CaptionRow], rules: Rules, warnings: Sequence[NoiseWarning]) -> list[Verdict]:
    """Judge captions.

    Args:
        captions: Captions of all clips; their order does not change any verdict.
        rules: Thresholds and word lists.
        warnings: Warnings of the captions' prompts, whose `violations` drop a caption. A run without warnings
            forbade nothing, so no caption is dropped for noise.

    Returns:
        One verdict for each caption, in the order of `captions`.
    """
    rows = list(captions)
    duplicates = _Duplicates.of([row.caption for row in rows], rules)
    return [_judge(row, rules, warnings, duplicates, place) for place, row in enumerate(rows)]


def curation_meaning(rules: Rules, warnings: Sequence[NoiseWarning]) -> dict[str, Any]:
    """All that can change a verdict, as plain data in canonical form, for fingerprints.

    A rule that is newer than stored verdicts is left out while it has the value `before` of its field's metadata.
    """
    judged = judged_warnings(rules, warnings)
    violations = [{"name": w.name, "mentions": list(w.violations)} | w.reach() for w in judged]
    as_before = {one.name for one in fields(rules) if getattr(rules, one.name) == one.metadata.get("before", ...)}
    if rules.max_inaudible_share is None:
        as_before.add("inaudible_words")  # no other rule reads it
    return {"rules": {k: v for k, v in asdict(rules).items() if k not in as_before}, "violations": violations}


def judged_warnings(rules: Rules, warnings: Sequence[NoiseWarning]) -> list[NoiseWarning]:
    """The warnings that can drop a caption, in the order of `violations` in :func:`curation_meaning`."""
    return [warning for warning in warnings if rules.violations and warning.violations]


def reasons(warnings: Sequence[NoiseWarning]) -> list[str]:
    """Names of all rules that can drop a caption, in the order in which they apply, whether or not they are on."""
    every, nothing = Rules(agreement_margin=0.0), CaptionRow("", "", "")
    return [rule for rule, _ in _details(nothing, every, warnings, _Duplicates.of([""], every), 0)]


@dataclass(frozen=True, slots=True)
class _Duplicates:
    """Numbers of clips with the same caption as each, and with nearly the same (exact up to `allowed`); None: off."""

    allowed: float
    same: Sequence[int] | None
    near: Sequence[int] | None

    @classmethod
    def of(cls, captions: Sequence[str], rules: Rules) -> "_Duplicates":
        if rules.max_duplicate_share is None:
            return cls(len(captions), None, None)
        allowed = max(rules.always_allowed_duplicates, rules.max_duplicate_share * len(captions))
        copies, near = Counter(map(_folded, captions)), None
        if rules.near_duplicate_similarity is not None:
            near = near_copies(captions, rules.near_duplicate_similarity, int(allowed))
        return cls(allowed, [copies[_folded(caption)] for caption in captions], near)

    def details(self, place: int) -> Iterator[tuple[str, str | None]]:
        """Rules with what fails them, of the caption at a place."""
        if self.same is not None:
            count = self.same[place]
            yield "duplicate", f"{count} of {len(self.same)} clips" if count > self.allowed else None
        if self.near is not None:
            told = f"more than {int(self.allowed)} of {len(self.near)} clips have nearly this"
            yield "near_duplicate", told if self.near[place] > self.allowed else None


def _judge(
    row: CaptionRow, rules: Rules, warnings: Sequence[NoiseWarning], duplicates: _Duplicates, place: int
) -> Verdict:
    for rule, detail in _details(row, rules, warnings, duplicates, place):
        if detail is not None:
            return Verdict(row.clip_id, False, rule, detail)
    return Verdict(row.clip_id, True)


def _details(
    row: CaptionRow, rules: Rules, warnings: Sequence[NoiseWarning], duplicates: _Duplicates, place: int
) -> Iterator[tuple[str, str | None]]:
    """Rules in order, each with what in the caption fails it, or None; the caller stops at the first failure."""
    caption, n_words = row.caption, len(_words(row.caption))
    yield "empty", "no word" if rules.min_words and not caption.strip() else None
    yield "not_text", _not_text(caption, rules)
    yield "foreign_script", _foreign_script(caption, rules)
    yield "refusal", _quoted(first_match(rules.refusals or (), caption))
    yield "too_short", f"{n_words} words" if n_words < (rules.min_words or 0) else None
    yield "repetition", _repetition(caption, rules)
    yield "too_long", f"{n_words} words" if rules.max_words is not None and n_words > rules.max_words else None
    yield "meta_talk", _quoted(first_match(rules.meta_talk or (), caption))
    for warning in judged_warnings(rules, warnings):
        yield warning.name, _quoted(warning.violation(caption, row.label))
    silent = rules.sound_words is not None and first_match(rules.sound_words, caption) is None
    yield "no_sound", "no word of a sound" if silent else None
    yield "visual", _visual(caption, rules)
    yield "inaudible", _inaudible(caption, n_words, rules)
    yield "below_label", _below_label(row, rules)
    quiet = rules.min_peak is not None and row.peak is not None and row.peak < rules.min_peak
    yield "quiet", f"largest level {row.peak:g}" if quiet else None
    yield from duplicates.details(place)


def _not_text(caption: str, rules: Rules) -> str | None:
    if rules.max_non_letter_share is None:
        return None
    for character in caption:
        if character == "\N{REPLACEMENT CHARACTER}" or (not character.isprintable() and not character.isspace()):
            return f"character U+{ord(character):04X}"
    characters = "".join(caption.split())
    share = sum(not character.isalpha() for character in characters) / max(1, len(characters))
    return f"{share:.0%} of it are no letters" if share > rules.max_non_letter_share else None


def _foreign_script(caption: str, rules: Rules) -> str | None:
    letters = [character for character in caption if character.isalpha()]
    if rules.max_foreign_letter_share is None or not letters:
        return None
    last_latin = 0x24F  # end of the Unicode block Latin Extended-B
    share = sum(ord(letter) > last_latin for letter in letters) / len(letters)
    return f"{share:.0%} of the letters are not Latin" if share > rules.max_foreign_letter_share else None


def _repetition(caption: str, rules: Rules) -> str | None:
    words = _words(caption)
    if rules.max_ngram_repeats is not None:
        trigrams = Counter(zip(words, words[1:], words[2:], strict=False))
        for trigram, count in sorted(trigrams.items()):
            if count > rules.max_ngram_repeats:
                return f"`{' '.join(trigram)}` {count} times"
    if rules.max_compression_ratio is not None:
        raw = caption.encode()
        ratio = len(raw) / len(zlib.compress(raw, 9))
        if ratio > rules.max_compression_ratio:
            return f"compression ratio {ratio:.1f}"
    return None


def _visual(caption: str, rules: Rules) -> str | None:
    if rules.max_visual_words is None:
        return None
    found = [match.group().lower() for match in compiled(rules.visual_words).finditer(caption)]
    return ", ".join(found) if len(found) > rules.max_visual_words else None


def _inaudible(caption: str, n_words: int, rules: Rules) -> str | None:
    if rules.max_inaudible_share is None:
        return None
    matches = compiled(rules.visual_words + rules.inaudible_words).finditer(caption)
    found = [match.group().lower() for match in matches]
    count = sum(len(_words(words)) for words in found)
    return f"{count} of {n_words} words: {', '.join(found)}" if count > rules.max_inaudible_share * n_words else None


def _below_label(row: CaptionRow, rules: Rules) -> str | None:
    agreement = row.agreement
    if rules.agreement_margin is None or agreement is None or agreement.label is None:
        return None
    if math.isnan(agreement.caption - agreement.label):
        return "not measured"
    if agreement.caption - agreement.label >= rules.agreement_margin:
        return None
    return f"agreement {agreement.caption:.3f}, of its label {agreement.label:.3f}"


def _quoted(mention: str | None) -> str | None:
    return None if mention is None else f"`{mention}`"


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'’-]+", text.casefold())


def _folded(caption: str) -> str:
    return " ".join(re.findall(r"\w+", caption.casefold()))
