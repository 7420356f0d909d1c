"""Captioning requests, and the settings of their frames and answers."""

from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np

MIN_AUDIO_S = 0.05
"""Shorter sound yields no audio token (the audio encoder emits one per 40 ms)."""

_MAX_PEAK = 2.0


SEEDS = "[0, 9223372036854775000]"
"""Seeds that torch and vLLM take, and a little room for candidates."""


@dataclass(frozen=True, slots=True)
class CaptionRequest:
    """Decoded clip with its prompt. Raises ValueError for a field that does not hold what is described here."""

    prompt: str
    """Instruction including its warnings, already rendered; not blank."""
    frames: np.ndarray
    """(T, H, W, 3) uint8, RGB, T >= 1."""
    frames_fps: float
    """Rate at which these frames were sampled, in frames per second: frame k is at k / frames_fps seconds."""
    audio: np.ndarray | None
    """(N,) float32 mono at `audio_hz`, nominally in [-1, 1] (resampling may overshoot a little; a peak above
    2 is refused as not scaled); None for a silent video."""
    audio_hz: int = 16_000
    seed: int | None = None
    """Seed of its answer, >= 0; None: the sampling's."""

    def __post_init__(self) -> None:
        check_fields(self, seed=SEEDS)
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise ValueError(f"prompt: got {self.prompt!r}, wanted text that is not blank")
        _check_frames(self.frames)
        if not np.isfinite(self.frames_fps) or self.frames_fps <= 0:
            raise ValueError(f"frames_fps: got {self.frames_fps}, wanted a rate above 0 frames per second")
        if self.audio_hz <= 0:
            raise ValueError(f"audio_hz: got {self.audio_hz}, wanted a rate above 0 Hz")
        if self.audio is not None:
            _check_audio(self.audio, self.audio_hz)

    @property
    def duration_s(self) -> float:
        """Seconds of picture: T / frames_fps."""
        return len(self.frames) / self.frames_fps


@dataclass(frozen=True, slots=True)
class FrameSettings:
    """Sampling rate and size of the frames that a model gets of a clip. Raises ValueError for a field out of range."""

    fps: float = 2.0
    """Frames per second, > 0."""
    min_px: int = 128 * 28 * 28
    """Smallest area of a scaled frame in pixels, at least one patch of 28 x 28."""
    max_px: int = 256 * 28 * 28
    """Largest area of a scaled frame in pixels, >= `min_px`."""

    def __post_init__(self) -> None:
        check_fields(self, fps="(0, inf)", min_px=f"[{28 * 28}, inf)", max_px=f"[{self.min_px}, inf)")


@dataclass(frozen=True, slots=True)
class Sampling:
    """Decoding of an answer. Raises ValueError for a field out of range."""

    max_new_tokens: int = 96
    """Most tokens of an answer, >= 1."""
    temperature: float = 0.0
    """>= 0; 0 = greedy, whatever `top_p` and `seed`."""
    top_p: float = 1.0
    """Nucleus in (0, 1]."""
    repetition_penalty: float = 1.0
    """> 0; 1 = none."""
    seed: int = 0
    """>= 0. Seeds each request by itself; in vllm an answer may all the same depend on what shares its batch."""

    def __post_init__(self) -> None:
        ranges = {"max_new_tokens": "[1, inf)", "temperature": "[0, inf)", "top_p": "(0, 1]", "seed": SEEDS}
        check_fields(self, **ranges, repetition_penalty="(0, inf)")


def check_fields(settings: object, **ranges: str) -> None:
    """Refuse settings out of range.

    Args:
        settings: A dataclass. Fields of a `Literal` type must hold one of its values.
        ranges: Field to interval, such as "[0, 1)" or "(0, inf)". None in an optional field is in range.

    Raises:
        ValueError: the first field out of range: what was got and what was wanted.
    """
    for name, kind in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise ValueError(f"{name}: got {value!r}, wanted one of {', '.join(map(str, get_args(kind)))}")
    for name, interval in ranges.items():
        value = getattr(settings, name)
        low, high = interval[1:-1].split(", ")
        closed = {float(end) for end, mark in ((low, interval[0]), (high, interval[-1])) if mark in "[]"}
        if value is not None and not (float(low) < value < float(high) or value in closed):
            least = f"{'at least' if interval[0] == '[' else 'above'} {low}"
            raise ValueError(f"{name}: got {value!r}, wanted {least if high == 'inf' else f'a number in {interval}'}")


def _check_frames(frames: np.ndarray) -> None:
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        got = getattr(frames, "dtype", type(frames).__name__)
        raise ValueError(f"frames: got {got}, wanted a numpy array of uint8")
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames: got shape {frames.shape}, wanted (T, H, W, 3)")
    if 0 in frames.shape:
        raise ValueError(f"frames: got shape {frames.shape}, wanted at least one frame with pixels")


def _check_audio(audio: np.ndarray, audio_hz: int) -> None:
    if not isinstance(audio, np.ndarray) or audio.dtype != np.float32:
        got = getattr(audio, "dtype", type(audio).__name__)
        raise ValueError(f"audio: got {got}, wanted a numpy array of float32, or None for a silent video")
    if audio.ndim != 1:
        raise ValueError(f"audio: got shape {audio.shape}, wanted (N,): mix it down to mono")
    if len(audio) < MIN_AUDIO_S * audio_hz:
        raise ValueError(
            f"audio: got {len(audio)} samples ({len(audio) / audio_hz:.3f} s at {audio_hz} Hz), "
            f"wanted at least {MIN_AUDIO_S} s, or None for a silent video"
        )
    if not np.isfinite(audio).all():
        raise ValueError("audio: got samples that are not finite, wanted samples in [-1, 1]")
    if (peak := float(np.abs(audio).max())) > _MAX_PEAK:
        raise ValueError(f"audio: got a peak of {peak:.3g}, wanted samples in [-1, 1]: divide by full scale")
