"""Kills at random while the pipeline runs: `python -m tests.pipelines.chaos [--minutes N] [--seed N]`, `make chaos`.

A small pipeline is run again and again, each time in an empty store. In every stage something is killed with -9 several
times, at random moments of the stage's work: driver, worker, raylet or ffmpeg. The same command goes on until it ends
well. Then every stage has the rows of an undisturbed run: none lost, none twice, and up to the first training none
changed.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miniature.world.corpus import generate_corpus
from miniature.world.film import World
from pipelines.config_file import load_config
from pipelines.engine.plan import make_plan
from pipelines.engine.storage import Storage
from pipelines.engine.store import ROWS, Output
from pipelines.stages import STAGES, wanted_stages

ROOT = Path(__file__).parents[2]
CLIPS = 8
EXACT = ("clips", "captions", "curation")
"""Stages whose rows do not depend on trained weights."""
KINDS = {
    "worker": r"^ray::(RowActor|_?RayTrainWorker|RayTrain)",
    "raylet": r"raylet/raylet ",
    "ffmpeg": r"(^|/)(ffmpeg|ffprobe) ",
}
KINDS_OF = {"clips": ("worker", "raylet", "ffmpeg", "ffmpeg"), "curation": (), "scores": ()}
"""What may be killed in a stage beside the driver, where that is not worker and raylet."""
RUN_DEADLINE_S = 1800.0
KILLS_A_STAGE = 3
POLL_S = 0.02


@dataclass
class _Aim:
    """Kill to come: of a process of one kind, `delay_s` after the first of that kind is there."""

    stage: str
    kind: str
    delay_s: float
    chance: random.Random
    moment_s: float | None = None

    def shoot(self, driver: int) -> bool:
        """Kills if the moment has come; True if something was killed."""
        time.sleep(POLL_S)
        found = [driver] if self.kind == "driver" else _processes(driver, KINDS[self.kind])
        if not found:
            return False
        self.moment_s = self.moment_s or time.monotonic() + self.delay_s
        if time.monotonic() < self.moment_s:
            return False
        try:
            os.kill(self.chance.choice(found), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True


@dataclass
class Chaos:
    """One small pipeline: the time of each stage (s), and the kills so far, by (stage, kind)."""

    folder: Path
    until: str
    chance: random.Random
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)

    def settings(self, root: str) -> list[str]:
        """Overrides of the demo's configuration."""
        return [
            f"root={root}",
            f"source.folder={self.folder}/corpus/videos",
            f"source.table={self.folder}/corpus/vggsound.csv",
            "clips.duration_s=2.0",
            "clips.execution.batch_rows=1",
            "captions.execution.batch_rows=2",
            "captions.sampling.max_new_tokens=16",
            "curation.rules.min_words=1",
            "captioner.training.max_steps=8",
            "captioner.execution.max_failures=50",
            "silent_captions.execution.batch_rows=2",
            "silent_captions.sampling.max_new_tokens=16",
            "features.execution.batch_rows=2",
            "flowley.training.steps=30",
            "flowley.training.batch_size=4",
            "flowley.training.duration_s=2.0",
            "flowley.execution.max_failures=50",
            "flowley.execution.settings.checkpoint_every_steps=10",
            "samples.execution.batch_rows=1",
        ]

    def make_corpus(self) -> None:
        generate_corpus(self.folder / "corpus", clips=CLIPS, seed=3, workers=1, world=World(duration_s=2.0))

    def run(self, root: str, kills_a_stage: int) -> None:
        """Runs to the end, killing something in each stage. Raises AssertionError if the run cannot end."""
        sets = [part for one in self.settings(root) for part in ("--set", one)]
        command = [sys.executable, "-m", "pipelines.cli.soundcap", "run", "configs/demo.yaml", "--until", self.until]
        started = time.monotonic()
        left = Counter({stage.name: kills_a_stage for stage in STAGES})
        while True:
            log = self.folder / "run.log"
            with log.open("w") as out:
                driver = subprocess.Popen([*command, *sets], cwd=ROOT, stdout=out, stderr=out, start_new_session=True)
            aim: _Aim | None = None
            while driver.poll() is None:
                assert time.monotonic() - started < RUN_DEADLINE_S, (
                    f"no end after {RUN_DEADLINE_S} s: {log.read_text()}"
                )
                stage = _stage_at_work(log.read_text())
                if stage is None or left[stage] <= 0:
                    time.sleep(POLL_S)
                    continue
                if aim is None or aim.stage != stage:
                    aim = self._aim(stage)
                if aim.shoot(driver.pid):
                    self.kills[stage, aim.kind] += 1
                    left[stage] -= 1
                    aim = None
            said = log.read_text()
            if driver.returncode == 0:
                return
            killed = driver.returncode == -signal.SIGKILL
            assert killed or "Traceback" not in said, f"a fault ended in a traceback: {said}"

    def _aim(self, stage: str) -> _Aim:
        kind = self.chance.choice(["driver", *KINDS_OF.get(stage, ("worker", "raylet"))])
        within = 0.6 if kind == "driver" else 0.2  # others are there for a part of the time only
        return _Aim(stage, kind, self.chance.uniform(0, within * self.seconds[stage]), self.chance)

    def rows(self, root: str) -> dict[str, list[dict[str, Any]]]:
        """Rows of every stage, without what differs from run to run; of one without rows, their number."""
        config, storage = load_config(ROOT / "configs/demo.yaml", self.settings(root)), Storage(root)
        plans = {plan.name: plan for plan in make_plan(wanted_stages(config), config, storage)}
        found = {}
        for name, plan in plans.items():
            assert plan.state == "done" and plan.fingerprint is not None, plan
            output = Output(storage, name, plan.fingerprint)
            manifest = output.committed()
            self.seconds.setdefault(name, manifest.seconds)
            found[name] = [{"rows_out": manifest.rows_out}]
            if ROWS in manifest.files:
                rows = output.rows().to_pylist()
                found[name] = rows if name in EXACT else [{"clip_id": row["clip_id"]} for row in rows]
            if name == self.until:
                break
        return found


def _stage_at_work(said: str) -> str | None:
    stages = re.findall(r"^(\w+): \d+ of \d+ rows to run", said, re.MULTILINE)
    ended = set(re.findall(r"^(\w+): done", said, re.MULTILINE))
    return stages[-1] if stages and stages[-1] not in ended else None


def _processes(driver: int, pattern: str) -> list[int]:
    """Processes below the driver whose command line matches."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    lines = [line.split(None, 2) for line in table.splitlines()]
    family = {driver}
    for _ in range(6):  # generations
        family |= {int(pid) for pid, parent, *_ in lines if int(parent) in family}
    return [int(pid) for pid, _, *args in lines if int(pid) in family and args and re.search(pattern, args[0])]


def compare(undisturbed: dict[str, list[Any]], disturbed: dict[str, list[Any]]) -> None:
    """Raises AssertionError for a row that is lost, doubled or changed."""
    assert disturbed.keys() == undisturbed.keys()
    for stage, rows in undisturbed.items():
        got = disturbed[stage]
        assert len(got) == len(rows), f"{stage}: {len(got)} rows, {len(rows)} undisturbed"
        assert got == rows, f"{stage}: rows changed"


def main(arguments: Sequence[str] | None = None) -> None:
    """Kills until the time is up, and prints what was killed where."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=55)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    end_s = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="soundcap-chaos-") as name:
        chaos = Chaos(Path(name), STAGES[-1].name, random.Random(options.seed))
        chaos.make_corpus()
        chaos.run(f"{name}/undisturbed", kills_a_stage=0)
        undisturbed = chaos.rows(f"{name}/undisturbed")
        print(f"undisturbed: { {stage: len(rows) for stage, rows in undisturbed.items()} }", flush=True)
        number = 0
        while time.monotonic() < end_s:
            number += 1
            chaos.run(f"{name}/{number}", KILLS_A_STAGE)
            compare(undisturbed, chaos.rows(f"{name}/{number}"))
            print(f"store {number}: as undisturbed after {sum(chaos.kills.values())} kills", flush=True)
    for (stage, kind), count in sorted(chaos.kills.items()):
        print(f"{stage:16} {kind:8} {count}")


if __name__ == "__main__":
    main()
