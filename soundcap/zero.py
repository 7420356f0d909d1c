"""DeepSpeed ZeRO: its configuration, and the order of start-up that it needs.

Tried on CPU with gloo and 2 processes, ZeRO-2 and ZeRO-3: docs/decisions/finetune.md.
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

ZeroStage = Literal[1, 2, 3]

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def zero_config(stage: ZeroStage) -> dict[str, Any]:
    """DeepSpeed's configuration; "auto" values follow transformers' `TrainingArguments`."""
    return {
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        # torch's own AdamW: DeepSpeed's fused one is compiled at the first start, on CPU too
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": "auto",
                "betas": "auto",
                "eps": "auto",
                "weight_decay": "auto",
                "torch_adam": True,
            },
        },
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "steps_per_print": 10**9,
    }


@contextmanager
def deepspeed_processes(use_gpu: bool) -> Iterator[None]:
    """DeepSpeed ready among the processes of a launcher (Ray Train, torchrun), or in this one alone.

    Must surround the loading of the model: ZeRO-3 shards weights as they load, and without its process group
    takes the world size for 1 even where torch's group is up ("train_batch_size is not equal to ...").
    """
    alone = "RANK" not in os.environ
    if not use_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if alone:
        os.environ.update(_rank_variables_of_one_process())
    try:
        _init_deepspeed()
        yield
    finally:
        _forget_zero()
        if alone:
            _forget_processes()


def _init_deepspeed() -> None:
    import deepspeed
    import deepspeed.ops

    # Its shared-memory all-reduce for CPUs takes minutes to compile at the first start, and a compiler
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel(logging.WARNING)
    deepspeed.init_distributed(verbose=False)


def _rank_variables_of_one_process() -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return dict(zip(_RANK_VARIABLES, ("0", "0", "1", "1", "127.0.0.1", port), strict=True))


def _forget_zero() -> None:
    """Let models load whole again: transformers shards them as long as ZeRO-3 settings are alive somewhere."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def _forget_processes() -> None:
    """Undo what was set up for a process alone, so that the next use in this process starts afresh."""
    import deepspeed.comm
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    if deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()
    for variable in _RANK_VARIABLES:
        os.environ.pop(variable, None)
