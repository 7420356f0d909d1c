"""Scratch folders: private, and what a killed process left goes at the next start."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pipelines import scratch as scratch_module
from pipelines.scratch import PREFIX, scratch

HOLDER = """
import time
from pipelines.scratch import scratch
with scratch("held") as folder:
    (folder / "film.mp4").touch()
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(scratch_module, "YOUNG_S", -1.0)


def _next_start() -> None:
    scratch_module._remove_abandoned.cache_clear()
    with scratch("next"):
        pass


def test_a_folder_is_private_and_goes_with_its_block() -> None:
    with scratch("work") as folder:
        (folder / "file").touch()
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


def test_what_a_killed_process_left_goes_at_the_next_start_and_not_before() -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    left = Path(process.stdout.readline().strip())
    _next_start()
    assert (left / "film.mp4").exists(), "its process lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (left / "film.mp4").exists()
    _next_start()
    assert not left.exists()


def test_what_is_no_scratch_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "precious")
    (tmp_path / f"{PREFIX}file").touch()
    _next_start()
    assert (tmp_path / "other").exists()
    assert (tmp_path / "precious" / "file").exists()


def test_a_young_folder_without_a_lock_may_be_in_the_making(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch_module, "YOUNG_S", 60.0)
    (tmp_path / f"{PREFIX}new").mkdir()
    os.utime(tmp_path / f"{PREFIX}new", (time.time() - 3600,) * 2)  # times that a user can set do not count
    _next_start()
    assert (tmp_path / f"{PREFIX}new").exists()
