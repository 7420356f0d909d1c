"""Readers of weights from a folder: tensors by name, their fit, models of other libraries.

Every error is one ValueError line that names the file, what was wanted and what to do; nothing in a file is executed.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from flowley.hub import one_line

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
"""File of this package's networks, the log-mel PCA codec and transformers' models."""
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
Shape = tuple[int, ...]

UNREADABLE = (
    OSError, RuntimeError, ValueError, TypeError, EOFError, KeyError, pickle.UnpicklingError, SafetensorError,
)  # fmt: skip
"""Errors of torch, safetensors, diffusers and transformers for a damaged file."""


def find_file(folder: Path, name: str, *, below: Sequence[str] = (), wanted: str) -> Path:
    """`name` in the folder, or in one of the folders `below` it. Raises ValueError where it is in none."""
    for file in (folder / name, *(folder / sub / name for sub in below)):
        if file.is_file():
            return file
    deeper = next((file.parent for depth in ("*", "*/*") for file in sorted(folder.glob(f"{depth}/{name}"))), None)
    raise ValueError(f"{folder} has no {name}: wanted {wanted}" + (f"; did you mean {deeper}?" if deeper else ""))


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError where the file is unreadable or holds something else."""
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON ({one_line(error)}): fetch it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds a {type(values).__name__}, wanted the JSON object of a model's configuration")
    return values


def read_tensors(file: Path, *, within: str | None = None) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of one that `torch.save` wrote, by name; float32 on the CPU.

    `within` is the key under which a file of torch holds them.

    Raises:
        ValueError: not a file, unreadable, or not a dictionary of tensors.
    """
    if not file.is_file():
        raise ValueError(f"{file} is not a file: wanted a checkpoint, .pth, .pt or .safetensors")
    try:
        state: Any = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        said = "it is not a file of tensors alone, as torch.save writes"
        raise ValueError(f"{file} cannot be read as weights ({said}): fetch it again") from error
    except UNREADABLE as error:
        raise ValueError(f"{file} cannot be read as weights ({one_line(error)}): fetch it again") from error
    if within is not None and isinstance(state, dict):
        state = state.get(within)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        where = f" under {within!r}" if within else ""
        keys = f" of {', '.join(map(str, list(state)[:5]))}" if isinstance(state, dict) else ""
        raise ValueError(
            f"{file} holds no dictionary of tensors{where}, but a {type(state).__name__}{keys}: "
            "is it the file of another model?"
        )
    return {name: value.float() for name, value in state.items()}


def shapes(state: dict[str, Tensor]) -> dict[str, Shape]:
    """Shapes by name."""
    return {name: tuple(value.shape) for name, value in state.items()}


def require_fit(found: dict[str, Shape], wanted: dict[str, Shape], *, source: str, what: str) -> None:
    """Passes tensors that are just those wanted; `source` and `what`, the model, are words for the error.

    Raises:
        ValueError: one is missing, superfluous or of another shape; the message counts them and names the first.
    """
    wrong = [f"{name} is missing" for name in wanted if name not in found]
    wrong += [f"{name} is not one of its weights" for name in found if name not in wanted]
    wrong += [f"{n} is {found[n]}, wanted {shape}" for n, shape in wanted.items() if n in found and found[n] != shape]
    if wrong:
        raise ValueError(f"{source} is not {what}: {len(wrong)} of its weights misfit: {'; '.join(wrong[:3])}")


def fill(module: nn.Module, state: dict[str, Tensor], *, source: str, what: str) -> None:
    """Loads every weight of `module`, and nothing else, from `state`.

    Raises:
        ValueError: see `require_fit`.
    """
    require_fit(shapes(state), shapes(module.state_dict()), source=source, what=what)
    module.load_state_dict(state, assign=True)


def class_of(config: Path) -> str:
    """The class that a config.json names: diffusers' `_class_name`, else transformers' first architecture."""
    values = read_json(config)
    named = values.get("_class_name") or next(iter(values.get("architectures") or ()), None)
    return str(named or "model without a name")


def load_model(folder: Path, kind: str, weights: str, *, wanted: str) -> Any:
    """The model of class `kind` in a folder of diffusers or transformers, in float32, every weight from its file.

    `weights` is `DIFFUSERS_WEIGHTS` or `WEIGHTS`, which decides the library; `wanted` the contents, for the error.

    Raises:
        ValueError: the weights are missing, unreadable or do not cover the model.
    """
    import diffusers
    import transformers

    find_file(folder, weights, wanted=wanted)
    source = diffusers if weights == DIFFUSERS_WEIGHTS else transformers
    try:
        model, info = getattr(source, kind).from_pretrained(
            folder, output_loading_info=True, use_safetensors=True, local_files_only=True
        )
    except UNREADABLE as error:
        raise ValueError(f"{folder / weights} cannot be read as {kind} ({one_line(error)}): fetch it again") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{folder / weights} lacks {len(missing)} weights of {kind} ({missing[0]}, ...)")
    return model.float()
