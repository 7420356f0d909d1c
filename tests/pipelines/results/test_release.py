"""Releases: what is missing is run, worse captions are not published, and what was forced is recorded."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli.soundcap import app
from pipelines.config_file import load_config
from pipelines.errors import UserError
from pipelines.run_config import Config

TEXTS = ["A bell rings twice and fades.", "A dog barks near the wall.", "Rain falls hard on tin.", "A door shuts hard."]


@pytest.fixture
def files(
    configure: Callable[..., Config], caption: Callable[[Config, Sequence[str]], None], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Path, Path]:  # fmt: skip
    """Configurations of one root: warned, with clean captions, and without warnings, where each caption has music."""
    monkeypatch.setattr("soundcap.caption_scores.LEAST_DIFFERENT", 2)  # there are four clips
    found = []
    for name, warnings, more in (("warned", "prompts/warnings.yaml", ""), ("plain", None, " Music plays.")):
        overrides = [] if warnings else ["captions.warnings=null"]
        config = configure(tmp_path / "store", *overrides)
        caption(config, [text + more for text in TEXTS])
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(json.loads(config.model_dump_json(exclude_none=False))))
        load_config(file)
        found.append(file)
    return found[0], found[1]


def _release(file: Path, to: Path, *more: str) -> Any:
    return CliRunner().invoke(app, ["release", str(file), "--to", str(to), "--what", "captions", *more])


def _card(to: Path) -> str:
    return (to / "README.md").read_text()


def test_worse_captions_are_published_by_force_alone(files: tuple[Path, Path], tmp_path: Path) -> None:
    warned, plain = files
    to = tmp_path / "hub"
    done = _release(warned, to)
    assert done.exit_code == 0, done.exception
    first = _card(to)
    assert "nothing changed" in _release(warned, to).output and _card(to) == first, "a release again is not free"

    refused = _release(plain, to).exception
    assert isinstance(refused, UserError) and "\n" not in str(refused)
    assert "worse than those at" in str(refused) and "violates music (0.0% -> 100.0%)" in str(refused)
    assert _card(to) == first

    assert _release(plain, to, "--force").exit_code == 0
    assert "| v2 |" in _card(to) and "published although worse in violates music" in _card(to)
    assert _release(warned, to).exit_code == 0 and "| v3 |" in _card(to), "better captions are not held back"


def test_the_gate_is_the_operators(files: tuple[Path, Path], tmp_path: Path) -> None:
    warned, plain = files
    to = tmp_path / "hub"
    _release(warned, to)
    refused = _release(plain, to, "--set", "publish.gate=[violates *]").exception
    assert isinstance(refused, UserError) and "violates music" in str(refused) and "kept" not in str(refused)
    assert _release(plain, to, "--set", "publish.gate=[names label]").exit_code == 0
    assert _release(warned, to, "--set", "publish.gate=[]").exit_code == 0


def test_a_budget_stops_a_release_before_it_runs(files: tuple[Path, Path], tmp_path: Path) -> None:
    to = tmp_path / "hub"
    missing = ("--set", "captions.sampling.max_new_tokens=9", "--max-usd", "1")
    error = _release(files[0], to, *missing).exception
    assert isinstance(error, UserError) and "no rate was ever measured for captions" in str(error)
    assert not to.exists()


def test_what_is_published_from_elsewhere_is_not_compared_in_silence(files: tuple[Path, Path], tmp_path: Path) -> None:
    warned, plain = files
    to = tmp_path / "hub"
    _release(warned, to)
    [made] = (tmp_path / "store" / "publications").iterdir()
    record = json.loads(made.read_text())
    fingerprint = record["stages"]["captions"]
    for output in (tmp_path / "store" / "captions").glob(f"{fingerprint}/*"):
        output.unlink()
    error = _release(plain, to).exception
    assert isinstance(error, UserError) and f"captions {fingerprint} are published, which this store has not" in str(
        error
    )
    assert _release(plain, to, "--force").exit_code == 0
    assert "captions " + fingerprint + " are not in this store" in _card(to).replace("\\", "")


def test_the_gate_reads_what_is_published_there(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Whatever this store recorded, and whatever versions stand beside."""
    warned, plain = files
    to = tmp_path / "hub"
    _release(warned, to)
    assert _release(plain, to, "--set", "publish.version=plain").exit_code == 0, "a version beside replaces nothing"
    for record in (tmp_path / "store" / "publications").iterdir():
        record.unlink()
    refused = _release(plain, to).exception
    assert isinstance(refused, UserError) and "violates music (0.0% -> 100.0%)" in str(refused)
    error = _release(plain, to, "--set", "publish.gate=[keptt]").exception
    assert isinstance(error, UserError) and "publish.gate: 'keptt' is no measure of these captions" in str(error)
