"""Runner of the study: each cell in a process of its own, several at a time, and only those without a result."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryFile

from miniature.study.claims import CLAIMS, Cell, cells, result_file
from pipelines.errors import RunError, UserError
from pipelines.progress import human_time


def run_study(patterns: list[str], *, work: Path, results: Path, processes: int, again: bool) -> None:
    """Run the cells that match a pattern (`alignment/*`; all without patterns), some processes at a time.

    Cells that have a result are run only if `again`. Features, captions, networks and logs are kept in `work`.

    Raises:
        UserError: no cell matches, or a folder cannot be written.
        RunError: cells failed, which it names; the others have their results.
    """
    chosen = cells(patterns)
    if not chosen:
        raise UserError(
            f"--cells {' '.join(patterns)} matches no cell; they are named claim/setting/seed, with claims "
            f"{', '.join(CLAIMS)}: try --cells 'alignment/*'"
        )
    require_writable(work, "--work")
    require_writable(results, "--results")
    todo = [cell for cell in chosen if again or not result_file(cell, results).exists()]
    print(f"{len(chosen)} cells, {len(chosen) - len(todo)} of them done before", flush=True)
    started, done, failed = time.monotonic(), 0, []
    pool = ThreadPoolExecutor(processes)
    try:
        for cell, error in pool.map(lambda cell: (cell, _in_process(cell, work, results)), todo):
            done += 1
            left = human_time((len(todo) - done) * (time.monotonic() - started) / done)
            print(f"{cell.name}: {error or 'done'} ({done}/{len(todo)}, {left} left)", flush=True)
            if error:
                failed.append(cell.name)
    finally:
        pool.shutdown(cancel_futures=True)  # an interruption starts no further cell
    if failed:
        raise RunError(f"{len(failed)} cells failed: {', '.join(failed)}; the logs are in {work}/logs")


def require_writable(folder: Path, option: str) -> None:
    """Make a folder unless it is there. Raises UserError where it cannot be written, before anything is computed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{option} {folder}: cannot be written ({error.strerror}); name another folder") from error


def _in_process(cell: Cell, work: Path, results: Path) -> str | None:
    """Run a cell alone, on one core; returns its fault."""
    log = work / "logs" / f"{cell.name.replace('/', '.')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "miniature.study.cell", cell.name, str(work), str(results)]
    with log.open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
    last = next((line for line in reversed(log.read_text().splitlines()) if line.strip()), "")
    return None if code == 0 else f"failed: {last}"
