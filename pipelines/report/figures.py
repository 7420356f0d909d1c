"""Figures of the report: loss curves and spectrograms as PNG, clips and sounds small enough to embed."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ffmpeg
import numpy as np

from pipelines.media.probe import open_input
from pipelines.media.process import Deadline, run_ffmpeg
from pipelines.scratch import scratch

WINDOW_S, HOP_S = 0.04, 0.01
RANGE_DB = 80.0
LOSS_INCHES, LOSS_DPI = (7.0, 2.6), 160
SPECTROGRAM_INCHES, SPECTROGRAM_DPI = (4.0, 1.9), 96


def loss_curve(points: Sequence[Mapping[str, Any]]) -> bytes:
    """Loss curve as PNG, finite losses over steps; empty if there are none. points: {"step", "loss"} in order."""
    curve = [(p["step"], p["loss"]) for p in points if math.isfinite(p["loss"])]
    if not curve:
        return b""
    figure, axes = _axes(LOSS_INCHES, LOSS_DPI, "step", "loss")
    axes.plot(*zip(*curve, strict=True), color="#2357c5", marker="o", markevery=[-1])
    axes.grid(axis="y", color="#dfe3ea")
    return _png(figure)


def spectrograms(waves: Sequence[np.ndarray], hz: int) -> list[bytes]:
    """PNG spectrograms of waveforms (N,) at hz on one scale of level, so that they can be compared.

    The scale spans RANGE_DB below the loudest peak.
    """
    levels = [_power(samples, hz) for samples in waves]
    peak = max(float(level.max()) for level in levels)
    peak_db = 10 * math.log10(peak) if peak > 0 else 0.0
    return [_draw(level, hz, peak_db) for level in levels]


def _power(samples: np.ndarray, hz: int) -> np.ndarray:
    """Power spectrogram (frequencies, times) with Hann windows."""
    from scipy.signal import stft

    window = round(WINDOW_S * hz)
    padded = np.pad(samples, (0, max(0, window - len(samples))))
    _, _, values = stft(padded, hz, nperseg=window, noverlap=window - round(HOP_S * hz))
    power: np.ndarray = np.abs(values) ** 2
    return power


def _draw(power: np.ndarray, hz: int, peak_db: float) -> bytes:
    floor_db = peak_db - RANGE_DB
    level_db = 10 * np.log10(np.maximum(power, 10 ** (floor_db / 10)))
    figure, axes = _axes(SPECTROGRAM_INCHES, SPECTROGRAM_DPI, "s", "kHz")
    extent = (0.0, power.shape[1] * HOP_S, 0.0, hz / 2000)
    axes.imshow(level_db, origin="lower", aspect="auto", extent=extent, vmin=floor_db, vmax=peak_db, cmap="magma")
    return _png(figure)


def _axes(inches: tuple[float, float], dpi: int, x_label: str, y_label: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, dpi=dpi, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label, fontsize=8)
    axes.set_ylabel(y_label, fontsize=8)
    axes.tick_params(labelsize=8)
    return figure, axes


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


# --- clips and sounds ---------------------------------------------------------------------------------------

PLAYER_LONG_SIDE_PX = 320
PICTURE_CODING = {"c:v": "libx264", "crf": 28, "pix_fmt": "yuv420p"}
SOUND_CODING = {"c:a": "aac", "b:a": "80k", "movflags": "+faststart", "threads": 1}
DEADLINE_S = 60.0


def player(video: Path, audio: Path | None) -> str:
    """`data:` URI of a small MP4: the picture of `video`, the sound of `audio` (None: the video's own).

    Raises UnreadableSource for a file that is missing or that ffmpeg cannot read.
    """
    picture = open_input(video).video.filter(
        "scale",
        f"min({PLAYER_LONG_SIDE_PX},iw)",
        f"min({PLAYER_LONG_SIDE_PX},ih)",
        force_original_aspect_ratio="decrease",
        force_divisible_by=2,
    )
    sound = open_input(audio or video)["a:0?"]
    return data_uri("video/mp4", _encoded([picture, sound], video, "player.mp4", PICTURE_CODING | SOUND_CODING))


def sound_player(audio: Path) -> str:
    """`data:` URI of a small M4A of a sound file. Raises as `player`."""
    return data_uri("audio/mp4", _encoded([open_input(audio).audio], audio, "player.m4a", SOUND_CODING))


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _encoded(streams: Sequence[Any], source: Path, name: str, coding: Mapping[str, Any]) -> bytes:
    with scratch("player") as folder:
        out = folder / name
        output = ffmpeg.output(*streams, str(out), **coding)
        run_ffmpeg(output, source, Deadline(DEADLINE_S), fault="cannot be shown", wanted="a clip of the store")
        return out.read_bytes()
