"""LoRA training with transformers' Trainer and DeepSpeed ZeRO: start-up, arguments, model and loss.

Tried on CPU with gloo and 2 processes, ZeRO-2 and ZeRO-3: docs/decisions/finetune.md.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundcap.finetune_settings import FinetuneExecution, FinetuneSettings, ZeroStage
from soundcap.inputs import IGNORED_LABEL
from soundcap.pretrained import load_model

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer, TrainerCallback, TrainingArguments

LORA_TARGETS = r"^model\.language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)$"
"""Language model only: bare names would also hit the vision tower's MLPs, which serving engines ignore."""


def lora_trainer(
    model: str,
    revision: str | None,
    examples: Any,
    collate: Callable[..., Any],
    settings: FinetuneSettings,
    arguments: "TrainingArguments",
    callbacks: "Sequence[TrainerCallback]",
) -> "Trainer":
    """Trainer of a new LoRA adapter on the language model's linear layers; `examples` is a map-style dataset."""
    from peft import LoraConfig, get_peft_model
    from transformers import PrinterCallback, Trainer, set_seed

    set_seed(settings.seed)  # of LoRA's initial weights
    base = load_model(model, revision, dtype=settings.precision)
    base.config.use_cache = False
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=LORA_TARGETS,
        task_type="CAUSAL_LM",
    )
    trainer = Trainer(
        model=get_peft_model(base, lora),
        args=arguments,
        train_dataset=examples,
        data_collator=collate,
        compute_loss_func=_caption_nll,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)  # the caller's callbacks report progress
    return trainer


def _caption_nll(outputs: Any, labels: "Tensor", num_items_in_batch: "Tensor") -> "Tensor":
    """The paper's L_vlm: sum of -log P over a batch's caption tokens, divided by their count in the whole step.

    Left to itself the Trainer averages this model's batch means, so that a short caption's tokens would weigh
    more, and by how much would depend on the batch per process.
    """
    from torch.nn.functional import cross_entropy

    targets = labels[:, 1:]  # logits at l predict token l + 1
    captioned = targets != IGNORED_LABEL
    logits = outputs.logits[:, :-1][captioned].float()
    return cross_entropy(logits, targets[captioned], reduction="sum") / num_items_in_batch


def training_arguments(
    settings: FinetuneSettings, execution: FinetuneExecution, world_size: int, folder: Path, use_gpu: bool
) -> "TrainingArguments":
    """The Trainer's arguments; checkpoints go into `folder`.

    Made before the model and kept as long: transformers refers to the ZeRO settings weakly.
    """
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=execution.per_device_batch,
        gradient_accumulation_steps=settings.batch_size // (execution.per_device_batch * world_size),
        num_train_epochs=settings.epochs,
        max_steps=-1 if settings.max_steps is None else settings.max_steps,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=settings.warmup_share,  # below 1, transformers takes it for a share of all steps
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.precision == "bfloat16",
        gradient_checkpointing=execution.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        seed=settings.seed,
        data_seed=settings.seed,
        save_steps=execution.save_steps,
        save_total_limit=2,
        logging_steps=execution.log_steps,
        logging_first_step=True,
        dataloader_num_workers=execution.loader_processes,
        remove_unused_columns=False,
        label_names=["labels"],
        deepspeed=_zero_config(execution.zero_stage),
        use_cpu=not use_gpu,
        dataloader_pin_memory=use_gpu,
        report_to="none",
        disable_tqdm=True,
        log_level="warning",
    )


def _zero_config(stage: ZeroStage) -> dict[str, Any]:
    """DeepSpeed's configuration; "auto" values follow `TrainingArguments`."""
    adamw = dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")
    return {
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        # torch's own AdamW: DeepSpeed's fused one is compiled at the first start, on CPU too
        "optimizer": {"type": "AdamW", "params": {**adamw, "torch_adam": True}},
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "steps_per_print": 10**9,
    }


@contextmanager
def deepspeed_processes(use_gpu: bool) -> Iterator[None]:
    """DeepSpeed's process group among the processes of a launcher (Ray Train, torchrun), or in this one alone.

    Must surround the loading of the model: ZeRO-3 shards weights as they load, and without its process group
    takes the world size for 1 even where torch's group is up ("train_batch_size is not equal to ...").
    """
    if not use_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read at the import
    import deepspeed.comm
    import deepspeed.ops
    from accelerate.state import AcceleratorState
    from accelerate.utils import patch_environment
    from accelerate.utils.other import get_free_port
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    alone = "RANK" not in os.environ
    rank = {"rank": 0, "local_rank": 0, "world_size": 1, "local_world_size": 1}
    address = {"master_addr": "127.0.0.1", "master_port": get_free_port()}
    with patch_environment(**rank, **address) if alone else nullcontext():
        try:
            # Its shared-memory all-reduce for CPUs takes minutes to compile at the first start, and a compiler
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
            deepspeed.utils.logger.setLevel(logging.WARNING)
            deepspeed.init_distributed(verbose=False)
            yield
        finally:
            unset_hf_deepspeed_config()  # while ZeRO-3 settings are alive somewhere, transformers shards all models
            if alone:  # undone, so that the next use in this process starts afresh
                AcceleratorState._reset_state(reset_partial_state=True)
                if deepspeed.comm.is_initialized():
                    deepspeed.comm.destroy_process_group()
