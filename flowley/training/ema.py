"""Averages of past weights with the power-function profile of Karras et al. (EDM2, arXiv:2312.02696, section 3).

    theta_bar(t) = beta(t) theta_bar(t - 1) + (1 - beta(t)) theta(t),    beta(t) = (1 - 1 / (t + 1))^(gamma + 1)

The width of such an average is a fraction sigma_rel of the steps so far, so a run of 100 steps and one of
300,000 need no decay of their own. Snapshots of two of them over the run give any other width afterwards, by
least squares over the profiles (section 3.3). ema-pytorch computes both.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from ema_pytorch import KarrasEMA, PostHocEMA
from torch import Tensor

from flowley.network.base import VelocityNetwork
from flowley.network.registry import build_network, load_network
from flowley.training.parallel import load_whole_weights, shard, whole_weights
from flowley.training.settings import MAX_SIGMA_REL

SIGMA_RELS = (0.05, 0.1)
"""Widths whose snapshots are kept."""
SNAPSHOTS = "ema"
"""Folder beside a checkpoint's files with its snapshots, `{index in SIGMA_RELS}.{step}.pt`, as PostHocEMA reads."""


class Averages:
    """Weight averages of one training run: those of `SIGMA_RELS`, and that of `sigma_rel`, which checkpoints hold.

    The network is not yet sharded; `sharded` spreads the averages' weights over the processes.
    """

    def __init__(self, network: VelocityNetwork, *, sigma_rel: float, sharded: bool) -> None:
        buffers = {name for name, _ in network.named_buffers()}  # constants of the corpus
        self.sharded = sharded

        def copy() -> VelocityNetwork:
            return shard(deepcopy(network)) if sharded else deepcopy(network)

        self._by_sigma = {
            sigma: KarrasEMA(network, sigma_rel=sigma, ema_model=copy, update_every=1, ignore_names=buffers)
            for sigma in dict.fromkeys((*SIGMA_RELS, sigma_rel))
        }
        for average in self._by_sigma.values():
            average.ema_model.eval()
        self._own = self._by_sigma[sigma_rel]
        self.network: VelocityNetwork = self._own.ema_model
        """The checkpoints' average, sharded if training is; in eval mode."""

    def update(self) -> None:
        """Adds the network's weights after a step."""
        for average in self._by_sigma.values():
            average.update()

    def whole_network(self) -> VelocityNetwork | None:
        """The checkpoints' average as a whole network, on its device.

        Called on every rank; where it is sharded, only rank 0 gets one.
        """
        if not self.sharded:
            return self.network
        weights = whole_weights(self.network)
        if not weights:
            return None
        network = build_network(self.network.config)
        network.load_weights(weights)
        network.features = self.network.features
        return network.to(self.network.latent_mean.device).eval()

    def whole_state(self) -> dict[str, Any]:
        """All averages, whole, to be saved; called on every rank, complete on rank 0."""
        weights = {str(sigma): whole_weights(average.ema_model) for sigma, average in self._by_sigma.items()}
        return {"step": int(self._own.step), "weights": weights}

    def load(self, state: dict[str, Any]) -> None:
        """Inverse of `whole_state`."""
        for sigma, average in self._by_sigma.items():
            load_whole_weights(average.ema_model, state["weights"][str(sigma)])
            average.step.fill_(state["step"])
            average.initted.fill_(state["step"] > 0)

    def snapshot(self, folder: Path | None) -> list[Path]:
        """Writes the averages of `SIGMA_RELS` in float16 into the folder and returns the files.

        Called on every rank, with None on ranks other than 0.
        """
        files = []
        for index, sigma in enumerate(SIGMA_RELS):
            average = self._by_sigma[sigma]
            weights = whole_weights(average.ema_model)
            if folder is None:
                continue
            state: dict[str, Tensor] = {f"ema_model.{name}": weight.half() for name, weight in weights.items()}
            state |= {"step": average.step, "initted": average.initted}
            files.append(folder / f"{index}.{int(average.step)}.pt")
            torch.save(state, files[-1])
        return files


def synthesise(folder: str | Path, sigma_rel: float) -> VelocityNetwork:
    """Average of another width at the end of a finished training run, in eval mode.

    Args:
        folder: a checkpoint with its snapshots in `ema/`, in it or beside it.
        sigma_rel: width relative to the training time, within (0, 0.28); widths from 0.05 to 0.2 come out to the
            precision of the snapshots (docs/decisions/flowley-training.md).

    Raises:
        ValueError: not a checkpoint, no snapshots, snapshots of another network, or a width out of range.
    """
    if not 0 < sigma_rel < MAX_SIGMA_REL:
        raise ValueError(f"sigma_rel = {sigma_rel}, wanted within (0, {MAX_SIGMA_REL})")
    network, snapshots = load_network(folder), Path(folder) / SNAPSHOTS
    if not snapshots.is_dir():
        snapshots = Path(folder).absolute().parent / SNAPSHOTS
    steps = {name: {int(file.stem.split(".")[1]) for file in snapshots.glob(f"{name}.*.pt")} for name in (0, 1)}
    if not steps[0] or steps[0] != steps[1]:
        raise ValueError(
            f"{snapshots} has {len(steps[0])} and {len(steps[1])} snapshots of the two averages, wanted as many of "
            "each, at least one: give the folder that training wrote"
        )
    post_hoc = PostHocEMA(
        network, sigma_rels=SIGMA_RELS, update_every=1, checkpoint_every_num_steps="manual",
        checkpoint_folder=str(snapshots), ignore_names={name for name, _ in network.named_buffers()},
    )  # fmt: skip
    try:
        synthesised: VelocityNetwork = post_hoc.synthesize_ema_model(sigma_rel=sigma_rel).ema_model
    except RuntimeError as error:
        raise ValueError(f"{snapshots}: snapshots that do not fit {folder} ({error})") from error
    return synthesised.eval()
