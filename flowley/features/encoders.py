"""Frozen encoders of the conditions: video frames to visual features, captions to text features.

Both load any matching transformers checkpoint, from a folder or a hub id at a revision.

Shapes: T frames, H W pixels, L tokens, D channels of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import normalize

from flowley.features.model_types import TEXT_CLASSES, VISION_CLASSES
from flowley.hub import is_hub_id, one_line

Dtype = Literal["float32", "bfloat16"]
Normalisation = Literal["channels", "time", "none"]


class VisualEncoder:
    """One vector per frame, (T, D), L2-normalised; D is `dim`.

    CLIP gives its projected image embedding (768 channels for ViT-L/14), SigLIP its pooled output. Frames are
    resized, cropped and normalised by the checkpoint's own preprocessor.

    Raises:
        ValueError: not a CLIP or SigLIP checkpoint, or one that lacks weights of the vision tower.
    """

    def __init__(
        self, model: str, *, revision: str | None = None, dtype: Dtype = "float32", device: str = "cpu"
    ) -> None:
        self.model, self.processor = load_frozen(
            "visual encoder", model, revision, VISION_CLASSES, "AutoImageProcessor", dtype, device
        )
        self.device = torch.device(device)
        config = self.model.config
        self.dim = int(config.projection_dim if config.model_type.startswith("clip") else config.hidden_size)

    @torch.inference_mode()
    def encode(self, frames: np.ndarray, *, batch_size: int = 64) -> np.ndarray:
        """uint8 frames (T, H, W, 3) -> (T, D) float32, each of norm 1.

        Raises:
            ValueError: not uint8 RGB frames, or none.
        """
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0:
            raise ValueError(f"frames {frames.dtype} of shape {frames.shape}, wanted uint8 (T >= 1, H, W, 3) RGB")
        parts = []
        for batch in torch.split(torch.from_numpy(frames).permute(0, 3, 1, 2), batch_size):
            inputs = self.processor(images=list(batch.to(self.device)), return_tensors="pt")
            output = self.model(pixel_values=inputs["pixel_values"].to(self.device, self.model.dtype))
            features = output.image_embeds if "image_embeds" in output else output.pooler_output
            parts.append(normalize(features.float(), dim=-1))
        return torch.cat(parts).cpu().numpy()


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A caption's features."""

    features: np.ndarray
    """(L, D) float16; padding removed, or L = max_tokens where it is kept."""
    n_tokens: int
    """Tokens of the caption; features beyond are the encoder's outputs at padding."""
    tokens_cut: int
    """Tokens of the caption beyond the encoder's limit, which the features do not cover; 0 if none."""


class TextEncoder:
    """Last hidden state of every token, (L, D); D is `dim`.

    Args:
        model: folder or hub id of a T5 or CLIP checkpoint.
        max_tokens: longer captions are cut there, and say so in `EncodedText.tokens_cut`.
        normalisation: L2 over `channels`; over `time`, padding to max_tokens included (the released code's);
            or `none`.
        keep_padding: keep the encoder's outputs at padding up to max_tokens, for networks that attend to them
            (`NetworkConfig.mask_text` False).

    Raises:
        ValueError: not a T5 or CLIP checkpoint, or one that lacks weights of the text encoder.
    """

    def __init__(
        self, model: str, *, max_tokens: int, normalisation: Normalisation = "channels", keep_padding: bool = False,
        revision: str | None = None, dtype: Dtype = "float32", device: str = "cpu",
    ) -> None:  # fmt: skip
        self.model, self.tokenizer = load_frozen(
            "text encoder", model, revision, TEXT_CLASSES, "AutoTokenizer", dtype, device
        )
        self.tokenizer.padding_side = "right"
        self.device = torch.device(device)
        self.max_tokens, self.normalisation, self.keep_padding = max_tokens, normalisation, keep_padding
        self.dim = int(self.model.config.hidden_size)
        limit = getattr(self.model.config, "max_position_embeddings", max_tokens)
        if max_tokens > limit:
            raise ValueError(f"max_tokens = {max_tokens}, but {model} takes at most {limit} tokens")

    @torch.inference_mode()
    def encode(self, captions: Sequence[str]) -> list[EncodedText]:
        """Captions, also empty ones, to their features; one per caption, in order."""
        lengths = [len(ids) for ids in self.tokenizer(list(captions)).input_ids]
        padding = "max_length" if self.keep_padding or self.normalisation == "time" else "longest"
        inputs = self.tokenizer(
            list(captions), padding=padding, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        hidden = self.model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
        x = hidden.last_hidden_state.float()
        if self.normalisation != "none":
            x = normalize(x, dim=-1 if self.normalisation == "channels" else 1)
        n_tokens = inputs.attention_mask.sum(1).tolist()
        return [
            EncodedText(features if self.keep_padding else features[:n], n, max(0, length - self.max_tokens))
            for features, n, length in zip(x.cpu().numpy().astype(np.float16), n_tokens, lengths, strict=True)
        ]


def load_frozen(
    kind: str, model: str, revision: str | None, classes: dict[str, str], processor: str, dtype: Dtype, device: str
) -> tuple[Any, Any]:
    """Model of the checkpoint's `model_type` (its class by `classes`), frozen, every weight its own; and its processor.

    Raises:
        ValueError: neither a folder nor a hub id, of another type, or one that lacks weights.
    """
    import transformers

    try:
        model_type = transformers.AutoConfig.from_pretrained(model, revision=revision).model_type
        if model_type not in classes:
            raise ValueError(f"{model} is a {model_type!r} checkpoint, wanted one of {', '.join(classes)}")
        encoder, info = getattr(transformers, classes[model_type]).from_pretrained(
            model, revision=revision, dtype=getattr(torch, dtype), output_loading_info=True
        )
        loaded_processor = getattr(transformers, processor).from_pretrained(model, revision=revision)
    except OSError as error:  # transformers' word for a folder or hub id that is not there
        why = one_line(error) if is_hub_id(model) else "neither a folder nor a hub id, like owner/name"
        raise ValueError(f"{kind} {model!r} does not load ({why}): give a checkpoint folder or a hub id") from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ValueError(f"{model} lacks {len(info['missing_keys'])} weights of its encoder ({missing}, ...)")
    return encoder.eval().requires_grad_(False).to(device), loaded_processor
