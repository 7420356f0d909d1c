"""Tiny checkpoints and clips for the captioning tests."""

from pathlib import Path

import pytest

from soundcap.tiny import build_tiny_omni, build_tiny_vl


@pytest.fixture(scope="session")
def tiny_omni(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Qwen2.5-Omni checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoints") / "omni"
    build_tiny_omni(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def tiny_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Qwen2.5-VL checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoints") / "vl"
    build_tiny_vl(folder, seed=0)
    return folder
