"""Flowley's training under a real Ray Train: the checkpoint comes back, crashes are resumed, bad input is said once."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from flowley.config import FlowleyConfig, preset
from flowley.features import AVFeatures, TextFeatures, write_av_features, write_text_features
from flowley.model import Flowley
from flowley.settings import StepReport, TrainExecution, TrainSettings
from pipelines.errors import UserError
from pipelines.storage import Storage
from pipelines.training.flowley_worker import train_flowley
from pipelines.training.run import TrainingRun

CONFIG = preset("tiny", D=32, N1=1, N2=2, latent_dim=6, visual_dim=8, text_dim=8)
SETTINGS = TrainSettings(steps=8, batch_size=4, duration_s=1.0, warmup_steps=2, learning_rate=1e-3)
EXECUTION = TrainExecution(log_every_steps=2, validate_every_steps=4, checkpoint_every_steps=2)

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
    clips = [AVFeatures(i, rng.normal(size=(8, 8)), rng.normal(size=(32, 6)), np.zeros((32, 6))) for i in ids]
    write_av_features(tmp_path / "av.arrow", clips)
    write_text_features(tmp_path / "text.arrow", [TextFeatures(i, rng.normal(size=(3, 8))) for i in [*ids, ""]])
    rows = [
        {"clip_id": i, "av_file": "av.arrow", "av_row": k, "text_file": "text.arrow", "text_row": k}
        for k, i in enumerate(ids)
    ]
    return [*rows, {"file": "text.arrow", "row": 6}]


@pytest.fixture
def train(local_ray: None, tmp_path: Path, features: list[dict[str, Any]]) -> Train:
    def train(
        name: str, *, num_workers: int = 1, config: FlowleyConfig = CONFIG, said: list[str] | None = None,
        storage: Storage | None = None, max_failures: int = 0,
    ) -> list[StepReport]:  # fmt: skip
        return train_flowley(
            config=config,
            settings=SETTINGS,
            execution=EXECUTION,
            storage=storage or Storage(str(tmp_path)),
            train=features[:4],
            validation=features[4:6],
            null_text=features[6],
            run=TrainingRun(name, str(tmp_path / "runs"), num_workers=num_workers, max_failures=max_failures),
            use_gpu=False,
            output_dir=tmp_path / name,
            say=[].append if said is None else said.append,
        )

    return train


def weights(folder: Path) -> Mapping[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def test_the_checkpoint_comes_back_and_a_finished_run_is_not_run_again(train: Train, tmp_path: Path) -> None:
    said: list[str] = []
    history = train("run", said=said)
    assert [report.step for report in history] == [2, 4, 6, 8]
    assert [report.validation_loss is not None for report in history] == [False, True, False, True]
    assert Flowley.from_pretrained(tmp_path / "run").config == CONFIG
    assert any("8/8 steps" in line and "clips/s" in line and "left" in line for line in said)

    said.clear()
    assert train("run", said=said) == history
    assert not said, "a finished run has no steps to take"


@pytest.mark.slow
def test_what_the_user_must_mend_is_said_once(train: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"flowley: visual features of shape .* wanted \(4, length >= 1, 9\)"):
        train("wrong", config=preset("tiny", D=32, N1=1, N2=2, latent_dim=6, visual_dim=9, text_dim=8))


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
