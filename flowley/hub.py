"""Checkpoint folders in the hub's conventions: config.json, model.safetensors, README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowley.config import CONFIGS, NetworkConfig
from flowley.feature_spec import FeatureSpec

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FEATURES = "features"
"""Key of the feature specification in config.json."""

_CARD = """---
library_name: flowley
pipeline_tag: video-to-audio
tags: [video-to-audio, flow-matching]
---
# {model_type}, {millions:.1f} M parameters

Sound for silent video by flow matching. Each field of `config.json` is explained in its `about`.

| field | value |
|---|---|
{rows}

```python
from flowley.registry import load_network
network = load_network("path or id")
```
"""


def save(
    folder: Path, weights: dict[str, Tensor], config: NetworkConfig,
    *, n_parameters: int, features: FeatureSpec | None = None,
) -> None:  # fmt: skip
    """Writes the three files; `folder` is made where it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
    fields, about = config.to_dict(), config.field_docs()
    described = {"model_type": config.model_type, "n_parameters": n_parameters, **fields}
    described |= {} if features is None else {FEATURES: features.to_dict()}
    (folder / CONFIG).write_text(json.dumps({**described, "about": about}, indent=2) + "\n")
    rows = "\n".join(f"| `{name}` | `{value}` |" for name, value in fields.items())
    card = _CARD.format(model_type=config.model_type, millions=n_parameters / 1e6, rows=rows)
    (folder / CARD).write_text(card)


def _download(hub_id: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{hub_id!r} is neither a folder here nor a checkpoint the hub gives ({type(error).__name__}: {why})"
        ) from error


def load_features(path_or_id: str | Path, *, revision: str | None = None) -> FeatureSpec | None:
    """What the features of a folder's or hub id's network are made with; None where it does not say.

    Raises:
        ValueError: as `load`, or it says so in other words than `FeatureSpec`'s.
    """
    folder = _find(path_or_id, revision)
    values = _read_config(folder).get(FEATURES)
    return None if values is None else FeatureSpec.from_dict(values)


def load(path_or_id: str | Path, *, revision: str | None) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """Configuration and weights of a folder or, where no such folder exists, of a hub id.

    Raises:
        ValueError: a file is missing, damaged or not of a network of this package.
    """
    folder = _find(path_or_id, revision)
    values = _read_config(folder)
    model_type = values.pop("model_type", None)
    if model_type not in CONFIGS:
        raise ValueError(f"{folder / CONFIG}: model_type {model_type!r}, wanted one of {', '.join(CONFIGS)}")
    for described in ("n_parameters", "about", FEATURES):
        values.pop(described, None)
    config = CONFIGS[model_type].from_dict(values)
    try:
        return config, load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged ({error}): copy the checkpoint again") from error


def _find(path_or_id: str | Path, revision: str | None) -> Path:
    folder = Path(path_or_id)
    if not folder.is_dir():
        folder = _download(str(path_or_id), revision)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: wanted a folder written by save_pretrained")
    return folder


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / CONFIG).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / CONFIG} is not JSON ({error}): copy the checkpoint again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{folder / CONFIG} holds {type(values).__name__}, wanted an object: copy it again")
    return values
