"""Features of a few clips, fetched from a bucket: the same arrays, and hardly a byte more than they hold."""

import io
from pathlib import Path

import numpy as np
import pytest

from flowley.features.files import (
    EMPTY_CAPTION_ID,
    AVFeatures,
    TextFeatures,
    copy_rows,
    write_av_features,
    write_text_features,
)
from pipelines.engine.storage import Storage
from pipelines.stages.features import fetch_rows, open_features

CLIPS = 64
RNG = np.random.default_rng(0)


def _av(clip_id: str) -> AVFeatures:
    """At the paper's settings: 64 frames of 768 channels, 250 of 20 for the sound."""
    visual, mean = RNG.normal(size=(64, 768)), RNG.normal(size=(250, 20))
    return AVFeatures(clip_id, visual.astype(np.float32), mean.astype(np.float32), np.ones((250, 20), np.float32))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    write_av_features(folder / "av.arrow", [_av(f"clip{n}") for n in range(CLIPS)])
    texts = [TextFeatures(f"clip{n}", RNG.normal(size=(9 + n % 5, 768)), 9) for n in range(CLIPS)]
    write_text_features(folder / "text.arrow", texts)
    return folder


class _Counting(io.FileIO):
    """A file that counts the bytes that are read of it."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size)
        self.count += len(data)
        return data

    def readinto(self, buffer: object) -> int:
        count = super().readinto(buffer)  # type: ignore[arg-type]
        self.count += count or 0
        return count or 0


def test_only_what_holds_the_rows_is_read(files: Path, tmp_path: Path) -> None:
    whole = (files / "av.arrow").stat().st_size
    with _Counting(str(files / "av.arrow")) as source:
        copy_rows(source, range(16, 48), tmp_path / "part.arrow")
        assert source.count <= 1.1 * whole / 2, f"{source.count} bytes for half of {whole}"


@pytest.mark.parametrize("place", ["disk", "bucket"])
@pytest.mark.parametrize("rows", [range(16, 48), [63, 0, 17], [5]])
def test_the_same_features_come_from_a_bucket(
    files: Path, tmp_path: Path, place: str, rows: list[int], request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path / "store") if place == "disk" else f"{request.getfixturevalue('s3_url')}/{tmp_path.name}"
    storage = Storage(url)
    for name in ("av.arrow", "text.arrow"):
        storage.write_bytes(name, (files / name).read_bytes())
    asked = [
        {"clip_id": f"clip{n}", "av_file": "av.arrow", "av_row": n, "text_file": "text.arrow", "text_row": n}
        for n in rows
    ]
    (tmp_path / "copies").mkdir()
    found = open_features(*fetch_rows(storage, asked, tmp_path / "copies"))
    whole = open_features(asked, {name: files / name for name in ("av.arrow", "text.arrow")})
    assert len(found) == len(asked) and EMPTY_CAPTION_ID not in [clip.clip_id for clip in found]
    for index, row in enumerate(asked):
        mine, theirs = found[index], whole[index]
        assert mine.clip_id == theirs.clip_id == row["clip_id"]
        for name in ("visual", "audio_mean", "audio_std", "text"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
