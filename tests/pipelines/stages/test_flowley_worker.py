"""Flowley's training under a real Ray Train: the checkpoint comes back, crashes are resumed, bad input is said once."""

import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowley.features.files import AVFeatures, TextFeatures, write_av_features, write_text_features
from flowley.network.config import NetworkConfig
from flowley.network.feature_spec import FeatureSpec
from flowley.network.flowley import Flowley
from flowley.network.presets import preset
from flowley.training.ema import synthesise
from flowley.training.settings import StepReport, TrainExecution, TrainSettings
from pipelines.engine.ray_train import TrainingRun
from pipelines.engine.storage import Storage
from pipelines.errors import UserError
from pipelines.stages.flowley import Features, FlowleyRecipe, train_flowley
from pipelines.stages.model_refs import Codec

CONFIG = preset("tiny", D=32, N1=1, N2=2, visual_dim=8, text_dim=8)
FEATURES = FeatureSpec(visual="clip", text="t5", codec="log_mel", duration_s=1.0)
SETTINGS = TrainSettings(steps=8, batch_size=4, duration_s=1.0, warmup_steps=2, learning_rate=1e-3)
EXECUTION = TrainExecution(
    log_every_steps=2, validate_every_steps=4, checkpoint_every_steps=2, sample_every_steps=4, sample_clips=2,
    ema_snapshots=2,
)  # fmt: skip

Train = Callable[..., list[StepReport]]


def local_storage(folder: Path, fault: Callable[[], None] = lambda: None) -> Storage:
    """A storage whose every worker meets `fault`: they cannot import this file, so it must be a closure."""

    class Faulty(Storage):
        def __reduce__(self) -> Any:
            return rebuild, ()

        def path(self, name: str = "") -> str:
            fault()
            return super().path(name)

    def rebuild() -> Storage:
        return Faulty(str(folder))

    return rebuild()


@pytest.fixture
def features(tmp_path: Path) -> list[dict[str, Any]]:
    """Rows as the stage `features` gives them; the last is the empty caption's."""
    rng = np.random.default_rng(0)
    ids = [f"c{k}" for k in range(6)]
    clips = [AVFeatures(i, rng.normal(size=(8, 8)), rng.normal(size=(32, 64)), np.zeros((32, 64))) for i in ids]
    write_av_features(tmp_path / "av.arrow", clips)
    write_text_features(tmp_path / "text.arrow", [TextFeatures(i, rng.normal(size=(3, 8)), 3) for i in [*ids, ""]])
    rows = [
        {"clip_id": i, "av_file": "av.arrow", "av_row": k, "text_file": "text.arrow", "text_row": k}
        for k, i in enumerate(ids)
    ]
    return [*rows, {"file": "text.arrow", "row": 6}]


@pytest.fixture
def train(local_ray: None, tmp_path: Path, features: list[dict[str, Any]]) -> Train:
    def train(
        name: str, *, num_workers: int = 1, config: NetworkConfig = CONFIG, said: list[str] | None = None,
        storage: Storage | None = None, max_failures: int = 0, execution: TrainExecution = EXECUTION,
    ) -> list[StepReport]:  # fmt: skip
        return train_flowley(
            FlowleyRecipe(config, SETTINGS, FEATURES, Codec(FEATURES.codec)),
            execution,
            Features(storage or Storage(str(tmp_path)), features[:4], features[4:6], features[6]),
            name,
            TrainingRun(name, str(tmp_path / "runs"), num_workers=num_workers, max_failures=max_failures),
            output_dir=tmp_path / name / "model",
            say=[].append if said is None else said.append,
        )[0]

    return train


def weights(folder: Path) -> Mapping[str, np.ndarray]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.slow
def test_the_checkpoint_comes_back(train: Train, tmp_path: Path) -> None:
    said: list[str] = []
    history = train("run", said=said)
    assert [report.step for report in history] == [2, 4, 6, 8]
    assert [report.validation_loss is not None for report in history] == [False, True, False, True]
    network = Flowley.from_pretrained(tmp_path / "run" / "model")
    assert (network.config, network.features) == (CONFIG, FEATURES)
    assert any("8/8 steps" in line and "clips/s" in line and "left" in line for line in said)

    sounds, hz = tmp_path / "run" / "sounds", 16_000
    assert json.loads((sounds / "clips.json").read_text()) == ["c4", "c5"]
    heard = {file.name: soundfile.read(file) for file in sounds.glob("*.flac")}
    assert heard.keys() == {f"{step:08d}-{k}.flac" for step in (4, 8) for k in (0, 1)}
    assert all((len(wave), rate) == (hz, hz) for wave, rate in heard.values())
    assert {file.name for file in (tmp_path / "run" / "ema").iterdir()} == {
        f"{index}.{step}.pt" for index in (0, 1) for step in (4, 8)
    }
    assert synthesise(tmp_path / "run" / "model", 0.2).config == CONFIG
    board = EventAccumulator(str(tmp_path / "runs" / "tensorboard" / "run")).Reload()
    assert [event.step for event in board.Scalars("loss/train")] == [2, 4, 6, 8]
    assert [event.step for event in board.Audio("sound/0/c4")] == [4, 8]


@pytest.mark.slow
def test_what_the_user_must_mend_is_said_once(train: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"flowley: 4 of 4 clips do not fit: .* the network takes 9: extract"):
        train("wrong", config=preset("tiny", D=32, N1=1, N2=2, visual_dim=9, text_dim=8))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_worker_is_resumed_to_the_very_same_weights(train: Train, tmp_path: Path) -> None:
    """The worker dies while it saves its second checkpoint; what comes after the first is done again."""
    train("whole")
    parent, runs, killed = os.getpid(), tmp_path / "runs", tmp_path / "killed"

    def kill_once() -> None:
        if os.getpid() == parent or killed.exists():
            return
        killed.touch()
        import threading
        import time

        def watch() -> None:
            while not list(runs.glob("broken-1/checkpoint_*/training.pt")):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=watch, daemon=True).start()

    history = train("broken", storage=local_storage(tmp_path, kill_once), max_failures=1)
    assert killed.exists(), "the fault was never injected"
    assert [report.step for report in history] == [2, 4, 6, 8]
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(np.array_equal(whole[name], broken[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_workers_share_every_batch(train: Train) -> None:
    one, two = train("one"), train("two", num_workers=2)
    assert [r.step for r in two] == [r.step for r in one]
    for a, b in zip(one, two, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=0.3), "the same clips with other noise"
    said: list[str] = []
    assert train("one", num_workers=2, said=said) == one, "a run goes on with another number of workers"
    assert not said, "a finished run has no steps to take"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_workers_shard_the_network(train: Train, tmp_path: Path) -> None:
    two, sharded = (
        train("two", num_workers=2),
        train("fsdp", num_workers=2, execution=replace(EXECUTION, sharding="fsdp")),
    )
    for a, b in zip(two, sharded, strict=True):
        assert (b.loss, b.grad_norm) == pytest.approx((a.loss, a.grad_norm), rel=1e-3)
    assert len(list((tmp_path / "fsdp" / "sounds").glob("*.flac"))) == 4
    assert synthesise(tmp_path / "fsdp" / "model", 0.07).config == CONFIG
