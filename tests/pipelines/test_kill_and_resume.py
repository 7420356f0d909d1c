"""The driver is killed with -9 in the middle of `clips`, on S3; the same command finishes, nothing twice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from miniature.world.corpus import generate_corpus
from miniature.world.film import World
from pipelines.engine.ledger import counted_rows
from pipelines.engine.storage import Storage

ROOT = Path(__file__).parents[2]
CLIPS = 6


@pytest.mark.timeout(600)
def test_killed_on_s3_and_resumed(s3_url: str, tmp_path: Path) -> None:
    generate_corpus(tmp_path / "corpus", clips=CLIPS, seed=5, workers=1, world=World(duration_s=2.0))
    storage = Storage(f"{s3_url}/killed")
    sets = [
        f"root={storage.url}",
        f"source.folder={tmp_path}/corpus/videos",
        f"source.csv={tmp_path}/corpus/vggsound.csv",
        "clips.duration_s=2.0",
        "clips.execution.workers=1",
        "clips.execution.batch_rows=1",
    ]
    command = [sys.executable, "-m", "pipelines.cli.soundcap", "run", "configs/demo.yaml", "--until", "clips"]
    command += [part for one in sets for part in ("--set", one)]
    log = tmp_path / "first.log"
    with log.open("w") as out:
        driver = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)
        while not storage.files("ledger/clips"):
            assert driver.poll() is None, f"the run ended before it could be killed: {log.read_text()}"
            time.sleep(0.2)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    survived = sum(counted_rows(storage, "clips"))
    assert survived >= 1 and not storage.exists("clips/latest.json"), "killed before the stage was committed"

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    fingerprint = storage.read_json("clips/latest.json")["fingerprint"]
    rows = storage.read_table(f"clips/{fingerprint}/rows.parquet").to_pylist()
    manifest = storage.read_json(f"clips/{fingerprint}/manifest.json")
    assert len({row["clip_id"] for row in rows}) == len(rows) == CLIPS
    assert manifest["rows_computed"] <= CLIPS - survived, "what the killed run had committed was computed again"
