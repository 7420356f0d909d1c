"""`flowley presets`: the networks with a name, counted without allocating them."""

from __future__ import annotations

from typing import Any

SHAPE = ("D", "N1", "N2", "heads", "r_a", "r_v", "latent_dim", "visual_dim", "text_dim", "max_text_tokens")


def list_presets() -> list[dict[str, Any]]:
    """Each preset's name, kind, parameter count and shape."""
    import torch

    from flowley.presets import PRESETS
    from flowley.registry import build_network

    found = []
    for name, config in PRESETS.items():
        with torch.device("meta"):
            parameters = build_network(config).n_parameters
        fields = config.to_dict()
        kind = {"name": name, "model_type": config.model_type, "parameters": parameters}
        found.append({**kind, **{key: fields[key] for key in SHAPE}, "config": fields})
    return found
