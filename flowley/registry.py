"""From a configuration, or a checkpoint folder, to its network: Flowley or its peer."""

from __future__ import annotations

from pathlib import Path

from flowley import hub
from flowley.config import NetworkConfig
from flowley.mmaudio import MMAudio
from flowley.model import Flowley
from flowley.network import VelocityNetwork

NETWORKS: dict[str, type[VelocityNetwork]] = {"flowley": Flowley, "mmaudio": MMAudio}
"""By the `model_type` of the configuration."""


def build_network(config: NetworkConfig) -> VelocityNetwork:
    """The network of that configuration with fresh weights."""
    return NETWORKS[config.model_type](config)


def load_network(path_or_id: str | Path, *, revision: str | None = None) -> VelocityNetwork:
    """A network in eval mode from a folder written by `save_pretrained`, or from a hub id.

    Raises:
        ValueError: the folder lacks a file, or its weights do not fit its configuration.
    """
    config, weights = hub.load(path_or_id, revision=revision)
    network = build_network(config)
    network.load_weights(weights)
    network.features = hub.load_features(path_or_id, revision=revision)
    return network.eval()
