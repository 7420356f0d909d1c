"""Training: it learns, it resumes bit for bit, it names what breaks it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowley.features.dataset import FeatureDataset, collate
from flowley.network.feature_spec import FeatureSpec
from flowley.network.flowley import Flowley
from flowley.network.presets import preset
from flowley.sampling.sample import sample
from flowley.sampling.solvers import SampleSettings
from flowley.training.checkpoint import TrainState, read_history
from flowley.training.ema import synthesise
from flowley.training.loop import train_network
from flowley.training.settings import Callback, StepReport, TrainExecution, TrainSettings, ValidationSound
from flowley.training.tensorboard import TensorBoard
from flowley.training.trainer import NonFiniteLossError

CONFIG = preset(
    "tiny", D=32, N1=1, N2=2, heads=2, latent_dim=6, visual_dim=8, text_dim=8, max_text_tokens=9, dropout=0.1
)
SETTINGS = TrainSettings(steps=6, batch_size=4, duration_s=1.0, warmup_steps=2, learning_rate=1e-3)
EXECUTION = TrainExecution(log_every_steps=2, checkpoint_every_steps=3)
Make = Callable[..., FeatureDataset]


class Kept(Callback):
    """Reports, sounds and checkpoints of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reports: list[StepReport] = []
        self.sounds: list[ValidationSound] = []

    def on_report(self, report: StepReport) -> None:
        self.reports.append(report)

    def on_sounds(self, sounds: list[ValidationSound]) -> None:
        self.sounds += sounds

    def on_checkpoint(self, path: Path | None, step: int) -> None:
        assert path is not None
        shutil.copytree(path, self.folder / str(step))

    def on_snapshot(self, file: Path) -> None:
        (self.folder / "ema").mkdir(exist_ok=True, parents=True)
        shutil.copy(file, self.folder / "ema" / file.name)

    def run(self, dataset: FeatureDataset, settings: TrainSettings = SETTINGS, **options: Any) -> Kept:
        config, execution = options.pop("config", CONFIG), options.pop("execution", EXECUTION)
        callbacks = [*options.pop("before", ()), self]
        self.history = train_network(config, settings, execution, dataset, callbacks=callbacks, **options)
        return self

    def state(self, step: int) -> dict[str, torch.Tensor]:
        """Every tensor of a checkpoint, by its path."""
        training = torch.load(self.folder / str(step) / "training.pt", weights_only=True)
        averaged = Flowley.from_pretrained(self.folder / str(step)).state_dict()
        return dict(tensors(training, "training")) | dict(tensors(averaged, "averaged"))


def tensors(value: Any, at: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield at, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from tensors(inner, f"{at}/{name}")


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
    resumed, wanted = rest.state(6), whole.state(6)
    assert resumed.keys() == wanted.keys() and any("optimizer/state" in name for name in wanted)
    for name, weight in wanted.items():
        assert torch.equal(weight, resumed[name]), f"{name} differs after resuming"
    assert comparable(whole.reports[-1]) == comparable(rest.reports[-1])
    assert [r.step for r in rest.history] == [2, 3, 4, 6], "3 ends the first half and so is reported"
    assert read_history(rest.folder / "6") == rest.history


def test_resuming_in_the_middle_of_a_report_loses_no_loss(make_dataset: Make, tmp_path: Path) -> None:
    """A checkpoint between two reports keeps the losses that wait for the next one."""
    whole = Kept(tmp_path / "whole").run(make_dataset())
    rest = Kept(tmp_path / "rest").run(make_dataset(), checkpoint_in=whole.folder / "3")
    assert [comparable(r) for r in rest.history] == [comparable(r) for r in whole.history]


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
    assert run.history[-1].step == 6


def test_one_clip_is_learnt(make_dataset: Make, tmp_path: Path) -> None:
    """Overfitting one clip: samples resemble its latent, whatever the seed."""
    dataset = make_dataset(1, std=0.0)
    settings = replace(SETTINGS, steps=150, learning_rate=5e-3, warmup_steps=10, batch_size=8)
    config = replace(CONFIG, dropout=0.0)
    run = Kept(tmp_path / "run").run(dataset, settings, config=config, execution=TrainExecution())
    assert run.reports[-1].loss < 0.5 * run.reports[0].loss
    clip = dataset[0]
    batch = collate([clip, clip], CONFIG, 1.0).to(torch.device("cpu"))
    drawn = sample(
        Flowley.from_pretrained(run.folder / "150"), batch.conditions, L_aud=32, seeds=[1, 2],
        settings=SampleSettings(guidance=1.0),
    )  # fmt: skip
    for one in drawn:
        correlation = np.corrcoef(one.numpy().ravel(), clip.audio_mean.astype(float).ravel())[0, 1]
        assert correlation > 0.8, "150 steps no longer fit one clip"


def test_bf16_stays_close(make_dataset: Make, tmp_path: Path) -> None:
    config, settings = replace(CONFIG, dropout=0.0), replace(SETTINGS, steps=2)
    plain = Kept(tmp_path / "a").run(make_dataset(), settings, config=config)
    bf16 = Kept(tmp_path / "b").run(
        make_dataset(), settings, config=config, execution=replace(EXECUTION, precision="bf16")
    )
    assert bf16.reports[-1].loss == pytest.approx(plain.reports[-1].loss, rel=2e-2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_training_is_the_same_and_compiles_one_shape(make_dataset: Make, tmp_path: Path) -> None:
    """Captions of 2 to 4 tokens in every order: padded to the longest there can be, they compile once."""
    import torch._dynamo.utils

    config = replace(CONFIG, dropout=0.0)
    settings = replace(SETTINGS, steps=4, batch_size=2)
    plain = Kept(tmp_path / "a").run(
        make_dataset(), settings, config=config, execution=replace(EXECUTION, log_every_steps=1)
    )
    counters = torch._dynamo.utils.counters
    counters.clear()
    graphs: list[int] = []

    class Counted(list[StepReport]):
        def append(self, report: StepReport) -> None:
            super().append(report)
            graphs.append(counters["stats"]["unique_graphs"])

    compiled = Kept(tmp_path / "b")
    compiled.reports = Counted()
    compiled.run(make_dataset(), settings, config=config, execution=replace(EXECUTION, compile=True, log_every_steps=1))
    assert len(graphs) == 4 and 0 < graphs[0] == graphs[-1], f"graphs after each step: {graphs}"
    assert not counters["graph_break"]
    for a, b in zip(plain.reports, compiled.reports, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-4)
    averaged = Flowley.from_pretrained(compiled.folder / "4").state_dict()
    for name, weight in Flowley.from_pretrained(plain.folder / "4").state_dict().items():
        torch.testing.assert_close(averaged[name], weight, atol=1e-4, rtol=1e-3)


class Breaking(FeatureDataset):
    """Clip c1 has video features that are not finite."""

    def __getitem__(self, index: int) -> Any:
        clip = super().__getitem__(index)
        return replace(clip, visual=np.full_like(clip.visual, np.nan)) if index == 1 else clip


def test_a_loss_that_is_not_finite_names_step_and_clips(make_dataset: Make, tmp_path: Path) -> None:
    dataset = make_dataset(3, std=0.0)
    settings = replace(SETTINGS, batch_size=3, steps=3, drop_visual=0.0)
    with pytest.raises(
        NonFiniteLossError, match=r"in step 1 on clips c\d, c\d, c\d; the features of c1 are not finite"
    ):
        Kept(tmp_path / "run").run(Breaking(dataset.entries, null_text=dataset.null_text), settings)
    with pytest.raises(NonFiniteLossError, match=r"validation loss nan after step 1: look at the features"):
        Kept(tmp_path / "run").run(dataset, settings, validation=Breaking(dataset.entries),
                                   execution=replace(EXECUTION, validate_every_steps=1))  # fmt: skip


def test_a_loss_that_diverges_is_not_the_features_fault(make_dataset: Make, tmp_path: Path) -> None:
    settings = replace(SETTINGS, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(NonFiniteLossError, match=r"their features are finite: lower learning_rate \(1e\+30\)"):
        Kept(tmp_path / "run").run(make_dataset(3), settings)


def test_latents_that_are_not_finite_name_the_clip(make_dataset: Make, tmp_path: Path) -> None:
    class Silent(FeatureDataset):
        def __getitem__(self, index: int) -> Any:
            clip = super().__getitem__(index)
            return replace(clip, audio_mean=np.full_like(clip.audio_mean, -np.inf)) if index == 2 else clip

    dataset = make_dataset(3)
    with pytest.raises(ValueError, match="clip 'c2' has audio latents that are not finite: extract"):
        Kept(tmp_path / "run").run(Silent(dataset.entries, null_text=dataset.null_text))


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (CONFIG, {"null_text": False}, "the dataset has no null_text"),
        (replace(CONFIG, latent_dim=5), {}, "5 of 5 clips do not fit: clip 'c0' has audio_mean features of 6 channels"),
        (replace(CONFIG, visual_dim=9), {}, "visual features of 8 channels, the network takes 9: extract"),
        (replace(CONFIG, text_dim=9), {}, "text features of 8 channels, the network takes 9"),
        (replace(CONFIG, r_v=Fraction(16)), {}, "8 video and 32 audio latent frames, at the network's 16 and 31.25 Hz"),
        (replace(CONFIG, max_text_tokens=3), {}, "clip 'c2' has a caption of 4 features, the network takes at most 3"),
        (CONFIG, {"settings": replace(SETTINGS, duration_s=1.5)}, "8 visual frames, wanted 12: shorten duration_s"),
        (preset("mmaudio_small_16k", latent_dim=6, visual_dim=8, text_dim=8), {}, "sync features of 0 channels"),
    ],
)
def test_features_that_do_not_fit(
    make_dataset: Make, tmp_path: Path, config: Any, options: dict[str, Any], words: str
) -> None:
    dataset = make_dataset(null_text=options.get("null_text", True))
    with pytest.raises(ValueError, match=words):
        Kept(tmp_path / "run").run(dataset, options.get("settings", SETTINGS), config=config)
    assert not (tmp_path / "run").exists(), "a fault of the features is found before the first step"


@pytest.mark.parametrize(
    ("execution", "options", "words"),
    [
        (EXECUTION, {"world_size": 3}, "batch_size = 4 over 3 workers, wanted a multiple"),
        (replace(EXECUTION, sharding="fsdp"), {}, 'sharding = "fsdp" with one process'),
        (replace(EXECUTION, sample_every_steps=1), {}, "sounds of validation clips, but there are none"),
        (EXECUTION, {"features": FeatureSpec(visual="v", text="t", codec="log_mel", duration_s=8.0)}, "duration_s = 8"),
    ],
)
def test_executions_that_cannot_be(
    make_dataset: Make, tmp_path: Path, execution: TrainExecution, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Kept(tmp_path / "run").run(make_dataset(), execution=execution, **options)


def test_resuming_with_other_settings_is_refused(make_dataset: Make, tmp_path: Path) -> None:
    run = Kept(tmp_path / "run").run(make_dataset(), replace(SETTINGS, steps=1))
    at = run.folder / "1"
    with pytest.raises(ValueError, match="settings differs in seed, learning_rate"):
        run.run(make_dataset(), replace(SETTINGS, learning_rate=1.0, seed=3), checkpoint_in=at)
    with pytest.raises(ValueError, match="network differs in omega"):
        run.run(make_dataset(), config=replace(CONFIG, omega=1), checkpoint_in=at)
    with pytest.raises(ValueError, match=r"has no training\.pt"):
        run.run(make_dataset(), checkpoint_in=tmp_path)
    with pytest.raises(ValueError, match=r"is a checkpoint of model_type 'flowley', wanted 'mmaudio'"):
        peer = preset("mmaudio_small_16k", D=16, N1=1, N2=1, heads=2)
        TrainState(peer, SETTINGS, None, None, None, 0, [], []).restore(at)  # type: ignore[arg-type]
    longer = make_dataset()
    longer.null_text = np.ones((2, 8), np.float16)
    with pytest.raises(ValueError, match=r"null text is \(1, 8\), the features' \(2, 8\)"):
        run.run(longer, checkpoint_in=at)
    two = Kept(tmp_path / "two").run(make_dataset(), replace(SETTINGS, steps=2))
    with pytest.raises(ValueError, match="has 2 steps behind it, settings.steps = 1"):
        run.run(make_dataset(), replace(SETTINGS, steps=1), checkpoint_in=two.folder / "2")


def test_every_width_can_be_synthesised_afterwards(make_dataset: Make, tmp_path: Path) -> None:
    """Snapshots are spread over the training, handed out once each, and give back the checkpoint's average."""
    spec = FeatureSpec(visual="v", text="t", codec="log_mel", duration_s=1.0)
    run = Kept(tmp_path / "run").run(make_dataset(), execution=replace(EXECUTION, ema_snapshots=3), features=spec)
    assert {file.name for file in (run.folder / "ema").iterdir()} == {f"{i}.{s}.pt" for i in (0, 1) for s in (2, 4, 6)}
    shutil.copytree(run.folder / "ema", run.folder / "6" / "ema")
    kept = Flowley.from_pretrained(run.folder / "6")
    assert kept.features == spec
    again, other = synthesise(run.folder / "6", SETTINGS.ema_sigma_rel), synthesise(run.folder / "6", 0.2)
    assert again.features == spec
    for name, weight in kept.named_parameters():
        torch.testing.assert_close(again.get_parameter(name), weight, rtol=2e-3, atol=1e-6)
    assert not torch.equal(other.output.conv.weight, kept.output.conv.weight)  # type: ignore[union-attr]


class Beep:
    """Decodes every latent to a tone whose loudness is its standard deviation."""

    audio_hz, latent_dim = 8_000, 6

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        tone = torch.sin(2 * np.pi * 440 * torch.arange(len(latent[0]) * 256) / self.audio_hz)
        return latent.flatten(1).std(1)[:, None] / 10 * tone


def test_sounds_and_curves_over_training(make_dataset: Make, tmp_path: Path) -> None:
    """The same clips each time; all in TensorBoard's files, none of what a run that goes on does again."""
    execution = replace(EXECUTION, sample_every_steps=2, sample_clips=2, validate_every_steps=3)
    options: dict[str, Any] = {
        "execution": execution, "validation": make_dataset(3, tag="v"), "codec": Beep(),
    }  # fmt: skip
    whole = Kept(tmp_path / "whole").run(make_dataset(), before=[TensorBoard(tmp_path / "tb")], **options)
    sounds = whole.sounds
    assert [(s.step, s.number, s.clip_id) for s in sounds] == [
        (step, k, clip_id) for step in (2, 4, 6) for k, clip_id in enumerate(("c0", "c2"))
    ]
    assert all(len(s.wave) == 8_000 and s.audio_hz == 8_000 and s.wave.dtype == np.float32 for s in sounds)
    assert not np.array_equal(sounds[0].wave, sounds[4].wave), "two steps later another network drew it"

    board = EventAccumulator(str(tmp_path / "tb"), size_guidance={"audio": 0, "images": 0}).Reload()
    assert {event.step: event.value for event in board.Scalars("loss/train")} == pytest.approx(
        {report.step: report.loss for report in whole.reports}
    )
    assert [e.step for e in board.Scalars("loss/validation")] == [3, 6]
    for tag in ("gradient_norm", "learning_rate", "clips_per_s"):
        assert [e.step for e in board.Scalars(tag)] == [r.step for r in whole.reports]
    heard = board.Audio("sound/1/c2")
    assert [(e.step, e.sample_rate) for e in heard] == [(2, 8_000), (4, 8_000), (6, 8_000)]
    assert [e.step for e in board.Images("log_mel/0/c0")] == [2, 4, 6]

    options |= {"checkpoint_in": whole.folder / "3", "before": [TensorBoard(tmp_path / "tb")]}
    again = Kept(tmp_path / "rest").run(make_dataset(), **options).sounds
    assert [s.step for s in again] == [4, 4, 6, 6]
    assert all(np.array_equal(a.wave, b.wave) for a, b in zip(again, sounds[2:], strict=True))
    board = EventAccumulator(str(tmp_path / "tb"), purge_orphaned_data=True).Reload()
    assert [e.step for e in board.Scalars("loss/train")] == [2, 3, 4, 6]


def test_a_codec_of_other_latents(make_dataset: Make, tmp_path: Path) -> None:
    class Other(Beep):
        latent_dim = 5

    execution = replace(EXECUTION, sample_every_steps=2)
    for codec, words in ((Other(), "the codec's latents have 5 channels"), (None, "no codec to decode them")):
        with pytest.raises(ValueError, match=words):
            Kept(tmp_path / "run").run(make_dataset(), execution=execution, validation=make_dataset(), codec=codec)
