"""Human labels of VGGSound's test clips, as VGGSounder's package has them, and the measures that they decide.

Clips are real rows of its table.
"""

import csv
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from soundcap.caption_scores import BY_PEOPLE, Measure, measure
from soundcap.curate import CaptionRow, Rules
from soundcap.human_labels import HumanLabels, human_labels, is_named, stem, vggsound_id
from soundcap.prompts import NoiseWarning, load_prompts

ROOT = Path(__file__).parents[2]
WARNINGS = load_prompts(ROOT / "prompts/av_caption.yaml", ROOT / "prompts/warnings.yaml").warnings
ROOSTER = "17L2VkXtcQ0_000030"  # chicken crowing AV, playing bass drum A, playing piano A; background music
PIANO = "-rTTPoBJNI4_000123"  # playing piano A, playing tambourine AV; background music
VIOLIN = "2NESqWU89V0_000338"  # playing violin, fiddle AV
RAP = "-KTabIWnPSg_000021"  # playing bass drum A, rapping AV
MOSQUITO = "-GLVzwHQwtw_000069"  # male speech, man speaking A, mosquito buzzing V; voice-over
COYOTE = "-JTbHL7OKf0_000052"  # coyote howling V
SPEECH = "male speech, man speaking"


def by_name(
    captions: dict[str, str], warnings: tuple[NoiseWarning, ...] = WARNINGS
) -> dict[str, tuple[list[float], str]]:
    """Values of people's measures, in the order of the captions, and what is better."""
    rows = [CaptionRow(clip, "", caption) for clip, caption in captions.items()]
    found: list[Measure] = measure(rows, Rules(), warnings, human_labels(captions))
    ours = [one for one in found if one.name.startswith(BY_PEOPLE)]
    return {one.name.removeprefix(BY_PEOPLE): (one.values.tolist(), one.better) for one in ours}


def test_labels_are_those_of_the_table() -> None:
    assert human_labels([MOSQUITO, "", "AAAAAAAAAAA_000001"]) == {
        MOSQUITO: HumanLabels(off_screen=(SPEECH,), unheard=("mosquito buzzing",), added=frozenset({"speech"}))
    }
    found = human_labels([ROOSTER])[ROOSTER]
    assert (found.on_screen, found.off_screen) == (("chicken crowing",), ("playing bass drum", "playing piano"))
    assert found.added == {"music"}


def test_no_clip_and_no_label_of_the_table_is_missed() -> None:
    """Against the table itself; the package's own default leaves out 3,055 clips with background music."""
    table = files("vggsounder").joinpath("data", "vggsounder+background-music.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(table.splitlines()))
    found = human_labels(row["video_id"] for row in rows)
    assert len(found) == len({row["video_id"] for row in rows}) == 15_069
    senses = {"A": "off_screen", "AV": "on_screen", "V": "unheard"}
    for row in rows:
        assert row["label"] in getattr(found[row["video_id"]], senses[row["modality"]])
        assert ("music" in found[row["video_id"]].added) == (row["background_music"] == "True")
        assert ("speech" in found[row["video_id"]].added) == (row["voice_over"] == "True")
    assert sum(len(one.on_screen + one.off_screen + one.unheard) for one in found.values()) == len(rows)
    assert all(vggsound_id(clip[:11], float(clip[12:])) == vggsound_id(clip, 0) == clip for clip in found)


@pytest.mark.parametrize(
    ("video_id", "start_s", "clip"),
    [
        ("---g-f_I2yQ", 1.0, "---g-f_I2yQ_000001"),
        ("---g-f_I2yQ_000001", 0.0, "---g-f_I2yQ_000001"),
        ("test/---g-f_I2yQ_000001", 0.0, "---g-f_I2yQ_000001"),
        ("---g-f_I2yQ", 1.5, ""),
        ("---g-f_I2yQ_000001", 1.5, ""),
        ("dog", 1.0, ""),
        ("---g-f_I2yQ_000001_cut", 0.0, ""),
        ("---g-f_I2yQ", 1_000_000.0, ""),
        ("", 0.0, ""),
    ],
)
def test_ids(video_id: str, start_s: float, clip: str) -> None:
    assert vggsound_id(video_id, start_s) == clip


@pytest.mark.parametrize(
    ("forms", "of"),
    [
        ("bark barks barked barking", "bark"),
        ("idle idles idled idling", "idl"),
        ("run runs running", "run"),
        ("cry cries cried crying", "cri"),
        ("buzz buzzes buzzing", "buzz"),
        ("hiss hisses hissing", "hiss"),
        ("call calls calling", "call"),
        ("horse horses", "hors"),
        ("speed speeds speeding", "speed"),
        ("sing sings singing", "sing"),
        ("bee bees", "bee"),
        ("bus buses", "bus"),
        ("his", "his"),
        ("string strings", "string"),
    ],
)
def test_stems(forms: str, of: str) -> None:
    assert {form: stem(form) for form in forms.split()} == dict.fromkeys(forms.split(), of)


@pytest.mark.parametrize(
    ("label", "caption", "named"),
    [
        ("dog barking", "A dog barks, far away.", True),
        ("dog barking", "Dogs growl.", False),
        ("dog growling", "A dog barks.", False),
        ("bird chirping, tweeting", "Something tweets.", True),
        ("playing violin, fiddle", "A fiddle", True),
        ("playing piano", "Children are playing.", False),
        ("car passing by", "She carries on, and time passes.", False),
        ("wind noise", "Wind roars.", True),
        ("male singing", "A man sings.", True),
        ("male singing", "A woman sings.", False),
        ("child singing", "Two girls sing.", True),
        (SPEECH, "A man is speaking.", True),
        (SPEECH, "A man talks.", False),
        ("police car (siren)", "The siren of a police car", True),
        ("horse clip-clop", "Clip, clop: a horse.", True),
        ("people", "People.", False),
        ("", "A dog.", False),
    ],
)
def test_when_a_caption_names_a_label(label: str, caption: str, named: bool) -> None:
    assert is_named(label, caption) is named


def test_added_sound_is_a_violation_where_nobody_makes_it_on_screen() -> None:
    nan = np.nan
    captions = {
        ROOSTER: "A cock crows over soft music.",
        PIANO: "Music with a tambourine.",  # seen and heard: true
        VIOLIN: "Music.",  # nothing was added
        MOSQUITO: "Someone is talking.",
    }
    found = by_name(captions)
    assert found["violates music"][1] == found["violates speech"][1] == "lower"
    assert np.array_equal(found["violates music"][0], [1, nan, nan, nan], equal_nan=True)
    assert np.array_equal(found["violates speech"][0], [nan, nan, nan, 1], equal_nan=True)
    assert by_name({ROOSTER: "A cock crows."})["violates music"][0] == [0]


def test_true_music_that_is_left_out_is_silenced() -> None:
    """The piano over the rooster was added; a tambourine is music, but no word of the warning's."""
    captions = {VIOLIN: "A bow scrapes.", RAP: "A drum kit thumps.", ROOSTER: "A cock crows.", PIANO: "Rattling."}
    nan = np.nan
    assert np.array_equal(by_name(captions)["silences music"][0], [1, nan, nan, nan], equal_nan=True)
    assert by_name({VIOLIN: "A violin sings."})["silences music"] == ([0], "lower")


def test_names_of_what_is_heard_and_of_what_is_only_seen() -> None:
    nan = np.nan
    captions = {
        ROOSTER: "Chickens crow.",  # the added piano and drum are not asked for
        RAP: "Loud rapping.",  # of two labels one
        MOSQUITO: "A mosquito buzzes.",  # its speech was added: nothing is left to be named
        COYOTE: "A dog howls.",
    }
    found = by_name(captions)
    assert np.array_equal(found["names heard"][0], [1, 0.5, nan, nan], equal_nan=True)
    assert np.array_equal(found["names unheard"][0], [nan, nan, 1, 0], equal_nan=True)
    assert (found["names heard"][1], found["names unheard"][1]) == ("higher", "lower")


def test_without_warnings_of_these_names_labels_are_all_that_counts() -> None:
    found = by_name({ROOSTER: "A chicken crows."}, ())
    assert found == {"names heard": ([pytest.approx(1 / 3)], "higher")}


def test_nothing_is_measured_where_nobody_has_labelled() -> None:
    assert by_name({"AAAAAAAAAAA_000001": "A dog barks.", "x": "Music."}) == {}
