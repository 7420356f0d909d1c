"""`soundcap init`: what it sees in a folder, and the configuration that it writes."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.commands import survey
from pipelines.commands.survey import SAMPLE, TEMPLATE_CLIPS, Look, Survey, write_config
from pipelines.config_file import load_config
from pipelines.engine.storage import Storage
from pipelines.errors import UserError
from pipelines.run_config import Config, SourceConfig
from pipelines.stages.source import list_source, split_of

Init = Callable[..., Config]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos by length: 9.mp4 of 9 s, ... and mute.mp4 without sound."""
    folder = tmp_path_factory.mktemp("videos")
    for seconds in (1, 3, 9):
        _film(folder / f"{seconds}.mp4", seconds, "-f", "lavfi", "-i", f"sine=duration={seconds}")
    _film(folder / "mute.mp4", 9)
    return folder


def _film(path: Path, seconds: int, *sound: str) -> None:
    picture = ["-f", "lavfi", "-i", f"testsrc=size=64x48:rate=10:duration={seconds}"]
    command = ["ffmpeg", "-nostdin", "-v", "error", *picture, *sound, "-preset", "ultrafast", str(path)]
    subprocess.run(command, check=True)


@pytest.fixture
def films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty folder `films` in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films").mkdir()
    return tmp_path / "films"


@pytest.fixture
def init(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Init:
    def run(folder: str = "films", models: survey.Models | None = "demo", gpus: int = 0) -> Config:
        monkeypatch.setattr(survey, "_gpus", lambda: gpus)
        write_config(folder, Path("mine.yaml"), root="store", models=models, say=print)
        return load_config("mine.yaml")

    return run


def _put(films: Path, video: Path, name: str) -> None:
    """Copies a video, with bytes of its own: what comes after an MP4's last box is not read."""
    (films / name).parent.mkdir(exist_ok=True)
    (films / name).write_bytes(video.read_bytes() + b"\0\0\0\x10free" + name.encode().ljust(8)[:8])


def test_five_odd_files(films: Path, videos: Path, init: Init, capsys: pytest.CaptureFixture[str]) -> None:
    for name, video in (("long.mp4", "9"), ("other.MP4", "9"), ("short.mp4", "1"), ("mute.mp4", "mute")):
        _put(films, videos / f"{video}.mp4", name)
    (films / "noise.mp4").write_bytes(b"not a video")
    (films / "cover.jpg").write_bytes(b"")
    config = init()
    said = capsys.readouterr().out
    assert "films: 5 videos, no labels" in said and "passed over, picture: cover.jpg (1)" in said
    assert "usable: 3 with picture and sound, 1.0 to 9.0 s long" in said
    assert "not usable, NoAudioStream: mute.mp4 (1)" in said and "not usable, UnreadableSource: noise.mp4 (1)" in said
    assert config.source.table is None and config.root == "store"
    assert config.clips.duration_s == config.flowley.training.duration_s == 4.0
    assert config.clips.execution.max_quarantined_share >= 3 / 5, "or the run would end at three of five files"
    digests = [Storage("films").sha256(name) for name in ("long.mp4", "other.MP4")]
    splits = {split_of(None, sha256, config.source.test_fraction) for sha256 in digests}
    assert splits == {"train", "test"}, "two usable videos: one of each"
    assert Path(config.captions.model.path).is_dir() and Path(config.captions.instruction).is_file()


def test_comments_say_the_reason_or_the_meaning(films: Path, videos: Path, init: Init) -> None:
    _put(films, videos / "9.mp4", "a.mp4")
    init()
    lines = (films.parent / "mine.yaml").read_text().splitlines()
    assert "  fps: 24  # Constant frame rate; duration_s * fps is a whole number." in lines
    at = lines.index("  duration_s: 4.0")
    assert (
        "1 are as long or longer" in " ".join(lines[at - 3 : at]).replace("   # ", " ")
        and "# Found: films: 1 videos, no labels" in lines
    )


@pytest.mark.parametrize(
    ("lengths_s", "best_s"),
    [
        ([9.0] * 3, 8.0),
        ([5.5] * 3, 5.0),
        ([10.0, 10.0, 10.0, 10.0, 0.5], 8.0),
        ([8.0, 4.0], 4.0),
        ([float("inf")], 8.0),
    ],
)
def test_the_length_that_keeps_most_time(lengths_s: list[float], best_s: float, films: Path, videos: Path) -> None:
    _put(films, videos / "9.mp4", "a.mp4")
    config = load_config(survey.CHECKOUT / "configs" / "demo.yaml", ["source.folder=films", "source.table=null"])
    looks = [Look(str(place), length_s, "") for place, length_s in enumerate(lengths_s)]
    seen = Survey(SourceConfig(folder="films"), list_source(config), {}, looks)
    assert seen.best_duration_s(8.0) == best_s


def test_a_table_inside_or_beside_is_found(
    films: Path, videos: Path, init: Init, capsys: pytest.CaptureFixture[str]
) -> None:
    _put(films, videos / "9.mp4", "a.mp4")
    _put(films, videos / "3.mp4", "b.mp4")
    (films / "half.csv").write_text("file,label\na.mp4,dog\n")
    (films / "captions.csv").write_text("name,caption\na.mp4,A dog.\nb.mp4,A cat.\n")
    (films / "broken.csv").write_text('file,label\n"a.mp4,dog\n')
    (films.parent / "labels.tsv").write_text("file\tlabel\tset\na.mp4\tdog\ttrain\nb.mp4\tcat\ttest\n")
    config = init()
    assert config.source.table == "labels.tsv"
    assert [len(list_source(config).files), list_source(config).refused] == [2, []]
    said = capsys.readouterr().out
    assert "films: 2 videos, 2 labels" in said and "labels.tsv: tells of 2 of them, 1 in train, 1 in test" in said
    assert "films/half.csv: not used: it tells of 1 videos, labels.tsv of 2; one table can be used" in said
    assert "films/captions.csv: not used: it lists 2 videos, but no label and no split" in said
    assert "films/broken.csv: not used: source.table: films/broken.csv line 2: a quote is not closed" in said


def test_a_table_of_few_videos_does_not_leave_out_the_others(
    films: Path, videos: Path, init: Init, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abc":
        _put(films, videos / "9.mp4", f"{name}.mp4")
    (films / "favourites.csv").write_text("file,label\na.mp4,dog\n")
    assert init().source.table is None
    assert "favourites.csv: not used: it tells of 1 of 3 videos" in capsys.readouterr().out


def test_a_table_without_tests_is_said(
    films: Path, videos: Path, init: Init, capsys: pytest.CaptureFixture[str]
) -> None:
    _put(films, videos / "9.mp4", "a.mp4")
    (films / "all.csv").write_text("file,split\na.mp4,train\n")
    init()
    assert "no video is a test, so there will be nothing to sample" in capsys.readouterr().out


def test_the_picture_counts_where_the_sound_is_longer(films: Path, init: Init) -> None:
    """Matroska tells the length of a stream in a tag, and its end counts from the container's start."""
    for number in range(2):
        sound = ["-f", "lavfi", "-i", f"sine={300 + number}:duration=6"]
        command = [
            "ffmpeg",
            "-v",
            "error",
            "-itsoffset",
            "1",
            "-f",
            "lavfi",
            "-i",
            "testsrc=size=64x48:duration=3",
            *sound,
        ]
        subprocess.run([*command, "-c:v", "libx264", str(films / f"{number}.mkv")], check=True)
    assert init().clips.duration_s == 3.0


def test_names_in_a_rhythm_are_not_sampled_in_it(films: Path, videos: Path, init: Init) -> None:
    for number in range(SAMPLE):
        (films / f"{number:03d}_a.mp4").symlink_to(videos / "mute.mp4")
        (films / f"{number:03d}_b.mp4").symlink_to(videos / "9.mp4")
    assert 0.4 < init().clips.execution.max_quarantined_share < 0.8


def test_subfolders_are_labels_and_hard_names_come_back(films: Path, videos: Path, init: Init) -> None:
    hard = films.parent / "my: films #1 'é'"
    hard.mkdir()
    _put(hard, videos / "9.mp4", "dog\nbark: x/a.mp4")
    config = init(hard.name)
    assert config.source.folder == hard.name
    assert list_source(config).files["label"].to_pylist() == ["dog\nbark: x"]


def test_many_videos_are_sampled(films: Path, videos: Path, init: Init, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(SAMPLE + 6):
        (films / f"{number:03d}.mp4").symlink_to(videos / "9.mp4")
    config = init()
    assert f"usable of a sample of {SAMPLE}: {SAMPLE} with picture and sound" in capsys.readouterr().out
    assert config.source.test_fraction == SourceConfig(folder="films").test_fraction


@pytest.mark.parametrize("gpus", [1, 3, 4])
def test_real_models_on_a_machine_with_gpus(films: Path, videos: Path, init: Init, gpus: int) -> None:
    _put(films, videos / "9.mp4", "a.mp4")
    _put(films, videos / "9.mp4", "b.mp4")
    config = init(models=None, gpus=gpus)
    assert config.captions.model.path.startswith("Qwen/") and config.clips.duration_s == 8.0
    stages = (config.captions, config.captioner, config.features, config.flowley, config.samples)
    assert {stage.execution.workers for stage in stages} == {gpus}
    assert config.captioner.training.batch_size % (2 * gpus) == 0
    training = config.flowley.training
    assert training.steps == 50 and training.decay_steps[-1] <= training.steps and training.warmup_steps == 5


def test_steps_are_as_many_passes_as_the_template_makes(films: Path, videos: Path, init: Init) -> None:
    for number in range(40):
        _put(films, videos / "9.mp4", f"{number:03d}.mp4")
    config = init()
    share = 40 * (1 - config.source.test_fraction) / TEMPLATE_CLIPS["demo"]
    assert config.flowley.training.steps == pytest.approx(300 * share, abs=3)
    assert config.captioner.training.max_steps == pytest.approx(150 * share, abs=2)


def test_real_models_for_a_cluster(films: Path, videos: Path, init: Init) -> None:
    _put(films, videos / "9.mp4", "a.mp4")
    assert init(models="real").clips.execution.workers == 128, "without a GPU here it is for another machine"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda films, videos: None, "source.folder: no files"),
        (lambda films, videos: _put(films, videos / "mute.mp4", "a.mp4"), "none has picture and sound (a.mp4: NoAudio"),
        (lambda films, videos: (films / "a.txt").write_text("x"), "no videos in 'films', only others"),
        (lambda films, videos: films.rmdir(), "'films' does not exist"),
        (lambda films, videos: Path("mine.yaml").write_text("x"), "mine.yaml: is there already"),
        (
            lambda films, videos: (Path("store").mkdir(), Path("store/x").write_text("x")),
            "root 'store' holds files but",
        ),
    ],
)
def test_errors(make: Callable[[Path, Path], object], message: str, films: Path, videos: Path, init: Init) -> None:
    make(films, videos)
    there = Path("mine.yaml").exists()
    with pytest.raises(UserError) as error:
        init()
    assert message in str(error.value) and Path("mine.yaml").exists() == there
