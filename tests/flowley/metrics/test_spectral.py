"""Spectral measures on sounds whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from flowley.metrics import spectral

HZ = 16_000
T_S = np.arange(2 * HZ) / HZ
SINE = np.sin(2 * np.pi * 1000 * T_S) * (T_S > 0.5)
NOISE = 0.1 * np.random.default_rng(0).standard_normal(T_S.size)
SILENCE = np.zeros_like(T_S)


@pytest.mark.parametrize("hz", [8_000, 16_000, 44_100, 48_000])
def test_log_mel_puts_a_sine_into_its_band_at_its_time_and_level(hz: int) -> None:
    t_s = np.arange(2 * hz) / hz
    mel = spectral.log_mel_db(np.where(t_s > 1.0, np.sin(2 * np.pi * 1000 * t_s), 0.0), hz)
    hop_s = round(spectral.HOP_S * hz) / hz
    assert mel.shape == (1 + t_s.size // round(spectral.HOP_S * hz), spectral.N_BANDS)
    assert mel[: int(0.9 / hop_s)].max() == spectral.FLOOR_DB
    sounding = mel[int(1.2 / hop_s) : int(1.8 / hop_s)]
    assert 10 * np.log10((10 ** (sounding / 10)).sum(axis=1)).mean() == pytest.approx(0, abs=0.3)
    # The Slaney scale is linear at 200/3 Hz a mel up to 1 kHz = mel 15, then logarithmic: 27 mels per factor 6.4.
    top_mel = 15 + 27 * np.log(hz / 2 / 1000) / np.log(6.4)
    band = 15 / top_mel * (spectral.N_BANDS + 1) - 1
    assert abs(int(sounding.mean(axis=0).argmax()) - band) <= 1


def test_correlation() -> None:
    assert spectral.log_mel_correlation(NOISE, NOISE, HZ) == pytest.approx(1)
    assert spectral.log_mel_correlation(NOISE * SINE * 0.1, NOISE * SINE, HZ) > 0.8
    assert abs(spectral.log_mel_correlation(NOISE, SINE, HZ)) < 0.3
    assert spectral.log_mel_correlation(SINE, SINE[::-1].copy(), HZ) < 0.95, "time must matter"
    assert spectral.log_mel_correlation(SILENCE, SILENCE, HZ) == 1
    assert spectral.log_mel_correlation(SILENCE, NOISE, HZ) == 0


def test_log_mel_distance_of_a_gain_is_the_gain() -> None:
    assert spectral.log_mel_distance_db(NOISE, NOISE, HZ) == 0
    assert spectral.log_mel_distance_db(NOISE / 2, NOISE, HZ) == pytest.approx(20 * np.log10(2), abs=1e-6)


def test_stft_distance_orders_by_damage_and_is_finite_in_silence() -> None:
    def distance(g: np.ndarray, o: np.ndarray) -> float:
        return spectral.multi_resolution_stft_distance(g, o, HZ)

    assert distance(SINE, SINE) == 0
    assert 0 < distance(SINE + 0.01 * NOISE, SINE) < distance(SINE + NOISE, SINE)
    assert distance(SILENCE, SILENCE) == 0
    # Every magnitude clearly above the floor: halving costs ln 2 plus a small linear part.
    assert distance(NOISE / 2, NOISE) == pytest.approx(np.log(2), abs=0.02)
    assert np.isfinite(distance(NOISE, SILENCE))


def test_loudness() -> None:
    assert spectral.loudness_difference_db(NOISE / 10, NOISE, HZ) == pytest.approx(-20)
    assert spectral.loudness_difference_db(SILENCE, SILENCE, HZ) == 0
    expected = 20 * np.log10(np.sqrt(np.mean(NOISE**2)) / spectral.SILENCE_RMS)
    assert spectral.loudness_difference_db(NOISE, SILENCE, HZ) == pytest.approx(expected)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="cut or pad them"):
        spectral.log_mel_distance_db(NOISE[:-1], NOISE, HZ)
    with pytest.raises(ValueError, match="mono"):
        spectral.log_mel_db(np.zeros((2, 100)), HZ)
    with pytest.raises(ValueError, match="mono"):
        spectral.log_mel_db(np.zeros(0), HZ)
    with pytest.raises(ValueError, match="first at 7"):
        spectral.log_mel_db(np.where(np.arange(10) >= 7, np.inf, 0.0), HZ)
    with pytest.raises(ValueError, match="4000 Hz"):
        spectral.log_mel_db(NOISE, 4_000)


def test_a_single_sample_is_a_sound() -> None:
    assert spectral.log_mel_db(np.ones(1), HZ).shape == (1, spectral.N_BANDS)
