"""What ffmpeg said while it decoded: the evidence on which a source is called damaged or silent."""

import re
from dataclasses import dataclass
from pathlib import Path

from pipelines.media.probe import AudioStream, VideoStream
from pipelines.media.process import Finished, log_tail

# These three come from ffmpeg itself, for every codec alike, and mean lost data. What demuxers and decoders
# complain of beside them (odd edit lists, unordered references) may be harmless and is not evidence.
_DAMAGE = re.compile(
    r"(?:Error while decoding stream #0:|corrupt (?:decoded frame|input packet) in stream )(\d+)"
)
_SOUND = re.compile(r"ashowinfo.* n:(\d+) .*pts_time:(\S+) .*channels:(\d+) .*rate:(\d+) nb_samples:(\d+)")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Counts of lost data by stream, and the stretch of sound that was really there.

    sound_start_s, sound_end_s: on the clip's clock (0 = first picture), before padding; None: no sound.
    format_changes: how often the sound changed its rate or channels on the way.
    """

    returncode: int
    damaged_video: int
    damaged_audio: int
    sound_start_s: float | None
    sound_end_s: float | None
    format_changes: int
    complaint: str

    @property
    def has_sound(self) -> bool:
        """Whether any sound falls into the clip."""
        return self.sound_end_s is not None and self.sound_end_s > 0.0


def read_evidence(done: Finished, source: Path, video: VideoStream, audio: AudioStream | None) -> Evidence:
    """Parse the log of one normalising command (levels on, ashowinfo before padding)."""
    damaged = [int(index) for index in _DAMAGE.findall(done.stderr)]
    sounds = _SOUND.findall(done.stderr)
    starts = [float(start) for _, start, *_ in sounds]
    ends = [float(start) + int(n) / int(hz) for _, start, _, hz, n in sounds]
    restarts = sum(number == "0" for number, *_ in sounds)
    return Evidence(
        returncode=done.returncode,
        damaged_video=damaged.count(video.index),
        damaged_audio=0 if audio is None else damaged.count(audio.index),
        sound_start_s=min(starts, default=None),
        sound_end_s=max(ends, default=None),
        format_changes=max(0, restarts - 1),
        complaint=log_tail(done.stderr, source),
    )
