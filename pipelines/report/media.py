"""Clips small enough to lie inside a page, and their sound as samples."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import Any

import ffmpeg
import numpy as np

from pipelines.media.errors import UnreadableSource
from pipelines.media.process import Deadline, log_tail, run

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
