"""The report is one page that needs nothing else, shows what ran, and cannot be broken by what models write."""

import base64
import io
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.engine.store import open_store
from pipelines.errors import UserError
from pipelines.report.build import choose
from pipelines.report.figures import loss_curve, spectrograms
from pipelines.run_config import Config


class _Page(HTMLParser):
    """Elements, addresses and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "poster", "data")]

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


@pytest.fixture(scope="module")
def html(finished: Config, report: Callable[[Config], str]) -> str:
    return report(finished)


def test_page_needs_nothing_else(html: str) -> None:
    page = _Page(html)
    assert page.addresses, "no media in the page"
    assert all(address.startswith("data:") for address in page.addresses)
    assert not re.search(r"@import|url\(", html)
    assert "script" not in page.tags and "link" not in page.tags


def test_what_models_write_stays_text(html: str) -> None:
    page = _Page(html)
    assert "A </td><script>alert('x')</script> & a *dull*" in page.text
    assert page.tags.count("video") == 4 + 2, "a player for each clip, two for the one sample"


def test_stages_rows_and_reasons_are_told(html: str) -> None:
    text = " ".join(_Page(html).text.split())
    for wanted in (
        "in 5 out 4 quarantined 1",
        "clips : 1 quarantined (UnreadableSource 1)",
        "curation : 1 dropped (too_short 1)",
        "captions hears sound number 1",
        "silent_captions hears sound number 1",
        "4 of 4 clips",
        "reads clips, curation",
    ):
        assert wanted in text, f"the report does not say {wanted!r}"


def test_player_has_the_clips_picture_and_sound(html: str, tmp_path: Path) -> None:
    uris = re.findall(r'<video[^>]* src="data:video/mp4;base64,([^"]+)"', html)
    for number, uri in enumerate(uris):
        file = tmp_path / f"{number}.mp4"
        file.write_bytes(base64.b64decode(uri))
        probe = ["ffprobe", "-v", "error", "-show_entries", "stream=codec_name,duration", "-of", "csv=p=0", str(file)]
        streams = dict(line.split(",") for line in subprocess.check_output(probe, text=True).split())
        assert streams.keys() == {"h264", "aac"}
        assert all(float(duration) == pytest.approx(2.0, abs=0.1) for duration in streams.values())


def test_empty_store_says_that_nothing_has_run(
    configure: Callable[..., Config], report: Callable[[Config], str], tmp_path: Path
) -> None:
    config = configure(tmp_path / "store")
    with pytest.raises(UserError, match="holds no store; `soundcap run CONFIG` makes one"):
        report(config)
    open_store(config.root, write=True)
    text = _Page(report(config)).text
    assert "Nothing has run yet" in text
    assert "No training has finished yet" in text
    assert "Stage samples has not run yet" in text


def test_clip_whose_media_are_gone_is_named(
    finished: Config, configure: Callable[..., Config], report: Callable[[Config], str], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished.root, store)
    shutil.rmtree(store / "media")
    page = _Page(report(configure(store)))
    assert page.tags.count("video") == 1, "only the generated sample is left to be shown"
    assert "is gone; `soundcap run` makes it again" in page.text


def test_both_splits_are_shown() -> None:
    clips = [{"clip_id": f"{i:02d}", "split": "test" if i % 10 == 0 else "train"} for i in range(100)]
    chosen = choose(pa.Table.from_pylist(clips), 24)
    assert len(chosen) == 24
    assert sum(clip["split"] == "test" for clip in chosen) == 10, "every test clip fits into half of the places"
    assert choose(pa.Table.from_pylist(clips[::-1]), 24) == chosen


def test_loss_curve_falls_where_the_loss_falls() -> None:
    from matplotlib.image import imread

    losses = ((1, 8.0), (5, 4.0), (9, float("nan")), (10, 2.0))
    pixels = imread(io.BytesIO(loss_curve([{"step": s, "loss": loss} for s, loss in losses])))[..., :3]
    height, width = pixels.shape[:2]
    rows, columns = np.nonzero(np.abs(pixels - np.array([0x23, 0x57, 0xC5]) / 255).max(axis=2) < 0.1)
    left, right = (rows[columns == columns.min() + 4], rows[columns == columns.max() - 8])
    assert columns.max() - columns.min() > 0.8 * width, "the curve spans the picture"
    assert right.mean() - left.mean() > 0.6 * height, "8 lies far above 2"
    middle = rows[columns == round(columns.min() + 4 * (columns.max() - columns.min()) / 9)]
    assert (middle.mean() - left.mean()) / (right.mean() - left.mean()) == pytest.approx(4 / 6, abs=0.05)


@pytest.mark.parametrize(("losses", "shown"), [([], False), ([1.0], True), ([2.0, 2.0], True), ([float("nan")], False)])
def test_loss_curve_of_little(losses: list[float], shown: bool) -> None:
    picture = loss_curve([{"step": i, "loss": loss} for i, loss in enumerate(losses)])
    assert picture.startswith(b"\x89PNG") == shown


def test_spectrogram_shows_a_tone_at_its_pitch_and_silence_dark() -> None:
    from matplotlib.image import imread

    hz = 16_000
    tone = np.sin(2 * np.pi * 6_000 * np.arange(hz) / hz).astype(np.float32)
    loud, silent = (imread(io.BytesIO(png))[..., :3].mean(axis=2) for png in spectrograms([tone, 0 * tone], hz))
    column = slice(loud.shape[1] // 2, loud.shape[1] // 2 + 20)
    inside = loud[10:-40, column].mean(axis=1)
    assert 0.15 < inside.argmax() / len(inside) < 0.35, "6 of 8 kHz lies a quarter below the top"
    assert silent[10:-40, column].max() < 0.1
