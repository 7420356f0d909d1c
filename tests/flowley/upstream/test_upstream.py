"""Recognition of published checkpoints by their keys, and errors for files of neither kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flowley.upstream import load_upstream


def not_there(_: Path) -> None:
    pass


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("<html>404</html>")


def code(path: Path) -> None:
    torch.save({"model": Path}, path)


def tensors_of_another(path: Path) -> None:
    save = save_file if path.suffix == ".safetensors" else torch.save
    save({"encoder.weight": torch.zeros(3)}, path)  # type: ignore[operator]


def training_state(path: Path) -> None:
    torch.save({"it": 3, "weights": {"a": torch.zeros(1)}}, path)


def a_list(path: Path) -> None:
    torch.save([torch.zeros(1)], path)


@pytest.mark.parametrize("name", ["x.pth", "x.pt", "x.safetensors"])
@pytest.mark.parametrize(
    ("write", "words"),
    [
        (not_there, "is not a file: wanted a checkpoint, .pth, .pt or .safetensors"),
        (empty, "cannot be read as weights"),
        (text, "cannot be read as weights"),
        (tensors_of_another, "1 tensors, 'encoder.weight', ...; wanted the state dict of an MMAudio"),
    ],
)
def test_files_that_are_neither(name: str, write: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    refused(tmp_path / name, write, words)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (code, "cannot be read as weights"),
        (training_state, "holds no dictionary of tensors, but a dict of it, weights"),
        (a_list, "holds no dictionary of tensors, but a list"),
    ],
)
def test_pickles_that_are_no_state_dict(write: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    refused(tmp_path / "x.pth", write, words)


def refused(path: Path, write: Callable[[Path], None], words: str) -> None:
    write(path)
    with pytest.raises(ValueError, match=words) as raised:
        load_upstream(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
