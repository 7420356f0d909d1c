"""Tiny checkpoints with random weights, in the real architectures and file layouts: no download; same seed, same files.

The captioners are those of `checkpoints/` before their training: same configuration, processor and tokenizer, a
byte-level BPE whose merges were learned from words of captions. Their initial weights are wider (0.05) than the real
models' (0.02), so that at this width a change of the input shows in the output.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import transformers

from miniature.models.training import CHECKPOINTS


def build_tiny_omni(folder: Path | str, seed: int) -> None:
    """Write a Qwen2.5-Omni checkpoint of 1.2 M parameters: the thinker, in the layout of the whole model."""
    _build("omni", folder, seed)


def build_tiny_vl(folder: Path | str, seed: int) -> None:
    """Write a Qwen2.5-VL checkpoint of 1.1 M parameters."""
    _build("vl", folder, seed)


def _build(shipped: str, folder: Path | str, seed: int) -> None:
    weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(CHECKPOINTS / shipped, folder, ignore=weights, dirs_exist_ok=True)
    config = transformers.AutoConfig.from_pretrained(folder, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, config.architectures[0])(config)
    model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    model.save_pretrained(folder)


def build_tiny_clip(folder: Path | str, seed: int) -> None:
    """Write a CLIP vision checkpoint (64 px, 64 channels, with its preprocessor); its features mean nothing."""
    config = transformers.CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, projection_dim=64, num_hidden_layers=2, num_attention_heads=4,
        image_size=64, patch_size=16,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.CLIPVisionModelWithProjection(config)
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=_std(name, weight))
        torch.nn.init.zeros_(model.vision_model.embeddings.class_embedding)
    model.save_pretrained(folder)
    size = {"height": 64, "width": 64}
    transformers.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=size).save_pretrained(folder)


def _std(name: str, weight: torch.Tensor) -> float:
    """Sharp attention, so that the one output token picks out what moves instead of averaging it away."""
    if "position_embedding" in name:
        return 1.0
    gain = 3.0 if "q_proj" in name or "k_proj" in name else 2.0 if "v_proj" in name or "out_proj" in name else 1.0
    return gain * float(weight[0].numel() ** -0.5)
