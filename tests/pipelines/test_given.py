"""Weights that are given instead of trained: plan and errors, without any model."""

from pathlib import Path

import pytest

from pipelines.config_file import load_config
from pipelines.engine.plan import make_plan
from pipelines.engine.runner import run_stages
from pipelines.engine.storage import Storage
from pipelines.errors import UserError
from pipelines.run_config import Config
from pipelines.stages.captioner import CaptionerStage
from pipelines.stages.flowley import FlowleyStage

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


def _config(root: Path, checkpoint: Path) -> Config:
    return load_config(DEMO, [f"root={root}/store", f"flowley.checkpoint={checkpoint}"])


def test_given_flowley_is_taken_over_and_its_digest_follows_the_weights(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    (given / "config.json").write_text("{}")
    (given / "model.safetensors").write_bytes(b"weights")
    config = _config(tmp_path, given)
    storage = Storage(config.root)
    [plan] = make_plan([FlowleyStage()], config, storage)
    assert (plan.state, plan.rows_to_run) == ("to_run", 1), "given weights need no features"
    [(first, _)] = run_stages([FlowleyStage()], config, say=lambda _: None)
    assert storage.read_bytes(f"flowley/{first.fingerprint}/model/model.safetensors") == b"weights"
    assert make_plan([FlowleyStage()], config, storage)[0].state == "done"
    (given / "model.safetensors").write_bytes(b"others")
    [(second, _)] = run_stages([FlowleyStage()], config, say=lambda _: None)
    assert second.fingerprint != first.fingerprint and second.digest != first.digest


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"flowley\.checkpoint: .* has no config\.json and no model\.safetensors"):
        make_plan([FlowleyStage()], _config(tmp_path, tmp_path), Storage(str(tmp_path / "store")))
    config = load_config(DEMO, [f"root={tmp_path}/store", f"captioner.adapter={tmp_path}"])
    with pytest.raises(UserError, match=r"captioner\.adapter: .* has no adapter_config\.json"):
        make_plan([CaptionerStage()], config, Storage(config.root))
