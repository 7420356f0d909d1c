"""Captions of videos from a table."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.commands.extract import CAPTIONS, match_captions
from pipelines.errors import UserError
from pipelines.tables import UserTable, read_table

Table = Callable[[str], UserTable]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    def write(text: str) -> UserTable:
        path = tmp_path / "captions.csv"
        path.write_text(text)
        return read_table(str(path), CAPTIONS)

    return write


def test_each_video_gets_the_caption_of_its_own_name(table: Table) -> None:
    """Dots in names are parts of them; a suffix may be there, be another, or be left out."""
    names = ["dog.mp4", "dog.remix.mp4", "Y0a1b_30.000_40.000.mkv", "Y0a1b_30.500_40.500.mkv", "cat.webm"]
    said: list[str] = []
    captions = match_captions(
        table("dog.remix,two\ndog,one\nY0a1b_30.500_40.500,four\nY0a1b_30.000_40.000,three\ncat.wav,\nowl,hoots\n"),
        names,
        said.append,
    )
    assert captions == {
        "dog": "one",
        "dog.remix": "two",
        "Y0a1b_30.000_40.000": "three",
        "Y0a1b_30.500_40.500": "four",
    }
    assert len(said) == 1 and said[0].endswith("1 captions are of none of these videos: 'owl' (line 6)")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dog,barks\ncat,purrs\ndog.mp4,howls\n", "line 3 has a caption of dog.mp4, and so has line 1; leave one"),
        ("cat,purrs\n", "line 1 names 'cat', which may be cat.mp4 and cat.mkv; write the name with its suffix"),
    ],
)
def test_a_caption_that_may_be_of_another_video_is_refused(table: Table, text: str, words: str) -> None:
    names = ["dog.mp4", "cat.mp4", "cat.mkv"] if "which may" in words else ["dog.mp4", "cat.mp4"]
    with pytest.raises(UserError, match=words):
        match_captions(table(text), names, print)
