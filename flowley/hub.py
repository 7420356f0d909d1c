"""Checkpoint folders in the hub's conventions: config.json, model.safetensors, README.md."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowley.config import FlowleyConfig

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"

_CARD = """---
library_name: flowley
pipeline_tag: video-to-audio
tags: [video-to-audio, flow-matching, psca]
---
# Flowley, {millions:.1f} M parameters

Sound for silent video by flow matching with Progressive Soft-masked Cross-Attention (PSCA).

| | |
|---|---|
| blocks | {N1} multi-stream, {N2} single-stream{tied}, width {D}, {heads} heads |
| rates | {r_a:g} audio latent frames and {r_v:g} video frames per second |
| channels | visual {visual_dim}, text {text_dim} (<= {max_text_tokens} tokens), audio latent {latent_dim} |
| PSCA | omega {omega}, delta {delta}, alignment `{alignment}`, alpha `{alpha}` |

```python
from flowley.model import Flowley
model = Flowley.from_pretrained("path or id")
```
"""


def save(folder: Path, weights: dict[str, Tensor], config: FlowleyConfig, *, n_parameters: int) -> None:
    """Writes the three files; `folder` is made where it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"model_type": "flowley", **config.to_dict()}, indent=2) + "\n")
    fields = config.to_dict() | {"r_a": float(config.r_a), "r_v": float(config.r_v)}
    tied = " (tied)" if config.tie_single_blocks else ""
    (folder / CARD).write_text(_CARD.format(**fields, tied=tied, millions=n_parameters / 1e6))


def load(path_or_id: str | Path, *, revision: str | None) -> tuple[FlowleyConfig, dict[str, Tensor]]:
    """Configuration and weights of a folder or, where no such folder exists, of a hub id.

    Raises:
        ValueError: a file is missing or is not a Flowley's.
    """
    folder = Path(path_or_id)
    if not folder.is_dir():
        folder = Path(snapshot_download(str(path_or_id), revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: wanted a folder written by Flowley.save_pretrained")
    values = json.loads((folder / CONFIG).read_text())
    if values.pop("model_type", None) != "flowley":
        raise ValueError(f'{folder / CONFIG} does not say "model_type": "flowley": another model\'s folder')
    return FlowleyConfig.from_dict(values), load_file(folder / WEIGHTS)
