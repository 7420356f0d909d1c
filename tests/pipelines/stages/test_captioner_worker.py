"""The captioner's training under a real Ray Train: adapters come back, crashes are resumed, bad input is said once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipelines.engine.ray_train import TrainingRun
from pipelines.errors import UserError
from pipelines.stages.captioner import train_captioner
from pipelines.stages.model_refs import Model
from soundcap.finetune import FinetuneResult, TrainExample
from soundcap.finetune_settings import FinetuneExecution, FinetuneSettings
from soundcap.request import FrameSettings

pytestmark = pytest.mark.first

CAPTIONS = ("A dog barks twice, close and sharp.", "A bell rings slowly.", "Rain falls.", "A car engine idles.")
EXAMPLES = [TrainExample(f"clip{i}", "Describe the sound.", CAPTIONS[i % 4], f"{i % 4}.mp4") for i in range(8)]
SETTINGS = FinetuneSettings(
    rank=8,
    alpha=16,
    dropout=0.0,
    learning_rate=1e-2,
    batch_size=4,
    max_steps=8,
    precision="float32",
    frames=FrameSettings(2.0, 28 * 28, 56 * 56),
)
EXECUTION = FinetuneExecution(
    per_device_batch=2,
    gradient_checkpointing=False,
    save_steps=2,
    log_steps=1,
    loader_processes=0,
    check_threads=1,
)

Train = Callable[..., FinetuneResult]


def frame_reader(fault: Callable[[], None] = lambda: None) -> Callable[[str], np.ndarray]:
    """A reader that workers can unpickle: they cannot import this file, so it must be a closure."""

    def read_frames(video: str) -> np.ndarray:
        fault()
        frames = np.full((4, 56, 56, 3), 40, np.uint8)
        frames[..., int(video[0]) % 3] = 200
        return frames

    return read_frames


@pytest.fixture
def train(tiny_vl: Path, local_ray: None, tmp_path: Path) -> Train:
    def train(
        *,
        num_workers: int,
        read_frames: Callable[[str], np.ndarray],
        examples: list[TrainExample] = EXAMPLES,
        name: str = "run",
        said: list[str] | None = None,
        storage: str = str(tmp_path / "storage"),
    ) -> FinetuneResult:
        return train_captioner(
            partial(Model, "tiny", str(tiny_vl)),
            examples,
            read_frames,
            SETTINGS,
            EXECUTION,
            TrainingRun(name, storage, num_workers=num_workers),
            output_dir=tmp_path / name,
            say=[].append if said is None else said.append,
        )[0]

    return train


def losses(result: FinetuneResult) -> list[float]:
    return [point.loss for point in result.loss_curve]


def test_one_worker_brings_the_adapter_back(train: Train, tmp_path: Path) -> None:
    said: list[str] = []
    result = train(num_workers=1, read_frames=frame_reader(), said=said)
    assert result.adapter_dir == str(tmp_path / "run")
    assert (tmp_path / "run" / "adapter_config.json").exists()
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()
    assert losses(result)[-1] < 0.9 * losses(result)[0], losses(result)
    assert len(result.loss_curve) == 8 and result.examples_used == 8
    assert "8/8 steps" in said[-1] and "loss" in said[-1]
    left = [path.name for path in (tmp_path / "storage" / "run-zero2-1").iterdir() if path.is_dir()]
    assert len(left) == 1, f"earlier checkpoints are to go once the adapter is stored: {left}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_learn_what_one_learns(train: Train, tmp_path: Path) -> None:
    one = train(num_workers=1, read_frames=frame_reader(), name="one")
    two = train(num_workers=2, read_frames=frame_reader(), name="two")
    assert losses(two) == pytest.approx(losses(one), rel=2e-3)

    def refuse() -> None:
        raise AssertionError("a finished run must not read clips again")

    assert train(num_workers=2, read_frames=frame_reader(refuse), name="two") == two


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_worker_costs_only_the_steps_since_the_last_checkpoint(train: Train, tmp_path: Path) -> None:
    whole = train(num_workers=2, read_frames=frame_reader(), name="whole")
    storage, killed = tmp_path / "storage" / "broken-zero2-2", tmp_path / "killed"

    def kill_once() -> None:
        if list(storage.glob("checkpoint_*/trainer_state.json")) and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    broken = train(num_workers=2, read_frames=frame_reader(kill_once), name="broken")
    assert killed.exists(), "the fault was never injected"
    assert losses(broken) == losses(whole)
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "broken"))
    assert all(np.array_equal(first[key], second[key]) for key in first)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_driver_leaves_a_run_that_the_same_call_finishes(train: Train, tiny_vl: Path, tmp_path: Path) -> None:
    whole = train(num_workers=1, read_frames=frame_reader(), name="whole")
    storage = tmp_path / "storage" / "cut-zero2-1"
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tiny_vl), str(tmp_path)], start_new_session=True, env=os.environ
    )
    deadline_s = time.monotonic() + 200
    while not list(storage.glob("checkpoint_*/trainer_state.json")):
        assert driver.poll() is None and time.monotonic() < deadline_s, "the driver made no checkpoint"
        time.sleep(0.1)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()

    said: list[str] = []
    cut = train(num_workers=1, read_frames=frame_reader(), name="cut", said=said)
    assert losses(cut) == losses(whole)
    assert "captioner from step" in " ".join(said), f"did not go on from the checkpoint: {said}"


DRIVER = f"""
import sys, time
from dataclasses import replace
from functools import partial
from pathlib import Path
import ray
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_captioner_worker import EXAMPLES, EXECUTION, SETTINGS, frame_reader
from pipelines.stages.captioner import train_captioner
from pipelines.stages.model_refs import Model
from pipelines.engine.ray_train import TrainingRun

model, tmp_path = sys.argv[1], Path(sys.argv[2])
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)

def slow_down():
    import time
    time.sleep(0.3)

train_captioner(
    partial(Model, "tiny", model), EXAMPLES, frame_reader(slow_down), SETTINGS, EXECUTION,
    TrainingRun("cut", str(tmp_path / "storage")), output_dir=tmp_path / "cut", say=print
)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_checkpoints_in_a_bucket_bring_the_adapter_back(s3_url: str, train: Train, tmp_path: Path) -> None:
    result = train(num_workers=1, read_frames=frame_reader(), name="bucket", storage=f"{s3_url}/runs/captioner")
    assert losses(result)[-1] < 0.9 * losses(result)[0]
    assert (tmp_path / "bucket" / "adapter_model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_the_user_must_mend_is_not_tried_again(train: Train, tmp_path: Path) -> None:
    reads = tmp_path / "reads"

    def fail() -> None:
        with reads.open("a") as log:
            log.write("x")
        raise OSError("moov atom not found")

    with pytest.raises(UserError, match=r"captioner: 8 of 8 examples .*moov atom not found") as caught:
        train(num_workers=1, read_frames=frame_reader(fail))
    assert "\n" not in str(caught.value)
    assert len(reads.read_text()) == 8, "each clip is tried once, and the run is not restarted"
