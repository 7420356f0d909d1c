"""Key map from upstream state dicts: each of our tensors with the upstream tensors it is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flowley.network.config import NetworkConfig
from flowley.network.registry import build_network
from flowley.weights import Shape, require_fit, shapes


class Origin(NamedTuple):
    """Upstream tensors that one of ours is made of."""

    theirs: tuple[str, ...]
    """Their names."""
    shape: Callable[[Shape], Shape]
    """Our shape -> the shape of each of theirs."""
    make: Callable[[list[Tensor]], Tensor]
    """Theirs, in order -> ours."""


class KeyMap:
    """Our names, each with its `Origin`."""

    def __init__(self) -> None:
        self.origins: dict[str, Origin] = {}

    def same(self, ours: str, theirs: str) -> None:
        """The tensor as it is."""
        self.unbatched(ours, theirs, 0)

    def unbatched(self, ours: str, theirs: str, axes: int) -> None:
        """The tensor without its leading axes of length 1."""
        self.origins[ours] = Origin((theirs,), lambda s: (1,) * axes + s, lambda x: x[0].reshape(x[0].shape[axes:]))

    def scalar(self, ours: str, theirs: str) -> None:
        """One number, without an axis there, of shape (1,) here."""
        self.origins[ours] = Origin((theirs,), lambda s: (), lambda x: x[0].reshape(1))

    def layer(self, ours: str, theirs: str) -> None:
        """A linear map or convolution with its bias."""
        for part in ("weight", "bias"):
            self.same(f"{ours}.{part}", f"{theirs}.{part}")

    def fused(self, ours: str, theirs: str, parts: int) -> None:
        """Q, K, V (or K, V) in one linear map: their rows are (h d parts), ours (parts h d)."""
        for part in ("weight", "bias"):
            self.origins[f"{ours}.{part}"] = Origin(
                (f"{theirs}.{part}",), lambda s: s, lambda x: torch.cat([x[0][i::parts] for i in range(parts)])
            )

    def swiglu(self, ours: str, theirs: str) -> None:
        """w2(silu(w1 x) * w3 x): gate w1 and value w3 are one product `up` here, w2 is `down`."""
        self.origins[f"{ours}.up.weight"] = Origin(
            (f"{theirs}.w1.weight", f"{theirs}.w3.weight"), lambda s: (s[0] // 2, *s[1:]), torch.cat
        )
        self.same(f"{ours}.down.weight", f"{theirs}.w2.weight")

    def convert(self, state: dict[str, Tensor], ours: dict[str, Shape], whose: str) -> dict[str, Tensor]:
        """Our weights from theirs.

        Args:
            state: their state dict, no key too many.
            ours: shapes of our weights, by name.
            whose: the network, for messages.

        Raises:
            ValueError: naming the first of their keys that is missing, too many, misshapen or not finite.
        """
        wanted = {key: origin.shape(ours[name]) for name, origin in self.origins.items() for key in origin.theirs}
        require_fit(shapes(state), wanted, source="the state dict", what=whose)
        for key, x in state.items():
            if not x.sum(dtype=torch.float64).isfinite():  # 20 times as fast as asking each; no float32 overflows it
                raise ValueError(f"the state dict is not {whose}: {key} holds values that are not finite")
        return {name: origin.make([state[key] for key in origin.theirs]) for name, origin in self.origins.items()}


def shapes_of(config: NetworkConfig) -> dict[str, Shape]:
    """The shapes of a network's weights by name; the empty caption is one of all `max_text_tokens` tokens."""
    with torch.device("meta"):
        state = build_network(config).state_dict()
    return shapes(state) | {"null_text": (config.max_text_tokens, config.text_dim)}
