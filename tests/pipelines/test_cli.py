"""The command line `soundcap`: exit codes and one-line errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from botocore.exceptions import NoCredentialsError

from pipelines.cli.options import cells, new_app
from pipelines.cli.soundcap import main
from pipelines.errors import one_line, run_command

ROOT = Path(__file__).parents[2]


def _soundcap(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pipelines.cli.soundcap", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "none.yaml"], "none.yaml: no such configuration file"),
        (["plan", "configs/demo.yaml", "--set", "clips.fsp=1"], "unknown key; did you mean fps?"),
        (["run", "configs/demo.yaml", "--until", "clip"], "--until clip: no such stage; wanted one of clips,"),
        (["miniature", "study", "--seeds", "3"], "miniature: this command is now `python -m miniature`"),
        (["plan", "configs/demo.yaml", "--set", "source.folder=/nowhere"], "'/nowhere' does not exist"),
        (["fsck", "configs/demo.yaml", "--set", "root=/nowhere"], "root '/nowhere' holds no store"),
        (["init", "s3://"], "cannot open 's3://': wanted a local folder, or s3://bucket/prefix"),
        (["init", "file:///tmp"], "cannot open 'file:///tmp': wanted a local folder, or s3://bucket/prefix"),
        (["init", "configs", "-o", "mine.csv"], "-o mine.csv: a configuration is a .yaml file"),
        (["plan", "configs/demo.yaml", "--set", "source.folder=configs", "--set", "source.table=no.csv"], "no.csv"),
    ],
)
def test_user_errors_are_one_line_with_exit_code_2(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["soundcap", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and message in said and len(said.strip().splitlines()) == 1, said


def test_ctrl_c_in_a_command_says_what_it_leaves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Typer itself ends with the exit code of shells, and without a word."""
    app = new_app("A command that is interrupted.")

    @app.command()
    def wait() -> None:
        raise KeyboardInterrupt

    @app.command()
    def other() -> None:
        """Another one, so that commands have names."""

    monkeypatch.setattr(sys, "argv", ["soundcap", "wait"])
    with pytest.raises(SystemExit) as ended:
        run_command("soundcap", app, interrupted="the same command goes on")
    assert ended.value.code == 130
    assert capsys.readouterr().err == "soundcap: interrupted; the same command goes on\n"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "RAY_ADDRESS: no answer from 127.0.0.1:1"),
        ("http://127.0.0.1:8265", "wanted the cluster's host and port"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_line(
    address: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    films = tmp_path / "films"
    films.mkdir()
    (films / "a.mp4").write_bytes(b"never read")
    done = _soundcap(
        "run", "configs/demo.yaml", "--until", "clips", "--set", f"root={tmp_path}/store",
        "--set", f"source.folder={films}", "--set", "source.table=null",
    )  # fmt: skip
    assert done.returncode == 2 and message in done.stderr, done.stderr


def test_plan_json_before_anything_ran(tmp_path: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    (films / "a.mp4").write_bytes(b"not looked at before the run")
    done = _soundcap(
        "plan", "configs/demo.yaml", "--json", "--set", f"root={tmp_path}/store",
        "--set", f"source.folder={films}", "--set", "source.table=null",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    stages = json.loads(done.stdout)["stages"]
    assert set(stages[0]) == {
        "name",
        "state",
        "reason",
        "rows_total",
        "rows_to_run",
        "fingerprint",
        "rows_at_most",
        "rows_by_ledger",
    }
    assert (stages[0]["name"], stages[0]["state"], stages[0]["rows_to_run"]) == ("clips", "to_run", 1)
    assert stages[1]["state"] == "unknown" and stages[1]["fingerprint"] is None
    assert stages[1]["reason"] == "unknown until clips"


@pytest.mark.parametrize("start", ["nan", "inf", "-3", "soon"])
def test_a_start_that_is_no_time_is_one_line(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a_000001.mp4").write_bytes(b"not looked at")
    (tmp_path / "list.csv").write_text(f"a,{start},dog,train\n")
    sets = ["--set", f"source.folder={tmp_path}", "--set", f"source.table={tmp_path}/list.csv"]
    monkeypatch.setattr(sys, "argv", ["soundcap", "plan", str(ROOT / "configs/demo.yaml"), *sets])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and f"got the start '{start}'" in said and len(said.strip().splitlines()) == 1, said


def test_control_characters_of_names_and_messages_are_shown_not_sent() -> None:
    assert cells("a\x1b[31mred", 3, "\udcff") == ("a\\x1b[31mred", "3", "\\udcff")
    assert one_line(ValueError("bell \x07 and\ntitle \x1b]0;x\x07")) == "bell \\x07 and title \\x1b]0;x\\x07"


def test_a_bucket_that_denies_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def denied() -> None:
        raise NoCredentialsError()

    with pytest.raises(SystemExit) as ended:
        run_command("soundcap", denied, interrupted="")
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said == (
        "soundcap: NoCredentialsError: Unable to locate credentials; docs/operators.md says how a bucket is reached\n"
    )
