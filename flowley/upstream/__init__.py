"""Networks from upstream checkpoints, by key maps: MMAudio's (`mmaudio_keys`) and the released Flowley's."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from flowley.network.base import VelocityNetwork
from flowley.network.config import NetworkConfig
from flowley.network.registry import build_network
from flowley.upstream import mmaudio_keys, release_keys
from flowley.weights import read_tensors

_WANTED = "wanted the state dict of an MMAudio (its joint_blocks) or of the released Flowley (its multimodal_stream)"


def load_upstream(path: str | Path) -> VelocityNetwork:
    """A network in eval mode, float32 on the CPU, from a published .pth, .pt or .safetensors file.

    Raises:
        ValueError: no such file, not a state dict, of neither network, or with keys that do not fit.
    """
    path = Path(path)
    state = read_tensors(path)
    try:
        config, weights = convert(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    with torch.device("meta"):
        network = build_network(config)
    network.to_empty(device="cpu").load_weights(weights)
    return network.eval()


def convert(state: dict[str, Tensor]) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """Configuration and weights of whichever network the keys are of; see `mmaudio_keys` and `release_keys`."""
    if mmaudio_keys.RECOGNISED_BY in state:
        return mmaudio_keys.convert(state)
    if any(prefix + release_keys.RECOGNISED_BY in state for prefix in release_keys.PREFIXES):
        return release_keys.convert(state)
    raise ValueError(f"{len(state)} tensors, {', '.join(map(repr, list(state)[:3]))}, ...; {_WANTED}")
