"""What ffmpeg said while it decoded: the evidence on which a source is called damaged or silent."""

import re
from dataclasses import dataclass
from pathlib import Path

from pipelines.media.probe import AudioStream, VideoStream
from pipelines.media.process import Finished, log_tail

# These three come from ffmpeg itself, for every codec alike, and mean lost data. What demuxers and decoders
# complain of beside them (odd edit lists, unordered references) may be harmless and is not evidence.
_DAMAGE = re.compile(r"(?:Error while decoding stream #0:|corrupt (?:decoded frame|input packet) in stream )(\d+)")
_PICTURE_FILTERS = re.compile(r"showinfo.* config in time_base")
_SOUND = re.compile(r"ashowinfo.* n: *\d+ .*pts_time:(\S+) .*rate:(\d+) nb_samples:(\d+)")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Counts of lost data by stream, and the stretch of sound that was really there.

    sound_start_s, sound_end_s: on the clip's clock (0 = first picture), before padding; None: no sound.
    restarts: how often ffmpeg set its filters up anew as picture or sound changed its format; what
    follows a restart is misplaced in time.
    """

    returncode: int
    damaged_video: int
    damaged_audio: int
    sound_start_s: float | None
    sound_end_s: float | None
    restarts: int
    complaint: str

    @property
    def has_sound(self) -> bool:
        """Whether any sound falls into the clip."""
        return self.sound_end_s is not None and self.sound_end_s > 0.0


def read_evidence(done: Finished, source: Path, video: VideoStream, audio: AudioStream | None) -> Evidence:
    """Parse the log of one normalising command (levels on, ashowinfo before padding)."""
    damaged = [int(index) for index in _DAMAGE.findall(done.stderr)]
    sounds = _SOUND.findall(done.stderr)
    starts = [float(start) for start, *_ in sounds]
    ends = [float(start) + int(n) / int(hz) for start, hz, n in sounds]
    return Evidence(
        returncode=done.returncode,
        damaged_video=damaged.count(video.index),
        damaged_audio=0 if audio is None else damaged.count(audio.index),
        sound_start_s=min(starts, default=None),
        sound_end_s=max(ends, default=None),
        restarts=max(0, len(_PICTURE_FILTERS.findall(done.stderr)) - 1),
        complaint=log_tail(done.stderr, source),
    )
