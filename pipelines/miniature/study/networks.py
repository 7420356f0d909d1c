"""Train a small sound model on films; its weights as it learns are kept, so that more can be asked of it later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from flowley.config import NetworkConfig
from flowley.dataset import Entry, FeatureDataset, Row
from flowley.encoders import TextEncoder
from flowley.network import VelocityNetwork
from flowley.presets import preset
from flowley.registry import build_network, load_network
from flowley.settings import StepReport, TrainExecution, TrainSettings
from flowley.train import train
from pipelines.fingerprint import digest
from pipelines.miniature.study.films import ENCODER, Films, av_file, text_file
from pipelines.miniature.world.film import Split
from pipelines.progress import human_time

STEPS, KEEP_EVERY_STEPS = 400, 100
BATCH_SIZE = 16
MAX_TEXT_TOKENS = 77


@dataclass(frozen=True, slots=True)
class SoundModel:
    """A network to train, and how long."""

    preset: str = "tiny"
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of the preset that differ."""
    steps: int = STEPS

    def config(self) -> NetworkConfig:
        """The network."""
        return preset(self.preset, **self.changes)


def train_networks(
    model: SoundModel, films: Films, captions: Sequence[str], work: Path, *, seed: int, say: Callable[[str], None]
) -> dict[int, VelocityNetwork]:
    """The network after every `KEEP_EVERY_STEPS` steps on the train split; trained once."""
    from safetensors.torch import load_file

    config = model.config()
    settings = TrainSettings(
        steps=model.steps, batch_size=BATCH_SIZE, duration_s=films.world.duration_s, seed=seed, learning_rate=2e-3,
        warmup_steps=50, decay_steps=(int(0.8 * model.steps),), decay_factor=0.3,
    )  # fmt: skip
    file = films.made_once(
        work, "networks", lambda file: _train(config, settings, films, captions, work, file, say),
        models=["clip", "codec"], package="flowley", captions=digest(list(captions)), config=config, settings=settings,
        every=KEEP_EVERY_STEPS,
    )  # fmt: skip
    by_step: dict[int, dict[str, Tensor]] = {}
    for name, weight in load_file(file).items():
        at, _, parameter = name.partition(":")
        by_step.setdefault(int(at), {})[parameter] = weight
    networks = {step: build_network(config).eval() for step in sorted(by_step)}
    for step, network in networks.items():
        network.load_weights(by_step[step])
    return networks


def _train(
    config: NetworkConfig, settings: TrainSettings, films: Films, captions: Sequence[str], work: Path, file: Path,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    from safetensors.torch import save_file

    execution = TrainExecution(
        log_every_steps=50, checkpoint_every_steps=KEEP_EVERY_STEPS, validate_every_steps=10**6, ema_snapshots=1
    )
    kept: dict[str, Tensor] = {}

    def on_checkpoint(folder: Path | None, step: int) -> None:
        assert folder is not None
        kept.update({f"{step}:{name}": one.clone() for name, one in load_network(folder).state_dict().items()})

    def on_step(report: StepReport) -> None:
        speed = f"{report.clips_per_s:.1f} clips/s, {human_time(report.seconds_left)} left"
        say(f"step {report.step}, loss {report.loss:.3f}, {speed}")

    dataset = feature_dataset(films, "train", captions, config, work)
    train(config, settings, execution, dataset, on_step=on_step, on_checkpoint=on_checkpoint)
    save_file(kept, file)


def feature_dataset(
    films: Films, split: Split, captions: Sequence[str], config: NetworkConfig, work: Path
) -> FeatureDataset:
    """Pictures, sounds and captions of a split, as a network takes them."""
    av = av_file(films, split, work, r_v=float(config.r_v), sync=config.sync_dim > 0)
    text = text_file(captions, films, split, work, max_tokens=min(MAX_TEXT_TOKENS, config.max_text_tokens))
    names = films.ids(split)
    entries = [Entry(name, Row(str(av), row), Row(str(text), row)) for row, name in enumerate(names)]
    null_text = None
    if config.null_text == "empty_caption":
        [empty] = TextEncoder(ENCODER, max_tokens=MAX_TEXT_TOKENS).encode([""])
        null_text = empty.features
    return FeatureDataset(entries, null_text=null_text)
