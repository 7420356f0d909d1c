"""The corpus of the miniature world: VGGSound's shape, ordinary films, the same for a seed."""

import csv
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from miniature.world.corpus import generate_corpus
from miniature.world.film import World
from miniature.world.objects import OBJECTS
from pipelines.media.clip import NormaliserSettings
from pipelines.media.normalise import normalise
from pipelines.media.probe import open_source
from pipelines.media.process import Deadline

ROOT = Path(__file__).parents[3]
CLIPS = 7
SHORT = World(duration_s=2.0)


def truth_of(folder: Path) -> list[dict]:
    return json.loads((folder / "truth.json").read_text())["clips"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    generate_corpus(folder, clips=CLIPS, seed=3, workers=1)
    return folder


def rows_of(folder: Path) -> list[list[str]]:
    with (folder / "vggsound.csv").open(newline="") as file:
        return list(csv.reader(file))


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (folder / "videos").iterdir()}


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


def test_films_become_clips(corpus, tmp_path):
    settings = NormaliserSettings(duration_s=4.0, long_side_px=128)
    clips = [truth_of(corpus)[number] for number in (2, 6)]
    assert all(clips[0][name] != clips[1][name] for name in ("stereo", "fps", "audio_hz")), "each way to record"
    for clip in clips:
        made = normalise(
            open_source(corpus / "videos" / clip["file"], Deadline(60)),
            tmp_path / "a.mp4",
            tmp_path / "a.flac",
            settings,
            deadline=Deadline(60),
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


def test_a_voice_that_the_machine_lacks_is_refused_before_anything_is_touched(tmp_path, monkeypatch):
    generate_corpus(tmp_path, clips=1, seed=0, workers=1, world=SHORT)
    before = state(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="voice is espeak-ng, but there is no such program: install it, or choose"):
        generate_corpus(tmp_path, clips=2, seed=0, workers=1, world=World(duration_s=2.0, voice="espeak-ng"))
    assert state(tmp_path) == before and len(truth_of(tmp_path)) == 1
    generate_corpus(tmp_path, clips=1, seed=0, workers=1, world=SHORT)
    assert state(tmp_path) == before


def test_the_command_line_makes_a_corpus(tmp_path):
    world = '{"duration_s": 2, "objects": ["bell", "drum"], "resting": 0.5}'
    command = [sys.executable, "-m", "miniature.world.corpus", "--folder", tmp_path, "--clips", "3", "--workers", "1"]
    done = subprocess.run([*command, "--world", world], cwd=ROOT, capture_output=True, text=True, check=False)
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
def test_a_bad_world_on_the_command_line_is_one_line(tmp_path, world, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["corpus", "--folder", str(tmp_path / "corpus"), "--world", world])
    monkeypatch.delitem(sys.modules, "miniature.world.corpus")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("miniature.world.corpus", run_name="__main__")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and words in said, said
    assert len(said.strip().splitlines()) == 1 and f"--world {world}" in said
    assert not (tmp_path / "corpus").exists()
