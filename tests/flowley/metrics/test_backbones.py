"""Backbones refuse folders that are not theirs; tests/miniature tests what the shipped ones measure."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowley.metrics.backbones import AlignmentClassifier, Listener


@pytest.mark.parametrize("config", [None, "{", "{}", '{"visual_dim": 4}'])
def test_folders_that_are_no_checkpoints(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="is not a checkpoint of the alignment classifier"):
        AlignmentClassifier(tmp_path)
    with pytest.raises(ValueError, match="is not an AST checkpoint"):
        Listener(tmp_path)
