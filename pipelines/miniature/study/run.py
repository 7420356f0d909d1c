"""`soundcap miniature`: runs cells, each in a process of its own, and renders the page from their results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

from pipelines.errors import RunError, UserError
from pipelines.media.normalise import temporary_beside
from pipelines.miniature.study.cells import CLAIMS, Cell, cells, result_file
from pipelines.progress import human_time

RESULTS = Path("docs/miniature/results")
PAGE = Path("docs/miniature.md")


def run_study(patterns: list[str], *, work: Path, results: Path, processes: int, again: bool) -> None:
    """Run the cells that have no result yet, `processes` at a time.

    Raises UserError where no cell matches, RunError naming the cells that failed; the others have their results.
    """
    wanted = cells(patterns)
    if not wanted:
        raise UserError(
            f"--cells {' '.join(patterns)} matches no cell; they are named claim/setting/seed, with claims "
            f"{', '.join(CLAIMS)}: try --cells 'alignment/*'"
        )
    todo = [cell for cell in wanted if again or not result_file(cell, results).exists()]
    print(f"{len(wanted)} cells, {len(wanted) - len(todo)} of them done before", flush=True)
    work.mkdir(parents=True, exist_ok=True)
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


def _in_process(cell: Cell, work: Path, results: Path) -> str | None:
    """Runs a cell alone, on one core; returns what went wrong."""
    log = work / "logs" / f"{cell.name.replace('/', '.')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pipelines.miniature.study.run", cell.name, str(work), str(results)]
    with log.open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
    last = next((line for line in reversed(log.read_text().splitlines()) if line.strip()), "")
    return None if code == 0 else f"failed: {last}"


def _run_cell(name: str, work: Path, results: Path) -> None:
    [cell] = cells([name])
    started = time.monotonic()

    def say(message: str) -> None:
        print(message, flush=True)

    scores = cell.run(work, say)
    result: dict[str, Any] = {
        "claim": cell.claim,
        "setting": cell.setting,
        "seed": cell.seed,
        "date": date.today().isoformat(),
        "seconds": round(time.monotonic() - started, 1),
        **scores,
    }
    file = result_file(cell, results)
    file.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(file) as temporary:
        temporary.write_text(json.dumps(_rounded(result), indent=1) + "\n")
        temporary.replace(file)


def _rounded(value: Any) -> Any:
    """Six digits: more would only make the files hard to read and to compare."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value


if __name__ == "__main__":
    _run_cell(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
