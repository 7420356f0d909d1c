"""Sound synthesis: overtones in closed form, and a real voice."""

import shutil

import numpy as np
import pytest

from miniature.world.sounds import narration, overtones

HZ = 16_000


def test_overtones_are_sines():
    phase = np.linspace(0, 40, 1000)
    wanted = 0.5 * np.sin(phase) + 0.25 * np.sin(3 * phase)
    assert np.allclose(overtones(phase, [0.5, 0.0, 0.25]), wanted)


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_espeak_narrates_all_the_time():
    spoken = narration("espeak-ng", 6.0, HZ, np.random.default_rng(0))
    assert spoken.shape == (6 * HZ,) and np.isfinite(spoken).all()
    loud = np.abs(spoken).reshape(6, HZ).max(axis=1)
    assert (loud > 0.1 * loud.max()).all(), "somebody talks in every second"
    again = narration("espeak-ng", 6.0, HZ, np.random.default_rng(0))
    assert (spoken == again).all() and not (spoken == narration("espeak-ng", 6.0, HZ, np.random.default_rng(1))).all()
