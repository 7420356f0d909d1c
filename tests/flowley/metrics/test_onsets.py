"""Onsets of sounds whose beginnings are known, and their F1 against brute force."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowley.codecs.log_mel import LogMelCodec
from flowley.metrics.onsets import detect_onsets, onset_f1

TIMES_S = np.array([0.2, 0.5, 1.03, 1.9, 2.1, 2.9])


def sounds(kind: str, hz: int, noise: float, duration_s: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    wave = noise * rng.standard_normal(round(duration_s * hz))
    for start_s in TIMES_S:
        start = round(start_s * hz)
        t_s = np.arange(wave.size - start) / hz
        match kind:
            case "click":
                wave[start] += 0.8
            case "bell":
                wave[start:] += 0.4 * np.sin(2 * np.pi * 880 * t_s) * np.exp(-4 * t_s)
            case "burst":
                wave[start:] += 0.3 * rng.standard_normal(t_s.size) * np.exp(-15 * t_s)
    return wave


@pytest.mark.parametrize("hz", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("kind", ["click", "bell", "burst"])
@pytest.mark.parametrize("noise", [0.0, 1e-3, 1e-2])
def test_finds_known_onsets(kind: str, hz: int, noise: float) -> None:
    found_s = detect_onsets(sounds(kind, hz, noise), hz)
    assert len(found_s) == len(TIMES_S), f"{kind} at {hz} Hz, noise {noise}: {found_s}, wanted {TIMES_S}"
    np.testing.assert_allclose(found_s, TIMES_S, atol=0.025)


@pytest.mark.parametrize("level", [1e-4, 1e-2, 0.3])
def test_steady_sound_and_silence_have_none(level: float) -> None:
    hz = 16_000
    t_s = np.arange(8 * hz) / hz
    assert detect_onsets(np.zeros(8 * hz), hz).shape == (0,)
    assert detect_onsets(level * np.sin(2 * np.pi * 440 * t_s), hz).size == 0
    assert detect_onsets(level * np.random.default_rng(1).standard_normal(t_s.size), hz).size == 0
    assert detect_onsets(np.full(10, level), hz).size == 0


@pytest.mark.parametrize("kind", ["bell", "burst"])
def test_flutter_of_a_griffin_lim_reconstruction_is_no_onset(kind: str) -> None:
    codec = LogMelCodec()
    wave = torch.tensor(sounds(kind, codec.audio_hz, 1e-2), dtype=torch.float32)
    decoded = codec.decode(codec.encode(wave[None])[0])[0].numpy()
    found_s = detect_onsets(decoded, codec.audio_hz)
    assert onset_f1(found_s, TIMES_S) >= 0.8, f"{found_s}, wanted {TIMES_S}"


def test_f1_of_small_cases() -> None:
    empty, one = np.array([]), np.array([1.0])
    assert onset_f1(empty, empty) == 1
    assert onset_f1(one, empty) == onset_f1(empty, one) == 0
    assert onset_f1(np.array([1.1]), one) == 1, "the tolerance itself is within"
    assert onset_f1(np.array([1.11]), one) == 0
    assert onset_f1(np.array([0.95, 1.05]), one) == pytest.approx(2 / 3), "one original counts once"
    # Nearest-first would pair 1.08 with 1.05 and leave 1.16 and 1.0 alone.
    assert onset_f1(np.array([1.08, 1.16]), np.array([1.0, 1.09])) == 1
    assert onset_f1(np.array([1.4]), one, tolerance_s=0.5) == 1


onset_lists = st.lists(st.integers(0, 40).map(lambda ticks: ticks / 20), max_size=4, unique=True)


@settings(max_examples=60, deadline=None)
@given(onset_lists, onset_lists)
def test_f1_matches_as_many_as_any_assignment(generated: list[float], original: list[float]) -> None:
    few, many = sorted((generated, original), key=len)
    best = max(
        size
        for size in range(len(few) + 1)
        for chosen in combinations(few, size)
        for partners in permutations(many, size)
        if all(abs(a - b) <= 0.1 + 1e-9 for a, b in zip(chosen, partners, strict=True))
    )
    total = len(few) + len(many)
    assert onset_f1(np.array(generated), np.array(original)) == pytest.approx(2 * best / total if total else 1)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="finite times"):
        onset_f1(np.array([np.nan]), np.array([1.0]))
    with pytest.raises(ValueError, match="original onsets of shape"):
        onset_f1(np.array([1.0]), np.ones((1, 1)))
    with pytest.raises(ValueError, match="tolerance_s -1"):
        onset_f1(np.array([1.0]), np.array([1.0]), tolerance_s=-1)
