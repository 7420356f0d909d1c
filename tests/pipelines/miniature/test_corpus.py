"""The demo corpus: VGGSound's shape, events seen and heard at the recorded times, the same for a seed."""

import csv
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pipelines.demo.canvas import Canvas
from pipelines.miniature.world.corpus import generate_corpus
from pipelines.demo.scenes import SCENES
from pipelines.demo.sounds import overtones
from pipelines.media.normalise import NormaliserSettings, normalise

CLIPS = 7


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    generate_corpus(folder, clips=CLIPS, seed=3, workers=1)
    return folder


def truth_of(folder: Path) -> list[dict]:
    return json.loads((folder / "truth.json").read_text())["clips"]


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (folder / "videos").iterdir()}


def test_it_has_vggsounds_shape(corpus):
    with (corpus / "vggsound.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == CLIPS and all(len(row) == 4 and len(row[0]) == 11 for row in rows)
    named = {f"{youtube_id}_{int(start_s):06d}.mp4" for youtube_id, start_s, _, _ in rows}
    assert named == {path.name for path in (corpus / "videos").iterdir()}
    assert {label for _, _, label, _ in rows} == set(SCENES)
    assert {split for _, _, _, split in rows} == {"train", "test"}


def test_the_films_are_ordinary_web_video(corpus):
    entries = "stream=codec_name,width,height,duration,sample_rate,avg_frame_rate"
    for clip in truth_of(corpus):
        path = corpus / "videos" / clip["file"]
        command = ["ffprobe", "-v", "error", "-show_entries", entries, "-of", "json", f"file:{path}"]
        video, audio = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["streams"]
        assert (video["codec_name"], audio["codec_name"]) == ("h264", "aac")
        assert (video["width"], video["height"]) == (160, 120)
        assert video["avg_frame_rate"] == f"{clip['fps']}/1" and audio["sample_rate"] == str(clip["audio_hz"])
        assert float(video["duration"]) == pytest.approx(10.0, abs=0.05)
        assert float(audio["duration"]) == pytest.approx(10.0, abs=0.05)


def decode(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(T, 120, 160) float brightness at the film's rate and (N,) mono sound at 16 kHz."""
    read = ["ffmpeg", "-v", "error", "-i", f"file:{path}"]
    gray, pcm = ["-f", "rawvideo", "-pix_fmt", "gray"], ["-f", "f32le", "-ac", "1", "-ar", "16000"]
    shown = subprocess.run([*read, *gray, "-"], capture_output=True, check=True).stdout
    heard = subprocess.run([*read, *pcm, "-"], capture_output=True, check=True).stdout
    return np.frombuffer(shown, np.uint8).reshape(-1, 120, 160) / 255, np.frombuffer(heard, "<f4")


@pytest.mark.parametrize("label", ["ball bouncing", "bell ringing", "water dripping", "playing drum"])
def test_a_strike_is_heard_when_the_truth_says(corpus, label):
    clip = next(clip for clip in truth_of(corpus) if clip["label"] == label)
    _, sound = decode(corpus / "videos" / clip["file"])
    power = np.convolve(np.diff(sound, prepend=0) ** 2, np.ones(160) / 160, mode="full")[: len(sound)]
    for event in clip["events"]:
        at = round(event["time_s"] * 16_000)
        before, after = power[max(0, at - 480) : at - 80].mean(), power[at : at + 480].max()
        assert after > 2 * before, f"{label}: nothing starts to sound at {event['time_s']} s"


def test_the_siren_lights_the_other_lamp_at_each_change(corpus):
    clip = next(clip for clip in truth_of(corpus) if clip["label"] == "siren wailing")
    frames, sound = decode(corpus / "videos" / clip["file"])
    for event in clip["events"]:
        frame = round(event["time_s"] * clip["fps"])
        assert np.abs(frames[frame + 1] - frames[frame - 2]).max() > 0.4, "a lamp lights up"
        at, span = round(event["time_s"] * 16_000), 4096
        pitches = [
            np.argmax(np.abs(np.fft.rfft(part * np.hanning(span)))) * 16_000 / span
            for part in (sound[max(0, at - span) : at][-span:], sound[at : at + span])
            if len(part) == span
        ]
        assert len(pitches) < 2 or abs(pitches[0] - pitches[1]) > 60, "and the tone changes"


def test_the_ball_is_lowest_when_it_thumps():
    """Drawn on white, the ball's lowest row over time has its maxima exactly at the recorded times."""
    scene = SCENES["ball bouncing"](np.random.default_rng(5), 10.0)
    scene.background = np.ones((120, 160, 3), np.float32)

    def lowest_row(t_s: float) -> float:
        canvas = Canvas(scene.background)
        scene.draw(canvas, t_s)
        coloured = np.ptp(canvas.image, axis=2).max(axis=1) > 0.3
        return float(np.flatnonzero(coloured).max())

    for event in scene.events[:4]:
        around = [lowest_row(event.time_s + step) for step in (-0.1, -0.05, 0.0, 0.05, 0.1)]
        assert around[2] == max(around) and around[0] < around[1] <= around[2] > around[4]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_corpus(corpus, tmp_path):
    generate_corpus(tmp_path / "again", clips=2, seed=3, workers=2)
    for clip in truth_of(tmp_path / "again"):
        assert (tmp_path / "again/videos" / clip["file"]).read_bytes() == (
            corpus / "videos" / clip["file"]
        ).read_bytes()
    generate_corpus(tmp_path / "other", clips=1, seed=4, duration_s=2.0, workers=1)
    assert truth_of(tmp_path / "other")[0]["file"] != truth_of(corpus)[0]["file"]


def test_what_is_there_is_left_alone_and_more_clips_add_only_clips(tmp_path):
    generate_corpus(tmp_path, clips=2, duration_s=2.0, seed=0, workers=1)
    first, truth = state(tmp_path), (tmp_path / "truth.json").stat().st_mtime_ns
    generate_corpus(tmp_path, clips=2, duration_s=2.0, seed=0, workers=1)
    assert state(tmp_path) == first and (tmp_path / "truth.json").stat().st_mtime_ns == truth
    generate_corpus(tmp_path, clips=3, duration_s=2.0, seed=0, workers=1)
    more = state(tmp_path)
    assert len(more) == 3 and {name: more[name] for name in first} == first
    lost = tmp_path / "videos" / truth_of(tmp_path)[1]["file"]
    lost.unlink()
    generate_corpus(tmp_path, clips=3, duration_s=2.0, seed=0, workers=1)
    assert state(tmp_path)[lost.name][1] == more[lost.name][1], "a lost film is made again, the same"
    generate_corpus(tmp_path, clips=1, duration_s=2.0, seed=1, workers=1)
    assert [path.name for path in (tmp_path / "videos").iterdir()] == [truth_of(tmp_path)[0]["file"]]


def test_every_film_becomes_a_clip(corpus, tmp_path):
    settings = NormaliserSettings(8.0, 25, 128, 12, 48_000, True)
    for clip in truth_of(corpus):
        made = normalise(
            corpus / "videos" / clip["file"], tmp_path / "a.mp4", tmp_path / "a.flac", settings, deadline_s=60
        )
        assert (made.n_frames, made.width_px, made.height_px) == (200, 128, 96)
        assert (made.audio_hz, made.audio_channels) == (clip["audio_hz"], 2 if clip["stereo"] else 1)


def test_overtones_are_sines():
    phase = np.linspace(0, 40, 1000)
    wanted = 0.5 * np.sin(phase) + 0.25 * np.sin(3 * phase)
    assert np.allclose(overtones(phase, [0.5, 0.0, 0.25]), wanted)


def test_a_film_too_short_for_anything_to_happen_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 2 s"):
        generate_corpus(tmp_path, clips=1, duration_s=1.0, seed=0, workers=1)
