"""Turn any source into a clip: frame k is shown at k / fps seconds, sample n sounds at n / hz.

t = 0 is the first picture a player would show; sound keeps its place against the picture: earlier sound is
cut, missing sound is silence. docs/decisions/media-ffmpeg-decord.md tells why.
"""

import errno
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.media.clip import NORMALISED_TAG, NORMALISER_VERSION, NormalisedClip, NormaliserSettings
from pipelines.media.command import normalising_command
from pipelines.media.errors import (
    ChangingSource,
    DamagedSource,
    MediaError,
    NoAudioStream,
    NoVideoStream,
    TooShort,
)
from pipelines.media.evidence import Evidence, read_evidence
from pipelines.media.probe import SourceInfo, VideoStream, first_shown_us, probe
from pipelines.media.process import Deadline, run

__all__ = [
    "NORMALISED_TAG",
    "NORMALISER_VERSION",
    "MediaError",
    "NormalisedClip",
    "NormaliserSettings",
    "normalise",
]

AUDIO_DAMAGE_FORGIVEN = 2
"""Undecodable sound packets allowed: a cut often starts inside one; two are some 50 ms."""


def normalise(
    source: Path, video_out: Path, audio_out: Path, settings: NormaliserSettings, *, deadline_s: float
) -> NormalisedClip:
    """Write the first `duration_s` of a source as H.264 MP4 (`video_out`) and FLAC (`audio_out`).

    Both appear complete or not at all; without sound there is no `audio_out`. deadline_s: wall seconds.
    Raises a MediaError that names every fault found, in the class of the most fundamental one.
    """
    deadline = Deadline(deadline_s)
    info = probe(source, deadline)
    if info.video is None:
        raise NoVideoStream(f"{source.name}: no video stream, wanted sight and sound; leave this file out")
    origin_us = first_shown_us(source, info.video, deadline)
    with temporary_beside(video_out) as video_tmp, temporary_beside(audio_out) as audio_tmp:
        command = normalising_command(
            source, info, origin_us=origin_us, video_out=video_tmp, audio_out=audio_tmp, settings=settings
        )
        done = run(command, subject=source.name, deadline=deadline)
        if "No space left on device" in done.stderr:
            raise OSError(errno.ENOSPC, "no space left for a clip; free some, then run again", video_out.name)
        evidence = read_evidence(done, source, info.video, info.audio)
        n_frames, width_px, height_px = _measure_video(video_tmp, deadline)
        faults = _faults(info, info.video, settings, evidence, n_frames)
        if faults:
            raise faults[0][0](_complain(source, settings, [text for _, text in faults]))
        audio_hz, audio_channels = None, None
        if evidence.has_sound:
            audio_hz, audio_channels = _measure_audio(audio_tmp, settings)
            audio_tmp.replace(audio_out)
        else:
            audio_out.unlink(missing_ok=True)
        video_tmp.replace(video_out)
    return NormalisedClip(
        duration_s=n_frames / settings.fps,
        fps=settings.fps,
        n_frames=n_frames,
        width_px=width_px,
        height_px=height_px,
        has_audio=evidence.has_sound,
        audio_hz=audio_hz,
        audio_channels=audio_channels,
        source_container=info.container,
        source_duration_s=info.video.duration_s or info.duration_s,
        source_video_codec=info.video.codec,
        source_fps=info.video.fps,
        source_width_px=info.video.width_px,
        source_height_px=info.video.height_px,
        source_rotation_deg=info.video.rotation_deg,
        source_audio_codec=info.audio.codec if info.audio else None,
        source_audio_hz=info.audio.hz if info.audio else None,
        source_audio_channels=info.audio.channels if info.audio else None,
        source_audio_start_s=evidence.sound_start_s,
        source_audio_end_s=evidence.sound_end_s,
    )


@contextmanager
def temporary_beside(final: Path) -> Iterator[Path]:
    """A name beside `final` to write under; whatever is left there in the end is removed."""
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _faults(
    info: SourceInfo, video: VideoStream, settings: NormaliserSettings, evidence: Evidence, n_frames: int
) -> list[tuple[type[MediaError], str]]:
    """Every fault of a source that could be opened, the most fundamental first."""
    faults: list[tuple[type[MediaError], str]] = []
    whole = n_frames >= settings.n_frames
    # One repeated frame is allowed at the end: a short source gave one frame less than was written.
    picture_s = settings.duration_s if whole else max(0, n_frames - 1) / settings.fps
    damaged = evidence.damaged_video > 0 or evidence.damaged_audio > AUDIO_DAMAGE_FORGIVEN
    if damaged or evidence.returncode != 0:
        lost = f"{evidence.damaged_video} picture and {evidence.damaged_audio} sound packets do not decode"
        status = f", ffmpeg ended with status {evidence.returncode}" if evidence.returncode else ""
        faults.append((DamagedSource, f"{lost}{status} ({evidence.complaint or 'no reason given'})"))
    if not whole and (video.duration_s or 0.0) >= settings.duration_s:
        faults.append((DamagedSource, f"cut off: its header promises {video.duration_s:.1f} s"))
    if evidence.restarts:
        faults.append((ChangingSource, "its picture changes size, or its sound rate or channels, on the way"))
    if settings.require_audio and info.audio is None:
        faults.append((NoAudioStream, "no audio stream"))
    elif settings.require_audio and not evidence.has_sound:
        faults.append((NoAudioStream, f"no sound in the first {settings.duration_s:g} s of its audio stream"))
    if not whole:
        faults.append((TooShort, f"{picture_s:.1f} s of picture"))
    return faults


def _complain(source: Path, settings: NormaliserSettings, found: list[str]) -> str:
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
