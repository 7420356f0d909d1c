"""A finished small store: real clips through the real stages; what models would have written is put in the ledger."""

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from miniature.world.corpus import generate_corpus
from miniature.world.film import World
from pipelines.config_file import load_config
from pipelines.engine.ledger import Failed, Ledger
from pipelines.engine.plan import resolve
from pipelines.engine.recipe import Recipe
from pipelines.engine.row_stage import RowSet, RowStage
from pipelines.engine.runner import run_stages
from pipelines.engine.stage import Context, Result, Stage, WholeWork
from pipelines.engine.storage import Storage
from pipelines.engine.store import QUARANTINE_SCHEMA, Manifest, Output, open_store
from pipelines.media.mux import mux
from pipelines.report.build import build_report
from pipelines.run_config import Config
from pipelines.stages.captioner import CaptionerStage, training_rows
from pipelines.stages.captions import CaptionsStage
from pipelines.stages.clips import ClipsStage
from pipelines.stages.curation import CurationStage
from pipelines.stages.silent_captions import SilentCaptionsStage

ROOT = Path(__file__).parents[3]
HOSTILE = "A </td><script>alert('x')</script> & a *dull*\tthud\x00 <b>near</b> the | wall."
LOSSES = [{"step": s, "epoch": s / 4, "loss": 4.0 / s, "learning_rate": 1e-3} for s in (1, 2, 4, 8)]


class SamplesStage(Stage):
    """Stands in for the sound generator: noise, muxed onto each test clip."""

    name = "samples"

    def inputs(self, config: Config) -> tuple[str, ...]:
        return ("clips",)

    def recipe(self, config: Config, storage: Storage) -> Recipe:
        return Recipe()

    def work(self, context: Context) -> WholeWork:
        return WholeWork(1, lambda: self._make(context))

    def _make(self, context: Context) -> Result:
        rows = []
        for clip in context.inputs["clips"].rows().to_pylist():
            if clip["split"] == "test":
                name = context.output.name(f"{clip['clip_id']}.mp4")
                noise = np.random.default_rng(0).normal(0, 0.1, 2 * 16_000).astype(np.float32)
                Path(context.storage.path(context.output.folder)).mkdir(parents=True, exist_ok=True)
                mux(Path(context.storage.path(clip["video"])), noise, 16_000, Path(context.storage.path(name)))
                rows.append({"clip_id": clip["clip_id"], "video": name})
        context.output.write_rows(pa.Table.from_pylist(rows))
        return Result(len(rows), len(rows), "d")


STAGES: tuple[type[Stage], ...] = (ClipsStage, CaptionsStage, CurationStage, CaptionerStage, SilentCaptionsStage)


@pytest.fixture(scope="module", autouse=True)
def _no_hub() -> Iterator[None]:
    """No question to the hub, whose models need not be there: each would wait half a minute for an answer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four films of the miniature world and a file that is no video; at least one clip is in each split."""
    folder = tmp_path_factory.mktemp("source")
    listing = generate_corpus(folder, clips=4, seed=1, workers=1, world=World(duration_s=2.5))
    rows = [[*row[:3], "test" if i == 0 else "train"] for i, row in enumerate(csv.reader(listing.open()))]
    (folder / "videos" / "broken_000003.mp4").write_text("this is not a video")
    with listing.open("w", newline="") as file:
        csv.writer(file).writerows([*rows, ["broken", "3", "dog <barking>", "train"]])
    return folder


@pytest.fixture(scope="session")
def configure(source: Path, only_min_words: Callable[[int], str]) -> Callable[[Path], Config]:
    """The demo's configuration with another root, over the small source, with models that need not be there."""

    def make(root: Path, *more: str) -> Config:
        overrides = (
            f"root={root}",
            f"source.folder={source / 'videos'}",
            f"source.table={source / 'vggsound.csv'}",
            "clips.duration_s=2.0",
            f"captions.instruction={ROOT / 'prompts/av_caption.yaml'}",
            f"captions.warnings={ROOT / 'prompts/warnings.yaml'}",
            f"captioner.instruction={ROOT / 'prompts/silent_caption.yaml'}",
            "captions.model={path: some/omni, revision: abababababababababababababababababababab}",
            "captioner.model={path: some/vl, revision: cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd}",
            only_min_words(3),
        )
        return load_config(ROOT / "configs/demo.yaml", [*overrides, *more])

    return make


@pytest.fixture(scope="session")
def finished(configure: Callable[[Path], Config], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A store in which every stage up to silent_captions, and samples, is done. Not to be written to but for a
    report."""
    config = configure(tmp_path_factory.mktemp("store"))
    storage, done = open_store(config.root, write=True), {}
    for make in (*STAGES, SamplesStage):
        stage = make()
        resolved = resolve(stage, config, storage, done, to_run=True, say=lambda _: None)
        assert not isinstance(resolved, str)
        context = resolved.context
        if isinstance(stage, RowStage):
            for one in stage.rows(context).sets:
                ids = one.tasks.column(0).to_pylist()
                Ledger(storage, one.ledger, one.values).write(one.keys.to_pylist(), ids, _values(one))
        if stage.name == "captioner":
            context.output.commit(_training(context), QUARANTINE_SCHEMA.empty_table(), resolved.spec)
        done[stage.name] = context.output
        run_stages([kind() for kind in (*STAGES, SamplesStage)][: len(done)], config, say=lambda _: None)
    return config


def _values(rows: RowSet) -> list[dict[str, Any] | Failed]:
    """Clips are really normalised; captions are written here: the first hostile, the last too short to keep."""
    tasks = rows.tasks.to_pylist()
    if rows.ledger == "clips":
        return rows.worker.process(tasks)
    texts = [HOSTILE, *(f"{rows.ledger} hears sound number {i}" for i in range(1, len(tasks) - 1)), "Thud."]
    return [{"caption": text} for text in texts]


def _training(context: Context) -> Manifest:
    output: Output = context.output
    output.write_json("loss.json", LOSSES)
    count = len(training_rows(context))
    return Manifest("captioner", output.fingerprint, "adapter-digest", count, count, 0, count, 1.5)


@pytest.fixture(scope="session")
def caption() -> Callable[[Config, Sequence[str]], None]:
    """Captions all clips of a configuration with these texts, in order, through the ledger; the clips are really
    made."""

    def write(config: Config, texts: Sequence[str]) -> None:
        storage, done = open_store(config.root, write=True), {}
        for stage in (ClipsStage(), CaptionsStage()):
            resolved = resolve(stage, config, storage, done, to_run=True, say=lambda _: None)
            assert not isinstance(resolved, str)
            for one in stage.rows(resolved.context).sets if stage.name == "captions" else ():
                ids = one.tasks.column(0).to_pylist()
                values = [{"caption": text} for text in texts[: len(ids)]]
                Ledger(storage, one.ledger, one.values).write(one.keys.to_pylist(), ids, values)
            run_stages([ClipsStage(), CaptionsStage()][: len(done) + 1], config, say=lambda _: None)
            done[stage.name] = resolved.context.output

    return write


@pytest.fixture(scope="session")
def report() -> Callable[[Config], str]:
    """Builds the report on exactly the stages of `finished`; returns the page."""

    def build(config: Config) -> str:
        stages = [kind() for kind in (*STAGES, SamplesStage)]
        return Path(build_report(config, stages)).read_text(encoding="utf-8")

    return build
