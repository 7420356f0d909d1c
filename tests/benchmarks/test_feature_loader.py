"""The loader's benchmark at a small size: the promised JSON, what a clip weighs, and what is needed."""

from __future__ import annotations

import json
import os
import sys

import pytest

from benchmarks.feature_loader import main, need_clips_per_s


@pytest.mark.slow
def test_json_from_disk_and_object_store(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ)
    monkeypatch.setattr(sys, "argv", ["feature_loader", "--json", "--clips", "96", "--batch", "16"])
    main()
    first, *sources = json.loads(capsys.readouterr().out)
    assert first["clips"] == 96 and first["bytes_per_clip"] <= 200_000
    assert first["need_clips_per_s"] == round(need_clips_per_s())
    assert [row["source"] for row in sources] == ["local_cold", "local_warm", "s3_downloaded"]
    for row in sources:
        assert row["clips_per_s"] > 0 and row["floor_clips_per_s"] > 0 and row["times_need"] > 0
    assert sources[2]["download_clips_per_s"] > 0
    assert dict(os.environ) == before


def test_the_need_is_twice_what_an_h100_trains_on_at_45_percent() -> None:
    assert need_clips_per_s() == pytest.approx(2 * 0.45 * 989e12 / 161.4e9, rel=1e-3)
