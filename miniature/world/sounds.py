"""Mixing, overtones, and the sounds that no object of a film makes, as mono float64 samples at `hz`.

Narration comes from a synthetic voice without words, or from espeak-ng where the machine has it.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Sequence
from typing import Literal

import numpy as np

Voice = Literal["synthetic", "espeak-ng"]

VOWELS_HZ = ((700, 1220), (300, 2200), (500, 1750), (450, 850), (350, 750))
"""First two formants of five vowels."""

SENTENCES = (
    "Hello everybody, and welcome back to my channel.",
    "Today I am going to show you something special.",
    "Please subscribe and leave a comment below.",
    "As you can see, it is really quite simple.",
    "We bought this one last year on our holiday.",
    "Wait for it, the best part is still to come.",
)


def place(sounds: Sequence[tuple[float, np.ndarray]], duration_s: float, hz: int) -> np.ndarray:
    """Mix of (start_s, samples) in one track of duration_s."""
    track = np.zeros(round(duration_s * hz))
    for start_s, samples in sounds:
        first = round(start_s * hz)
        kept = samples[: max(0, len(track) - first)]
        track[first : first + len(kept)] += kept
    return track


def overtones(phase: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """A tone of running `phase` (N,) in radians and its overtones; levels[0] is that of the tone itself.

    sin((k + 1) p) follows from the two sines before it, so many overtones cost two sines.
    """
    twice_cos, below, now = 2 * np.cos(phase), np.zeros_like(phase), np.sin(phase)
    total = np.zeros_like(phase)
    for level in levels:
        total += level * now
        below, now = now, twice_cos * now - below
    return total


def music(duration_s: float, hz: int, rng: np.random.Generator) -> np.ndarray:
    """Broken chords of a soft organ, as under many films."""
    root_hz = 220 * 2 ** (rng.integers(-5, 5) / 12)
    beat_s = rng.uniform(0.28, 0.42)
    steps = np.array([[0, 4, 7, 12], [9, 12, 16, 21], [5, 9, 12, 17], [7, 11, 14, 19]])
    t = np.arange(round(1.2 * hz)) / hz
    notes = []
    for beat in range(int(duration_s / beat_s)):
        pitch_hz = root_hz * 2 ** (steps[beat // 4 % 4, beat % 4] / 12)
        tone = overtones(2 * np.pi * pitch_hz * t, [1.0, 0.25, 0.11])
        notes.append((beat * beat_s, tone * np.exp(-t / 0.4) * (1 - np.exp(-t / 0.01))))
    return place(notes, duration_s, hz)


def speaker(voice: Voice) -> str | None:
    """Path of the program that speaks; None for the synthetic voice. Raises ValueError if the machine lacks it."""
    if voice == "synthetic":
        return None
    program = shutil.which("espeak-ng")
    if program is None:
        raise ValueError("voice is espeak-ng, but there is no such program: install it, or choose the synthetic voice")
    return program


def narration(voice: Voice, duration_s: float, hz: int, rng: np.random.Generator) -> np.ndarray:
    """Somebody who talks all the time, read from `SENTENCES` or without words. Raises ValueError as `speaker` does."""
    program = speaker(voice)
    if program is None:
        return _synthetic_narration(duration_s, hz, rng)
    from scipy.io import wavfile
    from scipy.signal import resample_poly

    text = " ".join(rng.permutation(SENTENCES))
    speed, pitch = str(rng.integers(140, 190)), str(rng.integers(30, 70))
    spoken = subprocess.run([program, "--stdout", "-s", speed, "-p", pitch, text], capture_output=True, check=True)
    voice_hz, samples = wavfile.read(io.BytesIO(spoken.stdout))
    track = resample_poly(samples / 2**15, hz, voice_hz)
    return np.resize(track, round(duration_s * hz))


def _synthetic_narration(duration_s: float, hz: int, rng: np.random.Generator) -> np.ndarray:
    """A voice without words: syllables of gliding pitch through changing vowels, with pauses for breath."""
    syllables, now_s = [], 0.1
    while now_s < duration_s:
        length_s = rng.uniform(0.12, 0.26)
        t = np.arange(round(length_s * hz)) / hz
        pitch_hz = rng.uniform(100, 150) * (1 - 0.15 * t / length_s)
        phase = 2 * np.pi * np.cumsum(pitch_hz) / hz
        formants = VOWELS_HZ[rng.integers(len(VOWELS_HZ))]
        peaks = [sum(1 / (1 + ((k * 125 - f) / 120) ** 2) for f in formants) for k in range(1, 25)]
        voice = overtones(phase, [(0.02 + peak) / k**0.3 for k, peak in enumerate(peaks, 1)])
        syllables.append((now_s, voice * np.sin(np.pi * t / length_s) ** 0.5))
        now_s += length_s + (rng.uniform(0.3, 0.7) if rng.random() < 0.15 else 0.02)
    return place(syllables, duration_s, hz)


def birds(duration_s: float, hz: int, rng: np.random.Generator) -> np.ndarray:
    """Chirps in short phrases: quick sweeps around 3 kHz."""
    chirps, now_s = [], rng.uniform(0.0, 0.4)
    while now_s < duration_s:
        low_hz, high_hz = rng.uniform(2200, 3000), rng.uniform(3200, 4500)
        for _ in range(rng.integers(2, 6)):
            t = np.arange(round(rng.uniform(0.05, 0.1) * hz)) / hz
            glide = low_hz + (high_hz - low_hz) * t / t[-1]
            chirps.append((now_s, np.sin(2 * np.pi * np.cumsum(glide) / hz) * np.sin(np.pi * t / t[-1])))
            now_s += 0.13
        now_s += rng.uniform(0.2, 0.7)
    return place(chirps, duration_s, hz)


def waves(duration_s: float, hz: int, rng: np.random.Generator) -> np.ndarray:
    """Surf: bright noise that swells and ebbs slowly."""
    t = np.arange(round(duration_s * hz)) / hz
    swell = 0.25 + 0.75 * np.sin(np.pi * (t / rng.uniform(2.0, 3.0) + rng.random())) ** 2
    noise = rng.normal(0, 1, len(t))
    return np.asarray(swell * (noise + np.roll(noise, 1)) / 2)


def traffic(duration_s: float, hz: int, rng: np.random.Generator) -> np.ndarray:
    """Cars that pass at a distance: a dull rumble that comes and goes."""
    t = np.arange(round(duration_s * hz)) / hz
    blur = np.hanning(max(3, hz // 200))
    rumble = np.convolve(rng.normal(0, 1, len(t)), blur / np.linalg.norm(blur), mode="same")
    passing = sum(np.exp(-(((t - at) / 0.7) ** 2)) for at in np.arange(rng.uniform(0, 1.5), duration_s + 1, 1.7))
    return np.asarray(rumble * (0.3 + passing))


def clock(duration_s: float, hz: int, rng: np.random.Generator) -> np.ndarray:
    """A wall clock: dry ticks twice a second, the tock a little lower."""
    t = np.arange(round(0.03 * hz)) / hz
    first_s = rng.uniform(0, 0.5)
    ticks = [
        (float(at), np.sin(2 * np.pi * (2600, 2000)[k % 2] * t) * np.exp(-t / 0.004))
        for k, at in enumerate(np.arange(first_s, duration_s, 0.5))
    ]
    return place(ticks, duration_s, hz)
