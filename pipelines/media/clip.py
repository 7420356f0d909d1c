"""Clip types: settings of the normaliser, and measured properties of the finished files."""

from dataclasses import dataclass

NORMALISER_VERSION = 2
"""Version in a clip's identity. Raise it when the same source and settings would give another result."""

NORMALISED_TAG = f"normalised clip v{NORMALISER_VERSION}: frame index is time"
"""Header comment of every clip, by which the reader recognises normalised files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NormaliserSettings:
    """Normaliser settings: the format of every clip of a run. Raises ValueError for invalid values."""

    duration_s: float = 8.0
    """Seconds kept of each source, from its first picture on."""
    fps: int = 25
    """Constant frame rate; duration_s * fps is a whole number."""
    long_side_px: int = 448
    """Longest side, even. Larger pictures are scaled down to it; smaller ones keep their size."""
    crf: int = 12
    """Constant rate factor of x264: 0 is lossless, about 12 near-lossless."""
    max_audio_hz: int = 48_000
    """Sound of a higher rate is resampled to this; other sound keeps its own rate."""
    require_audio: bool = True
    """True: a source without sound is an error."""

    def __post_init__(self) -> None:
        frames = self.duration_s * self.fps
        if round(frames) < 1 or abs(frames - round(frames)) > 1e-9:
            raise ValueError(f"duration_s: got {self.duration_s} at {self.fps} fps, wanted whole frames, at least 1")
        if self.long_side_px < 2 or self.long_side_px % 2:
            raise ValueError(f"long_side_px: got {self.long_side_px}, wanted an even number >= 2")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf: got {self.crf}, wanted 0 (lossless) to 51")
        if self.max_audio_hz < 1:
            raise ValueError(f"max_audio_hz: got {self.max_audio_hz}, wanted a sample rate such as 48000")

    @property
    def n_frames(self) -> int:
        return round(self.duration_s * self.fps)


@dataclass(frozen=True, slots=True)
class NormalisedClip:
    """Properties of a finished clip, measured from its files.

    Attributes:
        is_interlaced: the source was, and the clip is not.
        still_share: share of the clip in which the picture stands still for half a second or more.
        silent_share: share of the sound's samples that are digital silence, in all channels.
        peak: largest level of the sound, of 1.
        clipped_share: share of the sound's samples that are at full scale, in any channel.
        mono_from: what `read_audio` takes for mono: "mean", or "left" or "right" where the channels cancel.
    """

    duration_s: float
    fps: int
    n_frames: int
    width_px: int
    height_px: int
    has_audio: bool
    audio_hz: int | None
    audio_channels: int | None
    is_interlaced: bool
    still_share: float
    silent_share: float | None
    peak: float | None
    clipped_share: float | None
    mono_from: str | None
