"""Media readers: frames and sound of clips that `normalise` wrote; sound of any file.

decord relies on the container's frame index, which is right only for files of constant rate without edit lists:
our own. It gets no other file (docs/decisions/media-ffmpeg-decord.md).
"""

from fractions import Fraction
from functools import lru_cache
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.media.clip import NORMALISED_TAG
from pipelines.media.faults import NoAudioStream, NotNormalised, UnreadableSource
from pipelines.media.probe import open_input, probe
from pipelines.media.process import Deadline, run_ffmpeg

HEADER_BYTES = 1 << 18
"""Bytes searched for the header's tag. The header comes first (faststart) and takes a few KiB for 8 s."""

CANCELLED = 0.01
"""Power of a mean, of that of the louder channel, below which two channels cancel; one channel alone has .25."""

FILTER_ZERO_CROSSINGS = 48
FILTER_KAISER_BETA = 10.0
"""Kaiser low-pass for resampling: some 100 dB attenuation beyond the Nyquist rate, flat up to 0.9 of it."""


def frame_indices(n_source_frames: int, source_fps: float, fps: float) -> list[int]:
    """Index of the source frame nearest to k / fps seconds, for each sampled frame k; ties go to the later.

    Exact integer arithmetic. Gives n_source_frames / source_fps * fps indices, rounded down.
    Raises ValueError when `fps` is not in (0, source_fps].
    """
    wanted, given = _exact_rate(fps), _exact_rate(source_fps)
    if not 0 < wanted <= given:
        raise ValueError(f"asked for {fps:g} fps of a clip of {source_fps:g} fps; ask for 0 < fps <= that")
    step = given / wanted
    n_frames = int(n_source_frames / step)
    return [(2 * k * step.numerator + step.denominator) // (2 * step.denominator) for k in range(n_frames)]


def read_frames(video: Path, fps: float) -> np.ndarray:
    """Frames of a normalised clip sampled at `fps`: (T, H, W, 3) uint8 RGB; T = duration * fps.

    Raises NotNormalised for a missing or foreign file, ValueError when `fps` exceeds the clip's own.
    """
    reader = _open_own(video)
    indices = frame_indices(len(reader), reader.get_avg_fps(), fps)
    frames: np.ndarray = reader.get_batch(indices).asnumpy()
    return frames


def read_audio(audio: Path, hz: int) -> np.ndarray:
    """Sound of a normalised clip, mixed to mono at `hz`: (N,) float32, N = duration * hz.

    Raises UnreadableSource for a missing or foreign file.
    """
    import soundfile

    try:
        samples, source_hz = soundfile.read(audio, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        missing = "no such file" if not audio.exists() else str(error)
        raise UnreadableSource(
            f"{audio.name}: {missing}; wanted a FLAC file of the store; `soundcap fsck --repair`, then the next "
            "run makes it again"
        ) from error
    return resample(mixed_down(samples)[0], source_hz, hz)


def decode_sound(file: Path, hz: int, deadline: Deadline) -> np.ndarray:
    """Sound of any media file, mixed to mono at `hz`: (N,) float32, N > 0.

    Raises UnreadableSource, NoAudioStream and DeadlineExceeded.
    """
    wanted = "a video with sound or a sound file"
    audio = probe(file, deadline).audio
    if audio is None:
        raise NoAudioStream(f"{file.name}: no sound could be read (no sound in it); wanted {wanted}")
    channels = min(2, audio.channels)
    output = open_input(file)[str(audio.index)].output("pipe:", format="f32le", ac=channels, ar=hz)
    wave = np.frombuffer(run_ffmpeg(output, file, deadline, fault="no sound could be read", wanted=wanted), "<f4")
    if wave.size == 0:
        raise NoAudioStream(f"{file.name}: no sound could be read (no sound in it); wanted {wanted}")
    return mixed_down(wave.reshape(-1, channels))[0]


def mixed_down(samples: np.ndarray) -> tuple[np.ndarray, str]:
    """Mono (N,) of samples (N, channels), and what it is: "mean", or the louder channel where two cancel.

    Recorders that invert one channel make sounds whose mean is silence.
    """
    channels = np.ascontiguousarray(samples.T)  # sums over a short inner axis take ten times as long
    mean = channels.mean(axis=0)
    if len(channels) != 2:
        return mean, "mean"
    power = [float(np.dot(channel, channel)) for channel in channels]
    if float(np.dot(mean, mean)) > CANCELLED * max(power) or not max(power):
        return mean, "mean"
    louder = int(np.argmax(power))
    return channels[louder], ("left", "right")[louder]


def resample(samples: np.ndarray, source_hz: int, hz: int) -> np.ndarray:
    """Resampled mono waveform: (N,) at source_hz -> (ceil(N * hz / source_hz),) float32 at hz, zero-phase."""
    from scipy.signal import resample_poly

    if source_hz == hz:
        return samples.astype(np.float32, copy=False)
    common = gcd(source_hz, hz)
    up, down = hz // common, source_hz // common
    resampled: np.ndarray = resample_poly(samples, up, down, window=_low_pass(up, down))
    return resampled.astype(np.float32, copy=False)


@lru_cache(maxsize=8)
def _low_pass(up: int, down: int) -> np.ndarray:
    from scipy.signal import firwin

    half_length = FILTER_ZERO_CROSSINGS * max(up, down)
    window = ("kaiser", FILTER_KAISER_BETA)
    taps: np.ndarray = firwin(2 * half_length + 1, 0.94 / max(up, down), window=window)
    return taps


def _exact_rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


def _open_own(video: Path) -> Any:  # decord has no types
    import decord

    try:
        with video.open("rb") as file:
            own = NORMALISED_TAG.encode() in file.read(HEADER_BYTES)
    except OSError as error:
        raise NotNormalised(f"{video.name}: {error.strerror}; wanted a clip: run stage clips") from error
    if not own:
        raise NotNormalised(
            f"{video.name}: not written by normalise() of this version; its frame index need not be time: "
            "normalise it first"
        )
    return decord.VideoReader(str(video), num_threads=1)
