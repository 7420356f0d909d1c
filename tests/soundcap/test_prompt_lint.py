"""Lint of prompts beside a corpus's labels, and the reach of an edit: a case for each fault, and none without one."""

from dataclasses import replace
from pathlib import Path

import pytest

from soundcap.prompt_lint import Finding, changed_clips, lint, prompt_changes
from soundcap.prompts import Instruction, NoiseWarning, PromptError, PromptSet, load_prompts

ROOT = Path(__file__).parents[2]
LABELS = {"dog barking": 60, "playing violin": 30, "rain": 10}
INSTRUCTION = Instruction("Describe the sound in 20 to 45 words.", "i.yaml")
MUSIC = NoiseWarning("music", "Do not mention music.", "w.yaml (music)", None, ("playing *",), ("music", "violins?"))
WIND = NoiseWarning("wind", "Do not describe wind.", "w.yaml (wind)", ("rain",), (), ("wind",))


def _faults(*warnings: NoiseWarning, instruction: Instruction = INSTRUCTION, tokens: int | None = 77) -> list[Finding]:
    return lint(PromptSet(instruction, warnings), LABELS, text_tokens=tokens, max_new_tokens=96)


def test_the_shipped_prompts_are_without_fault() -> None:
    prompts = load_prompts(ROOT / "prompts/av_caption.yaml", ROOT / "prompts/warnings.yaml")
    assert not [one for one in lint(prompts, LABELS, text_tokens=77, max_new_tokens=96) if one.is_fault]
    assert _faults(MUSIC, WIND) == []


def test_captions_longer_than_the_text_encoder_reads() -> None:
    [found] = _faults(instruction=Instruction("Use 40 to 80 words.", "i.yaml"))
    assert "i.yaml: asks for up to 80 words, some 112 tokens" in found.text and "at most 55 words" in found.text
    [found] = _faults(instruction=Instruction("Describe it.", "i.yaml"))
    assert "asks for no number of words" in found.text and "96 tokens" in found.text
    assert _faults(instruction=Instruction("Use 40 to 80 words.", "i.yaml"), tokens=None) == []


@pytest.mark.parametrize(
    "asks", ["up to 40 words", "At Most 40 words", "between 20 and 40 words", "about 40 words", "40 words or fewer"]
)
def test_each_way_to_ask_for_words_is_known(asks: str) -> None:
    assert _faults(instruction=Instruction(f"Describe it in {asks}.", "i.yaml")) == []
    [found] = _faults(instruction=Instruction(f"Describe it in {asks.replace('40', '80')}.", "i.yaml"))
    assert "asks for up to 80 words" in found.text


def test_a_misspelt_label_is_told_from_one_of_another_corpus() -> None:
    [misspelt] = _faults(replace(MUSIC, except_labels=("playing *", "dog barkin")))
    assert misspelt.is_fault and "`dog barkin` matches no label of the corpus; is `dog barking` meant?" in misspelt.text
    [foreign] = _faults(replace(MUSIC, except_labels=("playing *", "zebra braying")))
    assert not foreign.is_fault and "1 of 2 label patterns match no label" in foreign.text
    found = _faults(replace(WIND, labels=("sailing",)))
    assert [one.text for one in found if "reaches no clip" in one.text] == [
        "w.yaml (wind): reaches no clip of this corpus"
    ]


@pytest.mark.parametrize(
    ("warnings", "words"),
    [
        ((replace(MUSIC, except_labels=()),), "tells the model to leave out what `playing violin` is about (`violin`)"),
        ((MUSIC, replace(MUSIC, name="again", origin="w.yaml (again)")), "the same text as w.yaml (music), twice"),
        (
            (WIND, NoiseWarning("real", "Describe the wind as it is.", "w.yaml (real)")),
            "w.yaml (real): asks for `wind`, which w.yaml (wind) forbids, both for `rain`",
        ),
    ],
)
def test_contradictions(warnings: tuple[NoiseWarning, ...], words: str) -> None:
    [found] = _faults(*warnings)
    assert found.is_fault and words in found.text


def test_an_instruction_that_asks_for_what_a_warning_forbids() -> None:
    [found] = _faults(MUSIC, instruction=Instruction("Name the music, in 20 to 45 words.", "i.yaml"))
    assert "i.yaml: asks for `music`, which w.yaml (music) forbids" in found.text


def test_warnings_that_labels_keep_apart_do_not_contradict() -> None:
    assert _faults(WIND, NoiseWarning("real", "Describe the wind as it is.", "w.yaml (real)", ("dog barking",))) == []


OLD = PromptSet(INSTRUCTION, (MUSIC, WIND))


@pytest.mark.parametrize(
    ("new", "told", "clips"),
    [
        (PromptSet(INSTRUCTION, (MUSIC, replace(WIND, violations=("gale",)))), [], 0),
        (PromptSet(INSTRUCTION, (MUSIC,)), [("wind", "removed", 10)], 10),
        (PromptSet(INSTRUCTION, (MUSIC, WIND, replace(WIND, name="hum"))), [("hum", "added", 10)], 10),
        (PromptSet(INSTRUCTION, (replace(MUSIC, text="No music."), WIND)), [("music", "changed", 70)], 70),
        (PromptSet(INSTRUCTION, (replace(MUSIC, except_labels=()), WIND)), [("music", "changed", 30)], 30),
        (PromptSet(INSTRUCTION, (WIND, MUSIC)), [("wind", "moved", 10)], 10),
        (PromptSet(INSTRUCTION, (replace(MUSIC, name="musik"), WIND)), [], 0),
        (
            PromptSet(INSTRUCTION, (WIND, MUSIC, replace(WIND, name="hum", text="No hum."))),
            [("hum", "added", 10), ("wind", "moved", 10)],
            10,
        ),
        (PromptSet(Instruction("Short.", "i"), (MUSIC, WIND)), [("instruction", "changed", 100)], 100),
    ],
)
def test_what_an_edit_reaches(new: PromptSet, told: list[tuple[str, str, int]], clips: int) -> None:
    changes = prompt_changes(OLD, new, LABELS)
    assert [(one.what, one.kind, one.clips) for one in changes] == told
    assert changed_clips(OLD, new, LABELS) == clips


def test_an_edit_shows_its_words_and_labels() -> None:
    [change] = prompt_changes(OLD, PromptSet(INSTRUCTION, (replace(MUSIC, except_labels=("rain",)), WIND)), LABELS)
    assert change.reach == (["playing violin"], ["rain"]) and change.words == [("same", MUSIC.text)]
    [change] = prompt_changes(OLD, PromptSet(INSTRUCTION, (replace(MUSIC, text="Never mention music."), WIND)), LABELS)
    assert change.words == [("out", "Do not"), ("in", "Never"), ("same", "mention music.")]


@pytest.mark.parametrize(
    "text", ["A {label} sounds.", "A {{ label }} sounds.", "A $label sounds.", "A ${label} sounds."]
)
def test_names_that_nothing_fills_in_are_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "i.yaml"
    file.write_text(f"text: '{text}'\n")
    with pytest.raises(PromptError, match=r"i.yaml:1: `text` holds .*label.*nothing fills names in"):
        load_prompts(file, None)


def test_a_file_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "i.yaml"
    file.write_text("text: " + "[" * 5000 + "]" * 5000)
    with pytest.raises(PromptError, match="i.yaml: nested too deeply"):
        load_prompts(file, None)


def test_braces_and_money_are_no_names(tmp_path: Path) -> None:
    file = tmp_path / "i.yaml"
    file.write_text("text: 'Write {}, { } or $5.'\n")
    assert load_prompts(file, None).instruction.text == "Write {}, { } or $5."
