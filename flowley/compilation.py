"""torch.compile, part by part."""

from __future__ import annotations

from torch import nn

from flowley.network import VelocityNetwork


def compile_parts(network: VelocityNetwork, *, backend: str = "inductor") -> None:
    """Compiles each block and each embedding in place, for batches of one shape.

    Blocks of a kind share their code, so a network of 12 blocks compiles as fast as one of 2, and what happens
    between blocks is a few additions. Names of weights do not change.
    """
    for part in network.children():
        for module in part if isinstance(part, nn.ModuleList) else [part]:
            if not isinstance(module, nn.Linear):
                module.compile(dynamic=False, backend=backend)
