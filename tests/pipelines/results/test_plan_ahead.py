"""A plan looks through to the end: what an edit does not reach is done, and what it may reach is bounded."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipelines.engine.plan import StagePlan, make_plan, resolve
from pipelines.engine.row_stage import RowWork
from pipelines.engine.runner import run_stages
from pipelines.engine.stage import Stage
from pipelines.engine.store import open_store
from pipelines.run_config import Config
from pipelines.stages.captioner import CaptionerStage
from pipelines.stages.captions import CaptionsStage
from pipelines.stages.clips import ClipsStage
from pipelines.stages.curation import CurationStage
from pipelines.stages.silent_captions import SilentCaptionsStage

ROOT = Path(__file__).parents[3]
STAGES: list[Stage] = [ClipsStage(), CaptionsStage(), CurationStage(), CaptionerStage(), SilentCaptionsStage()]


def _plans(config: Config, **captions: str | None) -> list[StagePlan]:
    edited = config.model_copy(update={"captions": config.captions.model_copy(update=captions)})
    return make_plan(STAGES, edited, open_store(config.root))


def _with_warning(folder: Path, **warning: str | list[str]) -> str:
    prompts = yaml.safe_load((ROOT / "prompts/warnings.yaml").read_text())
    prompts["warnings"].append(warning)
    (folder / "warnings.yaml").write_text(yaml.safe_dump(prompts))
    return str(folder / "warnings.yaml")


def test_a_warning_that_reaches_no_clip_is_followed_by_nothing(finished: Config, tmp_path: Path) -> None:
    warnings = _with_warning(tmp_path, name="whales", text="Warning: whales.", labels=["whale singing"])
    _, captions, *after = _plans(finished, warnings=warnings)
    assert (captions.state, captions.rows_to_run) == ("partial", 0) and "whales" in captions.reason
    assert [one.state for one in after] == ["done"] * 3


def test_a_warning_that_reaches_all_bounds_what_follows(finished: Config, tmp_path: Path) -> None:
    warnings = _with_warning(tmp_path, name="hum", text="Warning: hum.")
    clips, captions, *after = _plans(finished, warnings=warnings)
    assert clips.state == "done" and captions.rows_to_run == captions.rows_total == captions.rows_at_most
    for one in after:
        most = 3 if one.name == "captioner" else captions.rows_total  # it learns from the train split alone
        assert one.state == "unknown" and one.rows_at_most == most
        assert one.reason.startswith("unknown until captions")


def test_what_the_plan_foresees_is_what_the_run_commits(
    finished: Config, configure: Callable[..., Config], tmp_path: Path
) -> None:
    """The previewed output of captions has the digest that is committed afterwards."""
    warnings = _with_warning(tmp_path, name="seals", text="Warning: seals.", labels=["seal"])
    config = configure(Path(finished.root), f"captions.warnings={warnings}")
    storage = open_store(config.root)
    done = {}
    for stage in STAGES[:2]:
        resolved = resolve(stage, config, storage, done)
        assert not isinstance(resolved, str)
        done[stage.name] = resolved.context.output
    work = CaptionsStage().work(resolved.context)
    assert isinstance(work, RowWork)
    preview = work.preview()
    assert preview is not None and resolved.context.output.manifest() is None, "a preview writes nothing"
    made = run_stages(STAGES[:2], config, say=lambda _: None)[1].manifest
    foreseen = preview.committed()
    assert (foreseen.digest, foreseen.fingerprint) == (made.digest, made.fingerprint)
    assert (foreseen.rows_in, foreseen.rows_out) == (made.rows_in, made.rows_out)


@pytest.mark.parametrize("columns", [(), ("clip_id", "caption")])
def test_previewed_rows_are_those_of_the_output(finished: Config, columns: tuple[str, ...]) -> None:
    storage = open_store(finished.root)
    clips = resolve(STAGES[0], finished, storage, {})
    assert not isinstance(clips, str)
    captions = resolve(STAGES[1], finished, storage, {"clips": clips.context.output})
    assert not isinstance(captions, str)
    work = CaptionsStage().work(captions.context)
    assert isinstance(work, RowWork)
    preview = work.preview()
    assert preview is not None and preview.rows(*columns) == captions.context.output.rows(*columns)
