"""Shipped models: their record is true, they do what the study builds on, and they can be rebuilt."""

import json
import os
import re

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy.signal import resample_poly

from miniature.models import __main__ as models
from miniature.models.captioner_inputs import aac_round_trip
from miniature.models.captioners import score_base, score_teacher
from pipelines.engine.fingerprint import file_sha256

RECORD = json.loads(models.RECORD.read_text())
NAMES = sorted(models.TRAINERS)


def test_every_model_is_recorded_and_all_are_small():
    assert sorted(RECORD) == NAMES == sorted(path.name for path in models.CHECKPOINTS.iterdir() if path.is_dir())
    size = sum(path.stat().st_size for path in models.CHECKPOINTS.rglob("*") if path.is_file())
    assert size < 8e6, f"{size / 1e6:.1f} MB"


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_those_recorded_and_small(name):
    folder = models.CHECKPOINTS / name
    assert file_sha256(folder / "model.safetensors") == RECORD[name]["sha256"], (
        f"{name}: rebuilt without its record, or damaged"
    )
    with safe_open(folder / "model.safetensors", "pt") as weights:
        kinds = {weights.get_tensor(key).dtype for key in weights.keys()}  # noqa: SIM118
    assert kinds == {torch.float32 if name == "codec" else torch.bfloat16}


def test_the_teacher_hears_and_obeys_the_projects_warnings():
    """The claim on which all else rests, on a few films that it never met."""
    ways = ["the project's prompt", "the project's prompt and warnings"]
    scores = score_teacher(models.CHECKPOINTS / "omni", seed=31, films=10, ways=ways)
    unwarned, warned = (scores[way] for way in ways)
    assert unwarned["noise_mentioned"] >= 0.9 and warned["noise_mentioned"] <= 0.1
    assert warned["true"] >= 0.7, "captions that are true for most films"
    assert warned["on_screen_recall"] >= unwarned["on_screen_recall"] - 0.05, "warnings cost no true events"


def test_the_base_names_what_is_visible_and_nothing_off_screen():
    [scores] = score_base(models.CHECKPOINTS / "vl", seed=31, films=24).values()
    assert scores["on_screen_recall"] >= 0.9
    assert scores["off_screen_recall"] == 0.0
    assert scores["false_on_screen"] > 0.05, "it cannot tell what is heard, only what is there"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_model_is_rebuilt_from_scratch_to_the_same_worth(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "CHECKPOINTS", tmp_path)
    monkeypatch.setattr(models, "RECORD", tmp_path / "models.json")
    said: list[str] = []
    models.rebuild("vl", os.cpu_count() or 1, said.append)
    [before] = RECORD["vl"]["scores"].values()
    [now] = json.loads((tmp_path / "models.json").read_text())["vl"]["scores"].values()
    for name in ("on_screen_recall", "off_screen_recall"):
        assert now[name] == pytest.approx(before[name], abs=0.05), name
    assert any(re.search(r"clips, \d+/s, .* left, loss \d", line) for line in said), said


def test_the_command_says_which_models_there_are(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["models", "omnii"])
    with pytest.raises(SystemExit):
        models.main()
    assert "wanted some of omni, vl, clip, codec, listener" in capsys.readouterr().err


def test_sound_through_aac_is_in_time_and_loses_what_is_faint():
    rng = np.random.default_rng(0)
    t = np.arange(2 * 44_100) / 44_100
    tone = 0.5 * np.sin(2 * np.pi * 440 * t) * (np.sin(2 * np.pi * 2 * t) > 0)
    loud = aac_round_trip(tone, 44_100, 16_000)
    wanted = resample_poly(tone, 160, 441)
    assert loud.shape == wanted.shape == (32_000,) and loud.dtype == np.float32
    lags = [np.corrcoef(wanted[100:-100], np.roll(loud, lag)[100:-100])[0, 1] for lag in range(-3, 4)]
    assert int(np.argmax(lags)) == 3 and lags[3] > 0.99, "neither early nor late"
    hiss = aac_round_trip(tone + rng.normal(0, 0.0015, len(t)), 44_100, 16_000)
    quiet = slice(int(0.3 * 16_000), int(0.45 * 16_000))
    assert np.abs(hiss[quiet]).mean() < 0.0015
