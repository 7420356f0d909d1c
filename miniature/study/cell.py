"""One cell of the study in a process of its own: `python -m miniature.study.cell NAME WORK RESULTS`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from miniature.language import caption_scores, claimed_by, heard_in
from miniature.models.training import Say
from miniature.study.captions import captions_of
from miniature.study.claims import CLAIMS, TEST_FILMS, Cell, cells, result_file
from miniature.study.film_dataset import FilmDataset
from miniature.study.prompt_change import run_rounds
from miniature.study.sound_models import learning_curve, reference_scores, train_networks
from pipelines.media.normalise import temporary_beside

FIRST_SEED = 1000
"""Seed of the first films: the shipped models were trained on others."""


def score_cell(cell: Cell, work: Path, say: Say) -> dict[str, Any]:
    """Scores of a cell: {"curve": ...}, {"captions": ...} or {"rounds": ...}."""
    setting, seed = CLAIMS[cell.claim].settings[cell.setting], FIRST_SEED + cell.seed
    if setting.model == "pipeline":
        return {"rounds": run_rounds(work, seed=seed, say=say)}
    films = FilmDataset(setting.world, seed, setting.train_films, TEST_FILMS)
    if setting.model is None:
        captions = captions_of(setting.captions, films, "test", work)
        truths = [heard_in(plan) for plan in films.plans("test")]
        return {"captions": caption_scores(truths, [claimed_by(caption) for caption in captions])}
    if isinstance(setting.model, str):
        return {"curve": [{"steps": 0, **reference_scores(films, setting.model, work)}]}
    train_captions = captions_of(setting.captions, films, "train", work)
    networks = train_networks(setting.model, films, train_captions, work, seed=cell.seed, say=say)
    if setting.test_duration_s is not None:
        longer = setting.test_duration_s / setting.world.duration_s
        world = replace(setting.world, duration_s=setting.test_duration_s)
        films = replace(films, world=world, test=round(films.test / longer))
    return {"curve": learning_curve(networks, films, captions_of(setting.captions, films, "test", work), work, say)}


def main(name: str, work: Path, results: Path) -> None:
    """Score the cell and write its result."""
    [cell] = cells([name])
    started = time.monotonic()
    scores = score_cell(cell, work, partial(print, flush=True))
    result: dict[str, Any] = {
        "claim": cell.claim,
        "setting": cell.setting,
        "seed": cell.seed,
        "date": date.today().isoformat(),
        "seconds": round(time.monotonic() - started, 1),
        **scores,
    }
    # Six digits: more would only make the files hard to read and to compare.
    rounded = json.loads(json.dumps(result), parse_float=lambda number: float(f"{float(number):.6g}"))
    file = result_file(cell, results)
    with temporary_beside(file) as temporary:
        temporary.write_text(json.dumps(rounded, indent=1) + "\n")
        temporary.replace(file)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
