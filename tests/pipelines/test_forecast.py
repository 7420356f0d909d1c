"""Forecast of a run from measured rates, prices and budgets."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli.soundcap import app
from pipelines.commands.forecast import Budget, Forecast, forecast, projected
from pipelines.config_file import load_config
from pipelines.engine.plan import StagePlan, make_plan
from pipelines.engine.storage import Storage
from pipelines.engine.store import QUARANTINE_SCHEMA, Manifest, Output, open_store
from pipelines.engine.usage import Projection, Usage, as_records
from pipelines.errors import UserError
from pipelines.stages import wanted_stages
from pipelines.stages.captioner import ADAPTER_FILES, CaptionerStage
from pipelines.stages.captions import CaptionsStage
from pipelines.stages.features import FeaturesStage
from pipelines.stages.listing import SourceListing

ROOT = Path(__file__).parents[2]
H100 = "NVIDIA H100 80GB HBM3"
TEN_HOURS = Forecast("captions", False, [Projection(hours=2.5, gpu_hours=10, core_hours=80, device=H100)])
CLIPS = Forecast("clips", True, [Projection(hours=1, gpu_hours=0, core_hours=4, device="CPU")])
UNKNOWN = Forecast("features", True, None)


def test_money_is_the_gpus_or_the_cores() -> None:
    prices = {H100: 3.0, "CPU": 0.05}
    assert TEN_HOURS.usd(prices) == 30 and CLIPS.usd(prices) == pytest.approx(0.2)
    assert TEN_HOURS.words(prices) == "2 h 30 min, 10 GPU hours, 30.00 USD"
    assert CLIPS.words({}) == "up to 1 h 00 min"
    assert UNKNOWN.words(prices) == "no rate yet: a run measures one"


def test_a_price_table_without_the_machines_kind_says_so() -> None:
    assert TEN_HOURS.usd({"CPU": 0.05}) is None
    assert TEN_HOURS.words({"CPU": 0.05}) == f"2 h 30 min, 10 GPU hours, no price of {H100} in prices"
    with pytest.raises(UserError, match=f"prices has no {H100}; it has CPU: add .* nothing was run. Give --yes"):
        Budget(usd=100).check({"captions": TEN_HOURS}, {"CPU": 0.05}, yes=False)


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(gpu_hours=9), "the run may take 10 GPU hours, more than --max-gpu-hours 9"),
        (Budget(usd=30), "the run may cost 30.20 USD, more than --max-usd 30"),
        (Budget(gpu_hours=10), None),
        (Budget(usd=31), None),
        (Budget(), None),
    ],
)
def test_a_run_beyond_its_budget_is_not_run_unasked(budget: Budget, words: str | None) -> None:
    found, prices = {"clips": CLIPS, "captions": TEN_HOURS}, {H100: 3.0, "CPU": 0.05}
    if words is None:
        budget.check(found, prices, yes=False)
        return
    with pytest.raises(UserError, match=words):
        budget.check(found, prices, yes=False)
    budget.check(found, prices, yes=True)


def test_what_is_not_known_is_not_within_a_budget() -> None:
    with pytest.raises(UserError, match="no rate was ever measured for features"):
        Budget(gpu_hours=100).check({"features": UNKNOWN}, {}, yes=False)
    Budget().check({"features": UNKNOWN}, {}, yes=False)


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    """Overrides of the demo over ten videos that no run has seen, and a manifest that tells what captions take."""
    (tmp_path / "films").mkdir()
    for number in range(10):
        (tmp_path / "films" / f"{number}.mp4").write_text(str(number))
    found = [f"root={tmp_path}/store", f"source.folder={tmp_path}/films", "source.table=null"]
    found += ["captions.execution.device=cuda", "captions.execution.gpus_per_worker=1"]
    config = load_config(ROOT / "configs/demo.yaml", found)
    storage = open_store(config.root, write=True)
    recipe = CaptionsStage().recipe(config, storage).shared_digest
    usage = Usage(
        "captions", recipe, H100, rows=100, worker_s=3600, start_s=0, workers=1, cpus_per_worker=8, gpus_per_worker=1
    )
    manifest = Manifest("captions", "earlier", "d", 1, 1, 0, 1, 1.0, usage=as_records([usage]))
    Output(storage, "captions", "earlier").commit(manifest, QUARANTINE_SCHEMA.empty_table(), {})
    return found


def test_stages_behind_the_first_are_reckoned_by_their_bounds(settings: list[str]) -> None:
    config = load_config(ROOT / "configs/demo.yaml", settings)
    listing = SourceListing(config.source.folder, rescan=True)
    storage, stages = Storage(config.root), wanted_stages(config, listing=listing)
    found = forecast(stages, make_plan(stages, config, storage), config, storage)
    assert "curation" not in found
    captions = found["captions"]
    assert captions.is_bound and captions.gpu_hours == pytest.approx(0.1)
    assert found["clips"].parts is None and not found["clips"].is_bound
    on_cpu = load_config(ROOT / "configs/demo.yaml", settings[:3])
    assert forecast(stages, make_plan(stages, on_cpu, storage), on_cpu, storage)["captions"].parts is None
    other = load_config(ROOT / "configs/demo.yaml", [*settings, "captions.sampling.max_new_tokens=9"])
    assert forecast(stages, make_plan(stages, other, storage), other, storage)["captions"].parts is None


def test_a_bound_of_clips_is_one_of_all_their_candidates(settings: list[str]) -> None:
    changes = ["captions.sampling={max_new_tokens: 64, temperature: 0.5}", "captions.candidates=3"]
    config = load_config(ROOT / "configs/demo.yaml", [*settings, *changes])
    storage, stage = Storage(config.root), CaptionsStage()
    digest = stage.recipe(config, storage).shared_digest
    usage = Usage("captions", digest, H100, 100, 3600, start_s=0, workers=1, cpus_per_worker=8, gpus_per_worker=1)
    manifest = Manifest("captions", "warm", "d", 1, 1, 0, 1, 1.0, usage=as_records([usage]))
    Output(storage, "captions", "warm").commit(manifest, QUARANTINE_SCHEMA.empty_table(), {})
    bound = StagePlan("captions", "unknown", "", None, None, None, 10)
    known = StagePlan("captions", "partial", "", 10, 10, "f", 10, {"captions": 20})
    hours = [forecast([stage], [plan], config, storage)["captions"].gpu_hours for plan in (bound, known)]
    assert hours == pytest.approx([0.3, 0.2])
    assert "with 2 workers: 9 min 00 s, 0.3 GPU hours" in projected(config)


def test_each_ledger_takes_what_its_own_rows_take(settings: list[str]) -> None:
    """An edited caption encodes its text again, and no video."""
    config = load_config(ROOT / "configs/demo.yaml", settings)
    storage, stage = Storage(config.root), FeaturesStage()
    for ledger, recipe in stage.work_recipes(config, storage).items():
        usage = Usage(ledger, recipe.shared_digest, "CPU", 36, 3600, 0, 1, 1, 0)
        manifest = Manifest("features", ledger, "d", 1, 1, 0, 1, 1.0, usage=as_records([usage]))
        Output(storage, "features", ledger).commit(manifest, QUARANTINE_SCHEMA.empty_table(), {})
    plan = StagePlan("features", "partial", "", 36, 18, "f", 18, {"features-av": 0, "features-text": 18})
    found = forecast([stage], [plan], config, storage)["features"]
    assert found.hours == pytest.approx(0.5 / config.features.execution.workers) and len(found.parts or ()) == 1
    both = forecast([stage], [replace(plan, rows_by_ledger=None)], config, storage)["features"]
    assert both.hours == pytest.approx(1 / config.features.execution.workers)


def test_a_training_takes_its_steps(settings: list[str]) -> None:
    """400 measured steps took two processes 100 s each; 20 rows in batches of 8, twice, are 6 steps."""
    settings = [*settings, "captioner.training.max_steps=null", "captioner.training.epochs=2"]
    config = load_config(ROOT / "configs/demo.yaml", settings)
    storage, stage = Storage(config.root), CaptionerStage()
    plan = StagePlan("captioner", "to_run", "", 20, 20, "f", 20)
    assert forecast([stage], [plan], config, storage)["captioner"].parts is None
    steps = stage.steps(config, storage, 20)
    assert steps is not None and steps.count == 6
    usage = Usage("captioner", steps.recipe, "CPU", 400, 200, 30, 2, 1, 0, bytes=400)
    manifest = Manifest("captioner", "earlier", "d", 1, 1, 0, 1, 1.0, usage=as_records([usage]))
    Output(storage, "captioner", "earlier").commit(manifest, QUARANTINE_SCHEMA.empty_table(), {})
    found = forecast([stage], [plan], config, storage)["captioner"]
    assert found.hours == pytest.approx((6 * 0.5 + 30) / 3600) and found.bytes == 6
    faster = load_config(ROOT / "configs/demo.yaml", [*settings, "captioner.execution.settings.zero_stage=3"])
    assert forecast([stage], [plan], faster, storage)["captioner"].parts is None
    on_gpu = load_config(ROOT / "configs/demo.yaml", [*settings, "captioner.execution.use_gpu=true"])
    assert forecast([stage], [plan], on_gpu, storage)["captioner"].parts is None


def test_a_given_model_takes_nothing(settings: list[str], tmp_path: Path) -> None:
    for name in ADAPTER_FILES:
        (tmp_path / name).write_text("{}")
    config = load_config(ROOT / "configs/demo.yaml", [*settings, f"captioner.adapter={tmp_path}"])
    plan = StagePlan("captioner", "to_run", "", 1, 1, "f", 1)
    found = forecast([CaptionerStage()], [plan], config, Storage(config.root))["captioner"]
    assert found.parts == [] and found.hours == 0


@pytest.mark.parametrize("prices", ["{CPU: .inf}", "{CPU: .nan}", "{CPU: -1}"])
def test_a_price_that_is_none_is_refused(prices: str) -> None:
    with pytest.raises(UserError, match=r"prices.CPU: got"):
        load_config(ROOT / "configs/demo.yaml", [f"prices={prices}"])


def test_submit_refuses_an_unknown_stage_before_anything_else(settings: list[str]) -> None:
    sets = [part for one in settings for part in ("--set", one)]
    arguments = ["submit", str(ROOT / "configs/demo.yaml"), "--address", "http://127.0.0.1:1", "--until", "no", *sets]
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, UserError) and "--until no: no such stage" in str(error)


def test_plan_shows_what_it_takes_and_run_stops_without_a_terminal(settings: list[str]) -> None:
    sets = [part for one in settings for part in ("--set", one)]
    demo = str(ROOT / "configs/demo.yaml")
    done = CliRunner().invoke(app, ["plan", demo, "--json", *sets, "--set", f"prices={{{H100}: 3}}"])
    found = {one["stage"]: one for one in json.loads(done.output)["forecast"]}
    assert found["captions"]["usd"] == pytest.approx(0.3) and found["captions"]["devices"] == [H100]
    assert found["clips"]["gpu_hours"] is None
    done = CliRunner().invoke(app, ["run", demo, *sets, "--max-gpu-hours", "5"])
    assert isinstance(done.exception, UserError) and "no rate was ever measured for clips" in str(done.exception)
    assert "captions: takes up to" in done.output
