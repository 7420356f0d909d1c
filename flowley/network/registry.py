"""Networks by the `model_type` of their configuration: Flowley or its peer."""

from __future__ import annotations

from pathlib import Path

from flowley.hub import find_folder
from flowley.network.base import FILES, FOLDER, VelocityNetwork, read_config
from flowley.network.config import NetworkConfig
from flowley.network.flowley import Flowley
from flowley.network.mmaudio import MMAudio

NETWORKS: dict[str, type[VelocityNetwork]] = {kind.config_type.model_type: kind for kind in (Flowley, MMAudio)}


def build_network(config: NetworkConfig) -> VelocityNetwork:
    """The network of that configuration with fresh weights."""
    return NETWORKS[config.model_type](config)


def load_network(path_or_id: str | Path, *, revision: str | None = None) -> VelocityNetwork:
    """A network in eval mode from a folder written by `save_pretrained`, or from a hub id.

    Raises:
        ValueError: see `VelocityNetwork.from_pretrained`.
    """
    folder = find_folder(path_or_id, FILES, revision=revision, wanted=FOLDER)
    config, _ = read_config(folder)
    return NETWORKS[config.model_type].from_pretrained(folder)
