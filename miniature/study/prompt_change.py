"""Pipeline runs after changes of a prompt: rows computed again, time, captions and sound.

The pipeline runs as in `make demo` but with fewer films and steps, over one store: the rounds of `ROUNDS` follow one
another as an operator's days do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from miniature.phrasings import PROMPTS
from miniature.scorecard import held_out_scores
from miniature.world.corpus import generate_corpus
from pipelines.config_file import load_config
from pipelines.engine.runner import run_stages
from pipelines.run_config import Config
from pipelines.stages import wanted_stages

CONFIG = "configs/demo.yaml"
FILMS, TEST_EVERY = 60, 3
SMALL = ("captioner.training.max_steps=100", "flowley.training.steps=100", "flowley.execution.cpus_per_worker=1")
WARNED_LABEL = "ball bouncing"
ROUNDS = ("no warnings", "nothing changed", "warnings for one label", "warnings for all", "without warnings again")


def run_rounds(work: Path, *, seed: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Records of the rounds: {"round", "seconds", "stages": [{"stage", "rows", "computed", "seconds"}], "scores"}.

    A stage that is found done counts no computed row and no seconds. scores: see `held_out_scores`.
    """
    folder = work / "rerun" / f"{seed}-{time.time_ns()}"  # what is there already would not be computed
    generate_corpus(folder / "corpus", clips=FILMS, seed=seed, workers=1, test_every=TEST_EVERY)
    warnings = yaml.safe_load((PROMPTS / "warnings.yaml").read_text())["warnings"]
    kept = [{key: value for key, value in one.items() if key != "except_labels"} for one in warnings]
    file = folder / "warnings-for-one-label.yaml"
    file.write_text(yaml.safe_dump({"warnings": [one | {"labels": [WARNED_LABEL]} for one in kept]}))
    of_round = dict(zip(ROUNDS, (None, None, str(file), str(PROMPTS / "warnings.yaml"), None), strict=True))
    return [_round(name, _config(folder, prompt), say) for name, prompt in of_round.items()]


def _config(folder: Path, warnings: str | None) -> Config:
    return load_config(
        CONFIG,
        [
            f"root={folder}/store",
            f"source.folder={folder}/corpus/videos",
            f"source.table={folder}/corpus/vggsound.csv",
            f"captions.warnings={json.dumps(warnings)}",
            *SMALL,
        ],
    )


def _round(name: str, config: Config, say: Callable[[str], None]) -> dict[str, Any]:
    started = time.monotonic()
    runs = run_stages(wanted_stages(config), config, say=say)
    seconds = time.monotonic() - started
    table = [
        {
            "stage": one.manifest.stage,
            "rows": one.manifest.rows_in,
            "computed": one.rows_computed,
            "seconds": one.manifest.seconds if one.is_new else 0.0,
        }
        for one in runs
    ]
    say(f"{name}: {seconds:.0f} s")
    return {"round": name, "seconds": seconds, "stages": table, "scores": held_out_scores(config)}
