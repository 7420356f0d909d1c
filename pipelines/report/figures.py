"""Figures of the report: loss curves as SVG, spectrograms as PNG, clips and sounds small enough to lie in a page."""

from __future__ import annotations

import base64
import io
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ffmpeg
import numpy as np
from markupsafe import Markup

from pipelines.media.faults import UnreadableSource
from pipelines.media.process import Deadline, log_tail, run

WIDTH_PX, HEIGHT_PX = 640, 240
LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 52, 12, 12, 34
WINDOW_S, HOP_S = 0.04, 0.01
RANGE_DB = 80.0
FIGURE_INCHES, FIGURE_DPI = (4.0, 1.9), 96


def loss_curve(points: Sequence[Mapping[str, Any]]) -> Markup:
    """Inline SVG of loss over steps. points: {"step", "loss"} in order; a loss that is not finite is left out."""
    curve = [(float(p["step"]), float(p["loss"])) for p in points if math.isfinite(p["loss"])]
    if not curve:
        return Markup('<p class="note">No finite loss was recorded.</p>')
    steps, losses = [step for step, _ in curve], [loss for _, loss in curve]
    x_ticks, y_ticks = _ticks(min(steps), max(steps)), _ticks(min(losses), max(losses))
    x_low, x_high = min(*steps, x_ticks[0]), max(*steps, x_ticks[-1])
    y_low, y_high = min(*losses, y_ticks[0]), max(*losses, y_ticks[-1])

    def x_px(step: float) -> float:
        return LEFT_PX + (step - x_low) / ((x_high - x_low) or 1) * (WIDTH_PX - LEFT_PX - RIGHT_PX)

    def y_px(loss: float) -> float:
        return HEIGHT_PX - BOTTOM_PX - (loss - y_low) / ((y_high - y_low) or 1) * (HEIGHT_PX - TOP_PX - BOTTOM_PX)

    floor, right = HEIGHT_PX - BOTTOM_PX, WIDTH_PX - RIGHT_PX
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" role="img" aria-label="loss over steps">']
    for tick in y_ticks:
        y = y_px(tick)
        parts.append(f'<line class="grid" x1="{LEFT_PX}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT_PX - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        parts.append(f'<text x="{x_px(tick):.1f}" y="{floor + 16}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{right}" y="{HEIGHT_PX - 3}" text-anchor="end">step</text>')
    path = " ".join(f"{x_px(step):.1f},{y_px(loss):.1f}" for step, loss in curve)
    parts.append(f'<polyline points="{path}"/>')
    last_step, last_loss = curve[-1]
    parts.append(f'<circle cx="{x_px(last_step):.1f}" cy="{y_px(last_loss):.1f}" r="3.5"/></svg>')
    return Markup("".join(parts))


def _ticks(low: float, high: float) -> list[float]:
    """Up to six round numbers that enclose low..high but for less than one interval at the ends."""
    if low == high:
        return [low]
    rough = (high - low) / 4
    magnitude: float = 10.0 ** math.floor(math.log10(rough))
    interval = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough)
    first = math.ceil(low / interval - 1e-9)
    last = math.floor(high / interval + 1e-9)
    return [round(i * interval, 12) for i in range(first, last + 1)] or [low, high]


def spectrograms(waves: Sequence[np.ndarray], hz: int) -> list[bytes]:
    """PNG spectrograms of waveforms (N,) at hz on one scale of level, so that they can be compared.

    Levels are shown over RANGE_DB below the loudest one's peak.
    """
    levels = [_power(samples, hz) for samples in waves]
    peak = max(float(level.max()) for level in levels)
    peak_db = 10 * math.log10(peak) if peak > 0 else 0.0
    return [_draw(level, hz, peak_db) for level in levels]


def _power(samples: np.ndarray, hz: int) -> np.ndarray:
    """Power (frequencies, times) of Hann windows."""
    from scipy.signal import stft

    window = round(WINDOW_S * hz)
    padded = np.pad(samples, (0, max(0, window - len(samples))))
    _, _, values = stft(padded, hz, nperseg=window, noverlap=window - round(HOP_S * hz))
    power: np.ndarray = np.abs(values) ** 2
    return power


def _draw(power: np.ndarray, hz: int, peak_db: float) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    floor_db = peak_db - RANGE_DB
    level_db = 10 * np.log10(np.maximum(power, 10 ** (floor_db / 10)))
    figure = Figure(figsize=FIGURE_INCHES, dpi=FIGURE_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    extent = (0.0, power.shape[1] * HOP_S, 0.0, hz / 2000)
    axes.imshow(level_db, origin="lower", aspect="auto", extent=extent, vmin=floor_db, vmax=peak_db, cmap="magma")
    axes.set_xlabel("s", fontsize=8)
    axes.set_ylabel("kHz", fontsize=8)
    axes.tick_params(labelsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


# --- clips and sounds ---------------------------------------------------------------------------------------

PLAYER_LONG_SIDE_PX = 320
PLAYER_CRF = 28
PLAYER_SOUND = "80k"
DEADLINE_S = 60.0
_QUIET = ("-hide_banner", "-nostats", "-loglevel", "level+warning")


def player(video: Path, audio: Path | None) -> str:
    """`data:` URI of a small MP4: the picture of `video`, the sound of `audio` (None: the video's own).

    Raises UnreadableSource for a file that is missing or that ffmpeg cannot read.
    """
    picture = _input(video).video.filter(
        "scale",
        f"min({PLAYER_LONG_SIDE_PX},iw)",
        f"min({PLAYER_LONG_SIDE_PX},ih)",
        force_original_aspect_ratio="decrease",
        force_divisible_by=2,
    )
    with tempfile.TemporaryDirectory(prefix="soundcap-player-") as folder:
        out = Path(folder) / "player.mp4"
        settings: dict[str, Any] = {
            "c:v": "libx264", "crf": PLAYER_CRF, "pix_fmt": "yuv420p", "c:a": "aac", "b:a": PLAYER_SOUND,
            "movflags": "+faststart", "threads": 1,
        }  # fmt: skip
        sound = _input(audio if audio is not None else video)["a:0?"]
        _run(ffmpeg.output(picture, sound, str(out), **settings), video)
        return data_uri("video/mp4", out.read_bytes())


def sound_player(audio: Path) -> str:
    """`data:` URI of a small M4A of a sound file. Raises as `player`."""
    with tempfile.TemporaryDirectory(prefix="soundcap-player-") as folder:
        out = Path(folder) / "player.m4a"
        settings: dict[str, Any] = {"c:a": "aac", "b:a": PLAYER_SOUND, "movflags": "+faststart", "threads": 1}
        _run(ffmpeg.output(_input(audio).audio, str(out), **settings), audio)
        return data_uri("audio/mp4", out.read_bytes())


def video_sound(video: Path, hz: int) -> np.ndarray:
    """The sound inside an MP4, mixed to mono at hz: (N,) float32. Raises UnreadableSource."""
    stdout = _run(_input(video).audio.output("pipe:", format="f32le", ac=1, ar=hz), video)
    return np.frombuffer(stdout, dtype="<f4")


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _input(file: Path) -> Any:
    return ffmpeg.input(f"file:{file}", protocol_whitelist="file")


def _run(output: Any, file: Path) -> bytes:
    done = run(
        output.global_args(*_QUIET).compile(overwrite_output=True),
        subject=file.name,
        deadline=Deadline(DEADLINE_S),
    )
    if done.returncode != 0:
        reason = log_tail(done.stderr, file) or "no reason given"
        raise UnreadableSource(f"{file.name}: cannot be shown ({reason}); wanted a clip of the store")
    return done.stdout
