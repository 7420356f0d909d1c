"""Prompts: what reaches a model, what does not, and errors that name the line."""

from pathlib import Path

import pytest

from soundcap.prompts import PromptError, load_prompts

PROMPTS = Path(__file__).parents[2] / "prompts"

INSTRUCTION = "text: >\n  Describe what\n  is heard.\n\n  One paragraph.\n"
WARNINGS = """
warnings:
  - name: music
    text: Warning, no music.
    except_labels: ["playing *", "Singing choir"]
    violations: [music, 'songs?']
  - name: wind
    text: The wind is real.
    labels: [wind noise]
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    instruction, warnings = tmp_path / "instruction.yaml", tmp_path / "warnings.yaml"
    instruction.write_text(INSTRUCTION)
    warnings.write_text(WARNINGS)
    return instruction, warnings


def test_a_prompt_is_the_instruction_and_the_warnings_that_reach_the_label(files: tuple[Path, Path]) -> None:
    prompts = load_prompts(*files)
    assert prompts.render("dog barking") == "Describe what is heard.\nOne paragraph.\nWarning, no music."
    assert prompts.render("Wind  Noise").endswith("Warning, no music.\nThe wind is real.")
    assert prompts.render("playing banjo") == "Describe what is heard.\nOne paragraph."
    assert prompts.render("singing choir") == "Describe what is heard.\nOne paragraph."
    assert prompts.render("not playing banjo").endswith("no music."), "a pattern must match the whole label"
    assert load_prompts(files[0], None).render("wind noise") == "Describe what is heard.\nOne paragraph."


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("\nwarnings:", "\n# a comment\nwarnings:"),
        ("name: music", "name: soundtrack"),
        ("text: Warning, no music.", 'text: "Warning,   no music.  "'),
        ("text: Warning, no music.", "text: >-\n      Warning,\n      no music."),
        ('["playing *", "Singing choir"]', "[singing choir, 'PLAYING *']"),
        ("violations: [music, 'songs?']", "violations: [lyrics]"),
    ],
)
def test_an_edit_outside_the_prompt_text_changes_no_meaning(files: tuple[Path, Path], before: str, after: str) -> None:
    meaning = load_prompts(*files).meaning()
    assert before in WARNINGS
    files[1].write_text(WARNINGS.replace(before, after))
    assert load_prompts(*files).meaning() == meaning


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("no music.", "no song."),
        ("wind noise", "hail"),
        ("except_labels: [", "labels: ["),
        ("labels: [wind noise]", ""),
    ],
)
def test_an_edit_of_the_text_or_the_labels_changes_the_meaning(
    files: tuple[Path, Path], before: str, after: str
) -> None:
    meaning = load_prompts(*files).meaning()
    assert before in WARNINGS
    files[1].write_text(WARNINGS.replace(before, after))
    assert load_prompts(*files).meaning() != meaning


def test_a_mention_breaks_a_warning_where_it_reaches_and_the_label_does_not_say_the_like(
    files: tuple[Path, Path],
) -> None:
    music, wind = load_prompts(*files).warnings
    caption = "A dog barks while two SONGS play."
    assert music.violation(caption, "dog barking") == "songs"
    assert music.violation(caption, "playing banjo") is None
    assert music.violation(caption, "a love song") is None
    assert music.violation("A dog barks at a musician.", "dog barking") is None
    assert wind.violation(caption, "wind noise") is None


def test_a_prompt_is_made_once_for_a_label(files: tuple[Path, Path]) -> None:
    prompts = load_prompts(*files)
    assert prompts.render("dog barking") is prompts.render("dog barking") is prompts.render("cat purring")
    assert prompts == load_prompts(*files), "what was rendered is no part of a set's value"


def test_origins_name_the_file_of_each_element_of_the_meaning(files: tuple[Path, Path]) -> None:
    prompts = load_prompts(*files)
    assert prompts.origins == {
        "instruction": str(files[0]),
        "warnings[0]": f"{files[1]} (warning `music`)",
        "warnings[1]": f"{files[1]} (warning `wind`)",
    }
    assert len(prompts.meaning()["warnings"]) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("warnings: []\n", r":1: unknown key `warnings`"),
        ("text: a\ntext: b\n", r":2: `text` is there twice"),
        ("text: '  '\n", r":1: `text` must be text, not empty"),
        ("text: 7\n", r":1: `text` must be text"),
        ("text: [a]\n", r":1: `text` must be text"),
        ("- a\n", r":1: must be a mapping"),
        ("{}\n", r":1: `text` is missing"),
        ("\n\ntext: 'open\n", r":\d+: not valid YAML"),
    ],
)
def test_a_bad_instruction_is_one_line_that_names_file_and_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "instruction.yaml"
    path.write_text(content)
    with pytest.raises(PromptError, match=message) as caught:
        load_prompts(path, None)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("warnings:\n- {name: a, text: x}\n- {name: a, text: y}\n", r":3: warning `a` is there twice"),
        ("warnings:\n- {name: a, text: x, label: [y]}\n", r":2: unknown key `label`"),
        ("warnings:\n- {name: a, text: x, labels: []}\n", r":2: `labels` must be a list"),
        ("warnings:\n- {name: a, text: x, labels: [y], except_labels: [z]}\n", r":2: warning `a` has both"),
        (
            "warnings:\n- {name: a, text: x, violations: ['b', '(']}\n",
            r":2: `violations`: .* is no reg.*missing \)",
        ),
        (
            "warnings:\n- {name: a, text: x, violations: ['b', 'x*']}\n",
            r":2: `violations`: 'x\*' matches nothing",
        ),
        ("warnings:\n- {name: a, text: x, violations: music}\n", r":2: `violations` must be a list"),
        ("warnings:\n- {text: x}\n", r":2: `name` is missing"),
        ("warnings: x\n", r":1: `warnings` must be a list"),
    ],
)
def test_bad_warnings_are_one_line_that_names_file_and_line(
    files: tuple[Path, Path], content: str, message: str
) -> None:
    files[1].write_text(content)
    with pytest.raises(PromptError, match=message) as caught:
        load_prompts(*files)
    assert str(caught.value).startswith(str(files[1])) and "\n" not in str(caught.value)


def test_a_missing_file_and_a_file_in_another_encoding_are_named(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="No such file"):
        load_prompts(tmp_path / "absent.yaml", None)
    (tmp_path / "latin.yaml").write_bytes("text: déjà".encode("latin-1"))
    with pytest.raises(PromptError, match="not UTF-8"):
        load_prompts(tmp_path / "latin.yaml", None)


def test_the_projects_prompts_keep_music_and_voices_where_they_are_the_sound() -> None:
    prompts = load_prompts(PROMPTS / "av_caption.yaml", PROMPTS / "warnings.yaml")
    reached = {
        label: {warning.name for warning in prompts.warnings if warning.reaches(label)}
        for label in (
            "dog barking",
            "playing violin, fiddle",
            "female singing",
            "male speech, man speaking",
            "wind noise",
            "playing tennis",
            "mynah bird singing",
            "elephant trumpeting",
        )
    }
    assert {"music", "speech", "silent_objects"} <= reached["dog barking"]
    assert "music" not in reached["playing violin, fiddle"]
    assert "speech" in reached["playing violin, fiddle"]
    assert not {"music", "speech"} & reached["female singing"]
    assert "speech" not in reached["male speech, man speaking"]
    assert "music" in reached["male speech, man speaking"]
    assert "wind_and_water_are_real" in reached["wind noise"]
    assert "wind_and_water_are_real" not in reached["dog barking"]
    for not_music in ("playing tennis", "mynah bird singing", "elephant trumpeting"):
        assert "music" in reached[not_music]
    silent = load_prompts(PROMPTS / "silent_caption.yaml", None)
    assert "no sound" in silent.render("dog barking") and silent.warnings == ()
