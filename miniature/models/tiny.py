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


CLAP_HZ, CLAP_WINDOW_S, CLAP_TEXT_TOKENS = 48_000, 10, 32


def build_tiny_clap(folder: Path | str, seed: int, *, fusion: bool = False) -> None:
    """Write a CLAP checkpoint of 64,000 parameters with its processor; its agreements mean nothing.

    fusion: with the layers for sounds longer than `CLAP_WINDOW_S`, as the published `fused` checkpoints have them.
    """
    mel_bins, hop = 16, 1920
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINTS / "clip")
    tokenizer.model_max_length = CLAP_TEXT_TOKENS
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": CLAP_TEXT_TOKENS + 1, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    audio = {
        "num_mel_bins": mel_bins, "spec_size": 4 * mel_bins, "patch_embeds_hidden_size": 16, "hidden_size": 32,
        "depths": [1, 1], "num_attention_heads": [2, 4], "enable_fusion": fusion,
    }  # fmt: skip
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.ClapModel(config)
    model.save_pretrained(folder)
    extractor = transformers.ClapFeatureExtractor(
        feature_size=mel_bins, sampling_rate=CLAP_HZ, hop_length=hop, max_length_s=CLAP_WINDOW_S, fft_window_size=4096,
        truncation="fusion" if fusion else "rand_trunc",
    )  # fmt: skip
    transformers.ClapProcessor(extractor, tokenizer).save_pretrained(folder)


def _std(name: str, weight: torch.Tensor) -> float:
    """Sharp attention, so that the one output token picks out what moves instead of averaging it away."""
    if "position_embedding" in name:
        return 1.0
    gain = 3.0 if "q_proj" in name or "k_proj" in name else 2.0 if "v_proj" in name or "out_proj" in name else 1.0
    return gain * float(weight[0].numel() ** -0.5)
