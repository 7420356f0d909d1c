"""Sounds over training on the report's page: the same clips in a row of steps, heard and seen."""

import base64
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipelines.engine.storage import Storage
from pipelines.engine.store import Output
from pipelines.media.process import Deadline
from pipelines.media.read import decode_sound
from pipelines.report.build import evenly, training_sounds
from pipelines.run_config import Config

HZ = 16_000


@pytest.fixture
def output(tmp_path: Path) -> Output:
    """Two clips after two steps: a tone that becomes louder."""
    output = Output(Storage(str(tmp_path)), "flowley", "f")
    folder = tmp_path / output.name("sounds")
    folder.mkdir(parents=True)
    for step in (5, 10):
        for k in (0, 1):
            tone = step / 20 * np.sin(2 * np.pi * 1_000 * (k + 1) * np.arange(HZ) / HZ)
            soundfile.write(folder / f"{step:08d}-{k}.flac", tone, HZ)
    output.storage.write_json(output.name("sounds/clips.json"), ["a", "b"])
    return output


def test_each_clip_is_heard_over_the_steps(output: Output, tmp_path: Path) -> None:
    clips = training_sounds(output.storage, {"flowley": output})
    assert [(clip_id, list(sounds)) for clip_id, sounds in clips] == [("a", [5, 10]), ("b", [5, 10])]
    pitches, peaks = [], []
    for _, sounds in clips:
        for sound in sounds.values():
            file = tmp_path / "heard.m4a"
            file.write_bytes(base64.b64decode(sound.uri.removeprefix("data:audio/mp4;base64,")))
            wave = decode_sound(file, HZ, Deadline(30))[2000:-2000]
            spectrum = np.abs(np.fft.rfft(wave))
            pitches.append(spectrum.argmax() / len(wave) * HZ)
            peaks.append(np.abs(wave).max())
            assert sound.picture.startswith("data:image/png;base64,") and not sound.problem
    assert pitches == pytest.approx([1_000, 1_000, 2_000, 2_000], abs=5)
    assert peaks == pytest.approx([0.25, 0.5, 0.25, 0.5], rel=0.1)


def test_a_sound_that_is_gone_is_named(output: Output, tmp_path: Path) -> None:
    (tmp_path / output.name("sounds") / "00000005-1.flac").write_bytes(b"not a sound")
    (_, first), (_, second) = training_sounds(output.storage, {"flowley": output})
    assert all(sound.uri for sound in (*first.values(), second[10]))
    assert "00000005-1.flac" in second[5].problem and not second[5].uri


def test_trainings_that_drew_nothing(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert training_sounds(storage, {}) == training_sounds(storage, {"flowley": Output(storage, "flowley", "f")}) == []


def test_many_steps_are_thinned_evenly() -> None:
    assert evenly([1, 2, 3], 6) == [1, 2, 3]
    assert evenly(list(range(0, 101, 10)), 6) == [0, 20, 40, 60, 80, 100]


def test_the_page_has_them(
    output: Output, finished: Config, configure: Callable[..., Config], report: Callable[[Config], str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    store = tmp_path / "store"
    shutil.copytree(finished.root, store)
    found = training_sounds(output.storage, {"flowley": output})
    monkeypatch.setattr("pipelines.report.build.training_sounds", lambda storage, outputs: found)
    page = report(configure(store))
    assert len(re.findall(r'<audio controls preload="none" src="data:audio/mp4;base64,', page)) == 4
    assert "Sound over training" in page and "step 10" in page
