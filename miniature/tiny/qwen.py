"""Tiny Qwen2.5-Omni and Qwen2.5-VL checkpoints: real classes and file layout, random weights, no download.

They load through the code that loads the real ones. Same seed, same files.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniature.tiny.words import WORDS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

MAX_TOKENS = 4096
INITIALIZER_RANGE = 0.05
"""Wider than the real 0.02, so that at this width a change of the input shows in the output."""

_VL_SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
_OMNI_SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|AUDIO|> <|audio_bos|> <|audio_eos|> <|box_end|> <|quad_start|> "
    "<|quad_end|> <|vision_bos|> <|vision_eos|> <|vision_pad|> <|IMAGE|> <|VIDEO|>"
).split()
_OMNI_NAMES = {f"{kind}_token": f"<|{kind.upper()}|>" for kind in ("image", "audio", "video")} | {
    f"{mark}_token": f"<|{mark}|>" for mark in ("vision_bos", "vision_eos", "audio_bos", "audio_eos")
}
_WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'video' %}VIDEO_BLOCK"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_TOKENS,
    "rms_norm_eps": 1e-6,
    "initializer_range": INITIALIZER_RANGE,
    # half a head of 32 is 16 frequencies, divided over time, height and width as in the real models
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
    "use_sliding_window": False,
    "tie_word_embeddings": False,
}
_VISION = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "out_hidden_size": _TEXT["hidden_size"],
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [1],
    "initializer_range": INITIALIZER_RANGE,
}
_AUDIO = {
    "d_model": 64,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 128,
    "num_mel_bins": 128,
    "n_window": 100,
    "max_source_positions": 1500,
    "output_dim": _TEXT["hidden_size"],
    "initializer_range": INITIALIZER_RANGE,
}


def build_tiny_omni(folder: Path | str, seed: int) -> None:
    """Write a Qwen2.5-Omni checkpoint of 1.2 M parameters: the thinker, in the layout of the whole model."""
    import transformers

    tokenizer = _build_tokenizer(_OMNI_SPECIAL, _OMNI_NAMES)
    ids = tokenizer.get_vocab()
    config = transformers.Qwen2_5OmniConfig(
        thinker_config={
            "text_config": _TEXT | _text_ids(tokenizer),
            "vision_config": _VISION | {"tokens_per_second": 25},
            "audio_config": _AUDIO,
            "audio_token_index": ids["<|AUDIO|>"],
            "image_token_index": ids["<|IMAGE|>"],
            "video_token_index": ids["<|VIDEO|>"],
            "audio_start_token_id": ids["<|audio_bos|>"],
            "audio_end_token_id": ids["<|audio_eos|>"],
            "vision_start_token_id": ids["<|vision_bos|>"],
            "vision_end_token_id": ids["<|vision_eos|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "position_id_per_seconds": 25,
            "seconds_per_chunk": 2,
            "initializer_range": INITIALIZER_RANGE,
            "tie_word_embeddings": False,
        },
        talker_config={"vocab_size": 152_064},  # holds the token ids of its own defaults; there is no talker
        enable_audio_output=False,
        architectures=["Qwen2_5OmniForConditionalGeneration"],
    )
    processor = transformers.Qwen2_5OmniProcessor(
        feature_extractor=transformers.WhisperFeatureExtractor(
            feature_size=128, sampling_rate=16_000, hop_length=160, n_fft=400, chunk_length=300
        ),
        **_processor_parts(tokenizer, "<|vision_bos|><|VIDEO|><|vision_eos|>"),
    )
    _save(folder, seed, lambda: transformers.Qwen2_5OmniForConditionalGeneration(config), processor)


def build_tiny_vl(folder: Path | str, seed: int) -> None:
    """Write a Qwen2.5-VL checkpoint of 1.1 M parameters."""
    import transformers

    tokenizer = _build_tokenizer(_VL_SPECIAL, {})
    ids = tokenizer.get_vocab()
    config = transformers.Qwen2_5_VLConfig(
        text_config=_TEXT | _text_ids(tokenizer),
        vision_config=_VISION | {"tokens_per_second": 2},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
    )
    processor = transformers.Qwen2_5_VLProcessor(
        **_processor_parts(tokenizer, "<|vision_start|><|video_pad|><|vision_end|>")
    )
    _save(folder, seed, lambda: transformers.Qwen2_5_VLForConditionalGeneration(config), processor)


def _processor_parts(tokenizer: "PreTrainedTokenizerFast", video_block: str) -> dict[str, Any]:
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    return {
        "image_processor": Qwen2VLImageProcessor(),
        "video_processor": Qwen2VLVideoProcessor(),
        "tokenizer": tokenizer,
        "chat_template": _CHAT_TEMPLATE.replace("VIDEO_BLOCK", video_block),
    }


def _build_tokenizer(special: list[str], names: dict[str, str]) -> "PreTrainedTokenizerFast":
    """Byte-level BPE, so any text can be encoded, with merges learned from `WORDS`."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_WORD_PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=1536, initial_alphabet=alphabet, show_progress=False))
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=names,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_TOKENS,
    )


def _text_ids(tokenizer: "PreTrainedTokenizerFast") -> dict[str, int]:
    pad = tokenizer.pad_token_id
    return {
        "vocab_size": len(tokenizer), "bos_token_id": pad, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": pad
    }  # fmt: skip


def _save(folder: Path | str, seed: int, make: Any, processor: Any) -> None:
    import torch
    from transformers import GenerationConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = make()
    end, pad = processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id
    model.generation_config = GenerationConfig(eos_token_id=[end, pad], pad_token_id=pad, do_sample=False)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
