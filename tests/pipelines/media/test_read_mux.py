"""Frames by time at 2, 4 and 8 fps, sound at another rate, generated sound put back onto the picture."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipelines.media.clip import NormaliserSettings
from pipelines.media.faults import NotNormalised, UnreadableSource
from pipelines.media.mux import mux
from pipelines.media.normalise import normalise
from pipelines.media.probe import open_source
from pipelines.media.process import Deadline
from pipelines.media.read import frame_indices, read_audio, read_frames, resample


@pytest.fixture(scope="module", params=[24, 25])
def clip(request, base, tmp_path_factory) -> tuple[Path, Path, int]:
    folder = tmp_path_factory.mktemp("clip")
    settings = NormaliserSettings(fps=request.param, long_side_px=128)
    normalise(open_source(base, Deadline(60)), folder / "a.mp4", folder / "a.flac", settings, deadline=Deadline(60))
    return folder / "a.mp4", folder / "a.flac", request.param


@pytest.mark.parametrize("fps", [2, 4, 8])
def test_sampled_frames_show_their_time(clip, fps):
    """The frame number drawn into the 30-fps source tells which moment is shown."""
    video, _, clip_fps = clip
    frames = read_frames(video, fps)
    assert frames.shape == (8 * fps, 96, 128, 3) and frames.dtype == np.uint8
    bits = frames[:, 84, 6:126:12, 1] > 128
    shown_s = bits @ (1 << np.arange(10)) / 30
    wanted_s = np.arange(8 * fps) / fps
    assert np.abs(shown_s - wanted_s).max() <= 0.5 / clip_fps + 0.5 / clip_fps + 1e-6
    indices = np.array(frame_indices(8 * clip_fps, clip_fps, fps))
    assert np.abs(indices / clip_fps - wanted_s).max() <= 0.5 / clip_fps + 1e-9, "nearest frame"


@pytest.mark.parametrize("source_fps", [24, 25, 30, 24000 / 1001])
@pytest.mark.parametrize("fps", [1, 2, 4, 8, 12.5])
def test_indices_are_the_nearest_frames_and_inside(source_fps, fps):
    indices = frame_indices(round(8 * source_fps), source_fps, fps)
    assert indices[0] == 0 and indices[-1] < round(8 * source_fps)
    assert np.all(np.diff(indices) > 0)
    assert np.abs(np.array(indices) - np.arange(len(indices)) * source_fps / fps).max() <= 0.5 + 1e-6


def test_indices_at_the_clips_own_rate_are_all_frames():
    assert frame_indices(200, 25, 25) == list(range(200))


@pytest.mark.parametrize("fps", [0, -1, 26])
def test_a_rate_the_clip_does_not_have_is_refused(fps):
    with pytest.raises(ValueError, match="of 25 fps"):
        frame_indices(200, 25, fps)


def test_foreign_and_missing_files_are_refused(base, tmp_path):
    with pytest.raises(NotNormalised, match="normalise it first"):
        read_frames(base, 2)
    with pytest.raises(NotNormalised, match="No such file"):
        read_frames(tmp_path / "gone.mp4", 2)
    with pytest.raises(UnreadableSource, match="no such file"):
        read_audio(tmp_path / "gone.flac", 16_000)
    (tmp_path / "bad.flac").write_text("no sound")
    with pytest.raises(UnreadableSource, match=r"bad\.flac"):
        read_audio(tmp_path / "bad.flac", 16_000)


@pytest.mark.parametrize("hz", [16_000, 24_000, 44_100, 48_000])
def test_read_audio_keeps_the_click_in_place(clip, hz):
    sound = read_audio(clip[1], hz)
    assert sound.shape == (8 * hz,) and sound.dtype == np.float32
    assert np.flatnonzero(np.abs(sound) > 0.2)[0] / hz == pytest.approx(3.0, abs=0.005)


def test_stereo_is_averaged_to_mono(tmp_path):
    sides = np.stack([np.full(800, 0.5), np.full(800, -0.1)], axis=1)
    soundfile.write(tmp_path / "a.flac", sides, 8000)
    assert read_audio(tmp_path / "a.flac", 8000) == pytest.approx(0.2, abs=1e-4)


@pytest.mark.parametrize(("tone_hz", "wanted"), [(440, 1.0), (7000, 1.0), (9500, 0.0), (15_000, 0.0)])
def test_resampling_keeps_what_fits_and_removes_what_would_fold(tone_hz, wanted):
    tone = np.sin(2 * np.pi * tone_hz * np.arange(44_100) / 44_100)
    level = np.sqrt(2 * np.mean(resample(tone, 44_100, 16_000)[1000:-1000] ** 2))
    assert level == pytest.approx(wanted, abs=3e-4 if wanted == 0 else 0.01)


def test_mux_keeps_the_picture_and_places_the_sound(clip, tmp_path):
    video, _, _ = clip
    sound = np.zeros(8 * 16_000, np.float32)
    sound[5 * 16_000 : 5 * 16_000 + 80] = 0.9 * np.sin(np.arange(80) * 1.2)
    out = tmp_path / "out.mp4"
    mux(video, sound, 16_000, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    data = out.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "faststart"
    hashes = [
        subprocess.run(
            ["ffmpeg", "-v", "error", "-i", path, "-map", "0:v", "-c", "copy", "-f", "md5", "-"],
            capture_output=True, check=True,
        ).stdout
        for path in (video, out)
    ]  # fmt: skip
    assert hashes[0] == hashes[1], "the picture is copied, not encoded again"
    raw = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", out, "-f", "f32le", "-ac", "1", "-ar", "16000", "-"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    heard = np.frombuffer(raw, "<f4")
    assert np.flatnonzero(np.abs(heard) > 0.3)[0] / 16_000 == pytest.approx(5.0, abs=0.005)
    assert len(heard) == pytest.approx(8 * 16_000, abs=2048)


@pytest.mark.parametrize("bad", [np.zeros((2, 5)), np.zeros(0), np.array([0.0, np.nan])])
def test_mux_refuses_what_is_no_mono_sound(clip, tmp_path, bad):
    with pytest.raises(ValueError, match="finite mono"):
        mux(clip[0], bad, 16_000, tmp_path / "out.mp4")


def test_mux_of_an_unreadable_clip_leaves_nothing(tmp_path):
    (tmp_path / "a.mp4").write_text("no film")
    with pytest.raises(UnreadableSource, match=r"a\.mp4"):
        mux(tmp_path / "a.mp4", np.zeros(100, np.float32), 16_000, tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()
