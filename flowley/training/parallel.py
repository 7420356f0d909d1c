"""Data parallelism: DistributedDataParallel, or FSDP2 for networks too large for one process.

Checkpoints hold whole tensors either way, so training resumes with another number of processes or another
`TrainExecution.sharding`. With one process and `none`, these functions change nothing.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.distributed import all_gather_object, all_reduce
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer

from flowley.network.base import VelocityNetwork

_GATHER = StateDictOptions(full_state_dict=True, cpu_offload=True)
_SCATTER = StateDictOptions(full_state_dict=True)


def shard(network: VelocityNetwork) -> VelocityNetwork:
    """Shards a network in place over all processes, block by block, so that one block at a time is whole."""
    for part in network.children():
        if isinstance(part, nn.ModuleList):
            for block in part:
                fully_shard(block)
    fully_shard(network)
    return network


def whole_weights(network: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers by name, on the CPU; called on every process, only rank 0 gets them."""
    return cast(dict[str, Tensor], get_model_state_dict(network, options=_GATHER))


def load_whole_weights(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Inverse of `whole_weights`; every process gives all weights and keeps its share."""
    set_model_state_dict(network, cast(dict[str, Any], weights), options=_SCATTER)


def whole_optimizer(network: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Optimiser state by the names of the weights, as `whole_weights`."""
    return get_optimizer_state_dict(network, optimizer, options=_GATHER)


def load_whole_optimizer(network: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Inverse of `whole_optimizer`."""
    set_optimizer_state_dict(network, optimizer, state, options=_SCATTER)


def mean_over_processes(values: Tensor, world_size: int) -> Tensor:
    """Element-wise mean; the same on every process."""
    if world_size > 1:
        all_reduce(values)
        values = values / world_size
    return values


def gather(value: Any, world_size: int) -> list[Any]:
    """One value of each process, in the order of their ranks."""
    if world_size == 1:
        return [value]
    values: list[Any] = [None] * world_size
    all_gather_object(values, value)
    return values
