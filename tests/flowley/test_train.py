"""Training: it learns, it resumes bit for bit, it names what breaks it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowley.checkpoint import read_history
from flowley.config import preset
from flowley.dataset import Entry, FeatureDataset, Row
from flowley.ema import gamma_of, power_ema
from flowley.features import AVFeatures, TextFeatures, write_av_features, write_text_features
from flowley.model import Flowley
from flowley.sample import SampleSettings, sample
from flowley.settings import StepReport, TrainExecution, TrainSettings
from flowley.train import NonFiniteLossError, train

CONFIG = preset(
    "tiny", D=32, N1=1, N2=2, heads=2, latent_dim=6, visual_dim=8, text_dim=8, max_text_tokens=9, dropout=0.1
)
SETTINGS = TrainSettings(steps=6, batch_size=4, duration_s=1.0, warmup_steps=2, learning_rate=1e-3)
EXECUTION = TrainExecution(log_every_steps=2, checkpoint_every_steps=3)
Make = Callable[..., FeatureDataset]


@pytest.fixture
def make_dataset(tmp_path: Path) -> Make:
    def make(n: int = 5, *, std: float = 0.1, null_text: bool = True, tag: str = "d") -> FeatureDataset:
        rng = np.random.default_rng(0)
        av, text = str(tmp_path / f"{tag}.av"), str(tmp_path / f"{tag}.text")
        clips = [
            AVFeatures(f"c{k}", rng.normal(size=(8, 8)), 3 + 2 * rng.normal(size=(32, 6)), np.full((32, 6), std))
            for k in range(n)
        ]
        write_av_features(av, clips)
        write_text_features(text, [TextFeatures(f"c{k}", rng.normal(size=(2 + k % 3, 8))) for k in range(n)])
        entries = [Entry(f"c{k}", Row(av, k), Row(text, k)) for k in range(n)]
        return FeatureDataset(entries, null_text=np.ones((1, 8), np.float16) if null_text else None)

    return make


class Kept:
    """Reports and checkpoints of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reports: list[StepReport] = []

    def on_checkpoint(self, path: Path | None, step: int) -> None:
        assert path is not None
        shutil.copytree(path, self.folder / str(step))

    def run(self, dataset: FeatureDataset, settings: TrainSettings = SETTINGS, **options: Any) -> Kept:
        config, execution = options.pop("config", CONFIG), options.pop("execution", EXECUTION)
        self.result = train(
            config, settings, execution, dataset, on_step=self.reports.append,
            on_checkpoint=self.on_checkpoint, **options,
        )  # fmt: skip
        return self

    def weights(self, step: int) -> dict[str, torch.Tensor]:
        training = torch.load(self.folder / str(step) / "training.pt", weights_only=True)
        averaged = Flowley.from_pretrained(self.folder / str(step)).state_dict()
        return training["weights"] | {f"ema.{name}": weight for name, weight in averaged.items()}


def comparable(report: StepReport) -> StepReport:
    return replace(report, clips_per_s=0.0, seconds_left=0.0)


def test_resuming_repeats_the_uninterrupted_run_bit_for_bit(make_dataset: Make, tmp_path: Path) -> None:
    """Same order, noise, times, dropout, optimiser, average and reports; whatever the caller's RNG did."""
    dataset, validation = make_dataset(), make_dataset(3, tag="v")
    whole = Kept(tmp_path / "whole").run(dataset, validation=validation)
    torch.manual_seed(123)
    half = Kept(tmp_path / "half").run(dataset, replace(SETTINGS, steps=3), validation=validation)
    torch.manual_seed(456)
    rest = Kept(tmp_path / "rest").run(dataset, validation=validation, checkpoint_in=half.folder / "3")
    resumed = rest.weights(6)
    for name, weight in whole.weights(6).items():
        assert torch.equal(weight, resumed[name]), f"{name} differs after resuming"
    assert comparable(whole.reports[-1]) == comparable(rest.reports[-1])
    assert [r.step for r in rest.result.history] == [2, 3, 4, 6], "3 ends the first half and so is reported"
    assert read_history(rest.folder / "6") == rest.result.history


def test_resuming_in_the_middle_of_a_report_loses_no_loss(make_dataset: Make, tmp_path: Path) -> None:
    """A checkpoint between two reports keeps the losses that wait for the next one."""
    whole = Kept(tmp_path / "whole").run(make_dataset())
    rest = Kept(tmp_path / "rest").run(make_dataset(), checkpoint_in=whole.folder / "3")
    assert [comparable(r) for r in rest.result.history] == [comparable(r) for r in whole.result.history]


def test_the_callers_random_state_is_left_alone(make_dataset: Make, tmp_path: Path) -> None:
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    Kept(tmp_path / "run").run(make_dataset(), replace(SETTINGS, steps=1))
    assert torch.equal(torch.rand(1), want)


def test_another_seed_is_another_run(make_dataset: Make, tmp_path: Path) -> None:
    a = Kept(tmp_path / "a").run(make_dataset(), replace(SETTINGS, steps=2))
    b = Kept(tmp_path / "b").run(make_dataset(), replace(SETTINGS, steps=2, seed=1))
    assert a.reports[-1].loss != b.reports[-1].loss


def test_loader_processes_change_nothing(make_dataset: Make, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=2)
    alone = Kept(tmp_path / "a").run(make_dataset(), settings)
    helped = Kept(tmp_path / "b").run(make_dataset(), settings, execution=replace(EXECUTION, workers=2))
    assert comparable(alone.reports[-1]) == comparable(helped.reports[-1])


def test_checkpoints_load_as_models_with_the_corpus_statistics(make_dataset: Make, tmp_path: Path) -> None:
    run = Kept(tmp_path / "run").run(make_dataset(20))
    model = Flowley.from_pretrained(run.folder / "6")
    torch.testing.assert_close(model.latent_mean, torch.full((6,), 3.0), atol=0.3, rtol=0)
    torch.testing.assert_close(model.latent_std, torch.full((6,), 2.0), atol=0.3, rtol=0)
    assert torch.equal(model.null_text, torch.ones(1, 8))
    assert run.result.step == 6


def test_one_clip_is_learnt(make_dataset: Make, tmp_path: Path) -> None:
    """Overfitting one clip: samples resemble its latent, whatever the seed."""
    dataset = make_dataset(1, std=0.0)
    settings = replace(SETTINGS, steps=150, learning_rate=5e-3, warmup_steps=10, batch_size=8)
    config = replace(CONFIG, dropout=0.0)
    run = Kept(tmp_path / "run").run(dataset, settings, config=config, execution=TrainExecution())
    assert run.reports[-1].loss < 0.5 * run.reports[0].loss
    from flowley.dataset import collate

    clip = dataset[0]
    batch = collate([clip, clip], L_aud=32, L_vis=8, L_txt=None).to(torch.device("cpu"))
    drawn = sample(
        Flowley.from_pretrained(run.folder / "150"), batch.conditions, L_aud=32, seeds=[1, 2],
        settings=SampleSettings(guidance=1.0),
    )  # fmt: skip
    for one in drawn:
        correlation = np.corrcoef(one.numpy().ravel(), clip.audio_mean.astype(float).ravel())[0, 1]
        assert correlation > 0.8, "150 steps no longer fit one clip"


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"compile": True}])
def test_other_ways_to_carry_it_out_stay_close(make_dataset: Make, tmp_path: Path, changes: dict[str, Any]) -> None:
    """The compiler itself takes minutes on a CPU: here it only has to find the network and its weights."""
    config, settings = replace(CONFIG, dropout=0.0), replace(SETTINGS, steps=2)
    plain = Kept(tmp_path / "a").run(make_dataset(), settings, config=config)
    with torch.compiler.set_stance("force_eager"):
        other = Kept(tmp_path / "b").run(
            make_dataset(), settings, config=config, execution=replace(EXECUTION, **changes)
        )
    assert other.reports[-1].loss == pytest.approx(plain.reports[-1].loss, rel=2e-2)


def test_a_loss_that_is_not_finite_names_step_and_clips(make_dataset: Make, tmp_path: Path) -> None:
    dataset = make_dataset(3, std=0.0)
    broken = dataset[1]
    broken_visual = np.full_like(broken.visual, np.nan)
    get = FeatureDataset.__getitem__

    class Breaking(FeatureDataset):
        def __getitem__(self, index: int) -> Any:
            clip = get(self, index)
            return replace(clip, visual=broken_visual) if index == 1 else clip

    settings = replace(SETTINGS, batch_size=1, steps=3, drop_visual=0.0)
    with pytest.raises(NonFiniteLossError, match=r"in step [123] on clips c1: look at their features"):
        Kept(tmp_path / "run").run(Breaking(dataset.entries, null_text=dataset.null_text), settings)


@pytest.mark.parametrize(
    ("config", "null_text", "words"),
    [
        (CONFIG, False, "the dataset has no null_text"),
        (replace(CONFIG, latent_dim=5), True, "6 channels, the network's latent_dim is 5"),
        (replace(CONFIG, visual_dim=9), True, "visual features of shape"),
    ],
)
def test_features_that_do_not_fit(make_dataset: Make, tmp_path: Path, config: Any, null_text: bool, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Kept(tmp_path / "run").run(make_dataset(null_text=null_text), config=config)


def test_resuming_with_other_settings_is_refused(make_dataset: Make, tmp_path: Path) -> None:
    run = Kept(tmp_path / "run").run(make_dataset(), replace(SETTINGS, steps=1))
    at = run.folder / "1"
    with pytest.raises(ValueError, match="settings differs in seed, learning_rate"):
        run.run(make_dataset(), replace(SETTINGS, learning_rate=1.0, seed=3), checkpoint_in=at)
    with pytest.raises(ValueError, match="network differs in omega"):
        run.run(make_dataset(), config=replace(CONFIG, omega=1), checkpoint_in=at)
    with pytest.raises(ValueError, match=r"has no training\.pt"):
        run.run(make_dataset(), checkpoint_in=tmp_path)


def test_learning_rate_schedule() -> None:
    s = TrainSettings(steps=1, batch_size=1)
    assert s.learning_rate_at(0) == pytest.approx(1.5e-4 / 1001)
    assert s.learning_rate_at(1000) == s.learning_rate_at(179_999) == pytest.approx(1.5e-4)
    assert s.learning_rate_at(180_000) == pytest.approx(1.5e-5)
    assert s.learning_rate_at(300_000) == pytest.approx(1.5e-6)


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="drop_text = 1.5"):
        TrainSettings(steps=1, batch_size=1, drop_text=1.5)
    with pytest.raises(ValueError, match="log_every_steps = 0"):
        TrainExecution(log_every_steps=0)


def test_power_ema_is_the_weighted_mean_it_promises() -> None:
    """theta_bar(t) weighs theta(s) by prod of betas, which is about (s / t)^gamma."""
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.01)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.01)
    model = Flowley(CONFIG)
    ema = power_ema(model, 0.1)
    gamma, want = gamma_of(0.1), 0.0
    for t in range(1, 30):
        torch.nn.init.constant_(model.pooled_text.bias, float(t))
        ema.update_parameters(model)
        beta = (1 - 1 / t) ** (gamma + 1)
        want = beta * want + (1 - beta) * t
    assert float(ema.module.pooled_text.bias[0]) == pytest.approx(want, rel=1e-5)
