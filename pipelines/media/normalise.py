"""Normalisation of any source to a clip: frame k is shown at k / fps seconds, sample n sounds at n / hz.

t = 0 is the first picture a player would show; sound keeps its place against the picture: earlier sound is
cut, missing sound is silence. docs/decisions/media-ffmpeg-decord.md tells why.
"""

from __future__ import annotations

import errno
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.media.clip import NormalisedClip, NormaliserSettings
from pipelines.media.command import LAYOUT_CHANNELS, READ_MATRICES, normalising_command
from pipelines.media.faults import ChangingSource, DamagedSource, MediaError, NoAudioStream, TooShort, UnreadStream
from pipelines.media.probe import Source, Streams, measured
from pipelines.media.process import Deadline, Finished, log_tail, run
from pipelines.media.read import mixed_down

FULL_SCALE = 1 - 2**-15
"""Largest level of 16-bit sound."""
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
    decoded, so its faults are not found. If the first picture is not where the header says, which only decoding
    tells, the work is done again from where it is.

    Raises:
        MediaError: names every fault found, in the class of the most fundamental one.
        OSError: no space left.
    """
    if said := unread(source, with_picture=video_out is not None, with_sound=audio_out is not None):
        raise UnreadStream(_complain(source, settings, said))
    if video_out is None:
        source = measured(source, deadline)
    with _temporary(video_out) as video_tmp, _temporary(audio_out) as audio_tmp:
        log = _run(source, settings, video_tmp, audio_tmp, deadline)
        if log.first_us and not source.is_measured:
            source = replace(source, origin_us=source.origin_us + log.first_us, is_measured=True)
            log = _run(source, settings, video_tmp, audio_tmp, deadline)
        n_frames, width_px, height_px = settings.n_frames, 0, 0
        if video_tmp is not None:
            n_frames, width_px, height_px = _measure_video(video_tmp)
        wants_sound = settings.require_audio and audio_out is not None
        faults = _faults(source, settings, log, n_frames, wants_sound=wants_sound)
        if video_out is not None and log.first_us is None:
            why = f"not one frame of its {source.video.codec} picture could be decoded"
            faults = [(DamagedSource, f"{why} ({log.complaint or 'no reason given'})")]
        if faults:
            raise faults[0][0](_complain(source, settings, [text for _, text in faults]))
        sound = NO_SOUND
        if audio_out is not None and audio_tmp is not None:
            if log.has_sound:
                sound = _measure_audio(audio_tmp, settings)
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
        is_interlaced=source.video.is_interlaced,
        still_share=round(log.still_s(settings.duration_s) / settings.duration_s, 4),
        **sound,
    )


def unread(source: Source | Streams, *, with_picture: bool = True, with_sound: bool = True) -> list[str]:
    """Words on streams of kinds that are not read."""
    faults = []
    if with_picture and source.video is not None and source.video.matrix not in READ_MATRICES:
        faults.append(f"its colours are coded as {source.video.matrix}, wanted BT.601, BT.709, BT.2020 or RGB")
    if with_sound and (audio := source.audio) and not audio.layout and audio.channels not in LAYOUT_CHANNELS:
        faults.append(f"its sound has {audio.channels} channels and does not say where they belong")
    return faults


def _run(
    source: Source, settings: NormaliserSettings, video: Path | None, audio: Path | None, deadline: Deadline
) -> DecodingLog:
    command = normalising_command(source, settings, video_out=video, audio_out=audio)
    done = run(command, subject=source.name, deadline=deadline)
    if "No space left on device" in done.stderr:
        raise OSError(errno.ENOSPC, "no space left for a clip; free some, then run again", source.name)
    return read_log(done, source, settings.duration_s)


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
    if log.jump is not None and not damaged:
        faults.append(
            (
                ChangingSource,
                "its clock jumps from {:.1f} to {:.1f} s, as where recordings were joined".format(*log.jump),
            )
        )
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
    return f"{source.name}: {'; '.join(found)}; wanted {wanted}: replace the file, or leave it out"


def _measure_video(video: Path) -> tuple[int, int, int]:
    """(frames, width_px, height_px) of a written clip, by the reader of the later stages; zeros if it is unreadable."""
    import decord

    try:
        reader = decord.VideoReader(str(video), num_threads=1)
        height_px, width_px, _ = reader[0].shape
    except (decord.DECORDError, RuntimeError):
        return 0, 0, 0
    assert reader.get_frame_timestamp(0)[0] == 0, "a clip's timestamps start from 0"
    return len(reader), width_px, height_px


NO_SOUND: dict[str, Any] = dict.fromkeys(
    ("audio_hz", "audio_channels", "silent_share", "peak", "clipped_share", "mono_from")
)


def _measure_audio(audio: Path, settings: NormaliserSettings) -> dict[str, Any]:
    """Properties of a written sound file, as of NormalisedClip."""
    import soundfile

    samples, hz = soundfile.read(audio, dtype="float32", always_2d=True)
    assert len(samples) == round(settings.duration_s * hz), "as long as the picture"
    level = np.abs(np.ascontiguousarray(samples.T)).max(axis=0)
    _, mono_from = mixed_down(samples)
    return {
        "audio_hz": hz,
        "audio_channels": samples.shape[1],
        "silent_share": round(float((level == 0).mean()), 4),
        "peak": round(float(level.max()), 4),
        "clipped_share": round(float((level >= FULL_SCALE).mean()), 4),
        "mono_from": mono_from,
    }


# --- log of a normalising command ---------------------------------------------------------------------------

# ffmpeg itself prints these three, for every codec alike; they mean lost data. Other complaints of demuxers and
# decoders (odd edit lists, unordered references) may be harmless and do not count.
_DAMAGE = re.compile(r"(?:Error while decoding stream #0:|corrupt (?:decoded frame|input packet) in stream )(\d+)")
_PICTURE = re.compile(r"Parsed_showinfo_\S+ @ .* n: *\d+ pts: *(-?\d+) pts_time:(\S+) ")
_PICTURE_FILTERS = re.compile(r"Parsed_showinfo.* config in time_base")
_SOUND = re.compile(r"ashowinfo.* n: *\d+ .*pts_time:(\S+) .*rate:(\d+) nb_samples:(\d+)")
_STILL = re.compile(r"lavfi\.freezedetect\.freeze_(start|end): (\S+)")

JUMP_S = 1.0
"""Gap in the times of picture and sound together that is a jump of the clock."""
BACK_S = 0.1
"""Step back in the times of the picture that is one."""
CLOCKS = frozenset({"mpegts", "mpeg"})
"""Formats of recorders, whose clock jumps where recordings are joined. In others a long frame is a still picture."""


@dataclass(frozen=True, slots=True)
class DecodingLog:
    """Lost packets by stream; `has_sound` is true if any sound falls into the clip (before padding).

    first_us: time of the first picture; None if there is none.
    restarts: reconfigurations of ffmpeg's filter graph after a change of picture or sound format; what
    follows one is misplaced in time.
    jump: times (s) before and after the first jump of the source's clock.
    still: starts and ends (s) of still picture; the last may lack its end.
    """

    returncode: int
    damaged_video: int
    damaged_audio: int
    has_sound: bool
    first_us: int | None
    restarts: int
    jump: tuple[float, float] | None
    still: Sequence[tuple[str, float]]
    complaint: str

    def still_s(self, duration_s: float) -> float:
        """Seconds of still picture."""
        times_s = [time_s for _, time_s in self.still] + [duration_s] * (len(self.still) % 2)
        return sum(end_s - start_s for start_s, end_s in zip(times_s[::2], times_s[1::2], strict=True))


def read_log(done: Finished, source: Source, duration_s: float) -> DecodingLog:
    """Parses the log of a normalising command of a clip of `duration_s` (levels on, ashowinfo before padding)."""
    audio = source.audio
    damaged = [int(index) for index in _DAMAGE.findall(done.stderr)]
    pictures = _PICTURE.findall(done.stderr)
    sounds = [(float(at), float(at) + int(n) / int(hz)) for at, hz, n in _SOUND.findall(done.stderr)]
    return DecodingLog(
        returncode=done.returncode,
        damaged_video=damaged.count(source.video.index),
        damaged_audio=0 if audio is None else damaged.count(audio.index),
        has_sound=any(end_s > 0 for _, end_s in sounds),
        first_us=int(pictures[0][0]) if pictures else None,
        restarts=max(0, len(_PICTURE_FILTERS.findall(done.stderr)) - 1),
        jump=_jump([float(at) for _, at in pictures], sounds, source, duration_s),
        still=[(kind, float(at)) for kind, at in _STILL.findall(done.stderr)],
        complaint=log_tail(done.stderr, source.path),
    )


def _jump(
    pictures_s: Sequence[float], sounds: Sequence[tuple[float, float]], source: Source, duration_s: float
) -> tuple[float, float] | None:
    """Times around the first jump of the clock: a step back of the picture, or a gap before which the sound stops too.

    Of a gap that begins in the clip's last half second nothing can be said: its sound ends with the clip.
    """
    for before_s, after_s in pairwise(pictures_s):
        if after_s < before_s - BACK_S:
            return before_s, after_s
        middle_s = before_s + JUMP_S / 2
        if after_s - before_s > JUMP_S and middle_s < duration_s:
            goes_on = any(start_s < middle_s + JUMP_S / 2 and end_s > middle_s for start_s, end_s in sounds)
            stops = not goes_on and any(abs(end_s - before_s) < JUMP_S / 2 for _, end_s in sounds)
            if stops or (not sounds and source.container in CLOCKS):
                return before_s, after_s
    return None
