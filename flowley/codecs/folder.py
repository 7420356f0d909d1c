"""Finds and reads the files of a codec, with one clear error for each thing that can be wrong with them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError)
"""What torch, safetensors, diffusers and transformers raise for a damaged file."""


def find_folder(path: str, revision: str | None, files: tuple[str, ...], contents: str) -> Path:
    """The local folder or, where no such folder exists, the downloaded `files` of that hub id at that revision.

    Raises:
        ValueError: neither a folder nor a repository that can be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    if Path(path).is_dir():
        return Path(path)
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=list(files)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path}: neither a folder nor a hub id to be had ({reason}); wanted {contents}") from error


def find_file(folder: Path, name: str, *, below: tuple[str, ...] = (), contents: str) -> Path:
    """`name` in the folder, or in one of the folders `below` it.

    Raises:
        ValueError: it is in none.
    """
    for file in (folder / name, *(folder / sub / name for sub in below)):
        if file.is_file():
            return file
    raise ValueError(f"{folder} has no {name}: wanted {contents}")


def read_config(file: Path) -> dict[str, Any]:
    """A config.json.

    Raises:
        ValueError: not a JSON object.
    """
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}): fetch it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds a {type(config).__name__}, wanted the JSON object of a model's config")
    return config


def read_weights(file: Path, *, within: str | None = None) -> dict[str, Tensor]:
    """The tensors that `torch.save` wrote, under the key `within` where one is given, as float32 on the CPU.

    Only tensors and plain containers are read (`weights_only`), so that a file cannot run code.

    Raises:
        ValueError: unreadable, or not a dictionary of tensors.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ValueError(f"{file} cannot be read as weights ({type(error).__name__}): fetch it again") from error
    if within is not None and isinstance(state, dict):
        state = state.get(within)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        where = f" under {within!r}" if within else ""
        raise ValueError(f"{file} holds no dictionary of tensors{where}: is it the file of another model?")
    return {name: value.float() for name, value in state.items()}


def fill(module: nn.Module, state: dict[str, Tensor], *, source: str, what: str) -> None:
    """Loads every weight of `module`, and nothing else, from `state`.

    Raises:
        ValueError: a weight is missing, superfluous or of another shape; the message counts and names them.
    """
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    both = sorted(wanted.keys() & found.keys())
    faults = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unknown": sorted(found.keys() - wanted.keys()),
        "misshapen": [f"{n}: {found[n]}, not {wanted[n]}" for n in both if found[n] != wanted[n]],
    }
    told = [f"{len(names)} {fault} (first: {names[0]})" for fault, names in faults.items() if names]
    if told:
        raise ValueError(f"{source} is not {what}: of its weights, {', '.join(told)}")
    module.load_state_dict(state, assign=True)
