"""Training settings: the learning rate over the steps, published recipes, values out of range."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from flowley.network.presets import PRESETS
from flowley.training.settings import RECIPES, TrainExecution, TrainSettings, clips_per_rank


def test_learning_rate_schedule() -> None:
    s = TrainSettings(steps=1, batch_size=1)
    assert s.learning_rate_at(0) == pytest.approx(1.5e-4 / 1001)
    assert s.learning_rate_at(1000) == s.learning_rate_at(179_999) == pytest.approx(1.5e-4)
    assert s.learning_rate_at(180_000) == pytest.approx(1.5e-5)
    assert s.learning_rate_at(300_000) == pytest.approx(1.5e-6)


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="drop_text = 1.5"):
        TrainSettings(steps=1, batch_size=1, drop_text=1.5)
    with pytest.raises(ValueError, match="log_every_steps = 0, wanted >= 1; sample_every_steps = -1, wanted >= 0"):
        TrainExecution(log_every_steps=0, sample_every_steps=-1)
    with pytest.raises(ValueError, match="batch_size = 4 over 3 workers, wanted a multiple"):
        clips_per_rank(4, 3)


def test_every_preset_has_a_recipe() -> None:
    assert RECIPES.keys() == PRESETS.keys()
    for name in PRESETS:
        assert TrainSettings(**RECIPES[name], steps=1, batch_size=1).steps == 1


def test_flowleys_recipe_is_the_default() -> None:
    s = TrainSettings(**RECIPES["flowley_169m"], steps=60_000, batch_size=512)
    assert s == TrainSettings(steps=60_000, batch_size=512)
    assert (s.timesteps, s.cosine_weight, s.assign_noise) == ("tangent", 0.5, True)
    assert (s.learning_rate, s.betas, s.weight_decay, s.clip_norm) == (1.5e-4, (0.9, 0.95), 1e-6, 1.0)
    assert (s.warmup_steps, s.decay_steps, s.decay_factor) == (1_000, (180_000, 300_000), 0.1)


def test_mmaudios_recipe() -> None:
    """Settings of MMAudio's published training configuration."""
    published = {
        "timesteps": "logit_normal", "cosine_weight": 0.0, "assign_noise": False, "drop_visual": 0.1,
        "drop_text": 0.1, "learning_rate": 1e-4, "betas": (0.9, 0.95), "adam_epsilon": 1e-6, "weight_decay": 1e-6,
        "warmup_steps": 1_000, "decay_steps": (240_000, 270_000), "decay_factor": 0.1, "clip_norm": 1.0,
        "ema_sigma_rel": 0.05,
    }  # fmt: skip
    s = asdict(TrainSettings(**RECIPES["mmaudio_small_16k"], steps=300_000, batch_size=512))
    assert {name: s[name] for name in published} == published
