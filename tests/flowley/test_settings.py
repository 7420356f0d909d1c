"""Settings of a training: the learning rate over its steps, and what cannot be."""

from __future__ import annotations

import pytest

from flowley.settings import TrainExecution, TrainSettings


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
