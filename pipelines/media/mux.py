"""Muxing of generated sound onto a clip's picture."""

from pathlib import Path

import ffmpeg
import numpy as np

from pipelines.media.faults import UnreadableSource
from pipelines.media.normalise import temporary_beside
from pipelines.media.process import Deadline, log_tail, run

MUX_DEADLINE_S = 60.0
AAC_BIT_RATE = "192k"


def mux(video: Path, audio: np.ndarray, audio_hz: int, out: Path) -> None:
    """Write `out`, an MP4 of the clip's own picture (stream copied) and `audio` as AAC, ready for streaming.

    audio: (N,) float32 mono in [-1, 1] at audio_hz; beyond is clipped. `out` appears complete or not at all.
    Raises ValueError for audio of another kind, UnreadableSource when the clip cannot be read.
    """
    if audio.ndim != 1 or audio.size == 0 or not np.isfinite(audio).all():
        raise ValueError(f"audio to mux has shape {audio.shape}; wanted (N,) finite mono samples, N > 0")
    samples = audio.astype("<f4").clip(-1.0, 1.0).tobytes()
    picture = ffmpeg.input(f"file:{video}", protocol_whitelist="file").video
    sound = ffmpeg.input("pipe:", format="f32le", ar=audio_hz, ac=1).audio
    with temporary_beside(out) as temporary:
        command = ffmpeg.output(
            picture, sound, str(temporary), f="mp4", movflags="+faststart", **{"c:v": "copy", "c:a": "aac"},
            **{"b:a": AAC_BIT_RATE},
        ).global_args("-hide_banner", "-nostats", "-loglevel", "level+warning")  # fmt: skip
        done = run(
            command.compile(overwrite_output=True),
            subject=video.name,
            deadline=Deadline(MUX_DEADLINE_S),
            stdin=samples,
        )
        if done.returncode != 0:
            raise UnreadableSource(
                f"{video.name}: no sound could be added ({log_tail(done.stderr, video) or 'no reason'}); "
                "wanted a clip written by normalise(): run stage clips again"
            )
        temporary.replace(out)
