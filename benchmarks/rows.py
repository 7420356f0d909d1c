"""Time and memory of the row engine's commands on a store of many rows, without media.

`python -m benchmarks.rows [--clips N] [--s3] [--rescan] [--json]` makes a store in which every stage is done,
then runs each command as its own process. `--s3` also plans with the store in a bucket that takes 20 ms a request.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
REQUEST_S = 0.02


def main() -> None:
    """Prints one figure a line, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=200_000)
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--rescan", action="store_true", help="plan and status list the source again")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soundcap-rows-") as name:
        figures = measure(Path(name), arguments.clips, with_s3=arguments.s3, rescan=arguments.rescan)
    if arguments.json:
        print(json.dumps(figures))
    else:
        for key, value in figures.items():
            print(f"{key:16} {value}")


def measure(folder: Path, clips: int, *, with_s3: bool, rescan: bool) -> dict[str, float | None]:
    """Wall time (s) and peak memory (GB) of each command on a store of `clips` rows a stage."""
    again = ["--rescan"] if rescan else []
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # where the source's listing is remembered
    # In another process: a command's peak memory counts that of the process that starts it.
    subprocess.run([sys.executable, "-m", "benchmarks.row_store", str(folder), str(clips)], cwd=ROOT, check=True)
    config = str(folder / "config.yaml")
    commands = {
        "plan_done": ["plan", config, *again],
        "plan_edited": ["plan", config, *again, "--set", f"captions.warnings={folder}/edited.yaml"],
        "status": ["status", config, *again],
        "noop_run": ["run", config, "--until", "captions"],
        "publish": ["publish", config, "--to", str(folder / "published")],
        "export": [
            "export",
            config,
            "--format",
            "mmaudio",
            "--source",
            "silent_captions",
            "--to",
            str(folder / "exported"),
        ],
        "report": ["report", config],
    }
    figures: dict[str, float | None] = {"clips": clips}
    for name, command in commands.items():
        seconds, gb = run(command)
        figures[f"{name}_s"] = round(seconds, 2)
        if name != "status":
            figures[f"{name.removesuffix('_run')}_gb"] = round(gb, 3)
    figures["s3_plan_s"] = _s3_plan_s(folder) if with_s3 else None
    return figures


def run(arguments: list[str], environment: dict[str, str] | None = None) -> tuple[float, float]:
    """Wall time (s) and peak memory (GB) of a `soundcap` command in its own process."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "pipelines.cli.soundcap", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}: {said}")
    return time.perf_counter() - started, usage.ru_maxrss / 2**20


def _s3_plan_s(folder: Path) -> float:
    """Wall time of `plan` with the store in a bucket, all stages done."""
    # Not at the top: the memory of this process would count in that of the commands.
    from benchmarks.bucket import BUCKET, bucket
    from pipelines.engine.storage import Storage

    store = Storage(str(folder / "store"))
    with bucket(REQUEST_S) as slow:
        copy = Storage(f"s3://{BUCKET}/store")
        for info in store.files(recursive=True):
            if info.size > 0:  # a plan looks at no media, which are empty here
                copy.write_bytes(info.name, store.read_bytes(info.name))
        command = ["plan", str(folder / "config.yaml"), "--set", f"root={copy.url}"]
        return round(run(command, slow.environment)[0], 2)


if __name__ == "__main__":
    main()
