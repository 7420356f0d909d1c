"""Key map from upstream state dicts: each of our tensors with the upstream tensors it is made of.

Every upstream has a table of its names. Beyond names, both upstreams differ from our networks in two ways. Their
fused projections have rows (h d parts), ours (parts h d). And a SwiGLU w2(silu(w1 x) * w3 x) has gate w1 and value w3
as one product `up` here, w2 is `down`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flowley.network.config import NetworkConfig
from flowley.network.registry import build_network
from flowley.weights import Shape, require_fit, shapes

Names = Sequence[tuple[str, str]]
"""Regular expressions and their replacements, applied one after the other: our name -> theirs."""
_FUSED = re.compile(r"\.(qkv|kv)\.(weight|bias)$")


def convert_weights(
    state: dict[str, Tensor], ours: dict[str, Shape], *, names: Names, axes: Mapping[str, int], whose: str
) -> dict[str, Tensor]:
    """Our weights from their state dict, which has no key too many.

    Args:
        ours: shapes of our weights, by name.
        names: their names.
        axes: leading axes of length 1 that theirs have and ours do not, by our name; -1: ours has one, theirs none.
        whose: the network, for messages.

    Raises:
        ValueError: naming the first of their keys that is missing, too many, misshapen or not finite.
    """
    origins = {name: _keys(name, names) for name in ours}
    wanted = {key: _shape(name, ours[name], axes.get(name, 0)) for name, keys in origins.items() for key in keys}
    require_fit(shapes(state), wanted, source="the state dict", what=whose)
    for key, x in state.items():
        if not x.sum(dtype=torch.float64).isfinite():  # 20 times as fast as asking each; no float32 overflows it
            raise ValueError(f"the state dict is not {whose}: {key} holds values that are not finite")
    return {name: _made(name, [state[key] for key in keys]).reshape(ours[name]) for name, keys in origins.items()}


def _keys(name: str, names: Names) -> list[str]:
    """Their keys of one of our tensors."""
    for pattern, replacement in [*names, (r"\.down\.weight$", ".w2.weight")]:
        name = re.sub(pattern, replacement, name)
    if name.endswith(".up.weight"):
        return [name.replace(".up.", f".{part}.") for part in ("w1", "w3")]
    return [name]


def _shape(name: str, shape: Shape, axes: int) -> Shape:
    """Shape of each of their tensors that one of ours is made of."""
    if name.endswith(".up.weight"):
        return (shape[0] // 2, *shape[1:])
    return (1,) * axes + shape if axes >= 0 else shape[-axes:]


def _made(name: str, theirs: list[Tensor]) -> Tensor:
    if fused := _FUSED.search(name):
        parts = len(fused[1])
        return torch.cat([theirs[0][i::parts] for i in range(parts)])
    return torch.cat(theirs) if len(theirs) > 1 else theirs[0]


def shapes_of(config: NetworkConfig) -> dict[str, Shape]:
    """The shapes of a network's weights by name; the empty caption is one of all `max_text_tokens` tokens."""
    with torch.device("meta"):
        state = build_network(config).state_dict()
    return shapes(state) | {"null_text": (config.max_text_tokens, config.text_dim)}
