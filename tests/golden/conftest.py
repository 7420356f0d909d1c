"""Golden values: what a user sees of this project, recorded once and compared ever since.

The tests use command lines and the files that these leave, so that they outlast a change of the code behind them.
Recorded are values: words, counts, reasons, figures. Keys, fingerprints, digests and times are not.

A change that is meant to change them is recorded by the tests themselves, and looked through with `git diff`:

    pytest tests/golden --record -m "slow or not slow"
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pyarrow import parquet

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SHOWN_DIFFERENCES = 40
AGAIN = "if this is meant: pytest {test} --record"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="record golden values anew instead of comparing them")
    parser.addoption(
        "--demo-folder", metavar="DIR", help="where the golden demo runs, or has run: then it is not again"
    )


# --------------------------------------------------------------------------------------------------- comparison


Tolerance = tuple[float, float]
"""Tolerance of a float: a share of the recorded one, or an absolute difference, whichever is more."""


def differences(
    was: Any, now: Any, tolerance: Callable[[tuple[str, ...]], Tolerance], path: tuple[str, ...] = ()
) -> Iterator[str]:
    """A line for each value that differs, with its place. Only floats have a tolerance."""
    place = " / ".join(path) or "(all)"
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*was, *(key for key in now if key not in was)]:
            inner = (*path, key)
            if key not in now:
                yield f"{' / '.join(inner)}: was {_short(was[key])}, is gone"
            elif key not in was:
                yield f"{' / '.join(inner)}: is new: {_short(now[key])}"
            else:
                yield from differences(was[key], now[key], tolerance, inner)
    elif isinstance(was, list) and isinstance(now, list):
        if len(was) != len(now):
            yield f"{place}: had {len(was)} items, has {len(now)}"
        for number, (one, other) in enumerate(zip(was, now, strict=False)):
            yield from differences(one, other, tolerance, (*path, f"[{number}]"))
    elif _is_number(was) and _is_number(now) and (isinstance(was, float) or isinstance(now, float)):
        share, least = tolerance(path)
        allowed = max(share * abs(was), least)
        if not abs(was - now) <= allowed:
            yield f"{place}: was {was:.6g}, is {now:.6g} (may differ by {allowed:.2g})"
    elif was != now or isinstance(was, bool) != isinstance(now, bool):
        yield f"{place}: was {_short(was)}, is {_short(now)}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 400 else f"{text[:400]}…"


def plain(value: Any) -> Any:
    """Plain data as JSON gives it back; floats to seven digits, which is more than any tolerance asks for."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float | np.floating):
        assert math.isfinite(value), f"{value} cannot be recorded"
        return float(f"{value:.7g}")
    return value.item() if isinstance(value, np.generic) else value


def written(value: Any, indent: str = "") -> str:
    """JSON with a line for each value that fits on one: short to look at, and short where it changes."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or (indent and len(indent) + len(line) < 120):
        return line
    inner = f"{indent} "
    if isinstance(value, dict):
        lines = [f"{inner}{json.dumps(key, ensure_ascii=False)}: {written(one, inner)}" for key, one in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return "[\n" + ",\n".join(f"{inner}{written(one, inner)}" for one in value) + f"\n{indent}]"


EXACT: Tolerance = (1e-6, 1e-9)
"""For floats that are no more than written differently."""


class Golden:
    """The values in `tests/golden/{name}.json`, a part for each test."""

    def __init__(self, name: str, recording: bool, test: str) -> None:
        self.file, self.recording, self.test = HERE / f"{name}.json", recording, test

    def check(self, part: str, found: Any, tolerances: Mapping[str, Tolerance] | None = None) -> None:
        """Compare `found` with what is recorded as `part`, or record it.

        `tolerances`: of floats, by a name that stands anywhere in their place; the innermost one counts.
        """
        recorded = json.loads(self.file.read_text()) if self.file.exists() else {}
        found = plain(found)
        if self.recording:
            recorded[part] = found
            self.file.write_text(written(dict(sorted(recorded.items()))) + "\n")
            return
        if part not in recorded:
            pytest.fail(f"{self.file.name} has no part {part!r}; {AGAIN.format(test=self.test)}", pytrace=False)

        def tolerance(path: tuple[str, ...]) -> Tolerance:
            named = (name for name in reversed(path) if name in (tolerances or {}))
            return (tolerances or {}).get(next(named, ""), EXACT)

        lines = list(differences(recorded[part], found, tolerance, (part,)))
        if lines:
            left = len(lines) - SHOWN_DIFFERENCES
            more = [f"... and {left} more"] if left > 0 else []
            text = "\n".join([*lines[:SHOWN_DIFFERENCES], *more, AGAIN.format(test=self.test)])
            pytest.fail(f"{len(lines)} values of {self.file.name} differ:\n{text}", pytrace=False)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], Golden]:
    """Golden values by the name of their file."""
    recording = request.config.getoption("--record", default=False)
    return lambda name: Golden(name, bool(recording), request.node.nodeid)


# ------------------------------------------------------------------------------------------------- command lines


@dataclass(frozen=True)
class Project:
    """Where things are, found by looking, so that a move breaks nothing here."""

    root: Path
    demo_config: Path

    def model(self, key: str) -> Path:
        """The folder of a checkpoint that the demo's configuration names, like `captions.model.path`."""
        value: Any = yaml.safe_load(self.demo_config.read_text())
        for part in key.split("."):
            value = value[part]
        return self.root / str(value)

    def module(self, place: str) -> str:
        """The name of the one module whose file ends with `place`."""
        found = [file for file in self.root.glob("*/**/*.py") if file.as_posix().endswith(f"/{place}")]
        found = [file for file in found if not any(part.startswith(".") for part in file.relative_to(ROOT).parts)]
        assert len(found) == 1, f"wanted one module at .../{place}, got {found}"
        return ".".join(found[0].relative_to(self.root).with_suffix("").parts)

    def demo_module(self) -> str:
        """What `make demo` runs."""
        recipe = (self.root / "Makefile").read_text().split("\ndemo:", 1)[1]
        found = re.search(r"-m (\S+)", recipe)
        assert found, "no `-m MODULE` in the Makefile's recipe of demo"
        return found[1]

    def mirror(self, folder: Path, *, copied: tuple[str, ...] = ("configs",)) -> Path:
        """`folder` made to look like the project: links to all that is in it, but copies of `copied`.

        Commands that write into the working directory can be run there.
        """
        left_out = {".git", ".demo", ".miniature", ".venv", *copied}
        folder.mkdir(parents=True, exist_ok=True)
        for one in self.root.iterdir():
            if one.name not in left_out:
                (folder / one.name).symlink_to(one)
        for name in copied:
            shutil.copytree(self.root / name, folder / name)
        return folder


@pytest.fixture(scope="session")
def project() -> Project:
    return Project(ROOT, ROOT / "configs" / "demo.yaml")


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str

    def ok(self) -> str:
        """Its output. Fails the test if the command failed."""
        assert self.code == 0, f"exit code {self.code}\n{self.out[-3000:]}\n{self.err[-3000:]}"
        return self.out


RAY = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_worker_niceness": "0"}
"""Ray's workers would wait for all else that the machine does."""
RAY_STARTS = 5
"""Ray gives its start 30 s, which are too few where a machine has much else to do."""


@pytest.fixture(scope="session")
def run() -> Callable[..., Done]:
    """A command in a process of its own, with one thread, as the Makefile has it."""

    def run_command(*command: object, cwd: Path = ROOT, timeout_s: float = 280) -> Done:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **RAY}
        for _ in range(RAY_STARTS):
            done = subprocess.run(
                list(map(str, command)), cwd=cwd, env=environment, timeout=timeout_s,
                stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if "node timed out during startup" not in done.stderr:
                break
        return Done(done.returncode, done.stdout, done.stderr)

    return run_command


@pytest.fixture(scope="session")
def call() -> Callable[..., Done]:
    """An installed command, by name, in this process: what `soundcap ...` does without its start of some seconds."""

    def call_command(name: str, *arguments: object) -> Done:
        [command] = entry_points(group="console_scripts", name=name)
        main, before, code = command.load(), sys.argv, 0
        out, err = io.StringIO(), io.StringIO()
        sys.argv = [name, *map(str, arguments)]
        logging.disable(logging.WARNING)  # what libraries say of their models would stand before what differs
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        finally:
            sys.argv = before
            logging.disable(logging.NOTSET)
        return Done(code, out.getvalue(), err.getvalue())

    return call_command


@pytest.fixture(scope="session")
def stages(call: Callable[..., Done]) -> Callable[..., dict[str, dict[str, Any]]]:
    """What `soundcap plan` or `status` says of each stage, by the stage's name."""

    def read(command: str, config: Path, *arguments: object) -> dict[str, dict[str, Any]]:
        said = json.loads(call("soundcap", command, config, "--json", *arguments).ok())
        return {one["name"]: one for one in said["stages"]}

    return read


@pytest.fixture(scope="session")
def rows() -> Callable[..., list[dict[str, Any]]]:
    """The rows that a stage made, by clip id. `said` is what `soundcap plan` or `status` says of the stage.

    The one place that knows where a store keeps them, as the README has it.
    """

    def read(store: Path, stage: str, said: Mapping[str, Any]) -> list[dict[str, Any]]:
        files = sorted((store / stage / said["fingerprint"]).glob("*.parquet"))
        tables = [table for table in map(parquet.read_table, files) if "clip_id" in table.column_names]
        assert len(tables) == 1, f"{stage}: wanted one table of clips, got {len(tables)} in {files}"
        found: list[dict[str, Any]] = tables[0].to_pylist()
        return sorted(found, key=lambda row: str(row["clip_id"]))

    return read


# --------------------------------------------------------------------------------------------------------- media


@dataclass(frozen=True)
class Media:
    """Facts of media files, by ffmpeg and ffprobe alone."""

    def streams(self, file: Path) -> dict[str, dict[str, Any]]:
        """Of each stream by its kind, and of the file: what a player is told."""
        command = ["ffprobe", "-v", "error", "-show_streams", "-show_format", "-of", "json", str(file)]
        told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        video = ("codec_name", "width", "height", "pix_fmt", "avg_frame_rate", "nb_frames")
        audio = ("codec_name", "sample_rate", "channels")
        kinds = {"video": video, "audio": audio}
        found: dict[str, dict[str, Any]] = {"format": {"format_name": told["format"]["format_name"]}}
        for stream in told["streams"]:
            kind = stream["codec_type"]
            assert kind not in found, f"{file}: two streams of kind {kind}"
            found[kind] = {key: stream.get(key) for key in kinds.get(kind, ("codec_name",))}
            if "duration" in stream:
                found[kind]["duration_s"] = float(stream["duration"])
        return found

    def sound(self, file: Path) -> dict[str, Any]:
        """Statistics of a file's sound, in its own rate and channels mixed."""
        about = self.streams(file)["audio"]
        hz = int(about["sample_rate"])
        command = ["ffmpeg", "-v", "error", "-i", str(file), "-map", "0:a", "-ac", "1", "-f", "f32le", "-"]
        wave = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, "<f4").astype(float)
        assert wave.size and np.isfinite(wave).all(), f"{file}: no sound, or not finite"
        power = np.abs(np.fft.rfft(wave * np.hanning(wave.size))) ** 2
        quarters = [float(np.sqrt(np.mean(part**2))) for part in np.array_split(wave, 4)]
        return {
            "sample_rate": hz,
            "channels": about["channels"],
            "duration_s": wave.size / hz,
            "rms": float(np.sqrt(np.mean(wave**2))),
            "peak": float(np.max(np.abs(wave))),
            "rms_of_quarters": quarters,
            "centroid_hz": float((np.fft.rfftfreq(wave.size, 1 / hz) * power).sum() / max(power.sum(), 1e-20)),
        }


@pytest.fixture(scope="session")
def media() -> Media:
    return Media()
