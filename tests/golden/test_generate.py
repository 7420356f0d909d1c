"""`flowley`: films to features to a small training to sound for a silent film, and its scores."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

LEVEL = (0.05, 1e-4)
TOLERANCES = {
    "rms": LEVEL,
    "rms_of_quarters": LEVEL,
    "centroid_hz": LEVEL,
    "peak": (0.15, 0.0),
    "training": (1e-3, 0.0),
}
"""The same machine gives the same sounds, to the last bit. Arithmetic of another processor (two, and other instruction
sets on each) moved levels and centroids by up to 3.1%, and a peak, which hangs on the phases that the codec finds,
by 10%. Another seed moves the level of some quarter by 17% or more.
"""
FILMS = {
    "bars": ("testsrc2=size=160x120:rate=30:duration=3", "sine=frequency=440:beep_factor=4:duration=3"),
    "life": ("life=size=160x120:rate=24:seed=1:mold=10:death_color=#C83232", "anoisesrc=amplitude=0.3:seed=7"),
    "tests": ("testsrc=size=120x160:rate=25:duration=3", "sine=frequency=1200:duration=3"),
}
NETWORK = ["D=32", "N1=1", "N2=2", "max_text_tokens=77", "latent_dim=12"]
TRAINING = ["learning_rate=0.01", "warmup_steps=1", "log_every_steps=1"]


def sets(*changes: str) -> list[str]:
    return [part for change in changes for part in ("--set", change)]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three films of 3 s, drawn by ffmpeg, and what is said of them."""
    folder = tmp_path_factory.mktemp("golden-films")
    (folder / "films").mkdir()
    for name, (picture, sound) in FILMS.items():
        inputs = ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound]
        coding = ["-t", "3", "-c:v", "libx264", "-threads", "1", "-pix_fmt", "yuv420p", "-c:a", "aac"]
        command = ["ffmpeg", "-v", "error", "-y", *inputs, *coding, str(folder / "films" / f"{name}.mp4")]
        subprocess.run(command, check=True)
    rows = ["bars,a bell rings", "life,rain falls", "tests.mp4,a drum beats"]
    (folder / "captions.csv").write_text("\n".join(["name,caption", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def trained(films: Path, call: Any, project: Any) -> tuple[Path, str]:
    """A checkpoint after a few steps, and what its training said."""
    clip, codec = project.model("features.visual.path"), project.model("features.codec.path")
    parts = ["--visual", clip, "--text", clip, "--codec", f"log_mel_pca:{codec}"]
    network = ["--preset", "tiny", *sets(*NETWORK[3:])]
    extract = ["extract", films / "films", "--captions", films / "captions.csv", "-o", films / "features"]
    call("flowley", *extract, *parts, *network, "--duration", 2).ok()
    train = ["train", films / "features", "-o", films / "run", "--validation", films / "features"]
    small = ["--steps", 6, "--batch-size", 2, "--preset", "tiny", *sets(*NETWORK, *TRAINING)]
    return films / "run", call("flowley", *train, *small).ok()


@pytest.mark.timeout(900)
def test_training_loses_what_it_lost(trained: tuple[Path, str], golden: Any) -> None:
    lines = re.findall(r"step (\d+)/6: loss ([\d.]+)", trained[1])
    golden("generate").check("training", {step: float(loss) for step, loss in lines}, TOLERANCES)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "film", "options"),
    [
        ("usual", "bars", ["--caption", "a bell rings"]),
        ("no_caption", "tests", ["--steps", "5"]),
        (
            "whole",
            "life",
            ["--whole", "--caption", "rain falls", "--negative", "music", "--solver", "midpoint", "--steps", "6",
             "--seed", "4", "--guidance", "3"],
        ),
    ],
)  # fmt: skip
def test_sound_for_a_silent_film(
    trained: tuple[Path, str], films: Path, call: Any, golden: Any, media: Any, tmp_path: Path,
    name: str, film: str, options: list[str],
) -> None:  # fmt: skip
    silent, made = tmp_path / f"{film}.mp4", tmp_path / "made.mp4"
    subprocess.run(["ffmpeg", "-v", "error", "-i", films / "films" / f"{film}.mp4", "-an", "-c", "copy", silent],
                   check=True)  # fmt: skip
    said = call("flowley", "generate", silent, "--checkpoint", trained[0], "-o", made, *options).ok()
    found = {
        "said": said.replace(str(tmp_path), "{folder}").splitlines(),
        "streams": media.streams(made),
        "sound": media.sound(made),
    }
    golden("generate").check(name, found, TOLERANCES)


@pytest.mark.timeout(900)
def test_scores_of_films_against_one_another(films: Path, call: Any, golden: Any, tmp_path: Path) -> None:
    """Each film as if it were made for another."""
    for name, other in {"bars": "life", "life": "tests", "tests": "life"}.items():
        (tmp_path / f"{name}.mp4").symlink_to(films / "films" / f"{other}.mp4")
    scores = json.loads(call("flowley", "evaluate", tmp_path, films / "films", "--json").ok())
    golden("generate").check("scores", scores, TOLERANCES)


def test_presets(call: Any, golden: Any) -> None:
    """Names, counts and shapes of the networks."""
    listed = json.loads(call("flowley", "presets", "--json").ok())
    golden("generate").check("presets", {one.pop("name"): one for one in listed}, TOLERANCES)
