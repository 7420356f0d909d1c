"""Normalisation of any source to a clip: frame k is shown at k / fps seconds, sample n sounds at n / hz.

t = 0 is the first picture a player would show; sound keeps its place against the picture: earlier sound is
cut, missing sound is silence. docs/decisions/media-ffmpeg-decord.md tells why.
"""

from __future__ import annotations

import errno
import json
import re
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from pipelines.media.clip import NormalisedClip, NormaliserSettings
from pipelines.media.command import normalising_command
from pipelines.media.faults import ChangingSource, DamagedSource, MediaError, NoAudioStream, TooShort
from pipelines.media.probe import Source
from pipelines.media.process import Deadline, Finished, log_tail, run

AUDIO_DAMAGE_FORGIVEN = 2
"""Tolerated number of undecodable sound packets: a cut often starts inside one; two last some 50 ms."""


def normalise(
    source: Source,
    video_out: Path | None,
    audio_out: Path | None,
    settings: NormaliserSettings,
    *,
    deadline: Deadline,
) -> NormalisedClip:
    """Writes the first `duration_s` of a source as H.264 MP4 (`video_out`), FLAC (`audio_out`), or both.

    Each file is written atomically; without sound there is no `audio_out`. A stream whose file is None is not
    decoded, so its faults are not found.

    Raises:
        MediaError: names every fault found, in the class of the most fundamental one.
        OSError: no space left.
    """
    with _temporary(video_out) as video_tmp, _temporary(audio_out) as audio_tmp:
        command = normalising_command(source, settings, video_out=video_tmp, audio_out=audio_tmp)
        done = run(command, subject=source.name, deadline=deadline)
        if "No space left on device" in done.stderr:
            raise OSError(errno.ENOSPC, "no space left for a clip; free some, then run again", source.name)
        log = read_log(done, source)
        n_frames, width_px, height_px = settings.n_frames, 0, 0
        if video_tmp is not None:
            n_frames, width_px, height_px = _measure_video(video_tmp, deadline)
        faults = _faults(source, settings, log, n_frames, wants_sound=settings.require_audio and audio_out is not None)
        if faults:
            raise faults[0][0](_complain(source, settings, [text for _, text in faults]))
        audio_hz, audio_channels = None, None
        if audio_out is not None and audio_tmp is not None:
            if log.has_sound:
                audio_hz, audio_channels = _measure_audio(audio_tmp, settings)
                audio_tmp.replace(audio_out)
            else:
                audio_out.unlink(missing_ok=True)
        if video_out is not None and video_tmp is not None:
            video_tmp.replace(video_out)
    return NormalisedClip(
        duration_s=n_frames / settings.fps,
        fps=settings.fps,
        n_frames=n_frames,
        width_px=width_px,
        height_px=height_px,
        has_audio=log.has_sound,
        audio_hz=audio_hz,
        audio_channels=audio_channels,
    )


def _temporary(final: Path | None) -> AbstractContextManager[Path | None]:
    return nullcontext(None) if final is None else temporary_beside(final)


@contextmanager
def temporary_beside(final: Path) -> Iterator[Path]:
    """Temporary path beside `final`; a leftover file is removed at the end."""
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _faults(
    source: Source, settings: NormaliserSettings, log: DecodingLog, n_frames: int, *, wants_sound: bool
) -> list[tuple[type[MediaError], str]]:
    """Faults of an opened source, the most fundamental first."""
    faults: list[tuple[type[MediaError], str]] = []
    whole = n_frames >= settings.n_frames
    # The last frame may be a repeat, so a short source has one frame less than was written.
    picture_s = settings.duration_s if whole else max(0, n_frames - 1) / settings.fps
    damaged = log.damaged_video > 0 or log.damaged_audio > AUDIO_DAMAGE_FORGIVEN
    if damaged or log.returncode != 0:
        lost = f"{log.damaged_video} picture and {log.damaged_audio} sound packets do not decode"
        status = f", ffmpeg ended with status {log.returncode}" if log.returncode else ""
        faults.append((DamagedSource, f"{lost}{status} ({log.complaint or 'no reason given'})"))
    if not whole and (source.video.duration_s or 0.0) >= settings.duration_s:
        faults.append((DamagedSource, f"cut off: its header promises {source.video.duration_s:.1f} s"))
    if log.restarts:
        faults.append((ChangingSource, "its picture changes size, or its sound rate or channels, on the way"))
    if wants_sound and source.audio is None:
        faults.append((NoAudioStream, "no audio stream"))
    elif wants_sound and not log.has_sound:
        faults.append((NoAudioStream, f"no sound in the first {settings.duration_s:g} s of its audio stream"))
    if not whole:
        faults.append((TooShort, f"{picture_s:.1f} s of picture"))
    return faults


def _complain(source: Source, settings: NormaliserSettings, found: list[str]) -> str:
    wanted = f"{settings.duration_s:g} s of undamaged picture" + (" with sound" * settings.require_audio)
    return f"{source.name}: {'; '.join(found)}; wanted {wanted}: fetch it again or leave it out"


def _measure_video(video: Path, deadline: Deadline) -> tuple[int, int, int]:
    """(frames, width_px, height_px) of a written clip; zeros when ffmpeg left nothing readable."""
    argv = ["ffprobe", "-v", "error", "-count_packets", "-select_streams", "v:0", "-of", "json"]
    argv += ["-show_entries", "stream=nb_read_packets,width,height,start_pts", f"file:{video}"]
    streams = json.loads(run(argv, subject=video.name, deadline=deadline).stdout or b"{}").get("streams", [])
    if not streams or "nb_read_packets" not in streams[0]:
        return 0, 0, 0
    assert streams[0]["start_pts"] == 0, "a clip's timestamps start from 0"
    return int(streams[0]["nb_read_packets"]), int(streams[0]["width"]), int(streams[0]["height"])


def _measure_audio(audio: Path, settings: NormaliserSettings) -> tuple[int, int]:
    """(hz, channels) of a written sound file."""
    import soundfile

    written = soundfile.info(audio)
    assert written.frames == round(settings.duration_s * written.samplerate), "as long as the picture"
    return written.samplerate, written.channels


# --- log of a normalising command ---------------------------------------------------------------------------

# ffmpeg itself prints these three, for every codec alike; they mean lost data. Other complaints of demuxers and
# decoders (odd edit lists, unordered references) may be harmless and do not count.
_DAMAGE = re.compile(r"(?:Error while decoding stream #0:|corrupt (?:decoded frame|input packet) in stream )(\d+)")
_PICTURE_FILTERS = re.compile(r"showinfo.* config in time_base")
_SOUND = re.compile(r"ashowinfo.* n: *\d+ .*pts_time:(\S+) .*rate:(\d+) nb_samples:(\d+)")


@dataclass(frozen=True, slots=True)
class DecodingLog:
    """Lost packets by stream; `has_sound` is true if any sound falls into the clip (before padding).

    restarts: reconfigurations of ffmpeg's filter graph after a change of picture or sound format; what
    follows one is misplaced in time.
    """

    returncode: int
    damaged_video: int
    damaged_audio: int
    has_sound: bool
    restarts: int
    complaint: str


def read_log(done: Finished, source: Source) -> DecodingLog:
    """Parses the log of a normalising command (levels on, ashowinfo before padding)."""
    audio = source.audio
    damaged = [int(index) for index in _DAMAGE.findall(done.stderr)]
    sounds = _SOUND.findall(done.stderr)
    return DecodingLog(
        returncode=done.returncode,
        damaged_video=damaged.count(source.video.index),
        damaged_audio=0 if audio is None else damaged.count(audio.index),
        has_sound=any(float(start_s) + int(n) / int(hz) > 0 for start_s, hz, n in sounds),
        restarts=max(0, len(_PICTURE_FILTERS.findall(done.stderr)) - 1),
        complaint=log_tail(done.stderr, source.path),
    )
