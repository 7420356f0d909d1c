"""Codecs by configuration: names, paths, and what a mere import costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowley.codecs import CODECS, load_codec


def test_the_choices() -> None:
    assert CODECS == ("log_mel", "mmaudio_16k", "oobleck", "audioldm2", "log_mel_pca")
    with pytest.raises(ValueError, match="'encodec': wanted one of log_mel, mmaudio_16k, oobleck, audioldm2, log_mel_"):
        load_codec("encodec")


@pytest.mark.parametrize("name", CODECS[1:])
def test_a_path_is_required(name: str) -> None:
    with pytest.raises(ValueError, match=f"codec '{name}' needs path: a folder .*, or the hub id of one"):
        load_codec(name)


def test_log_mel_refuses_a_path() -> None:
    assert load_codec("log_mel", device="cpu").encode(torch.zeros(1, 512))[0].shape == (1, 1, 64)
    for given in ({"path": "x"}, {"revision": "main"}):
        with pytest.raises(ValueError, match="no weights: leave out path and revision"):
            load_codec("log_mel", **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/no/such/folder", "no-such-owner/no-such-repository", "not//an id"])
def test_neither_folder_nor_hub_id(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # the same path as an unknown id
    with pytest.raises(
        ValueError, match="(neither a folder nor a hub id|no folder, and the hub does not answer).*wanted a folder"
    ) as caught:
        load_codec("mmaudio_16k", path=path)
    assert "\n" not in str(caught.value)


def test_importing_is_light() -> None:
    heavy = "{'diffusers', 'transformers', 'torchaudio', 'huggingface_hub'}"
    code = f"import sys, flowley.codecs; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
