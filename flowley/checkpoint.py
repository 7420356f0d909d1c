"""Checkpoints of a training: a folder that `Flowley.from_pretrained` loads, and what resuming needs beside it.

config.json, model.safetensors, README.md   the averaged weights
training.pt                                 weights, optimiser, step, settings
history.jsonl                               every report so far
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from flowley.config import FlowleyConfig
from flowley.hub import load
from flowley.model import Flowley
from flowley.settings import StepReport, TrainSettings

TRAINING, HISTORY = "training.pt", "history.jsonl"


@dataclass
class TrainState:
    """All that changes while training; random draws do not belong to it, being functions of (seed, step)."""

    config: FlowleyConfig
    settings: TrainSettings
    model: Flowley
    ema: AveragedModel
    optimizer: Optimizer
    step: int
    history: list[StepReport]
    unreported: list[tuple[float, ...]]
    """Losses and gradient norms of the steps since the last report."""

    def save(self, folder: Path) -> None:
        """Writes the checkpoint's files into `folder`."""
        _flowley(self.ema.module).save_pretrained(folder)
        training = {
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "n_averaged": self.ema.n_averaged,
            "step": self.step,
            "unreported": self.unreported,
            "settings": asdict(self.settings),
        }
        torch.save(training, folder / TRAINING)
        lines = [json.dumps(asdict(report)) for report in self.history]
        (folder / HISTORY).write_text("".join(line + "\n" for line in lines))

    def restore(self, folder: Path) -> None:
        """Takes up the checkpoint in `folder`.

        Raises:
            ValueError: it was made for another network or with other settings; more steps are welcome.
        """
        if not (folder / TRAINING).is_file():
            raise ValueError(f"{folder} has no {TRAINING}: wanted a checkpoint that training wrote")
        training = torch.load(folder / TRAINING, weights_only=True, map_location="cpu")
        config, averaged = load(folder, revision=None)
        self._require_same("network", self.config, config)
        settings = TrainSettings(**_tuples(training["settings"]))
        self._require_same("settings", replace(self.settings, steps=1), replace(settings, steps=1))
        self.model.load_weights(training["weights"])
        _flowley(self.ema.module).load_weights(averaged)
        self.ema.n_averaged.copy_(training["n_averaged"])
        self.optimizer.load_state_dict(training["optimizer"])
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
    """The reports kept in a checkpoint."""
    return [StepReport(**json.loads(line)) for line in (folder / HISTORY).read_text().splitlines()]


def _flowley(module: nn.Module | Tensor) -> Flowley:
    assert isinstance(module, Flowley)
    return module


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
