"""Tiny encoder checkpoints: real CLIP and T5 architectures with random weights, in ordinary folders.

They load through the same code as the published ones, need no download and are the same for the same seed, so
the demo and the tests run everywhere. Their features tell inputs apart and mean nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch

IMAGE_PX = 64
DIM = 64
_WORDS = (
    "a an the of and with in on at to is are then while from sound sounds loud soft sharp low high short "
    "long rhythmic steady click clicks beep beeps tone tones noise hum buzz whistle engine dog barks barking "
    "rain water wind footsteps door knocks bell rings drum beat beats music plays speech voice rising falling "
    "rises falls bounce bounces ball impact impacts sweep chirp pulse pulses repeated once twice quiet"
)


def build_tiny_clip(folder: str | Path, seed: int) -> None:
    """Writes a CLIP vision checkpoint (64 px, 64 channels, with its preprocessor) into `folder`."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=DIM, intermediate_size=2 * DIM, projection_dim=DIM, num_hidden_layers=2,
        num_attention_heads=4, image_size=IMAGE_PX, patch_size=16,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPVisionModelWithProjection(config)
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=_std(name, weight))
        torch.nn.init.zeros_(model.vision_model.embeddings.class_embedding)
    model.save_pretrained(folder)
    size = {"height": IMAGE_PX, "width": IMAGE_PX}
    CLIPImageProcessor(size={"shortest_edge": IMAGE_PX}, crop_size=size).save_pretrained(folder)


def _std(name: str, weight: torch.Tensor) -> float:
    """Sharp attention, so that the one output token picks out what moves instead of averaging it away."""
    if "position_embedding" in name:
        return 1.0
    gain = 3.0 if "q_proj" in name or "k_proj" in name else 2.0 if "v_proj" in name or "out_proj" in name else 1.0
    return gain * float(weight[0].numel() ** -0.5)


def build_tiny_t5(folder: str | Path, seed: int) -> None:
    """Writes a T5 encoder checkpoint (64 channels) with a byte-level BPE tokenizer into `folder`."""
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level_tokenizer(), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=DIM, d_kv=16, d_ff=2 * DIM, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = T5EncoderModel(config)
    model.save_pretrained(folder)


def _byte_level_tokenizer() -> object:
    """Any text to tokens and `</s>`; common words of captions are one token each."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640, special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([_WORDS], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer
