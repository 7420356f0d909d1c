"""The miniature world: VGGSound's shape, events seen and heard when the truth says, the same for a seed."""

import csv
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.media.normalise import NormaliserSettings, normalise
from pipelines.miniature.world.canvas import Canvas
from pipelines.miniature.world.corpus import generate_corpus
from pipelines.miniature.world.film import Film, FilmPlan, Seen, World, plan_film
from pipelines.miniature.world.objects import OBJECTS
from pipelines.miniature.world.places import OFF_SCREEN, PLACES
from pipelines.miniature.world.sounds import overtones
from pipelines.miniature.world.voices import narration

ROOT = Path(__file__).parents[3]
CLIPS = 7
HZ = 16_000
HISS = 0.01
"""No sample of a quiet room is louder."""
ALONE: dict[str, Any] = {
    "two_sounding": 0.0, "resting": 0.0, "place_heard": 0.0, "music": 0.0, "narration": 0.0, "still": 0.0,
}  # fmt: skip
"""One object, and nothing else is heard."""
SHORT = World(duration_s=2.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    generate_corpus(folder, clips=CLIPS, seed=3, workers=1)
    return folder


def truth_of(folder: Path) -> list[dict]:
    return json.loads((folder / "truth.json").read_text())["clips"]


def rows_of(folder: Path) -> list[list[str]]:
    with (folder / "vggsound.csv").open(newline="") as file:
        return list(csv.reader(file))


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (folder / "videos").iterdir()}


def plans(count: int = 2000, **world: Any) -> list[FilmPlan]:
    return [plan_film(World(**world), 0, "train", number) for number in range(count)]


def film_of(*seen: Seen, **decided: Any) -> Film:
    """A film of 4 s in a bare room, of which only what is given is decided."""
    usual = {"seed": (7,), "place": "room", "off_screen": None, "noise": None, "still": False, "offset_s": 0.0}
    return Film(World(), FilmPlan(seen=seen, **usual | decided))


# --- the corpus ---------------------------------------------------------------------------------------------------


def test_it_has_vggsounds_shape(corpus):
    rows, clips = rows_of(corpus), truth_of(corpus)
    assert len(rows) == CLIPS and all(len(row) == 4 and len(row[0]) == 11 for row in rows)
    named = [f"{youtube_id}_{int(start_s):06d}.mp4" for youtube_id, start_s, _, _ in rows]
    assert set(named) == {path.name for path in (corpus / "videos").iterdir()}
    assert {label for _, _, label, _ in rows} == {kind.LABEL for kind in OBJECTS.values()}
    assert [split for *_, split in rows] == ["train"] * 4 + ["test"] + ["train"] * 2
    assert [(clip["file"], clip["label"], clip["split"]) for clip in clips] == [
        (name, label, split) for name, (_, _, label, split) in zip(named, rows, strict=True)
    ]
    assert all(clip["label"] == OBJECTS[clip["seen"][0]["kind"]].LABEL for clip in clips)


def test_the_films_are_ordinary_web_video(corpus):
    entries = "stream=codec_name,width,height,duration,sample_rate,channels,avg_frame_rate"
    for clip in truth_of(corpus):
        path = corpus / "videos" / clip["file"]
        command = ["ffprobe", "-v", "error", "-show_entries", entries, "-of", "json", f"file:{path}"]
        video, audio = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["streams"]
        assert (video["codec_name"], audio["codec_name"]) == ("h264", "aac")
        assert (video["width"], video["height"]) == (160, 120)
        assert video["avg_frame_rate"] == f"{clip['fps']}/1" and audio["sample_rate"] == str(clip["audio_hz"])
        assert audio["channels"] == (2 if clip["stereo"] else 1)
        assert float(video["duration"]) == pytest.approx(4.0, abs=0.05) == clip["duration_s"]
        assert float(audio["duration"]) == pytest.approx(4.0, abs=0.05)


def test_every_film_becomes_a_clip(corpus, tmp_path):
    settings = NormaliserSettings(4.0, 25, 128, 12, 48_000, True)
    for clip in truth_of(corpus):
        made = normalise(
            corpus / "videos" / clip["file"], tmp_path / "a.mp4", tmp_path / "a.flac", settings, deadline_s=60
        )
        assert (made.n_frames, made.width_px, made.height_px) == (100, 128, 96)
        assert (made.audio_hz, made.audio_channels) == (clip["audio_hz"], 2 if clip["stereo"] else 1)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_corpus(corpus, tmp_path):
    generate_corpus(tmp_path / "again", clips=2, seed=3, workers=2)
    for clip in truth_of(tmp_path / "again"):
        assert (tmp_path / "again/videos" / clip["file"]).read_bytes() == (
            corpus / "videos" / clip["file"]
        ).read_bytes()
    generate_corpus(tmp_path / "other", clips=1, seed=4, workers=1, world=SHORT)
    assert truth_of(tmp_path / "other")[0]["file"] != truth_of(corpus)[0]["file"]


def test_what_is_there_is_left_alone_and_more_clips_add_only_clips(tmp_path):
    def make(clips: int, seed: int = 0, world: World = SHORT, **more: int) -> dict[str, tuple[int, bytes]]:
        generate_corpus(tmp_path, clips=clips, seed=seed, workers=1, world=world, **more)
        assert {clip["file"] for clip in truth_of(tmp_path)} == state(tmp_path).keys()
        assert [f"{row[0]}_{int(row[1]):06d}.mp4" for row in rows_of(tmp_path)] == [
            clip["file"] for clip in truth_of(tmp_path)
        ]
        return state(tmp_path)

    first, truth = make(2), (tmp_path / "truth.json").stat().st_mtime_ns
    assert make(2) == first and (tmp_path / "truth.json").stat().st_mtime_ns == truth
    (tmp_path / "vggsound.csv").unlink()
    assert make(2) == first, "a lost list is written again, without the films"
    more = make(3)
    assert len(more) == 3 and {name: more[name] for name in first} == first
    lost = truth_of(tmp_path)[1]["file"]
    (tmp_path / "videos" / lost).unlink()
    again = make(3)
    assert again[lost][1] == more[lost][1], "a lost film is made again, the same"
    del again[lost], more[lost]
    assert again == more, "and no other"
    tested = make(3, test_every=3)
    assert sum(tested.get(name) == film for name, film in more.items()) == 1, "a film of another split is another film"
    assert not make(2, world=World(duration_s=2.0, music=1.0)).items() & tested.items()
    make(1, seed=1)


def test_the_splits_share_no_seed():
    train, test = ([plan_film(World(), 0, split, number) for number in range(200)] for split in ("train", "test"))
    assert len({plan.seed for plan in train + test}) == 400
    drawn = [{tuple(one.x for one in plan.seen) for plan in split} for split in (train, test)]
    assert not drawn[0] & drawn[1], "the same number is another film in the other split"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"duration_s": 1.0}, "duration_s is 1, wanted at least 2 s"),
        ({"duration_s": float("nan")}, "duration_s is nan, wanted at least 2 s"),
        ({"duration_s": "long"}, "duration_s is 'long', wanted a number"),
        ({"music": 1.1}, "music is 1.1, wanted a share within [0, 1]"),
        ({"out_of_sync": -0.1}, "out_of_sync is -0.1, wanted a share within [0, 1]"),
        ({"still": True}, "still is True, wanted a number"),
        ({"objects": ()}, "objects are [], wanted some of ball, bell, tap"),
        ({"objects": ("bell", "cat")}, "objects are ['bell', 'cat'], wanted some of ball, bell, tap"),
        ({"objects": ("bell", "bell")}, "wanted some of ball, bell, tap, engine, siren, drum, each once"),
        ({"two_sounding": 0.8, "resting": 0.4}, "two_sounding 0.8 and resting 0.4 exclude each other"),
        ({"voice": "robot"}, "voice is 'robot', wanted one of synthetic, espeak-ng"),
    ],
)
def test_a_world_that_cannot_be_is_refused(values, words):
    with pytest.raises(ValueError) as caught:
        World(**values)
    assert words in str(caught.value)


def command_line(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pipelines.miniature.world.corpus", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_line_makes_a_corpus(tmp_path):
    world = '{"duration_s": 2, "objects": ["bell", "drum"], "resting": 0.5}'
    for _ in range(2):
        done = command_line("--folder", str(tmp_path), "--clips", "3", "--workers", "1", "--world", world)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert done.stdout.strip() == str(tmp_path / "vggsound.csv")
    assert {one["kind"] for clip in truth_of(tmp_path) for one in clip["seen"]} == {"bell", "drum"}
    assert {clip["duration_s"] for clip in truth_of(tmp_path)} == {2}


@pytest.mark.parametrize(
    ("world", "words"),
    [
        ('{"music": 2}', "music is 2, wanted a share within [0, 1]"),
        ('{"musik": 1}', "musik"),
        ('{"music": ', "line 1"),
        ("[1]", "mapping"),
        ('{"objects": ["cat"]}', "wanted some of ball"),
    ],
)
def test_a_bad_world_on_the_command_line_is_one_line(tmp_path, world, words):
    done = command_line("--folder", str(tmp_path / "corpus"), "--world", world)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and f"--world {world}" in done.stderr
    assert not (tmp_path / "corpus").exists()


# --- what is seen is heard ----------------------------------------------------------------------------------------


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


def test_who_rests_and_who_is_dubbed_is_planned():
    for plan in plans(200, resting=1.0, two_sounding=0.0):
        assert (plan.seen[1].start_s, plan.seen[1].heard, len(plan.sounding)) == (None, False, 1)
    for kind in ({"resting": 1.0, "two_sounding": 0.0}, {"resting": 0.0, "two_sounding": 1.0}):
        for plan in plans(200, moving_silent=1.0, **kind):
            assert plan.seen[1].start_s is not None and not plan.seen[1].heard and plan.seen[0].heard
    usual = Counter((len(plan.seen), len(plan.sounding)) for plan in plans())
    shares = {what: count / 2000 for what, count in usual.items()}
    assert shares == pytest.approx({(2, 2): 0.4, (2, 1): 0.3, (1, 1): 0.3}, abs=0.04)


def test_an_object_is_heard_where_it_is_seen():
    for x in (0.25, 0.75):
        left, right = np.sqrt(np.square(film_of(Seen("siren", x, 0.6, 0.5, True)).sound(HZ, stereo=True)).mean(axis=0))
        assert (left > 1.5 * right) if x < 0.5 else (right > 1.5 * left)
        shown, empty = (film.frames([0.0])[0].astype(float) for film in (
            film_of(Seen("siren", x, 0.6, 0.5, True)), film_of()))  # fmt: skip
        across = np.abs(shown - empty).sum(axis=(0, 2))
        assert np.average(np.arange(160), weights=across) / 160 == pytest.approx(x, abs=0.06)


def test_a_film_is_the_same_however_often_and_at_whatever_rate_it_is_played():
    plan = replace(plan_film(World(), 0, "train", 0), noise="music and narration", still=False)
    film, other = Film(World(), plan), Film(World(), plan)
    sound = film.sound(HZ, stereo=True)
    assert (film.frames([0.5, 1.0]) == other.frames([0.25, 0.5, 0.75, 1.0])[1::2]).all()
    assert (film.sound(HZ, stereo=True) == sound).all() and (other.sound(HZ, stereo=True) == sound).all()
    assert film.sound(44_100, stereo=False).shape == (4 * 44_100, 1)


# --- what is heard beside -----------------------------------------------------------------------------------------


def test_a_place_can_be_told_by_its_looks():
    """The nearest mean picture of the others names the place of nearly every film."""
    shown = {place: [draw(np.random.default_rng(seed)) for seed in range(8)] for place, (draw, _) in PLACES.items()}
    right = 0
    for place, pictures in shown.items():
        for number, picture in enumerate(pictures):
            means = {
                other: np.mean([p for k, p in enumerate(shown[other]) if (other, k) != (place, number)], axis=0)
                for other in PLACES
            }
            right += place == min(means, key=lambda other: float(np.square(picture - means[other]).mean()))
    assert right >= 0.9 * 8 * len(PLACES)


def test_a_places_sound_is_there_with_its_place():
    usual = plans()
    assert {plan.place for plan in usual} == PLACES.keys()
    for place, (_, belongs) in PLACES.items():
        heard = Counter(plan.off_screen for plan in usual if plan.place == place)
        assert heard.keys() <= {belongs, None}, "nothing that belongs elsewhere"
        if belongs is not None:
            assert heard[belongs] / heard.total() == pytest.approx(0.85, abs=0.06)
    odd = plans(odd_place=1.0)
    for place in PLACES:
        heard = Counter(plan.off_screen for plan in odd if plan.place == place)
        shares = {what: count / heard.total() for what, count in heard.items()}
        assert shares == pytest.approx(dict.fromkeys([*OFF_SCREEN, None], 0.2), abs=0.08)


@pytest.mark.parametrize("layer", [*({"off_screen": name} for name in OFF_SCREEN), {"noise": "music"},
                                   {"noise": "narration"}, {"noise": "music and narration"}])  # fmt: skip
def test_what_is_not_in_the_picture_is_heard_and_changes_no_picture(layer):
    seen = Seen("bell", 0.5, 0.8, 0.5, True)
    times_s = [0.0, 0.6, 1.5]
    assert (film_of(seen, **layer).frames(times_s) == film_of(seen).frames(times_s)).all()
    with_it, without = (film.sound(HZ, stereo=False) for film in (film_of(**layer), film_of()))
    assert np.abs(without).max() < HISS < 0.1 < np.abs(with_it).max() < 0.6


def test_noise_is_independent_of_the_picture():
    """Whether it is added changes nothing else, and no place and no object has more of it."""
    quiet, loud = plans(200, music=0.0, narration=0.0), plans(200, music=1.0, narration=1.0)
    assert {plan.noise for plan in quiet} == {None} and {plan.noise for plan in loud} == {"music and narration"}
    assert [replace(plan, noise=None) for plan in loud] == quiet
    usual = plans(3000)
    groups: list[Callable[[FilmPlan], object]] = [
        lambda plan: plan.place, lambda plan: plan.seen[0].kind, lambda plan: len(plan.seen),
        lambda plan: plan.off_screen is None, lambda plan: plan.seen[-1].x < 0.5,
    ]  # fmt: skip
    for group in groups:
        for value in {group(plan) for plan in usual}:
            here = [plan for plan in usual if group(plan) == value]
            for noise in ("music", "narration"):
                assert np.mean([noise in (plan.noise or "") for plan in here]) == pytest.approx(0.25, abs=0.065)


def test_a_still_film_has_one_picture_and_all_of_its_sound():
    seen = Seen("drum", 0.5, 0.8, 0.5, True)
    moving, still = film_of(seen), film_of(seen, still=True)
    frames = still.frames(np.arange(0, 4, 0.25).tolist())
    assert (frames == moving.frames([0.0])).all()
    assert (still.sound(HZ, stereo=True) == moving.sound(HZ, stereo=True)).all()
    assert still.truth()["still"] and all(plan.still for plan in plans(50, still=1.0))


def test_a_film_out_of_sync_has_its_sound_shifted_by_its_offset():
    world, shifts = World(out_of_sync=1.0, still=0.0), []
    for number in range(6):
        plan = plan_film(world, 0, "train", number)
        late, right = Film(world, plan), Film(world, replace(plan, offset_s=0.0))
        assert 0.15 <= abs(plan.offset_s) <= 0.5 and late.truth()["offset_s"] == plan.offset_s
        assert (late.frames([1.0]) == right.frames([1.0])).all()
        assert late.truth()["seen"] == right.truth()["seen"], "times are those of the picture"
        a, b = (film.sound(HZ, stereo=False)[:, 0] for film in (late, right))
        alike = np.fft.irfft(np.fft.rfft(a, 2 * len(a)) * np.conj(np.fft.rfft(b, 2 * len(b))))
        lag = int(np.argmax(alike))
        shifts.append((lag if lag < len(a) else lag - 2 * len(a)) / HZ)
        assert shifts[-1] == pytest.approx(plan.offset_s, abs=0.001)
    assert min(shifts) < 0 < max(shifts), "early or late"
    assert {plan.offset_s for plan in plans(100)} == {0.0}


def test_a_voice_that_the_machine_lacks_is_refused_before_anything_is_touched(tmp_path, monkeypatch):
    generate_corpus(tmp_path, clips=1, seed=0, workers=1, world=SHORT)
    before = state(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="voice is espeak-ng, but there is no such program: install it, or choose"):
        generate_corpus(tmp_path, clips=2, seed=0, workers=1, world=World(duration_s=2.0, voice="espeak-ng"))
    assert state(tmp_path) == before and len(truth_of(tmp_path)) == 1
    generate_corpus(tmp_path, clips=1, seed=0, workers=1, world=SHORT)
    assert state(tmp_path) == before


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_espeak_narrates_all_the_time():
    spoken = narration("espeak-ng", 6.0, HZ, np.random.default_rng(0))
    assert spoken.shape == (6 * HZ,) and np.isfinite(spoken).all()
    loud = np.abs(spoken).reshape(6, HZ).max(axis=1)
    assert (loud > 0.1 * loud.max()).all(), "somebody talks in every second"
    again = narration("espeak-ng", 6.0, HZ, np.random.default_rng(0))
    assert (spoken == again).all() and not (spoken == narration("espeak-ng", 6.0, HZ, np.random.default_rng(1))).all()


# --- how it is drawn and sounded ----------------------------------------------------------------------------------


def draw_one_of_each(canvas: Canvas) -> None:
    canvas.disc(40, 30, 17, (1.0, 0.2, 0.1))
    canvas.ellipse(110, 34, 30, 14, (0.1, 0.8, 0.2), 0.6)
    canvas.ring(80, 62, 34, 20, 5, (0.2, 0.2, 0.9))
    canvas.line(10, 110, 150, 66, 7, (0.9, 0.9, 0.1))
    canvas.box(120, 92, 22, 12, (0.8, 0.1, 0.8), turn=0.4)


def averaged(image: np.ndarray, block: int) -> np.ndarray:
    height, width, _ = image.shape
    return image.reshape(height // block, block, width // block, block, 3).mean(axis=(1, 3))


@pytest.mark.parametrize("block", [2, 4])
def test_placed_draws_the_same_picture_smaller_and_elsewhere(block):
    """As if it were drawn on a bigger canvas and looked at from afar."""
    large = Canvas(np.full((120, 160, 3), 0.5, np.float32))
    draw_one_of_each(large)
    wanted = averaged(large.image, block)
    rows, columns = wanted.shape[:2]
    small = Canvas(np.full((60, 100, 3), 0.5, np.float32))
    right, down = (3, 7) if block == 4 else (19, 0)
    draw_one_of_each(small.placed(1 / block, right, down))
    shown = small.image[down : down + rows, right : right + columns]
    assert np.abs(shown - wanted[:60]).mean() < 0.01 and np.abs(shown - wanted[:60]).max() < 0.25
    small.image[down : down + rows, right : right + columns] = 0.5
    assert np.allclose(small.image, 0.5), "and nowhere else"


def test_placed_cuts_what_does_not_fit():
    small, large = (Canvas(np.zeros(shape, np.float32)) for shape in ((60, 80, 3), (180, 240, 3)))
    draw_one_of_each(small.placed(0.9, -40, -30))
    draw_one_of_each(large.placed(0.9, 40, 30))
    assert np.allclose(small.image, large.image[60:120, 80:160], atol=1e-4)


def test_overtones_are_sines():
    phase = np.linspace(0, 40, 1000)
    wanted = 0.5 * np.sin(phase) + 0.25 * np.sin(3 * phase)
    assert np.allclose(overtones(phase, [0.5, 0.0, 0.25]), wanted)
