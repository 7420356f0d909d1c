"""Averages of weights against naive loops; widths synthesised afterwards against averages run directly."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from flowley.network.flowley import Flowley
from flowley.network.presets import preset
from flowley.training.ema import SIGMA_RELS, Averages, synthesise

STEPS = 240
CONFIG = preset("tiny", D=16, N1=1, N2=2, heads=2, latent_dim=6, visual_dim=8, text_dim=8, mlp_multiple=8)


@cache
def trajectory() -> np.ndarray:
    """(STEPS, parameters): weights that drift, wander and jitter, as under SGD."""
    start = parameters_to_vector(fresh().parameters()).detach().numpy()
    rng = np.random.default_rng(0)
    drift, wander = rng.normal(size=start.size), np.cumsum(0.05 * rng.normal(size=(STEPS, start.size)), 0)
    progress = 1 - np.exp(-np.arange(1, STEPS + 1) / 60)
    jitter = 0.2 * rng.normal(size=wander.shape)
    return (start + drift * progress[:, None] + wander + jitter).astype(np.float32)


def train(network: Flowley, averages: Averages) -> Iterator[int]:
    """Stands in for training: the weights of each step, averaged."""
    for step, weights in enumerate(trajectory(), start=1):
        vector_to_parameters(torch.from_numpy(weights), network.parameters())
        averages.update()
        yield step


@cache
def naive_average(sigma_rel: float) -> np.ndarray:
    """The recurrence of the definition in float64; gamma from sigma_rel by bisection."""
    low, high = 0.0, 1e4
    for _ in range(200):
        gamma = (low + high) / 2
        wider = np.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) > sigma_rel
        low, high = (gamma, high) if wider else (low, gamma)
    average = trajectory()[0].astype(np.float64)
    for t in range(2, STEPS + 1):
        beta = (1 - 1 / (t + 1)) ** (gamma + 1)
        average = beta * average + (1 - beta) * trajectory()[t - 1]
    return average


def fresh() -> Flowley:
    torch.manual_seed(0)
    network = Flowley(CONFIG)
    network.latent_mean.fill_(1 / 3)
    network.set_null_text(torch.full((2, 8), 1e-5))
    return network


def averages_of(network: Flowley, sigma_rel: float) -> Averages:
    return Averages(network, sigma_rel=sigma_rel, sharded=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Averages]:
    """A checkpoint of sigma_rel 0.05 with 24 snapshots, and the averages as they ended."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "ema").mkdir()
    network = fresh()
    averages = averages_of(network, 0.05)
    for step in train(network, averages):
        if step % (STEPS // 24) == 0:
            averages.snapshot(folder / "ema")
    averages.network.save_pretrained(folder)
    return folder, averages


def weights(network: torch.nn.Module) -> np.ndarray:
    return parameters_to_vector(network.parameters()).detach().double().numpy()


def relative_error(got: torch.nn.Module, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(weights(got) - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.17])
def test_the_average_is_the_recurrence(sigma_rel: float) -> None:
    """Averages of a width whose snapshots are kept, and of another that checkpoints are asked for."""
    network = fresh()
    averages = averages_of(network, sigma_rel)
    for _ in train(network, averages):
        pass
    assert relative_error(averages.network, naive_average(sigma_rel)) < 1e-6


def test_synthesis_at_a_kept_width_is_the_kept_average(trained: tuple[Path, Averages]) -> None:
    """To the precision of float16 snapshots."""
    folder, averages = trained
    assert relative_error(synthesise(folder, 0.05), weights(averages.network)) < 3e-4
    assert relative_error(synthesise(folder, 0.1), naive_average(0.1)) < 3e-4


@pytest.mark.parametrize(("sigma_rel", "tolerance"), [(0.07, 2e-3), (0.15, 4e-3), (0.2, 1e-2)])
def test_synthesis_at_another_width_is_close_to_running_it(
    trained: tuple[Path, Averages], sigma_rel: float, tolerance: float
) -> None:
    """And far closer than the kept averages are, so that the tolerance means something."""
    folder, averages = trained
    wanted = naive_average(sigma_rel)
    assert relative_error(synthesise(folder, sigma_rel), wanted) < tolerance
    nearest = min(relative_error(averages._by_sigma[kept].ema_model, wanted) for kept in SIGMA_RELS)
    assert nearest > 4 * tolerance


def test_what_is_no_weight_is_never_averaged(trained: tuple[Path, Averages]) -> None:
    """Statistics of the corpus and the empty caption come out to the bit, though snapshots are float16."""
    folder, _ = trained
    network, saved = synthesise(folder, 0.08), load_file(folder / "model.safetensors")
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, saved[name])
    assert not network.training


def test_state_goes_round_to_the_bit(trained: tuple[Path, Averages]) -> None:
    _, averages = trained
    again = averages_of(fresh(), 0.05)
    again.load(averages.whole_state())
    wanted, got = averages.whole_state(), again.whole_state()
    assert wanted["step"] == got["step"] == STEPS
    for sigma, averaged in wanted["weights"].items():
        assert all(torch.equal(weight, got["weights"][sigma][name]) for name, weight in averaged.items())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda ema: [file.unlink() for file in ema.glob("*.pt")], "0 and 0 snapshots of the two averages"),
        (lambda ema: next(ema.glob("1.*.pt")).unlink(), "24 and 23 snapshots"),
        (lambda ema: torch.save({"x": torch.zeros(1)}, next(ema.glob("0.*.pt"))), "snapshots that do not fit"),
    ],
)
def test_snapshots_that_are_not_there(
    trained: tuple[Path, Averages], tmp_path: Path, spoil: Callable[[Path], object], words: str
) -> None:
    shutil.copytree(trained[0], tmp_path / "spoilt")
    spoil(tmp_path / "spoilt" / "ema")
    with pytest.raises(ValueError, match=words):
        synthesise(tmp_path / "spoilt", 0.08)
    with pytest.raises(ValueError, match="sigma_rel = 0.3, wanted within"):
        synthesise(trained[0], 0.3)
