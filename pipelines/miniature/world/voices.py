"""Who speaks over a film: a synthetic voice without words, or espeak-ng where the machine has it."""

from __future__ import annotations

import io
import shutil
import subprocess
from typing import Literal

import numpy as np

from pipelines.miniature.world import sounds

Voice = Literal["synthetic", "espeak-ng"]

_SENTENCES = (
    "Hello everybody, and welcome back to my channel.",
    "Today I am going to show you something special.",
    "Please subscribe and leave a comment below.",
    "As you can see, it is really quite simple.",
    "We bought this one last year on our holiday.",
    "Wait for it, the best part is still to come.",
)


def speaker(voice: Voice) -> str | None:
    """The program that speaks, None for the synthetic voice. Raises ValueError if the machine lacks it."""
    if voice == "synthetic":
        return None
    program = shutil.which("espeak-ng")
    if program is None:
        raise ValueError("voice is espeak-ng, but there is no such program: install it, or choose the synthetic voice")
    return program


def narration(voice: Voice, duration_s: float, hz: int, rng: np.random.Generator) -> np.ndarray:
    """(N,) mono samples of somebody talking all the time.

    Raises ValueError if espeak-ng is wanted and the machine lacks it.
    """
    program = speaker(voice)
    if program is None:
        return sounds.narration(duration_s, hz, rng)
    from scipy.io import wavfile
    from scipy.signal import resample_poly

    text = " ".join(rng.permutation(_SENTENCES))
    speed, pitch = str(rng.integers(140, 190)), str(rng.integers(30, 70))
    spoken = subprocess.run([program, "--stdout", "-s", speed, "-p", pitch, text], capture_output=True, check=True)
    voice_hz, samples = wavfile.read(io.BytesIO(spoken.stdout))
    track = resample_poly(samples / 2**15, hz, voice_hz)
    return np.resize(track, round(duration_s * hz))
