"""Sound as a film's file keeps it: AAC leaves out what is faint, and a model that never heard that hears less."""

from __future__ import annotations

import ffmpeg
import numpy as np

from pipelines.media.process import Deadline, run

BIT_RATE = "128k"
PRIMING_SAMPLES = 1024
"""Of ffmpeg's AAC encoder, before the sound; an MP4 would say so, a bare stream does not."""
DEADLINE_S = 60.0


def as_recorded(samples: np.ndarray, hz: int, to_hz: int) -> np.ndarray:
    """Mono (N,) at hz, encoded, decoded and resampled: (N to_hz / hz,) float32."""
    raw = {"format": "f32le", "ac": 1}
    encode = ffmpeg.input("pipe:", ar=hz, **raw).output("pipe:", format="adts", **{"c:a": "aac", "b:a": BIT_RATE})
    coded = _piped(encode, samples.astype("<f4").tobytes())
    trimmed = ffmpeg.input("pipe:", format="aac").filter("atrim", start_sample=PRIMING_SAMPLES)
    decoded = np.frombuffer(_piped(trimmed.output("pipe:", ar=to_hz, **raw), coded), "<f4")
    return np.resize(decoded, round(len(samples) * to_hz / hz)).copy()


def _piped(stream: object, data: bytes) -> bytes:
    argv = [*ffmpeg.compile(stream), "-v", "error"]
    done = run(argv, subject="a film's sound", deadline=Deadline(DEADLINE_S), stdin=data)
    if done.returncode != 0:
        raise RuntimeError(f"ffmpeg could not keep a film's sound: {done.stderr}")
    return done.stdout
