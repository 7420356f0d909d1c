"""LoRA training check of `benchmarks.gpu_check`: the captioner's adapters on a random language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.gpu_checks import Found, Setting, memory_gb, peaks

RANK, ALPHA = 32, 64
"""Rank and scale of the captioner's LoRA."""


def lora(setting: Setting, found: Found) -> None:
    """MFU of a LoRA step, without and with gradient checkpointing, at the largest batch that fits."""
    L = 64 if setting.small else 2048
    peak, _ = peaks(setting)
    model, config = lora_model(setting)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4, fused=True)
    for checkpointing, batches in ((False, (8, 4, 2, 1)), (True, (16, 8, 4))):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for B in batches[-1:] if setting.small else batches:
            tokens = torch.randint(0, config.vocab_size, (B, L), device=setting.device)

            def step() -> None:
                model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()  # noqa: B023
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            seconds = None
            try:
                step()
                step()
                seconds = setting.seconds_of(step, least_s=6.0)
            except torch.OutOfMemoryError:
                optimizer.zero_grad(set_to_none=True)
            if seconds is None:  # outside the handler, where the error no longer holds the step's tensors
                torch.cuda.empty_cache()
                continue
            flops = lora_flops(model, config, B, L)
            found(
                checkpointing=checkpointing, batch=B, tokens=L, tokens_per_s=round(B * L / seconds),
                mfu=round(flops / seconds / peak, 4), step_ms=round(1000 * seconds, 1),
                tflops_per_s=round(flops / seconds / 1e12, 2), memory_gb=memory_gb(setting),
            )  # fmt: skip
            break


def lora_model(setting: Setting) -> tuple[Any, Any]:
    """Random-weight Qwen2.5-3B (or a small one), frozen in bf16, with LoRA on every linear layer."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2, "vocab_size": 151_936,
    }  # fmt: skip
    if setting.small:
        shape = {
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 256,
        }  # fmt: skip
    config = Qwen2Config(**shape, attn_implementation="sdpa")
    with setting.device:
        base = Qwen2ForCausalLM(config)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(base.to(torch.bfloat16), LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets))
    return model.train(), config


def lora_flops(model: nn.Module, config: Any, B: int, L: int) -> int:
    """FLOPs of a LoRA step: per token 4 a frozen weight and 6 an adapter weight, and causal attention thrice."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    embedding = config.vocab_size * config.hidden_size
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad and p.ndim > 1)
    products = frozen if config.tie_word_embeddings else frozen - embedding  # a lookup is no product
    attention = 3 * config.num_hidden_layers * 2 * L * config.hidden_size  # two products of 2, half of them masked
    operations: int = B * L * (4 * products + 6 * trained + attention)
    return operations
