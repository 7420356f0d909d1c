"""Work on one of several videos."""

import errno
from pathlib import Path

import pytest

from pipelines.media.faults import FfmpegMissing, TooShort
from pipelines.media.videos import one_of_many, targets_of


@pytest.mark.parametrize(
    "error", [TooShort("too short"), RuntimeError("no such width"), FileNotFoundError("gone"), KeyError("x")], ids=repr
)
def test_whatever_a_video_raises_costs_that_video_alone(error: Exception) -> None:
    failed: list[str] = []
    said: list[str] = []
    with one_of_many(Path("a/b.mp4"), failed, said.append):
        raise error
    assert failed == ["b.mp4"] and said[0].startswith(f"a/b.mp4: {type(error).__name__}: ")


@pytest.mark.parametrize(
    "error", [FfmpegMissing("ffmpeg is not on PATH"), OSError(errno.ENOSPC, "No space left on device"), LookupError()]
)
def test_a_fault_of_the_machine_or_of_all_videos_ends_the_work(error: Exception) -> None:
    failed: list[str] = []
    with pytest.raises(type(error)), one_of_many(Path("b.mp4"), failed, print, common=(LookupError,)):
        raise error
    assert failed == []


def test_a_suffix_in_capitals_is_a_file_too(tmp_path: Path) -> None:
    assert targets_of([Path("a.mkv")], tmp_path / "out.MP4") == [tmp_path / "out.MP4"]
    assert targets_of([Path("a.mkv")], tmp_path / "out") == [tmp_path / "out" / "a.mp4"]
