"""The command line `flowley`: films to features to a checkpoint to films with sound to scores, and wrong inputs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from flowley.features.dataset import index_files
from flowley.network.feature_spec import FeatureSpec
from flowley.network.presets import preset
from flowley.network.registry import build_network, load_network
from miniature.world.corpus import generate_corpus
from miniature.world.film import World
from pipelines.cli.flowley import main
from pipelines.commands.feature_folder import AV_PATTERN, open_dataset
from pipelines.media.probe import probe
from pipelines.media.process import Deadline

ROOT = Path(__file__).parents[2]
DURATION_S = 2.0
SMALL = ["--set", "D=32", "--set", "N1=1", "--set", "N2=2"]
Flowley = Callable[..., tuple[int, str, str]]


@pytest.fixture
def flowley(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Flowley:
    """The command in this process: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["flowley", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()  # type: ignore[return-value]

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_builders: dict) -> Path:
    """Three films of 3 s, captions of them, tiny encoders and an untrained checkpoint."""
    folder = tmp_path_factory.mktemp("flowley")
    generate_corpus(folder / "corpus", clips=3, seed=5, workers=1, world=World(duration_s=3.0))
    for name, build in tiny_encoder_builders.items():
        (folder / name).mkdir()
        build(folder / name, 0)
    (folder / "films").mkdir()
    for number, film in enumerate(sorted((folder / "corpus" / "videos").iterdir())):
        shutil.copyfile(film, folder / "films" / f"film{number}.mp4")
    rows = [f"film{number}.mp4,a bell rings" for number in range(3)]
    (folder / "captions.csv").write_text("\n".join(["name,caption", *rows]) + "\n")
    torch.manual_seed(0)
    network = build_network(preset("tiny", D=32, N1=1, N2=2)).eval()
    torch.nn.init.normal_(network.output.conv.weight, std=0.1)  # type: ignore[union-attr,arg-type]
    network.set_null_text(torch.randn(1, 64))
    network.features = FeatureSpec(visual=f"{folder}/clip", text=f"{folder}/t5", codec="log_mel", duration_s=DURATION_S)
    network.save_pretrained(folder / "checkpoint")
    return folder


@pytest.fixture(scope="module")
def parts(folder: Path) -> list[object]:
    return ["--visual", folder / "clip", "--text", folder / "t5", "--codec", "log_mel"]


def sound_of(film: Path) -> tuple[float, float]:
    """Seconds of picture and of sound in a film."""
    info = probe(film, Deadline(30))
    assert info.video is not None and info.audio is not None
    return info.video.duration_s or 0, info.audio.duration_s or 0


def test_from_films_to_scores(flowley: Flowley, folder: Path, parts: list[object], tmp_path: Path) -> None:
    films, features, run, made = folder / "films", tmp_path / "features", tmp_path / "run", tmp_path / "made"
    extract = ["extract", films, "--captions", folder / "captions.csv", "-o", features, *parts, "--preset", "tiny",
               "--duration", DURATION_S]  # fmt: skip
    code, out, err = flowley(*extract)
    assert (code, err) == (0, "") and "3 clips" in out
    dataset, without_caption = open_dataset(features)
    assert len(dataset) == 3 and without_caption == 0
    assert dataset.null_text is not None and dataset.null_text.shape == (1, 64)
    assert dataset[0].visual.shape == (16, 64) and dataset[0].audio_mean.shape == (63, 64)

    train = ["train", features, "-o", run, "--preset", "tiny", *SMALL, "--batch-size", 2, "--validation", features,
             "--set", "checkpoint_every_steps=2", "--set", "log_every_steps=1", "--set", "sample_every_steps=4",
             "--set", "sample_clips=1"]  # fmt: skip
    code, out, _ = flowley(*train, "--steps", 3)
    assert code == 0 and "step 2/3: loss" in out and "clips/s" in out and "left" in out
    code, _, err = flowley(*train, "--steps", 4)
    assert code == 2 and "go on with --resume" in err
    code, out, _ = flowley(*train, "--steps", 4, "--resume")
    assert code == 0 and "step 4/4" in out and "step 2/4" not in out, "only the missing step"
    assert sorted(file.name for file in (run / "sounds").iterdir()) == ["0000003-0.flac", "0000004-0.flac"]
    trained = load_network(run)
    assert trained.features is not None and trained.features.duration_s == DURATION_S

    code, out, _ = flowley("average", run, "-o", tmp_path / "wide", "--sigma-rel", 0.2)
    assert code == 0 and load_network(tmp_path / "wide").features == trained.features
    code, _, err = flowley("average", folder / "checkpoint", "-o", tmp_path / "none", "--sigma-rel", 0.2)
    assert code == 2 and "wanted as many of each, at least one" in err

    code, out, err = flowley("generate", films, "--checkpoint", run, "-o", made, "--steps", 2, "--caption", "a bell")
    assert (code, err) == (0, "")
    assert sorted(path.name for path in made.iterdir()) == ["film0.mp4", "film1.mp4", "film2.mp4"]
    assert sound_of(made / "film0.mp4") == pytest.approx((DURATION_S, DURATION_S), abs=0.05)
    code, out, _ = flowley("evaluate", made, films, "--json")
    scores = json.loads(out)
    assert code == 0 and scores["clips"] == ["film0", "film1", "film2"] and scores["n_clips"] == 3
    assert np.isfinite(scores["set_metrics"]["log_mel_distance_db"])


def test_extraction_goes_on_and_captions_may_change(
    flowley: Flowley, folder: Path, parts: list[object], tmp_path: Path
) -> None:
    """Films that are there are not encoded again, but for one that was replaced; one without caption is said."""
    films, captions = tmp_path / "films", tmp_path / "captions.csv"
    shutil.copytree(folder / "films", films)
    captions.write_text("name,caption\nfilm0,a bell\nfilm1," + "rain " * 200 + "\n")
    extract = ["extract", films, "--captions", captions, "-o", tmp_path / "out", *parts, "--preset", "tiny",
               "--duration", DURATION_S]  # fmt: skip
    code, out, err = flowley(*extract)
    assert code == 1 and "film2.mp4 (no caption)" in out and "film1: caption is" in out
    assert "film2.mp4 (no caption), film1 (caption)" in err
    assert open_dataset(tmp_path / "out")[1] == 1
    captions.write_text("name,caption\nfilm0,a dog\nfilm1,rain\nfilm2,bell\n")
    code, _, err = flowley(*extract)
    assert (code, err) == (0, "")
    assert len(open_dataset(tmp_path / "out")[0]) == 3
    rows = index_files(sorted((tmp_path / "out").glob(AV_PATTERN)))
    files = [Path(rows[f"film{k}"].path).name for k in range(3)]
    assert files == ["av-00000.arrow", "av-00000.arrow", "av-00001.arrow"], "film0 and film1 are there already"

    shutil.copy(films / "film2.mp4", films / "film0.mp4")
    code, _, err = flowley("extract", films / "film0.mp4", *extract[2:])
    assert (code, err) == (0, "")
    clips = {clip.clip_id: clip for clip in open_dataset(tmp_path / "out")[0]}
    assert np.array_equal(clips["film0"].audio_mean, clips["film2"].audio_mean), "features of a film that is gone"
    assert not np.array_equal(clips["film1"].audio_mean, clips["film2"].audio_mean)
    other = [*extract[:-1], 1.0]
    code, _, err = flowley(*other)
    assert code == 2 and "holds features of another duration_s" in err


def test_a_folder_with_other_things_in_it(flowley: Flowley, folder: Path, tmp_path: Path) -> None:
    """What is no video is passed over, a damaged video fails, the others are made; each with its line."""
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    whole = (folder / "films" / "film0.mp4").read_bytes()
    (mixed / "good.mp4").write_bytes(whole)
    damaged = bytearray(whole)
    damaged[len(whole) // 4 : len(whole) * 3 // 4] = bytes(len(whole) * 3 // 4 - len(whole) // 4)
    (mixed / "damaged.mp4").write_bytes(damaged)
    (mixed / "notes.txt").write_text("not a film")
    (mixed / "empty.mp4").write_bytes(b"")
    soundfile.write(mixed / "sound.wav", np.zeros(16_000), 16_000)
    picture = ["-frames:v", "1", mixed / "good.jpg"]  # beside the video of its name
    subprocess.run(["ffmpeg", "-v", "error", "-i", mixed / "good.mp4", *picture], check=True)
    (mixed / "gone.mp4").symlink_to(tmp_path / "nothing")
    (mixed / "linked.mp4").symlink_to(folder / "films" / "film1.mp4")
    os.mkfifo(mixed / "pipe.mp4")
    code, out, err = flowley(
        "generate", mixed, "--checkpoint", folder / "checkpoint", "-o", tmp_path / "out", "--steps", 1
    )
    lines = out.splitlines()
    for name in ("notes.txt", "empty.mp4", "sound.wav", "good.jpg", "gone.mp4", "pipe.mp4"):
        assert sum(line.startswith(f"passed over {name}") for line in lines) == 1, out
    assert "no --caption: the sound follows the picture alone" in lines
    assert any("damaged.mp4: DamagedSource" in line for line in lines), out
    assert code == 1 and err == "flowley: 1 of 3 videos failed: damaged.mp4\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.mp4", "linked.mp4"]


def test_a_video_too_short_for_motion(flowley: Flowley, folder: Path, tmp_path: Path) -> None:
    code, out, _ = flowley(
        "generate", folder / "films" / "film0.mp4", "--checkpoint", folder / "checkpoint", "-o", tmp_path / "o.mp4",
        "--duration", 0.15,
    )  # fmt: skip
    assert code == 1 and "1 video frames at r_v = 8 Hz, wanted at least 2" in out, out


def test_presets_are_listed_with_their_counts(flowley: Flowley) -> None:
    code, out, _ = flowley("presets", "--json")
    found = {one["name"]: one for one in json.loads(out)}
    assert code == 0 and found["flowley_169m"]["parameters"] == 169_268_444
    assert (found["flowley_169m"]["D"], found["flowley_169m"]["N1"], found["flowley_169m"]["N2"]) == (448, 4, 8)
    assert round(found["mmaudio_small_16k"]["parameters"] / 1e6, 2) == 157.28
    assert found["tiny"]["config"]["r_a"] == "125/4"
    code, out, _ = flowley("presets")
    assert code == 0 and all(name in out for name in found)


def wrong(*arguments: str, words: str, code: int = 2) -> Any:
    return pytest.param(arguments, words, code, id=words[:40])


GENERATE = ("generate", "{films}/film0.mp4", "--checkpoint", "{checkpoint}", "-o", "{tmp}/o.mp4")
TRAIN = ("train", "{features}", "-o", "{tmp}/run", "--steps", "1", "--batch-size", "1", "--preset")


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        wrong("generate", "{tmp}/no.mp4", "--checkpoint", "{checkpoint}", "-o", "{tmp}/o.mp4", words="no such video"),
        wrong("generate", "{tmp}", "--checkpoint", "{checkpoint}", "-o", "{tmp}/o", words="no videos in"),
        wrong("generate", "{films}", "--checkpoint", "{checkpoint}", "-o", "{tmp}/o.mp4", words="for 3 videos; give a"),
        wrong("generate", "{films}", "--checkpoint", "{checkpoint}", "-o", "{films}", words="would be written over"),
        wrong(*GENERATE[:-1], "{tmp}/o.mov", words="o.mov: .mov is not written; give a name that ends in .mp4"),
        wrong(*GENERATE[:-1], "{captions}", words="captions.csv: a file; give a folder"),
        wrong(*GENERATE, "--caption", "rain " * 200, words="tokens, this network takes 128: shorten it by"),
        wrong(*GENERATE, "--negative", "rain " * 200, words="tokens, this network takes 128: shorten it by"),
        wrong(*GENERATE, "--negative", "x", "--guidance", "1", words="--negative needs --guidance other than 1"),
        wrong(*GENERATE, "--steps", "0", words="steps: got 0, wanted at least 1"),
        wrong(*GENERATE, "--solver", "heun", words="solver: got 'heun', wanted one of euler, midpoint"),
        wrong(*GENERATE, "--batch", "0", words="--batch 0"),
        wrong(*GENERATE, "--duration", "0", words="--duration 0: wanted > 0 s"),
        wrong(*GENERATE, "--duration", "1", "--whole", words="--whole and --duration 1: give one"),
        wrong(*GENERATE, "--device", "cuda:77", words="--device cuda:77: not on this machine"),
        wrong(*GENERATE, "--device", "quantum", words="--device quantum: not on this machine"),
        wrong(*GENERATE, "--visual", "{t5}", words="checkpoint, wanted one of clip"),
        wrong(*GENERATE, "--visual", "{tmp}/no", words="does not load"),
        wrong(*GENERATE, "--visual", "/nowhere", words="'/nowhere' does not load (neither a folder nor a hub id"),
        wrong(*GENERATE[:-1], "s3://bucket/o.mp4", words="-o s3:/bucket/o.mp4: only local folders are written"),
        wrong(*GENERATE, "--codec", "encodec", words="codec 'encodec': wanted one of log_mel"),
        wrong(*GENERATE[:3], "{tmp}/no.pth", "-o", "{tmp}/o.mp4", words="no.pth is not a file"),
        wrong(*GENERATE[:3], "{clip}", "-o", "{tmp}/o.mp4", words="model_type 'clip_vision_model', wanted one of"),
        wrong("evaluate", "{tmp}/a", "{films}", words="GENERATED {tmp}/a: wanted two files, or two folders"),
        wrong("evaluate", "{films}", "{tmp}", words="ORIGINAL {tmp}: no files"),
        wrong("evaluate", "{films}", "{clip}", words="3 generated files have no original of their name"),
        wrong("evaluate", "{films}/film0.mp4", "{captions}", words="captions.csv"),
        wrong("evaluate", "{films}", "{films}", "--hz", "1", words="--hz 1: wanted at least 8000"),
        wrong(*TRAIN, "tiny", words="has no features.json; give a folder that `flowley extract` wrote"),
        wrong("extract", "{films}", "--captions", "{films}", "-o", "{tmp}/f", "--visual", "x", "--text", "x",
              "--codec", "log_mel", words="does not exist; give a CSV, TSV or Parquet file"),
        wrong("generate", "{tmp}/no.mp4", "--checkpoint", "{tmp}/no", "-o", "{tmp}/o.mp4", words="no such video"),
        wrong(*GENERATE[:-1], "{captions}/o.mp4", words="captions.csv is a file, not a folder; give another place"),
        wrong("train", "{features}", "-o", "{captions}/x", "--steps", "1", "--batch-size", "1", words="features.json"),
        wrong("demo", "--checkpoint", "{tmp}", words="has no config.json"),
        wrong("demo", "--checkpoint", "{checkpoint}/..", words="did you mean {checkpoint}/../checkpoint?"),
    ],
)  # fmt: skip
def test_user_errors_are_one_line_with_exit_code_2(
    flowley: Flowley, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...], words: str, code: int,
) -> None:  # fmt: skip
    monkeypatch.setattr("pipelines.cli.flowley.require_gradio", lambda: None)
    names = {name: str(folder / name) for name in ("films", "checkpoint", "clip", "t5")}
    names |= {"captions": str(folder / "captions.csv"), "tmp": str(tmp_path), "features": str(folder / "films")}
    got, _, err = flowley(*(argument.format(**names) for argument in arguments))
    assert got == code, err
    assert words.format(**names) in err and len(err.strip().splitlines()) == 1, err
    assert err.startswith("flowley: ") and not (tmp_path / "o.mp4").exists()


@pytest.mark.parametrize(
    ("preset_name", "changes", "words"),
    [
        ("tinny", [], "preset 'tinny': wanted one of flowley_169m"),
        ("tiny", ["learning_rte=1"], "--set learning_rte: unknown key; did you mean learning_rate?"),
        ("tiny", ["learning_rate=-1"], "learning_rate = -1.0, wanted > 0"),
        ("tiny", ["precision=fp8"], "precision: got 'fp8', Input should be 'fp32' or 'bf16'"),
        ("tiny", ["timesteps=uniform", "clip_norm=many"], "clip_norm: got 'many', Input should be a valid number"),
        ("tiny", ["D=33"], "D = 33 with 2 heads"),
        ("tiny", ["D"], "--set D: wanted key=value"),
    ],
)
def test_recipes_that_cannot_be(
    flowley: Flowley, folder: Path, tmp_path: Path, preset_name: str, changes: list[str], words: str
) -> None:
    spec = FeatureSpec(visual="a", text="b", codec="log_mel", duration_s=DURATION_S)
    (tmp_path / "features.json").write_text(json.dumps(spec.to_dict()))
    sets = [argument for change in changes for argument in ("--set", change)]
    code, _, err = flowley("train", tmp_path, "-o", tmp_path / "run", "--steps", 1, "--batch-size", 1,
                           "--preset", preset_name, *sets)  # fmt: skip
    assert code == 2 and words in err and len(err.strip().splitlines()) == 1, err
