"""Weights of others: MMAudio's (`mmaudio`) and the authors' released Flowley (`release`), by key maps."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flowley.config import NetworkConfig
from flowley.network import VelocityNetwork
from flowley.registry import build_network
from flowley.upstream import mmaudio, release

_WANTED = "wanted the state dict of an MMAudio (its joint_blocks) or of the released Flowley (its multimodal_stream)"


def load_upstream(path: str | Path) -> VelocityNetwork:
    """A network in eval mode, float32 on the CPU, from a checkpoint file that others published.

    Args:
        path: a .pth, .pt or .safetensors file; its keys say whose it is.

    Raises:
        ValueError: no such file, not a state dict, of neither network, or with keys that do not fit.
    """
    path = Path(path)
    state = read_state(path)
    try:
        config, weights = convert(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    with torch.device("meta"):
        network = build_network(config)
    network.to_empty(device="cpu").load_weights(weights)
    return network.eval()


def convert(state: dict[str, Tensor]) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """Configuration and weights of whichever network the keys are of; see `mmaudio` and `release`."""
    if mmaudio.RECOGNISED_BY in state:
        return mmaudio.convert(state)
    if any(prefix + release.RECOGNISED_BY in state for prefix in release.PREFIXES):
        return release.convert(state)
    raise ValueError(f"{len(state)} tensors, {', '.join(map(repr, list(state)[:3]))}, ...; {_WANTED}")


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, by name; nothing in it is executed.

    Raises:
        ValueError: not a file, not readable, or not a dictionary of tensors.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file: wanted a checkpoint, .pth, .pt or .safetensors")
    try:
        state: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:120]
        raise ValueError(f"{path} is no checkpoint this can read ({type(error).__name__}: {why}); {_WANTED}") from error
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        keys = f" of {', '.join(map(str, list(state)[:5]))}" if isinstance(state, dict) else ""
        held = f"a {type(state).__name__}{keys}"
        raise ValueError(f"{path} holds {held}, not tensors by name; {_WANTED}")
    return state
