"""`soundcap run` to curation on a few clips, then `soundcap plan` after each kind of edit: states, counts, reasons."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

CLIPS, LATER = 5, 2
MADE = ("clips", "captions", "curation")
DAMAGED, SILENT, MISSING = "damaged0000_000001", "silent00000_000002", "missing0000_000003"
Plan = Callable[..., dict[str, Any]]
pytestmark = [pytest.mark.first, pytest.mark.timeout(900)]

SETTINGS = {
    "all done": (),
    "retry failed": ("--retry-failed",),
    "a changed sampling parameter": ("--set", "captions.sampling.max_new_tokens=32"),
    "a changed frame rate for the teacher": ("--set", "captions.frames.fps=1"),
    "no warnings": ("--set", "captions.warnings=null"),
    "a changed rule": ("--set", "curation.rules.min_words=6"),
    "two changed rules": ("--set", "curation.rules.max_words=17", "--set", "curation.rules.violations=false"),
    "a changed clip setting": ("--set", "clips.fps=20"),
    "clips without sound allowed": ("--set", "clips.require_audio=false"),
    "a changed training field": ("--set", "captioner.training.rank=4"),
    "execution only": (
        "--set", "clips.execution.workers=1", "--set", "clips.execution.deadline_s=90",
        "--set", "captions.execution.workers=3", "--set", "captions.execution.device=cuda",
        "--set", "captions.execution.engine=vllm", "--set", "captions.execution.dtype=bfloat16",
        "--set", "captions.execution.batch_rows=2", "--set", "captioner.execution.use_gpu=true",
    ),
    "all in one split": ("--set", "source.split=train"),
    "captions of the label": ("--set", "features.captions=label"),
    "an empty store": ("--set", "root={folder}/other"),
}  # fmt: skip
"""Settings and options of `soundcap plan`, by what they mean."""

ONE_LABEL = '\n  - name: new\n    text: Warning, do not mention thunder.\n    labels: ["bell ringing"]\n'
EDITS: dict[str, tuple[str, Callable[[str], str]]] = {
    "a comment in a prompt": ("prompts/av_caption.yaml", lambda text: "# a remark\n" + text),
    "comments and layout of the warnings": (
        "prompts/warnings.yaml", lambda text: "# a remark\n" + text.replace("warnings:\n", "warnings:\n\n\n", 1)),
    "a warning for one label": ("prompts/warnings.yaml", lambda text: text.rstrip("\n") + "\n" + ONE_LABEL),
    "a warning's words": ("prompts/warnings.yaml", lambda text: text.replace("jingle may", "melody may")),
    "a warning's name": ("prompts/warnings.yaml", lambda text: text.replace("name: speech", "name: voices")),
    "a changed instruction": ("prompts/av_caption.yaml", lambda text: text.replace("20 to 45 words", "20 to 40 words")),
    "a changed silent instruction": ("prompts/silent_caption.yaml", lambda text: text.replace("20 to 45", "20 to 40")),
    "a changed label": ("corpus/vggsound.csv", lambda text: text.replace("water dripping", "dripping")),
    "a clip taken from the list": ("corpus/vggsound.csv", lambda text: text.split("\n", 1)[1]),
    "a line twice in the list": ("corpus/vggsound.csv", lambda text: text + text.split("\n", 1)[0] + "\n"),
}  # fmt: skip
"""A file and what is changed in it, by what that means."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, project: Any, run: Any) -> Path:
    """Clips of the miniature's world, a damaged and a silent one, one that is missing, prompts and the teacher."""
    folder = tmp_path_factory.mktemp("golden-plan")
    corpus = ["--folder", folder / "corpus", "--clips", CLIPS + LATER, "--seed", 3, "--workers", 2]
    run(sys.executable, "-m", project.module("world/corpus.py"), *corpus).ok()
    csv = folder / "corpus" / "vggsound.csv"
    lines = csv.read_text().splitlines()
    videos, later = folder / "corpus" / "videos", folder / "later"
    later.mkdir()
    (later / "lines").write_text("".join(f"{line}\n" for line in lines[CLIPS:]))
    for line in lines[CLIPS:]:
        video_id, start_s = line.split(",")[:2]
        shutil.move(videos / f"{video_id}_{int(start_s):06d}.mp4", later)
    first = next(iter(sorted(videos.iterdir())))
    whole = first.read_bytes()
    zeros = bytes(len(whole) // 2)
    damaged = whole[: len(whole) // 4] + zeros + whole[len(whole) // 4 + len(zeros) :]
    (videos / f"{DAMAGED}.mp4").write_bytes(damaged)
    command = ["ffmpeg", "-v", "error", "-i", first, "-an", "-c", "copy", videos / f"{SILENT}.mp4"]
    subprocess.run(command, check=True)
    more = [f"{name.split('_')[0]},{int(name[-6:])},bell ringing,train" for name in (DAMAGED, SILENT, MISSING)]
    csv.write_text("".join(f"{line}\n" for line in [*lines[:CLIPS], *more]))
    shutil.copytree(project.root / "prompts", folder / "prompts")
    shutil.copytree(project.model("captions.model.path"), folder / "omni")
    return folder


@pytest.fixture(scope="module")
def settings(folder: Path, project: Any) -> list[str]:
    """The run's settings over those of the demo."""
    changes = {
        "root": folder / "store",
        "source.folder": folder / "corpus" / "videos",
        "source.table": folder / "corpus" / "vggsound.csv",
        "captions.model.path": folder / "omni",
        "captions.instruction": folder / "prompts" / "av_caption.yaml",
        "captions.warnings": folder / "prompts" / "warnings.yaml",
        "captions.sampling.max_new_tokens": 40,
        "captions.execution.workers": 1,
        "curation.rules.min_words": 12,
        "captioner.instruction": folder / "prompts" / "silent_caption.yaml",
    }
    for key in ("captioner.model.path", "features.visual.path", "features.text.path", "features.codec.path"):
        changes[key] = project.model(key)
    return [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def before(folder: Path, settings: list[str], project: Any, stages: Any) -> dict[str, Any]:
    """The plan before anything ran."""
    return without_keys(stages("plan", project.demo_config, *settings), folder)


@pytest.fixture(scope="module")
def finished(before: dict[str, Any], folder: Path, settings: list[str], project: Any, run: Any) -> str:
    """What the run said."""
    soundcap = Path(sys.executable).with_name("soundcap")
    done = run(soundcap, "run", project.demo_config, "--until", "curation", *settings, timeout_s=800)
    return str(done.ok())


@pytest.fixture
def plan(finished: str, folder: Path, settings: list[str], project: Any, stages: Any) -> Plan:
    """What `soundcap plan --json` says after the run, with other settings or options."""

    def read(*arguments: str) -> dict[str, Any]:
        return without_keys(stages("plan", project.demo_config, *settings, *arguments), folder)

    return read


def without_keys(stages: dict[str, Any], folder: Path) -> dict[str, Any]:
    """State, counts and reason of each stage."""
    kept = {
        name: {key: value for key, value in one.items() if key not in ("name", "fingerprint")}
        for name, one in stages.items()
    }
    text = json.dumps(kept).replace(str(folder), "{folder}")
    return json.loads(re.sub(r"[0-9a-f]{12,}", "#", text))  # type: ignore[no-any-return]


def edit(file: Path, change: Callable[[str], str]) -> Callable[[], None]:
    """Change a file; what is returned changes it back."""
    text = file.read_text()
    changed = change(text)
    assert changed != text, f"the edit of {file.name} changes nothing"
    file.write_text(changed)
    return lambda: file.write_text(text) and None


def test_before_anything_ran(before: dict[str, Any], golden: Any) -> None:
    golden("plan").check("before anything ran", before)


def test_the_run(
    finished: str, folder: Path, settings: list[str], project: Any, stages: Any, rows: Any, golden: Any
) -> None:
    """Counts, figures and what is quarantined; then each clip's caption and curation's verdict on it."""
    status = {name: stages("status", project.demo_config, *settings)[name] for name in MADE}
    keys = ("state", "rows_in", "rows_out", "rows_quarantined", "figures")
    found = {name: {key: one[key] for key in keys} for name, one in status.items()}
    for name, one in status.items():
        reasons = [f"{row['stage']}: {row['error_class']}: {row['message']}" for row in one["quarantine"]]
        # what ffmpeg says of a damaged file is ffmpeg's
        masked = [re.sub(r"\d+( picture| sound)|\(h264.*?\)", r"#\1", reason) for reason in sorted(reasons)]
        found[name]["quarantine"] = [reason.replace(str(folder), "{folder}") for reason in masked]
    store = folder / "store"
    sources = {row["clip_id"]: row["source_name"] for row in rows(store, "clips", status["clips"])}
    found["clips by name"] = {
        sources[row["clip_id"]]: {key: row[key] for key in ("label", "split", "caption", "kept", "rule", "detail")}
        for row in sorted(rows(store, "curation", status["curation"]), key=lambda row: sources[row["clip_id"]])
    }
    golden("plan").check("the run", found)


def test_only_a_run_says_what_it_does(finished: str, folder: Path, golden: Any) -> None:
    """The lines without times and tables."""
    lines = [line for line in finished.splitlines() if line[:1].isalpha()]
    golden("plan").check("said by the run", [re.sub(r", [^,]*$", "", line) if ": done, " in line else line
                                              for line in lines])  # fmt: skip


def test_published(
    finished: str, folder: Path, settings: list[str], project: Any, call: Any, golden: Any, tmp_path: Path
) -> None:
    """The card's words, and the tables' columns and rows; without digests."""
    call("soundcap", "publish", project.demo_config, "--to", tmp_path / "hub", *settings).ok()
    found: dict[str, Any] = {}
    for file in sorted(path for path in (tmp_path / "hub").rglob("*") if path.is_file()):
        name = str(file.relative_to(tmp_path / "hub"))
        if file.suffix == ".parquet":
            table = parquet.read_table(file)
            columns = [f"{field.name}: {field.type}" for field in table.schema]
            shown = table.select(["video_id", "start_s", "split", "label", "caption"]).to_pylist()
            found[name] = {"columns": columns, "rows": sorted(shown, key=lambda row: str(row["video_id"]))}
        else:
            text = re.sub(r"[0-9a-f]{12,}|[0-9]{4}-[0-9]{2}-[0-9]{2}", "#", file.read_text())
            found[name] = text.splitlines() if file.suffix == ".md" else "-"
    golden("plan").check("published", found)


@pytest.mark.parametrize("name", SETTINGS)
def test_other_settings(plan: Plan, folder: Path, golden: Any, name: str) -> None:
    golden("plan").check(name, plan(*(one.format(folder=folder) for one in SETTINGS[name])))


@pytest.mark.parametrize("name", EDITS)
def test_edited_files(plan: Plan, folder: Path, golden: Any, name: str) -> None:
    """The edit, and that undoing it leaves nothing to do that was not to do before."""
    file, change = EDITS[name]
    as_it_was = plan()
    undo = edit(folder / file, change)
    try:
        golden("plan").check(name, plan())
    finally:
        undo()
    assert plan() == as_it_was, "undone, the plan should be what it was"


def test_moved_models(plan: Plan, folder: Path, golden: Any) -> None:
    """The same files in another folder; then other weights there."""
    shutil.copytree(folder / "omni", folder / "moved", dirs_exist_ok=True)
    moved = ("--set", f"captions.model.path={folder}/moved")
    golden("plan").check("a moved model folder", plan(*moved))
    config = folder / "moved" / "generation_config.json"
    config.write_text(config.read_text().replace("{", '{"repetition_penalty": 1.5,', 1))
    golden("plan").check("a changed model", plan(*moved))


def test_new_clips(plan: Plan, folder: Path, golden: Any) -> None:
    csv, videos = folder / "corpus" / "vggsound.csv", folder / "corpus" / "videos"
    new = [shutil.copy(film, videos) for film in sorted((folder / "later").glob("*.mp4"))]
    assert len(new) == LATER
    undo = edit(csv, lambda text: text + (folder / "later" / "lines").read_text())
    try:
        golden("plan").check("new clips", plan())
    finally:
        undo()
        for film in new:
            Path(film).unlink()


def test_a_warning_for_one_label_captions_its_clips_again_and_no_others(
    plan: Plan, folder: Path, settings: list[str], project: Any, call: Any, stages: Any, rows: Any, local_ray: None
) -> None:
    """Last of this file: from here on plans are explained against another run."""
    undo = edit(folder / "prompts" / "warnings.yaml", lambda text: text.rstrip("\n") + "\n" + ONE_LABEL)
    to_run, total = (plan()["captions"][key] for key in ("rows_to_run", "rows_total"))
    assert 0 < to_run < total, "some clips must have the label, and some not"
    said = call("soundcap", "run", project.demo_config, "--until", "curation", *settings).ok()
    assert f"captions: {to_run} of {total} rows to run" in said
    captions = rows(folder / "store", "captions", stages("plan", project.demo_config, *settings)["captions"])
    assert all(("thunder" in row["prompt"]) == (row["label"] == "bell ringing") for row in captions)
    undo()
    assert {plan()[stage]["state"] for stage in MADE} == {"done"}, "a warning taken back computes nothing"
