"""`make demo` on a fresh store: what it counts, says, learns and sounds like; then the plan after each kind of edit.

One run for all tests, 6 to 15 minutes on two free cores. Clips go by the names of their sources, which the demo's
seed decides; that their ids stay the same is a test of its own.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.engine.store import BYTES_SUFFIX, SHA256_SUFFIX

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

CONFIG = "configs/demo.yaml"
UNWARNED = ("--set", "captions.warnings=null")
LEVEL, LOSS, SCORE = (0.02, 1e-4), (0.005, 0.0), (0.01, 1e-3)
TOLERANCES = {
    "rms": LEVEL,
    "rms_of_quarters": LEVEL,
    "centroid_hz": LEVEL,
    "peak": (0.15, 0.0),
    "figures": SCORE,
    "first_loss": LOSS,
    "last_loss": LOSS,
    "validation_loss": LOSS,
    "scores": SCORE,
    "generated": SCORE,
    "original": SCORE,
    "duration_s": (0.0, 1e-3),
}
"""The same machine gives the same demo, to the last bit: captions, losses, sounds and scores.

So these are for other processors, of which `test_generate.py` says more. Other noise for the sampler
(`samples.seed=1`) moves the scores of all clips together by 1.5% to 20%. Clips that are trained on in another order
move the losses of the flow by 2%, 7% and 11%.
"""


@dataclass(frozen=True)
class Demo:
    """A finished demo in a folder of its own."""

    folder: Path
    said: str
    stages: Callable[..., dict[str, Any]]
    """`soundcap plan` or `status` of it."""
    read: Callable[..., list[dict[str, Any]]]

    @property
    def store(self) -> Path:
        return self.folder / ".demo" / "store"

    def rows(self, stage: str, *settings: str) -> list[dict[str, Any]]:
        """A stage's rows by the names of their sources, in that order, without ids."""
        plan = self.stages("plan", *settings)
        assert plan[stage]["state"] == "done", f"{stage} is not done: {plan[stage]}"
        found = self.read(self.store, stage, plan[stage])
        names = self.names()
        named = ({"name": names[row["clip_id"]], **row} for row in found)
        return sorted(named, key=lambda row: str(row["name"]))

    def names(self) -> dict[str, str]:
        """The name of a clip's source by the clip's id."""
        clips = self.read(self.store, "clips", self.stages("plan")["clips"])
        return {row["clip_id"]: Path(row["source_name"]).stem for row in clips}


@pytest.fixture(scope="module")
def demo(
    request: pytest.FixtureRequest, project: Any, run: Any, stages: Any, rows: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Demo:  # fmt: skip
    """The demo, run in a folder that looks like the project, so that its `.demo` is a fresh one."""
    kept = request.config.getoption("--demo-folder", default=None)
    folder = Path(kept) if kept else tmp_path_factory.mktemp("golden") / "project"
    if not (folder / CONFIG).exists():
        project.mirror(folder)
    said = run(sys.executable, "-m", project.demo_module(), cwd=folder, timeout_s=7000).ok()

    def of_demo(command: str, *arguments: str) -> dict[str, Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            found: dict[str, Any] = stages(command, CONFIG, *arguments)
            return found

    return Demo(folder, str(said), of_demo, rows)


def test_rows_figures_and_quarantine(demo: Demo, golden: Any) -> None:
    keys = ("state", "reason", "rows_in", "rows_out", "rows_quarantined", "figures")
    found = {}
    for name, one in demo.stages("status").items():
        found[name] = {key: one[key] for key in keys}
        found[name]["quarantine"] = sorted(f"{row['error_class']}: {row['message']}" for row in one["quarantine"])
    golden("demo").check("stages", found, TOLERANCES)


def test_clips(demo: Demo, golden: Any) -> None:
    """What each clip is."""
    left_out = {"name", "clip_id", "source_name", "video", "audio"}
    clips = {
        row["name"]: {
            key: value
            for key, value in row.items()
            if key not in left_out and not key.endswith((BYTES_SUFFIX, SHA256_SUFFIX))  # of this release of ffmpeg
        }
        for row in demo.rows("clips")
    }
    golden("demo").check("clips", clips, TOLERANCES)


def test_clip_ids(demo: Demo, golden: Any) -> None:
    """They follow from the source's bytes, so another release of ffmpeg, which makes other films, gives others."""
    golden("demo").check("clip ids", {row["name"]: row["clip_id"] for row in demo.rows("clips")})


def test_captions(demo: Demo, golden: Any) -> None:
    """Of each clip: the teacher's without and with warnings, and those of the captioner, who hears nothing."""
    columns = {
        "unwarned": demo.rows("captions", *UNWARNED),
        "warned": demo.rows("captions"),
        "silent": demo.rows("silent_captions"),
    }
    found: dict[str, dict[str, str]] = {}
    for column, said in columns.items():
        for row in said:
            found.setdefault(row["name"], {})[column] = row["caption"]
    golden("demo").check("captions", found)


def test_curation(demo: Demo, golden: Any) -> None:
    """Of each dropped caption: the rule and what failed it; how many are kept stands with the stages."""
    dropped = [row for row in demo.rows("curation") if not row["kept"]]
    golden("demo").check("curation", {row["name"]: {key: row[key] for key in ("rule", "detail")} for row in dropped})


def test_sounds(demo: Demo, golden: Any, media: Any) -> None:
    """Statistics of the sound of each test clip, and of the film that it was laid under."""
    found = {}
    for row in demo.rows("samples"):
        audio, film = demo.store / row["audio"], demo.store / row["video"]
        found[row["name"]] = {
            "label": row["label"],
            "caption": row["caption"],
            "sound": media.sound(audio),
            "file": media.streams(audio)["audio"]["codec_name"],
            "film": media.streams(film),
        }
    golden("demo").check("sounds", found, TOLERANCES)


def test_scores(demo: Demo, golden: Any) -> None:
    """Of each test clip; those of all together are figures of the stage."""
    scores = {
        row["name"]: {k: v for k, v in row.items() if k not in ("name", "clip_id")} for row in demo.rows("scores")
    }
    golden("demo").check("scores", scores, TOLERANCES)


def test_scorecard(demo: Demo, golden: Any) -> None:
    """Captions and sounds against the truth, as the demo writes them beside its report."""
    [file] = demo.store.glob("**/scorecard.json")
    golden("demo").check("scorecard", json.loads(file.read_text()), TOLERANCES)


def test_a_silent_film_gets_a_caption_and_sound(demo: Demo, call: Any, golden: Any, media: Any, tmp_path: Path) -> None:
    """`soundcap generate` with what the demo trained, on a film that it did not train on."""
    name = min(row["name"] for row in demo.rows("clips") if row["split"] == "test")
    silent, made = tmp_path / "silent.mp4", tmp_path / "made.mp4"
    film = demo.folder / ".demo" / "corpus" / "videos" / f"{name}.mp4"
    subprocess.run(["ffmpeg", "-v", "error", "-i", film, "-an", "-c", "copy", silent], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(demo.folder)
        said = call("soundcap", "generate", silent, "-o", made, "--config", CONFIG).ok()
    found = {
        "said": said.replace(str(tmp_path), "{folder}").splitlines(),
        "streams": media.streams(made),
        "sound": media.sound(made),
    }
    golden("demo").check("generated", found, TOLERANCES)


def test_a_second_demo_finds_nothing_to_do(demo: Demo, project: Any, run: Any, golden: Any) -> None:
    said = run(sys.executable, "-m", project.demo_module(), cwd=demo.folder, timeout_s=1200).ok()
    lines = [re.sub(r"^demo: .*", "demo: {time}", line) for line in said.splitlines() if line[:1].isalpha()]
    golden("demo").check("said by a second demo", [line.replace(str(demo.folder), "{folder}") for line in lines])


SETTINGS = {
    "all done": (),
    "no warnings": UNWARNED[1:],
    "teacher's sampling": ("captions.sampling.max_new_tokens=32", "captions.sampling.temperature=0.5"),
    "a rule": ("curation.rules.min_words=9",),
    "captioner's training": ("captioner.training.rank=8", "captioner.training.max_steps=20"),
    "captioner's instruction": ("captioner.instruction=prompts/av_caption.yaml",),
    "captioner's sampling": ("silent_captions.sampling.max_new_tokens=32",),
    "captions of the label": ("features.captions=label",),
    "captions of the teacher": ("features.captions=captions",),
    "another network": ("flowley.overrides.D=64",),
    "flowley's training": ("flowley.training.steps=20", "flowley.training.learning_rate=0.001"),
    "sampler": ("samples.steps=5", "samples.guidance=3.5", "samples.solver=midpoint", "samples.seed=1"),
    "rate of the scores": ("scores.audio_hz=8000",),
    "clips' length": ("clips.duration_s=3.0",),
    "execution only": (
        "clips.execution.workers=1", "captions.execution.device=cuda", "captions.execution.engine=vllm",
        "captions.execution.workers=5", "captioner.execution.workers=2", "captioner.execution.use_gpu=true",
        "silent_captions.execution.dtype=bfloat16", "features.execution.workers=2", "features.execution.device=cuda",
        "flowley.execution.workers=2", "flowley.execution.use_gpu=true", "samples.execution.batch_rows=2",
    ),
}  # fmt: skip
"""Settings of `soundcap plan`, by what they change."""


@pytest.mark.parametrize("name", SETTINGS)
def test_plan_after_an_edit(demo: Demo, golden: Any, name: str) -> None:
    """States, counts and reasons of all nine stages."""
    changes = [part for change in SETTINGS[name] for part in ("--set", change)]
    golden("demo").check(f"plan: {name}", without_keys(demo.stages("plan", *changes)))


def test_plan_to_retry_what_failed(demo: Demo, golden: Any) -> None:
    golden("demo").check("plan: retry failed", without_keys(demo.stages("plan", "--retry-failed")))


def test_plan_with_moved_models(demo: Demo, golden: Any, project: Any, tmp_path: Path) -> None:
    """The same files elsewhere."""
    keys = ("captions.model.path", "captioner.model.path", "features.visual.path", "features.text.path",
            "features.codec.path")  # fmt: skip
    changes = []
    for key in keys:
        shutil.copytree(project.model(key), tmp_path / key)
        changes += ["--set", f"{key}={tmp_path / key}"]
    golden("demo").check("plan: moved models", without_keys(demo.stages("plan", *changes)))


def without_keys(plan: dict[str, Any]) -> dict[str, Any]:
    """Of each stage its state, rows to run of all, and the reason."""
    return {
        name: [one["state"], one["rows_to_run"], one["rows_total"], re.sub(r"[0-9a-f]{12,}", "#", one["reason"])]
        for name, one in plan.items()
    }
