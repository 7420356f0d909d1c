"""Objects: what is seen is heard, when the truth says."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miniature.world.corpus import generate_corpus
from miniature.world.film import Film, FilmPlan, Seen, World, plan_film
from miniature.world.objects import OBJECTS

HZ = 16_000
HISS = 0.01
"""No sample of a quiet room is louder."""
ALONE: dict[str, Any] = {
    "two_sounding": 0.0, "resting": 0.0, "place_heard": 0.0, "music": 0.0, "narration": 0.0, "still": 0.0,
}  # fmt: skip
"""One object, and nothing else is heard."""


def truth_of(folder: Path) -> list[dict]:
    return json.loads((folder / "truth.json").read_text())["clips"]


def plans(count: int = 2000, **world: Any) -> list[FilmPlan]:
    return [plan_film(World(**world), 0, "train", number) for number in range(count)]


def film_of(*seen: Seen, **decided: Any) -> Film:
    """A film of 4 s in a bare room, of which only the arguments are decided."""
    usual = {"seed": (7,), "place": "room", "off_screen": None, "noise": None, "still": False, "offset_s": 0.0}
    return Film(World(), FilmPlan(seen=seen, **usual | decided))


def decode(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(T, 120, 160) float brightness at the film's rate and (N,) mono sound at 16 kHz."""
    read = ["ffmpeg", "-v", "error", "-i", f"file:{path}"]
    gray, pcm = ["-f", "rawvideo", "-pix_fmt", "gray"], ["-f", "f32le", "-ac", "1", "-ar", str(HZ)]
    shown = subprocess.run([*read, *gray, "-"], capture_output=True, check=True).stdout
    heard = subprocess.run([*read, *pcm, "-"], capture_output=True, check=True).stdout
    return np.frombuffer(shown, np.uint8).reshape(-1, 120, 160) / 255, np.frombuffer(heard, "<f4")


def assert_strikes(sound: np.ndarray, times_s: Sequence[float]) -> None:
    power = np.convolve(np.diff(sound, prepend=0) ** 2, np.ones(160) / 160, mode="full")[: len(sound)]
    for time_s in times_s:
        at = round(time_s * HZ)
        before, after = power[max(0, at - 480) : at - 80].mean(), power[at : at + 480].max()
        assert after > 2 * before, f"nothing starts to sound at {time_s} s"


@pytest.mark.parametrize("kind", ["ball", "bell", "tap", "drum"])
def test_a_strike_is_heard_when_the_truth_says(tmp_path, kind):
    generate_corpus(tmp_path, clips=2, seed=3, workers=1, world=World(objects=(kind,), **ALONE))
    for clip in truth_of(tmp_path):
        [one] = clip["seen"]
        assert (one["kind"], one["heard"], one["event"]) == (kind, True, OBJECTS[kind].EVENT)
        _, sound = decode(tmp_path / "videos" / clip["file"])
        assert len(one["times_s"]) >= 2
        assert_strikes(sound, one["times_s"])
        assert np.abs(sound[: round(one["times_s"][0] * HZ) - 160]).max() < HISS, "and nothing before"


def test_two_objects_sound_one_after_the_other(tmp_path):
    only = ALONE | {"two_sounding": 1.0}
    generate_corpus(tmp_path, clips=1, seed=0, workers=1, world=World(objects=("tap", "bell"), **only))
    [clip] = truth_of(tmp_path)
    first, second = clip["seen"]
    assert (first["kind"], second["kind"]) == ("tap", "bell") and first["heard"] and second["heard"]
    _, sound = decode(tmp_path / "videos" / clip["file"])
    assert_strikes(sound, [first["times_s"][0], second["times_s"][0]])
    for plan in plans(**only):
        early, late = plan.seen
        assert early.kind != late.kind and plan.sounding == (early.kind, late.kind)
        assert late.start_s >= early.start_s + 1 and abs(early.x - late.x) > 0.4


def test_the_siren_lights_the_other_lamp_at_each_change(tmp_path):
    generate_corpus(tmp_path, clips=1, seed=3, workers=1, world=World(objects=("siren",), **ALONE))
    [clip] = truth_of(tmp_path)
    times_s = clip["seen"][0]["times_s"]
    frames, sound = decode(tmp_path / "videos" / clip["file"])
    start, span = round(times_s[0] * HZ), 4096
    assert np.abs(sound[: start - 160]).max() < HISS < 0.1 < np.abs(sound[start : start + 480]).max()
    for number, time_s in enumerate(times_s):
        frame, at = round(time_s * clip["fps"]), round(time_s * HZ)
        assert np.abs(frames[frame + 1] - frames[frame - 2]).max() > 0.4, "a lamp lights up"
        pitches = [
            np.argmax(np.abs(np.fft.rfft(part * np.hanning(span)))) * HZ / span
            for part in (sound[max(0, at - span) : at][-span:], sound[at : at + span])
            if len(part) == span
        ]
        assert number == 0 or len(pitches) < 2 or abs(pitches[0] - pitches[1]) > 60, "and the tone changes"


@pytest.mark.parametrize("seed", [7, 8, 9])
def test_the_ball_is_lowest_when_it_thumps_and_does_not_leave_the_picture(seed):
    """Before a white wall, the ball's lowest row over time has its maxima exactly at the recorded times."""
    film = film_of(Seen("ball", 0.5, 0.8, 0.6, True), seed=(seed,))
    film.background = np.ones((120, 160, 3), np.float32)

    def lowest_row(t_s: float) -> float:
        coloured = np.ptp(film.frames([t_s])[0].astype(float), axis=2).max(axis=1) > 75
        return float(np.flatnonzero(coloured).max(initial=0))

    [times_s] = [one["times_s"] for one in film.truth()["seen"]]
    for time_s in times_s[:4]:
        around = [lowest_row(time_s + step) for step in (-0.1, -0.05, 0.0, 0.05, 0.1)]
        assert around[2] == max(around) and around[0] < around[1] <= around[2] > around[4]
    assert all(lowest_row(t_s) > 55 for t_s in np.arange(0, 4, 0.04))


def test_an_engine_hums_higher_as_its_wheel_turns_faster():
    film = film_of(Seen("engine", 0.5, 0.8, 0.5, True))
    sound, times_s = film.sound(HZ, stereo=False)[:, 0], film.truth()["seen"][0]["times_s"]

    def pitch(at_s: float) -> float:
        """The repetition within 70 ms that fits best."""
        part = sound[round(at_s * HZ) :][: round(0.14 * HZ)]
        alike = [np.corrcoef(part[lag:], part[:-lag])[0, 1] for lag in range(60, 600)]
        return HZ / (60 + int(np.argmax(alike)))

    def turning(at_s: float) -> float:
        shown = film.frames([at_s, at_s + 0.01]).astype(float)
        return float(np.abs(shown[1] - shown[0]).mean())

    assert np.abs(sound[: round(0.5 * HZ) - 160]).max() < HISS and turning(0.2) == 0
    revved_s, slow_s = times_s[1] + 0.15, times_s[1] - 0.16
    assert pitch(revved_s) > 1.3 * pitch(slow_s) and turning(revved_s) > 1.3 * turning(slow_s)


@pytest.mark.parametrize("kind", OBJECTS)
def test_an_object_is_silent_and_still_until_it_begins_and_for_ever_if_it_rests(kind):
    rests = film_of(Seen(kind, 0.5, 0.8, None, False))
    frames = rests.frames(np.arange(0, 4, 0.25).tolist())
    assert (frames == frames[0]).all() and (frames[0] != film_of().frames([0.0])[0]).any(), "it is seen, at rest"
    assert np.abs(rests.sound(HZ, stereo=True)).max() < HISS
    assert not OBJECTS[kind](np.random.default_rng(0), 4.0, None).sound(4.0, HZ).any()
    assert rests.truth()["seen"][0]["times_s"] == [] and rests.plan.sounding == ()

    acts = film_of(Seen(kind, 0.5, 0.8, 2.0, True))
    [times_s] = [one["times_s"] for one in acts.truth()["seen"]]
    assert 2.0 == times_s[0] < times_s[-1] < 4.0
    sound = np.abs(acts.sound(HZ, stereo=False))
    assert sound[: 2 * HZ - 160].max() < HISS < 0.2 < sound[2 * HZ :].max()
    later = acts.frames([2.1, 2.4, 2.8])
    assert (np.abs(later.astype(float) - acts.frames([0.0])).max(axis=(1, 2, 3)) > 50).any()


@pytest.mark.parametrize("kind", OBJECTS)
def test_an_object_of_a_dubbed_film_moves_and_is_not_heard(kind):
    dubbed, heard = (film_of(Seen(kind, 0.5, 0.8, 0.6, loud)) for loud in (False, True))
    times_s = np.arange(0, 4, 0.25).tolist()
    assert (dubbed.frames(times_s) == heard.frames(times_s)).all() and np.ptp(dubbed.frames(times_s), axis=0).max() > 50
    assert np.abs(dubbed.sound(HZ, stereo=False)).max() < HISS
    assert dubbed.truth()["seen"][0]["times_s"] == heard.truth()["seen"][0]["times_s"] != []


def test_an_object_is_heard_where_it_is_seen():
    for x in (0.25, 0.75):
        left, right = np.sqrt(np.square(film_of(Seen("siren", x, 0.6, 0.5, True)).sound(HZ, stereo=True)).mean(axis=0))
        assert (left > 1.5 * right) if x < 0.5 else (right > 1.5 * left)
        shown, empty = (film.frames([0.0])[0].astype(float) for film in (
            film_of(Seen("siren", x, 0.6, 0.5, True)), film_of()))  # fmt: skip
        across = np.abs(shown - empty).sum(axis=(0, 2))
        assert np.average(np.arange(160), weights=across) / 160 == pytest.approx(x, abs=0.06)
