"""Pretrained caption models: class, processor and limits by the `model_type` in a checkpoint's config.json."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CheckpointError(ValueError):
    """Checkpoint that cannot be used: absent, incomplete, or of an unknown model type."""


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """Model type of a checkpoint, with what differs between the types."""

    model_type: str
    """`model_type` of config.json."""
    model_class: str
    """Class in transformers that answers with text."""
    processor_class: str
    hears: bool
    """True if it takes audio."""


FAMILIES = {
    family.model_type: family
    for family in (
        ModelFamily("qwen2_5_omni", "Qwen2_5OmniThinkerForConditionalGeneration", "Qwen2_5OmniProcessor", hears=True),
        ModelFamily("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor", hears=False),
    )
}


@dataclass(frozen=True, slots=True)
class CaptionProcessor:
    """Processor of a checkpoint, with the few facts of its config that inputs depend on."""

    hf: Any
    """transformers' processor: tokenizer, chat template, video processor and, for Omni, audio features."""
    family: ModelFamily
    positions_per_second: float
    """Rotary positions per second of video."""
    max_tokens: int
    """Longest sequence the model takes."""


def _read_config(model: str, revision: str | None) -> Any:
    """Config of a checkpoint folder or hub id. Raises CheckpointError."""
    from transformers import AutoConfig, PreTrainedConfig

    folder = Path(model)
    if folder.exists() and not (folder / "config.json").is_file():
        raise CheckpointError(f"{model}: no config.json; wanted a checkpoint folder as `save_pretrained` writes it")
    if not folder.exists() and (folder.is_absolute() or model.startswith(".") or model.count("/") != 1):
        raise CheckpointError(f"{model}: no such folder, and not a hub id of the form owner/name")
    try:
        model_type = PreTrainedConfig.get_config_dict(model, revision=revision)[0].get("model_type")
    except OSError as error:
        raise CheckpointError(f"{model}: its config.json could not be read: {error}") from error
    if model_type not in FAMILIES:
        raise CheckpointError(f"{model}: model_type {model_type!r}; wanted one of {', '.join(FAMILIES)}")
    return AutoConfig.from_pretrained(model, revision=revision)


def load_processor(model: str, revision: str | None = None) -> CaptionProcessor:
    """Processor of a checkpoint. Raises CheckpointError."""
    import transformers

    config = _read_config(model, revision)
    family = FAMILIES[config.model_type]
    if family.hears:
        positions_per_second = config.thinker_config.position_id_per_seconds
    else:
        positions_per_second = config.vision_config.tokens_per_second
    return CaptionProcessor(
        hf=getattr(transformers, family.processor_class).from_pretrained(model, revision=revision),
        family=family,
        positions_per_second=positions_per_second,
        max_tokens=config.get_text_config().max_position_embeddings,
    )


def load_model(
    model: str, revision: str | None = None, *, dtype: str = "float32", adapter: str | None = None
) -> "PreTrainedModel":
    """Model of a checkpoint, on the CPU; `dtype` is a torch dtype's name. Raises CheckpointError.

    `adapter` is the folder of a LoRA adapter, merged into the weights.
    """
    import transformers

    family = FAMILIES[_read_config(model, revision).model_type]
    loaded = getattr(transformers, family.model_class).from_pretrained(model, revision=revision, dtype=dtype)
    if adapter is None:
        return loaded
    read_adapter_config(adapter)
    from peft import PeftModel

    merged: PreTrainedModel = PeftModel.from_pretrained(loaded, adapter).merge_and_unload()
    return merged


def read_adapter_config(adapter: str) -> dict[str, Any]:
    """Config of a LoRA adapter's folder, as peft writes it. Raises CheckpointError."""
    file = Path(adapter) / "adapter_config.json"
    if not file.is_file():
        raise CheckpointError(f"{adapter}: no adapter_config.json; wanted a folder saved by peft")
    return dict(json.loads(file.read_text()))
