"""Checkpoint folder of the training loop: a network that `load_network` loads, and the state to resume from.

config.json, model.safetensors, README.md   the averaged weights (`TrainSettings.ema_sigma_rel`)
training.pt                                 weights, averages, optimiser, step, settings
history.jsonl                               every report so far
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from flowley.network.base import VelocityNetwork, read_config
from flowley.network.config import NetworkConfig
from flowley.training.ema import Averages
from flowley.training.parallel import load_whole_optimizer, load_whole_weights, whole_optimizer, whole_weights
from flowley.training.settings import StepReport, TrainSettings

TRAINING, HISTORY = "training.pt", "history.jsonl"


@dataclass
class TrainState:
    """All that changes during training. Random generators do not belong to it: they are seeded by (seed, step)."""

    config: NetworkConfig
    settings: TrainSettings
    network: VelocityNetwork
    averages: Averages
    optimizer: Optimizer
    step: int
    history: list[StepReport]
    unreported: list[tuple[float, ...]]
    """Losses and gradient norms of the steps since the last report."""

    def save(self, folder: Path | None) -> None:
        """Writes the checkpoint's files into `folder`; called on every rank, with None on ranks other than 0."""
        training = {
            "weights": whole_weights(self.network),
            "averages": self.averages.whole_state(),
            "optimizer": whole_optimizer(self.network, self.optimizer),
            "step": self.step,
            "unreported": self.unreported,
            "settings": asdict(self.settings),
        }
        averaged = self.averages.whole_network()
        if folder is None or averaged is None:
            return
        averaged.save_pretrained(folder)
        torch.save(training, folder / TRAINING)
        lines = [json.dumps(asdict(report)) for report in self.history]
        (folder / HISTORY).write_text("".join(line + "\n" for line in lines))

    def restore(self, folder: Path) -> None:
        """Restores the state of the checkpoint in `folder`.

        Raises:
            ValueError: another network, other features, or settings that differ in more than a larger `steps`.
        """
        if not (folder / TRAINING).is_file():
            raise ValueError(f"{folder} has no {TRAINING}: wanted a checkpoint that training wrote")
        config, _ = read_config(folder)
        if type(config) is not type(self.config):
            raise ValueError(
                f"{folder} is a checkpoint of model_type {config.model_type!r}, wanted {self.config.model_type!r}: "
                "resume with the preset it was trained as, or start anew"
            )
        self._require_same("network", self.config, config)
        training = torch.load(folder / TRAINING, weights_only=True, map_location="cpu")
        settings = TrainSettings(**training["settings"])
        self._require_same("settings", replace(self.settings, steps=1), replace(settings, steps=1))
        if training["step"] > self.settings.steps:
            raise ValueError(
                f"{folder} has {training['step']} steps behind it, settings.steps = {self.settings.steps}: "
                "wanted as many or more"
            )
        null_text = training["weights"]["null_text"]
        if null_text.shape != self.network.null_text.shape:
            raise ValueError(
                f"the checkpoint's null text is {tuple(null_text.shape)}, the features' "
                f"{tuple(self.network.null_text.shape)}: resume with the features it was trained on"
            )
        load_whole_weights(self.network, training["weights"])
        self.averages.load(training["averages"])
        load_whole_optimizer(self.network, self.optimizer, training["optimizer"])
        self.step, self.unreported = training["step"], training["unreported"]
        self.history = read_history(folder)

    @staticmethod
    def _require_same(what: str, wanted: Any, found: Any) -> None:
        differing = [n for n, v in asdict(wanted).items() if asdict(found)[n] != v]
        if differing:
            raise ValueError(
                f"the checkpoint's {what} differs in {', '.join(differing)}: resume with the same, or start anew"
            )


def read_history(folder: Path) -> list[StepReport]:
    """Reports of a checkpoint."""
    return [StepReport(**json.loads(line)) for line in (folder / HISTORY).read_text().splitlines()]
