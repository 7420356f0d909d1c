"""Two real processes: shared out by DistributedDataParallel or FSDP2, training is what one process would compute.

Run as a script, this file is one of the processes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed

from flowley.features.dataset import Entry, FeatureDataset, Row, collate
from flowley.features.files import AVFeatures, TextFeatures, write_av_features, write_text_features
from flowley.network.presets import preset
from flowley.network.registry import load_network
from flowley.training.checkpoint import read_history
from flowley.training.ema import synthesise
from flowley.training.loop import train_network
from flowley.training.settings import Callback, TrainExecution, TrainSettings
from flowley.training.trainer import Trainer, initial_network, step_clips, step_seed

SMALL: dict[str, Any] = {
    "D": 32, "N1": 1, "N2": 2, "heads": 2, "latent_dim": 6, "visual_dim": 8, "text_dim": 8, "max_text_tokens": 9,
}  # fmt: skip
CONFIGS = {
    "flowley": preset("tiny", **SMALL),
    "tied": preset("tiny", **SMALL, tie_single_blocks=True),
    "mmaudio": preset("mmaudio_small_16k", **SMALL, mlp_multiple=32, synchformer_dim=5),
}
SETTINGS = TrainSettings(steps=4, batch_size=4, duration_s=1.0, warmup_steps=1, learning_rate=1e-3)
EXECUTION = TrainExecution(log_every_steps=1, validate_every_steps=2, checkpoint_every_steps=2, ema_snapshots=2)
WORLD = 2


def make_dataset(folder: Path, n: int, name: str) -> FeatureDataset:
    rng = np.random.default_rng(len(name))
    av, text = str(folder / f"{name}.av"), str(folder / f"{name}.text")
    if not Path(av).exists():
        write_av_features(av, [
            AVFeatures(f"c{k}", rng.normal(size=(8, 8)), rng.normal(size=(32, 6)), np.full((32, 6), 0.1),
                       rng.normal(size=(24, 5)))
            for k in range(n)
        ])  # fmt: skip
        write_text_features(text, [TextFeatures(f"c{k}", rng.normal(size=(3, 8)), 3) for k in range(n)])
    entries = [Entry(f"c{k}", Row(av, k), Row(text, k)) for k in range(n)]
    return FeatureDataset(entries, null_text=np.ones((1, 8), np.float16))


def run(folder: Path, name: str, config: str, *, sharding: Any = "none", checkpoint_in: str | None = None,
        rank: int = 0, world_size: int = 1) -> None:  # fmt: skip
    """One run; its checkpoints go to folder / name / step."""

    class Keep(Callback):
        def on_checkpoint(self, path: Path | None, step: int) -> None:
            if path is not None:
                shutil.copytree(path, folder / name / str(step), dirs_exist_ok=True)

        def on_snapshot(self, file: Path) -> None:
            target = folder / name / str(SETTINGS.steps) / "ema"
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)

    train_network(
        CONFIGS[config], SETTINGS, replace(EXECUTION, sharding=sharding), make_dataset(folder, 6, "train"),
        validation=make_dataset(folder, 3, "validation"), callbacks=[Keep()],
        checkpoint_in=None if checkpoint_in is None else folder / checkpoint_in,
        rank=rank, world_size=world_size,
    )  # fmt: skip


def work(folder: Path, rank: int, runs: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    for options in runs:
        run(folder, **options, rank=rank, world_size=WORLD)
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


RUNS = [
    *({"name": f"{config}-{sharding}", "config": config, "sharding": sharding}
      for config in CONFIGS for sharding in ("none", "fsdp")),
    {"name": "fsdp-fsdp", "config": "flowley", "sharding": "fsdp", "checkpoint_in": "flowley-fsdp/2"},
    {"name": "fsdp-none", "config": "flowley", "sharding": "none", "checkpoint_in": "flowley-fsdp/2"},
    {"name": "none-fsdp", "config": "flowley", "sharding": "fsdp", "checkpoint_in": "flowley-none/2"},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs of two processes."""
    folder = tmp_path_factory.mktemp("parallel")
    for n, name in ((6, "train"), (3, "validation")):
        make_dataset(folder, n, name)
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(rank), json.dumps(RUNS)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(WORLD)
    ]  # fmt: skip
    for process in processes:
        out, _ = process.communicate(timeout=500)
        assert process.returncode == 0, out[-3000:]
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_network(folder).state_dict()


def assert_same_weights(a: Path, b: Path, rms: float) -> None:
    """Root mean square over all weights, which move by some 1e-3 here; a single one may turn with a rounding."""
    wanted = weights(b)
    differences = torch.cat([(weight - wanted[name]).flatten() for name, weight in weights(a).items()])
    assert float(differences.square().mean().sqrt()) <= rms


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("config", CONFIGS)
def test_sharding_changes_nothing(folder: Path, config: str) -> None:
    """Losses, gradient norms and the averaged weights; also with tied blocks, which one step uses several times."""
    ours, theirs = (read_history(folder / f"{config}-{sharding}" / "4") for sharding in ("fsdp", "none"))
    for a, b in zip(ours, theirs, strict=True):
        assert (a.loss, a.grad_norm) == pytest.approx((b.loss, b.grad_norm), rel=1e-4)
        assert a.validation_loss == (None if b.validation_loss is None else pytest.approx(b.validation_loss, rel=1e-4))
    assert_same_weights(folder / f"{config}-fsdp" / "4", folder / f"{config}-none" / "4", 2e-6)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_take_the_step_of_their_joint_batch(folder: Path) -> None:
    """By hand in this process: the mean of both shares' losses, each with its own seed; AdamW, not fused."""
    dataset = make_dataset(folder, 6, "train")
    torch.manual_seed(0)
    network = initial_network(CONFIGS["flowley"], SETTINGS.seed, dataset)
    trainer = Trainer(network, SETTINGS, EXECUTION, dataset, 0, 1)
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.95), weight_decay=1e-6, foreach=False)
    parts = [
        list(step_clips(6, batch_size=4, seed=0, start_step=0, end_step=4, rank=rank, world_size=2))
        for rank in range(WORLD)
    ]
    for step, report in enumerate(read_history(folder / "flowley-none" / "4")):
        network.train()
        losses = []
        for rank in range(WORLD):
            torch.manual_seed(step_seed(0, step, rank))
            clips = [dataset[k] for k in parts[rank][step]]
            batch = collate(clips, CONFIGS["flowley"], 1.0).to(torch.device("cpu"))
            losses.append(trainer.losses(batch).total)
        loss = (losses[0] + losses[1]) / 2
        optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None]).norm()
        for p in network.parameters():
            if p.grad is not None:
                p.grad *= min(1.0, 1.0 / (float(norm) + 1e-6))
        optimizer.param_groups[0]["lr"] = SETTINGS.learning_rate_at(step)
        optimizer.step()
        assert (report.loss, report.grad_norm) == pytest.approx((float(loss), float(norm)), rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_goes_on_sharded_or_not_and_on_one_process(folder: Path) -> None:
    """Sharded to sharded to the bit; from one kind to the other, the same but for rounding."""
    assert_same_weights(folder / "fsdp-fsdp" / "4", folder / "flowley-fsdp" / "4", 0)
    for name in ("fsdp-none", "none-fsdp"):
        assert_same_weights(folder / name / "4", folder / "flowley-none" / "4", 2e-6)
    for start in ("fsdp", "none"):
        run(folder, f"{start}-alone", "flowley", checkpoint_in=f"flowley-{start}/2")
    assert_same_weights(folder / "fsdp-alone" / "4", folder / "none-alone" / "4", 2e-6)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_snapshots_of_sharded_averages_are_whole(folder: Path) -> None:
    kept = load_network(folder / "flowley-fsdp" / "4")
    again = synthesise(folder / "flowley-fsdp" / "4", SETTINGS.ema_sigma_rel)
    for name, weight in kept.named_parameters():
        torch.testing.assert_close(again.get_parameter(name), weight, rtol=2e-3, atol=1e-6)
    assert asdict(kept.config) == asdict(CONFIGS["flowley"])


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
