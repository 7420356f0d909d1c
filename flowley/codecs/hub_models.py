"""Models of diffusers and transformers in their own folder format: config.json beside safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowley.codecs.folder import UNREADABLE, find_file, read_config

CONFIG = "config.json"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
TRANSFORMERS_WEIGHTS = "model.safetensors"


def class_of(config: Path) -> str:
    """The class that a config.json names: diffusers' `_class_name`, else transformers' first architecture."""
    values = read_config(config)
    named = values.get("_class_name") or next(iter(values.get("architectures") or ()), None)
    return str(named or "model without a name")


def load_model(folder: Path, kind: str, weights: str, *, contents: str) -> Any:
    """The model of class `kind` in `folder`, in float32, every weight from its file.

    Raises:
        ValueError: the weights are missing, unreadable or do not cover the model.
    """
    import diffusers
    import transformers
    from safetensors import SafetensorError

    find_file(folder, weights, contents=contents)
    source = diffusers if weights == DIFFUSERS_WEIGHTS else transformers
    try:
        model, info = getattr(source, kind).from_pretrained(
            folder, output_loading_info=True, use_safetensors=True, local_files_only=True
        )
    except (*UNREADABLE, TypeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{folder / weights} cannot be read as {kind} ({reason}): fetch it again") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{folder / weights} lacks {len(missing)} weights of {kind} ({missing[0]}, ...)")
    return model.float()
