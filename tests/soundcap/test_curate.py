"""Curation rules on captions as models write them: each drops what it is for and spares its look-alikes."""

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from soundcap.curate import Agreement, CaptionRow, Rules, curate, curation_meaning, reasons
from soundcap.prompts import load_prompts

PROMPTS = Path(__file__).parents[2] / "prompts"
WARNINGS = load_prompts(PROMPTS / "av_caption.yaml", PROMPTS / "warnings.yaml").warnings

GOOD = [
    (
        "dog barking",
        "A dog barks sharply three times close by, then whines softly while claws click on a wooden floor.",
    ),
    (
        "people whispering",
        "A woman whispers breathily near the microphone, her voice low and hushed in a small quiet room.",
    ),
    (
        "playing violin, fiddle",
        "A violin plays a slow, singing melody with a warm, woody tone over a soft guitar.",
    ),
    (
        "male speech, man speaking",
        "A man speaks in a calm, deep voice in an echoing hall while chairs creak.",
    ),
    # Look-alikes of noise: the words serve to describe sound.
    ("raining", "Rain drums steadily on a hollow tin roof while water gurgles down a gutter nearby."),
    (
        "elephant trumpeting",
        "An elephant trumpets loudly twice, a blaring brassy cry, followed by a deep rumble.",
    ),
    (
        "wood thrush calling",
        "Birds sing a clear, flute-like song with a musical trill, repeated at an easy pace.",
    ),
    (
        "reversing beeps",
        "A truck sounds the warning beeps at a steady pace, shrill and electronic, over an idling engine.",
    ),
    (
        "horse clip-clop",
        "Horse hooves ring on cobbles, the clip-clop slowing as a loose window frame rattles.",
    ),
    (
        "church bell ringing",
        "A bronze bell tolls slowly and deeply, each stroke humming over the soft white noise of wind.",
    ),
    (
        "basketball bounce",
        "A ball thumps on a wooden court, quickening, as shoes squeak and a crowd cheers faintly.",
    ),
]

LONG = (
    "A dog barks sharply three times close to the microphone, each bark dry and hard, then whines "
    "softly while its claws click over a wooden floor; somewhere behind it a kettle begins to hiss and "
    "a chair scrapes, a door slams with a hollow boom, footsteps hurry down creaking stairs, keys "
    "jingle, a car engine starts outside, coughs, revs and fades into distance, and finally rain "
    "patters on glass above everything. "
)

BAD = [
    ("empty", "  \n"),
    ("not_text", "A dog \ufffd\ufffd barks sharply three times near the camera, then whines softly."),
    ("not_text", "A dog \x07 barks sharply three times and then whines softly for a while."),
    ("not_text", '{"0:00": [1, 2, 3], "0:02": [4, 5]} barks 00:03 00:04 00:05 !!!'),
    ("foreign_script", "一只狗在木地板上大声吠叫三次 a dog barks loudly on the wooden floor 然后轻声呜咽"),
    ("refusal", "I'm sorry, but I can't describe the sound without more information about it."),
    ("refusal", "As an AI language model, I do not hear anything that I could describe here."),
    ("too_short", "A dog barks loudly."),
    ("repetition", "A dog barks and a dog barks and a dog barks and a dog barks and a dog barks and whines."),
    ("repetition", "barking " * 30),
    ("too_long", LONG),
    ("meta_talk", "Following the warnings, only a dog that barks sharply three times is described."),
    ("meta_talk", "The video features a dog that barks sharply three times and whines softly."),
    ("meta_talk", "In the first frame a dog barks sharply, then whines softly, its claws clicking."),
    ("meta_talk", "Here is the caption: a dog barks sharply three times and then whines softly."),
    ("music", "A dog barks sharply three times while gentle background music plays throughout."),
    ("music", "A dog barks sharply three times; there is no music, only distant traffic humming."),
    ("music", "A dog barks sharply as an acoustic guitar strums softly and a woman hums and sings."),
    ("speech", "A dog barks sharply three times while a narrator explains how to train it."),
    ("speech", "A dog barks sharply three times and a man's voice murmurs something nearby."),
    ("no_sound", "A brown dog stands beside a wooden fence and wags its long tail happily."),
    ("visual", "A dog wearing a red collar is seen near a fence and barks sharply twice."),
]


def row(caption: str, label: str = "dog barking", clip_id: str = "clip") -> CaptionRow:
    return CaptionRow(clip_id, label, caption)


@pytest.mark.parametrize(("label", "caption"), GOOD)
def test_good_captions_are_kept(label: str, caption: str) -> None:
    (verdict,) = curate([row(caption, label)], Rules(), WARNINGS)
    assert verdict.kept, f"dropped by `{verdict.rule}` ({verdict.detail})"
    assert verdict.rule is None and verdict.detail is None


@pytest.mark.parametrize(("rule", "caption"), BAD)
def test_each_rule_drops_what_it_is_for_and_says_what_failed(rule: str, caption: str) -> None:
    (verdict,) = curate([row(caption)], Rules(), WARNINGS)
    assert (verdict.kept, verdict.rule) == (False, rule)
    assert verdict.detail


def test_the_detail_quotes_the_mention() -> None:
    (verdict,) = curate(
        [row("A dog barks sharply three times while Gentle Music plays throughout.")], Rules(), WARNINGS
    )
    assert verdict.detail == "`music`"


@pytest.mark.parametrize(
    ("label", "caption", "dropped_by"),
    [
        (
            "playing drum kit",
            "A drum kit plays a fast beat with crashing cymbals and background music.",
            None,
        ),
        (
            "playing tennis",
            "A racket thwacks a ball in turn while upbeat music plays over the court.",
            "music",
        ),
        ("orchestra", "Strings and brass play a swelling melody, an orchestra in an echoing hall.", None),
        (
            "child singing",
            "A child sings a simple tune in a thin voice, clapping hands in a small room.",
            None,
        ),
        (
            "police radio chatter",
            "A man speaks through a crackling radio, clipped and distorted, with beeps.",
            None,
        ),
        ("sea waves", "Waves crash and hiss on pebbles while people are talking somewhere nearby.", "speech"),
        ("", "Waves crash and hiss on pebbles while soft music plays somewhere nearby.", "music"),
    ],
)
def test_music_and_speech_are_noise_only_where_the_label_says_neither(
    label: str, caption: str, dropped_by: str | None
) -> None:
    (verdict,) = curate([row(caption, label)], Rules(), WARNINGS)
    assert verdict.rule == dropped_by, verdict.detail


def test_a_run_without_warnings_drops_nothing_for_noise() -> None:
    noisy = [row(caption) for rule, caption in BAD if rule in ("music", "speech")]
    assert noisy and all(verdict.kept for verdict in curate(noisy, Rules(), ()))


def test_violations_are_of_curations_meaning_where_they_can_drop_a_caption() -> None:
    music, speech = (warning for warning in WARNINGS if warning.violations)
    meaning = curation_meaning(Rules(), WARNINGS)
    assert [one["name"] for one in meaning["violations"]] == ["music", "speech"]
    assert curation_meaning(Rules(), (replace(music, text="Another sentence."), speech)) == meaning
    assert curation_meaning(Rules(), (replace(music, violations=("songs?",)), speech)) != meaning
    assert curation_meaning(Rules(), (replace(music, except_labels=()), speech)) != meaning
    assert curation_meaning(Rules(violations=False), WARNINGS)["violations"] == []


def test_a_caption_that_too_many_clips_share_is_dropped_from_all_of_them() -> None:
    same = "A dog barks sharply three times, then whines."
    rows = [row(same if i % 2 else same.upper().replace(",", ""), clip_id=f"same{i}") for i in range(4)]
    rows += [row(f"A dog barks {word} three times, then whines.", clip_id=word) for word in ("softly", "loudly")]
    rules = Rules(always_allowed_duplicates=3)
    dropped = {v.clip_id: v.detail for v in curate(rows, rules, WARNINGS) if v.rule == "duplicate"}
    assert dropped == {f"same{i}": "4 of 6 clips" for i in range(4)}
    assert all(v.kept for v in curate(rows, replace(rules, max_duplicate_share=0.7), WARNINGS))
    assert all(v.kept for v in curate(rows, replace(rules, always_allowed_duplicates=4), WARNINGS))


def test_a_caption_that_too_many_clips_nearly_share_is_dropped_from_all_of_them() -> None:
    """One word differs of 20: similarity 19 / 23. The other captions differ in every second word from these."""
    start = "A small dog barks sharply three times outside, then whines softly while its claws click over a worn floor"
    rows = [row(f"{start} {end}.", clip_id=end) for end in ("indoors", "nearby", "again", "briefly")]
    rows += [row(caption, label, f"good{i}") for i, (label, caption) in enumerate(GOOD)]
    dropped = {v.clip_id: v.detail for v in curate(rows, Rules(), WARNINGS) if v.rule == "near_duplicate"}
    assert dropped == dict.fromkeys(
        ("indoors", "nearby", "again", "briefly"), "more than 3 of 15 clips have nearly this"
    )
    for spared in ({"always_allowed_duplicates": 4}, {"near_duplicate_similarity": 0.9}, {"max_duplicate_share": None}):
        assert all(v.kept for v in curate(rows, Rules(**spared), WARNINGS)), spared


@pytest.mark.parametrize(("peak", "detail"), [(None, None), (0.001, None), (0.0009, "largest level 0.0009")])
def test_a_clip_in_which_hardly_anything_is_heard_is_dropped(peak: float | None, detail: str | None) -> None:
    label, caption = GOOD[0]
    (verdict,) = curate([replace(row(caption, label), peak=peak)], Rules(), WARNINGS)
    assert (verdict.kept, verdict.rule, verdict.detail) == (detail is None, detail and "quiet", detail)
    (verdict,) = curate([replace(row(caption, label), peak=peak)], Rules(min_peak=None), WARNINGS)
    assert verdict.kept


OFF = Rules(
    min_words=None,
    max_non_letter_share=None,
    max_foreign_letter_share=None,
    refusals=None,
    max_words=None,
    max_ngram_repeats=None,
    max_compression_ratio=None,
    meta_talk=None,
    violations=False,
    sound_words=None,
    max_visual_words=None,
    max_inaudible_share=None,
    min_peak=None,
    max_duplicate_share=None,
    near_duplicate_similarity=None,
)
TWENTY = "one two three four five six seven eight nine ten a b c d e f g h i j"
LAST_OF_TWENTY = TWENTY.replace(" e ", " x ")  # 19 of 23 pairs of words are in both


def of(*captions: str, label: str = "dog barking") -> list[CaptionRow]:
    return [row(caption, label, str(place)) for place, caption in enumerate(captions)]


def agreeing(caption: float, label: float) -> list[CaptionRow]:
    return [replace(row("A dog barks"), agreement=Agreement(caption, label))]


def loud(peak: float) -> list[CaptionRow]:
    return [replace(row("A dog barks"), peak=peak)]


# Reason: the rule alone, captions that are just kept, and captions that are just dropped, with their detail.
THRESHOLDS: list[tuple[str, dict[str, object], list[CaptionRow], list[CaptionRow], str]] = [
    ("empty", {"min_words": 1}, of("barks"), of(" \n"), "no word"),
    ("not_text", {"max_non_letter_share": 0.25}, of("barks b12"), of("bark b12"), "29% of it are no letters"),
    (
        "foreign_script",
        {"max_foreign_letter_share": 0.1},
        of("abcdefghi\u0436"),
        of("abcdefgh\u0436"),
        "11% of the letters",
    ),
    ("refusal", {"refusals": (r"I cannot",)}, of("A dog cannot bark"), of("I cannot hear"), "`i cannot`"),
    ("too_short", {"min_words": 3}, of("a dog barks"), of("dog barks"), "2 words"),
    ("repetition", {"max_ngram_repeats": 2}, of("a dog barks " * 2), of("a dog barks " * 3), "`a dog barks` 3 times"),
    ("repetition", {"max_compression_ratio": 1.0}, of("bark"), of("bark" * 20), "compression ratio"),
    ("too_long", {"max_words": 3}, of("a dog barks"), of("a big dog barks"), "4 words"),
    ("meta_talk", {"meta_talk": (r"the video",)}, of("the videos bark"), of("The video barks"), "`the video`"),
    ("music", {"violations": True}, of("A music box"), of("A music hall"), "`music`"),
    ("speech", {"violations": True}, of("A man whispers"), of("A man speaks"), "`speaks`"),
    ("no_sound", {"sound_words": (r"barks?",)}, of("A dog barks"), of("A dog sleeps"), "no word of a sound"),
    ("visual", {"max_visual_words": 1}, of("A red dog barks"), of("A red dog is seen"), "red, seen"),
    (
        "inaudible",
        {"max_inaudible_share": 0.25},
        of("A red dog stands and barks near trees"),  # two of eight words
        of("A red dog stands and barks loudly"),
        "2 of 7 words: red, stands",
    ),
    ("below_label", {"agreement_margin": 0.125}, agreeing(0.375, 0.25), agreeing(0.37, 0.25), "agreement 0.370"),
    ("quiet", {"min_peak": 0.1}, loud(0.1), loud(0.0999), "largest level 0.0999"),
    (
        "duplicate",
        {"max_duplicate_share": 0.5, "always_allowed_duplicates": 1},
        of("a dog barks", "A dog barks!", "bells ring", "rain falls"),
        of("a dog barks", "A dog barks!", "a dog, barks"),
        "3 of 3 clips",
    ),
    (
        "duplicate",
        {"max_duplicate_share": 0.0, "always_allowed_duplicates": 2},
        of("a dog barks", "A dog barks!"),
        of("a dog barks", "A dog barks!", "a dog, barks"),
        "3 of 3 clips",
    ),
    (
        "near_duplicate",
        {"max_duplicate_share": 0.0, "always_allowed_duplicates": 1, "near_duplicate_similarity": 19 / 23 + 1e-9},
        of(TWENTY, LAST_OF_TWENTY),
        [],
        "",
    ),
    (
        "near_duplicate",
        {"max_duplicate_share": 0.0, "always_allowed_duplicates": 1, "near_duplicate_similarity": 19 / 23},
        [],
        of(TWENTY, LAST_OF_TWENTY),
        "more than 1 of 2 clips",
    ),
]


@pytest.mark.parametrize(("reason", "rule", "kept", "dropped", "detail"), THRESHOLDS)
def test_each_reason_on_both_sides_of_its_threshold(
    reason: str, rule: dict[str, object], kept: list[CaptionRow], dropped: list[CaptionRow], detail: str
) -> None:
    alone = replace(OFF, **rule)  # type: ignore[arg-type]
    assert [one.rule for one in curate(kept, alone, WARNINGS)] == [None] * len(kept)
    found = curate(dropped, alone, WARNINGS)
    assert [(one.kept, one.rule) for one in found] == [(False, reason)] * len(dropped)
    assert all(one.detail and one.detail.startswith(detail) for one in found), found
    assert all(one.kept for one in curate(kept + dropped, OFF, WARNINGS)), "it is this rule that drops them"


def test_no_reason_is_without_a_threshold_that_is_tested() -> None:
    assert list(dict.fromkeys(reason for reason, *_ in THRESHOLDS)) == reasons(WARNINGS)


def test_every_rule_can_be_switched_off() -> None:
    rows = [row(caption) for _, caption in BAD] * 5 + loud(1e-4)
    assert all(verdict.kept for verdict in curate(rows, OFF, WARNINGS))


@pytest.mark.parametrize(
    "caption",
    [
        "A man in a striped shirt sits on stage, smiling while it zooms and drums rattle.",
        "Two people stand and look at the sky, wearing coats, while a dog barks.",
    ],
)
def test_what_is_mostly_seen_is_inaudible(caption: str) -> None:
    """One word of VISUAL_WORDS at most, which the rule `visual` lets pass."""
    (verdict,) = curate([row(caption)], Rules(), WARNINGS)
    assert verdict.rule == "inaudible", verdict
    assert curate([row(caption)], Rules(max_inaudible_share=None), WARNINGS)[0].kept


def test_one_word_of_what_is_seen_drops_no_caption() -> None:
    """The shortest caption that is long enough has six words."""
    (verdict,) = curate([row("A red siren wails in distance.")], Rules(), WARNINGS)
    assert verdict.kept and Rules().min_words == 6


def test_the_newer_rules_are_of_curations_meaning_only_while_they_are_on() -> None:
    meaning = curation_meaning(OFF, WARNINGS)["rules"]
    newer = {"inaudible_words", "max_inaudible_share", "min_peak", "near_duplicate_similarity"}
    assert not newer & set(meaning)
    assert newer <= set(curation_meaning(Rules(), ())["rules"])


@pytest.mark.parametrize(
    ("agreement", "detail"),
    [
        (Agreement(0.5, 0.25), None),
        (Agreement(0.375, 0.25), None),  # by just the margin
        (Agreement(0.36, 0.25), "agreement 0.360, of its label 0.250"),
        (Agreement(-0.5, -0.25), "agreement -0.500, of its label -0.250"),
        (Agreement(math.nan, math.nan), "not measured"),
        (Agreement(0.1, None), None),  # nothing to beat
        (Agreement(math.nan, None), None),
        (None, None),  # no sound
    ],
)
def test_a_caption_must_beat_its_label_by_the_margin(agreement: Agreement | None, detail: str | None) -> None:
    one = replace(row(GOOD[0][1], GOOD[0][0]), agreement=agreement)
    (verdict,) = curate([one], Rules(agreement_margin=0.125), WARNINGS)
    assert (verdict.kept, verdict.rule, verdict.detail) == (detail is None, detail and "below_label", detail)
    (verdict,) = curate([one], Rules(), WARNINGS)
    assert verdict.kept, "the rule is off by default"


def test_a_margin_of_nothing_keeps_what_agrees_as_its_label() -> None:
    rows = [replace(row(GOOD[0][1]), agreement=Agreement(0.25, label)) for label in (0.25, 0.26)]
    assert [one.kept for one in curate(rows, Rules(agreement_margin=0.0), WARNINGS)] == [True, False]


def test_a_rule_that_is_off_is_not_of_curations_meaning() -> None:
    """Verdicts that are stored under the meaning without it stay."""
    assert "agreement_margin" not in curation_meaning(Rules(), WARNINGS)["rules"]
    assert curation_meaning(Rules(agreement_margin=0.0), WARNINGS)["rules"]["agreement_margin"] == 0.0


def test_order_of_captions_changes_no_verdict() -> None:
    rows = [row(caption, clip_id=f"bad{i}") for i, (_, caption) in enumerate(BAD)]
    rows += [row(caption, label, f"good{i}") for i, (label, caption) in enumerate(GOOD)]
    shuffled = random.Random(0).sample(rows, len(rows))
    verdicts = curate(shuffled, Rules(), WARNINGS)
    assert [v.clip_id for v in verdicts] == [r.clip_id for r in shuffled], "verdicts must keep the rows' order"
    assert sorted(verdicts, key=lambda v: v.clip_id) == sorted(curate(rows, Rules(), WARNINGS), key=lambda v: v.clip_id)


def test_unusable_settings_name_the_field() -> None:
    with pytest.raises(ValueError, match=r"meta_talk: .* is no regular expression"):
        Rules(meta_talk=("(",))
    for pattern in ("", "x*"):
        with pytest.raises(ValueError, match=r"refusals: '.*' matches nothing at all, so every caption would have it"):
            Rules(refusals=("sorry", pattern))
    with pytest.raises(ValueError, match=r"max_words: got -1, wanted 0 or more"):
        Rules(max_words=-1)
    with pytest.raises(ValueError, match=r"near_duplicate_similarity: got 0.19, wanted 0.2 to 1, or none"):
        Rules(near_duplicate_similarity=0.19)
    with pytest.raises(ValueError, match=r"near_duplicate_similarity: got 1.5"):
        Rules(near_duplicate_similarity=1.5)
    with pytest.raises(ValueError, match=r"agreement_margin: got nan, wanted 0 or more"):
        Rules(agreement_margin=math.nan)
