"""The commands `soundcap prompts` over a folder of videos and real prompt files."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from pipelines.cli.soundcap import app
from pipelines.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Configuration over three labels, with prompt files of its own under git."""
    for label, count in (("dog barking", 3), ("playing violin", 2), ("rain", 1)):
        (tmp_path / "films" / label).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "films" / label / f"{label[0]}{number}.mp4").touch()
    (tmp_path / "ask.yaml").write_text("text: Describe the sound in 20 to 45 words.\n")
    _warnings(tmp_path, "Do not mention music.")
    settings = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    settings |= {"root": str(tmp_path / "store"), "source": {"folder": str(tmp_path / "films")}}
    settings["captions"] |= {"instruction": "ask.yaml", "warnings": "warn.yaml"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "ask.yaml", "warn.yaml"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True, cwd=tmp_path)
    return tmp_path / "mine.yaml"


def _warnings(folder: Path, text: str, name: str = "warn.yaml") -> None:
    warning = {"name": "music", "text": text, "except_labels": ["playing *"], "violations": ["music", "violins?"]}
    (folder / name).write_text(yaml.safe_dump({"warnings": [warning]}))


def _prompts(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["prompts", *arguments])


@pytest.mark.parametrize("whose", ["dog barking", "dog barking/d1.mp4", "dog barking/d1"])
def test_the_prompt_of_a_label_or_a_video(config: Path, whose: str) -> None:
    said = _prompts("show", str(config), whose).output.splitlines()
    assert said[:2] == ["Describe the sound in 20 to 45 words.", "Do not mention music."]
    assert said[-2:] == ["label 'dog barking', 3 clips; warnings: music", "not for this label: none"]


def test_the_prompt_of_a_spared_label_as_json(config: Path) -> None:
    found = json.loads(_prompts("show", str(config), "playing violin", "--json").output)
    assert found["not_reaching"] == ["music"] and found["prompt"] == "Describe the sound in 20 to 45 words."


def test_a_label_that_is_not_there(config: Path) -> None:
    error = _prompts("show", str(config), "zebra").exception
    assert isinstance(error, UserError) and "labels are dog barking, playing violin, rain" in str(error)


def test_lint_says_what_is_wrong_and_fails(config: Path) -> None:
    done = _prompts("lint", str(config))
    assert done.exit_code == 0 and "Nothing is wrong" in done.output
    (config.parent / "ask.yaml").write_text("text: Name the music in 20 to 90 words.\n")
    done = _prompts("lint", str(config))
    assert done.exit_code == 1 and "90 words" in done.output and "asks for `music`" in done.output
    assert len(json.loads(_prompts("lint", str(config), "--json").output)["findings"]) == 2


def test_diff_with_a_revision_a_file_and_a_configuration(config: Path) -> None:
    assert "0 of 6 clips get another prompt; nothing is captioned again" in _prompts("diff", str(config), "HEAD").output
    _warnings(config.parent, "Never mention music.", "edited.yaml")
    said = _prompts("diff", str(config), "HEAD", "edited.yaml").output
    assert "music: changed, reaches 4 clips\n  [-Do not-] {+Never+} mention music." in said
    assert "4 of 6 clips get another prompt" in said
    other = yaml.safe_load(config.read_text())
    other["captions"]["warnings"] = None
    (config.parent / "other.yaml").write_text(yaml.safe_dump(other))
    found = json.loads(_prompts("diff", str(config), "other.yaml", "--json").output)
    assert (found["clips"], found["of"]) == (4, 6) and found["changes"][0]["kind"] == "removed"
    assert found["violations"] == ["music"], "curation judges by other words"
    said = _prompts("show", str(config)).output.splitlines()
    assert said == ["dog barking: 3 clips", "playing violin: 2 clips", "rain: 1 clips"]


@pytest.mark.parametrize("name", ["nonsense", "n" * 300])
def test_neither_file_nor_revision(config: Path, name: str) -> None:
    error = _prompts("diff", str(config), name).exception
    assert isinstance(error, UserError) and f"{name}: no such file, and no git revision with ask.yaml" in str(error)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"warnings: [", b"- a\n", b"text: " + 5000 * b"["])
def test_a_bad_prompt_file_is_one_line(config: Path, data: bytes) -> None:
    (config.parent / "bad.yaml").write_bytes(data)
    error = _prompts("diff", str(config), "bad.yaml").exception
    assert isinstance(error, UserError) and "bad.yaml" in str(error) and "\n" not in str(error)
