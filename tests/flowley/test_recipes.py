"""A preset's recipe is its authors'; changes are checked by name and value."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from flowley.presets import PRESETS
from flowley.recipes import RECIPES, recipe
from flowley.settings import TrainSettings


def test_every_preset_has_a_recipe() -> None:
    assert RECIPES.keys() == PRESETS.keys()
    for name in PRESETS:
        assert recipe(name, steps=1, batch_size=1).steps == 1


def test_flowleys_recipe_is_the_default() -> None:
    s = recipe("flowley_169m", steps=60_000, batch_size=512)
    assert s == TrainSettings(steps=60_000, batch_size=512)
    assert (s.timesteps, s.cosine_weight, s.assign_noise) == ("tangent", 0.5, True)
    assert (s.learning_rate, s.betas, s.weight_decay, s.clip_norm) == (1.5e-4, (0.9, 0.95), 1e-6, 1.0)
    assert (s.warmup_steps, s.decay_steps, s.decay_factor) == (1_000, (180_000, 300_000), 0.1)


def test_mmaudios_recipe() -> None:
    """As its published training configuration has it."""
    published = {
        "timesteps": "logit_normal", "cosine_weight": 0.0, "assign_noise": False, "drop_visual": 0.1,
        "drop_text": 0.1, "learning_rate": 1e-4, "betas": (0.9, 0.95), "adam_epsilon": 1e-6, "weight_decay": 1e-6,
        "warmup_steps": 1_000, "decay_steps": (240_000, 270_000), "decay_factor": 0.1, "clip_norm": 1.0,
        "ema_sigma_rel": 0.05,
    }  # fmt: skip
    s = asdict(recipe("mmaudio_small_16k", steps=300_000, batch_size=512))
    assert {name: s[name] for name in published} == published


def test_changes_win() -> None:
    s = recipe("mmaudio_small_16k", steps=2, batch_size=1, assign_noise=True, decay_steps=[1])
    assert s.assign_noise and s.decay_steps == (1,) and s.timesteps == "logit_normal"


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("flowley", {"steps": 1, "batch_size": 1}, "preset 'flowley': wanted one of flowley_169m"),
        ("tiny", {"stpes": 1, "batch_size": 1}, "unknown field 'stpes'; did you mean steps?"),
        ("tiny", {"steps": 1, "batch_size": 1, "zzz": 0}, "unknown field 'zzz'; wanted one of steps, batch_size"),
        ("tiny", {"batch_size": 1}, "steps missing"),
        ("tiny", {}, "steps and batch_size missing"),
        ("tiny", {"steps": "many", "batch_size": 1}, "steps: got 'many'"),
        ("tiny", {"steps": 1, "batch_size": 1, "timesteps": "uniform"}, "timesteps: got 'uniform'"),
        ("tiny", {"steps": 1, "batch_size": 1, "drop_text": 2}, "drop_text = 2"),
    ],
)
def test_wrong_changes(name: str, changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        recipe(name, **changes)
    assert "\n" not in str(caught.value)
