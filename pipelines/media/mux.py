"""Muxing of generated sound onto a clip's picture."""

from pathlib import Path

import ffmpeg
import numpy as np

from pipelines.media.normalise import temporary_beside
from pipelines.media.probe import open_input
from pipelines.media.process import Deadline, run_ffmpeg

MUX_DEADLINE_S = 60.0
AAC_BIT_RATE = "192k"


def mux(video: Path, audio: np.ndarray, audio_hz: int, out: Path) -> None:
    """Writes `out`, an MP4 of the clip's own picture (stream copied) and `audio` as AAC, ready for streaming.

    audio: (N,) float32 mono in [-1, 1] at audio_hz; beyond is clipped. `out` is written atomically.
    Raises ValueError for other audio, UnreadableSource if the clip cannot be read.
    """
    if audio.ndim != 1 or audio.size == 0 or not np.isfinite(audio).all():
        raise ValueError(f"audio to mux has shape {audio.shape}; wanted (N,) finite mono samples, N > 0")
    sound = ffmpeg.input("pipe:", format="f32le", ar=audio_hz, ac=1).audio
    coding = {"c:v": "copy", "c:a": "aac", "b:a": AAC_BIT_RATE, "movflags": "+faststart"}
    with temporary_beside(out) as temporary:
        run_ffmpeg(
            ffmpeg.output(open_input(video).video, sound, f"file:{temporary}", f="mp4", **coding),
            video,
            Deadline(MUX_DEADLINE_S),
            fault="no sound could be added",
            wanted="a clip of the store; `soundcap fsck --repair`, then the next run makes it again",
            stdin=audio.astype("<f4").clip(-1.0, 1.0).tobytes(),
        )
        temporary.replace(out)
