"""A changed prompt re-captions exactly what it reaches, and a reverted one nothing (real model).

`tests/golden/test_plan.py` has the plans after every other kind of edit.
"""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from miniature.world.corpus import generate_corpus
from pipelines.engine.plan import StagePlan, make_plan
from pipelines.engine.runner import run_stages
from pipelines.engine.storage import Storage
from pipelines.run_config import Config, load_config
from pipelines.stages.captions import CaptionsStage
from pipelines.stages.clips import ClipsStage
from pipelines.stages.curation import CurationStage

ROOT = Path(__file__).parents[2]
STAGES = [ClipsStage(), CaptionsStage(), CurationStage()]
CLIPS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    generate_corpus(folder / "corpus", clips=CLIPS, seed=3, workers=2)
    shutil.copytree(ROOT / "prompts", folder / "prompts")
    return folder


@pytest.fixture(scope="module")
def config(folder: Path, tiny_omni: Path, only_min_words: Callable[[int], str]) -> Config:
    return load_config(
        ROOT / "configs" / "demo.yaml",
        [
            f"root={folder}/store",
            f"source.folder={folder}/corpus/videos",
            f"source.csv={folder}/corpus/vggsound.csv",
            f"captions.model.path={tiny_omni}",
            f"captions.instruction={folder}/prompts/av_caption.yaml",
            f"captions.warnings={folder}/prompts/warnings.yaml",
            "captions.sampling.max_new_tokens=6",
            only_min_words(1),
            "captions.execution.workers=1",
        ],
    )


@pytest.fixture(scope="module")
def first_run(config: Config, local_ray: None) -> Config:
    run_stages(STAGES, config, say=_silent)  # type: ignore[arg-type]
    return config


def _silent(message: str) -> None:
    pass


def _plans(config: Config) -> dict[str, StagePlan]:
    return {plan.name: plan for plan in make_plan(STAGES, config, Storage(config.root))}  # type: ignore[arg-type]


def _edit(file: Path, change: Callable[[str], str]) -> str:
    before = file.read_text()
    after = change(before)
    assert after != before, "the edit must change the file"
    file.write_text(after)
    return before


def test_a_warning_for_one_label_recaptions_that_label_and_its_revert_nothing(first_run: Config, folder: Path) -> None:
    storage = Storage(first_run.root)
    labels = Counter(line.split(",")[2] for line in (folder / "corpus/vggsound.csv").read_text().splitlines())
    label, count = labels.most_common()[-1]
    assert count < CLIPS, "the corpus needs more than one label for this test"
    file = folder / "prompts" / "warnings.yaml"
    text = f'\n  - name: new\n    text: Warning, do not mention thunder.\n    labels: ["{label}"]\n'
    before = _edit(file, lambda old: old.rstrip("\n") + "\n" + text)
    plans = _plans(first_run)
    assert plans["clips"].state == "done"
    assert plans["captions"].state == "partial" and plans["captions"].rows_to_run == count
    assert "warnings.yaml (warning `new`)" in plans["captions"].reason
    assert plans["curation"].state == "unknown" and plans["curation"].fingerprint is None
    assert plans["curation"].reason == "unknown until captions"
    captions = run_stages(STAGES, first_run, say=_silent)[1]  # type: ignore[arg-type]
    assert (captions.rows_computed, captions.rows_out) == (count, CLIPS)
    rows = storage.read_table(f"captions/{captions.fingerprint}/rows.parquet").to_pylist()
    assert all(("thunder" in row["prompt"]) == (row["label"] == label) for row in rows)

    file.write_text(before)
    assert {plan.state for plan in _plans(first_run).values()} == {"done"}, "reverting a prompt computes nothing"
