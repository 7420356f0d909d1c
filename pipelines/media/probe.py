"""Probe of a source: its streams, and the time of its first picture.

ffmpeg-python's own `probe` waits for ffprobe without limit, so ffprobe runs here under a deadline.
"""

import json
import math
import re
import stat
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import ffmpeg

from pipelines.media.faults import DamagedSource, EmptyFile, NoVideoStream, UnreadableSource
from pipelines.media.process import Deadline, log_tail, run

GLOBAL_ARGS = (
    *("-hide_banner", "-nostdin", "-nostats"),
    *("-loglevel", "level+info", "-filter_complex_threads", "1", "-copyts"),
)
"""Arguments of every ffmpeg command on a source. One filter thread, as the pipeline runs one process per core. The
container's own clock, as the zero that ffmpeg would choose depends on which streams a command uses."""

MAX_PIXELS = 2**27
"""Largest picture that is decoded (16384 x 8192): one of 16000 x 16000 takes gigabytes, and no film has it."""
RGB = re.compile(r"x2|pal8|xyz|[0a]?(?:rgb|bgr|gbr)")
"""Beginnings of ffmpeg's names for pixel formats of red, green and blue."""
NOT_MEDIA_FORMATS = frozenset({"tty", "concat", "hls", "dash", "webvtt", "srt", "ass"})
"""ffmpeg's formats for plain text and for playlists, which would send it to other files."""


@dataclass(frozen=True, slots=True)
class VideoStream:
    """Video stream that a player would choose. Sizes are as stored: before rotation, in non-square pixels.

    start_us: time of its first picture on the container's clock, as the header has it.
    """

    index: int
    codec: str
    width_px: int
    height_px: int
    pixel_aspect: Fraction
    rotation_deg: int
    fps: float | None
    duration_s: float | None
    start_us: int | None
    pixel_format: str
    matrix: str | None
    transfer: str | None
    is_interlaced: bool

    @property
    def is_rgb(self) -> bool:
        """Whether its pixels hold red, green and blue themselves, which no matrix has coded."""
        return RGB.match(self.pixel_format) is not None

    @property
    def is_grey(self) -> bool:
        """Whether its pixels hold no colour."""
        return self.pixel_format.startswith(("gray", "ya", "mono"))

    def display_size_px(self) -> tuple[float, float]:
        """(width, height) in square pixels, upright."""
        width, height = float(self.width_px * self.pixel_aspect), float(self.height_px)
        return (height, width) if abs(self.rotation_deg) % 180 == 90 else (width, height)


@dataclass(frozen=True, slots=True)
class AudioStream:
    """Audio stream that a player would choose. layout: places of its channels, as the header has them."""

    index: int
    hz: int
    channels: int
    layout: str | None
    duration_s: float | None


@dataclass(frozen=True, slots=True)
class Streams:
    """Streams in a source's header; None if absent.

    container: ffmpeg's name of the format.
    duration_s: of the whole, as the header has it.
    """

    container: str
    duration_s: float | None
    video: VideoStream | None
    audio: AudioStream | None


@dataclass(frozen=True, slots=True)
class Source:
    """Probed source with a video stream.

    container: ffmpeg's name of the format.
    origin_us: time of the first picture on the container's clock, in microseconds; t = 0 of every output.
    is_measured: `origin_us` is that of the first picture that was decoded, not the header's.
    """

    path: Path
    container: str
    video: VideoStream
    audio: AudioStream | None
    origin_us: int
    is_measured: bool

    @property
    def name(self) -> str:
        """File name, for messages."""
        return self.path.name


def open_source(path: Path, deadline: Deadline) -> Source:
    """Probes a source.

    Raises:
        MediaError: it cannot be read (UnreadableSource, EmptyFile), has no picture (NoVideoStream), or the deadline
            passed.
    """
    streams = probe(path, deadline)
    video = require_picture(path, streams)
    return Source(path, streams.container, video, streams.audio, video.start_us or 0, is_measured=False)


def measured(source: Source, deadline: Deadline) -> Source:
    """Source whose first picture is found by decoding. Raises DamagedSource if none decodes."""
    if source.is_measured:
        return source
    origin_us = _first_shown_us(source.path, source.video, deadline)
    return replace(source, origin_us=origin_us, is_measured=True)


def require_picture(path: Path, streams: Streams) -> VideoStream:
    """Video stream of a file. Raises NoVideoStream if there is none."""
    if streams.video is None:
        raise NoVideoStream(f"{path.name}: no video stream; wanted a video: leave this file out")
    return streams.video


def open_input(source: Path) -> ffmpeg.nodes.FilterableStream:
    """ffmpeg-python input of a source, never parsed as a URL or an option, decoded in one thread, of MAX_PIXELS."""
    return ffmpeg.input(f"file:{source}", threads=1, protocol_whitelist="file", max_pixels=MAX_PIXELS)


def probe(source: Path, deadline: Deadline) -> Streams:
    """Reads a source's header. Of several streams of a kind: the first that is marked default, else the first.

    Raises EmptyFile, UnreadableSource, NoVideoStream for a still picture, or DeadlineExceeded.
    """
    _require_regular_file(source)
    argv = ["ffprobe", "-hide_banner", "-loglevel", "level+warning", "-protocol_whitelist", "file"]
    argv += ["-max_pixels", str(MAX_PIXELS), "-show_format", "-show_streams", "-of", "json", f"file:{source}"]
    done = run(argv, subject=source.name, deadline=deadline)
    found = json.loads(done.stdout or b"{}") if done.returncode == 0 else {}
    container = str(found.get("format", {}).get("format_name", ""))
    if done.returncode != 0 or not container or container in NOT_MEDIA_FORMATS:
        saw = log_tail(done.stderr, source) or f"its format looks like {container or 'none'}"
        raise UnreadableSource(
            f"{source.name}: not readable as media ({saw}); wanted a complete video file: replace it, or leave it out"
        )
    if container == "image2" or container.endswith("_pipe"):
        raise NoVideoStream(f"{source.name}: a still picture; wanted a video: leave this file out")
    video = _choose(found["streams"], "video")
    audio = _choose(found["streams"], "audio")
    if video is not None and not video.get("width"):
        raise UnreadableSource(
            f"{source.name}: its picture has no size or more than {MAX_PIXELS} pixels; wanted a film: make it smaller"
        )
    return Streams(
        container,
        _seconds(found["format"].get("duration")),
        None if video is None else _video_stream(video),
        None if audio is None else _audio_stream(audio),
    )


def _first_shown_us(source: Path, video: VideoStream, deadline: Deadline) -> int:
    """Time of the first decoded frame, in microseconds on the container's clock.

    The header does not tell: edit lists hide frames of a stream-copied cut, and a decoder drops frames whose
    references are missing. So the decoder itself runs, with the options it will have later.
    """
    first = (
        open_input(source)[str(video.index)]
        .filter("settb", "AVTB")
        .filter("showinfo", checksum=0)
        .output("-", format="null", **{"frames:v": 1})
        .global_args(*GLOBAL_ARGS)
    )
    done = run(first.compile(), subject=source.name, deadline=deadline)
    shown = re.search(r"showinfo.* n: *0 pts: *(-?\d+) ", done.stderr)
    if shown is None:
        raise DamagedSource(
            f"{source.name}: not one frame of its {video.codec} picture could be decoded "
            f"({log_tail(done.stderr, source) or 'no reason given'}); replace the file, or leave it out"
        )
    return int(shown.group(1))


def _require_regular_file(source: Path) -> None:
    try:
        status = source.stat()
        regular = stat.S_ISREG(status.st_mode)
        if regular:
            source.open("rb").close()
    except OSError as error:
        raise UnreadableSource(f"{source.name}: {error.strerror}; wanted a readable file: check its path") from error
    if not regular:
        raise UnreadableSource(f"{source.name}: not a regular file; wanted a video file: copy it to a disk")
    if status.st_size == 0:
        raise EmptyFile(f"{source.name}: 0 bytes, wanted a video file: replace it, or leave it out")


def _choose(streams: list[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    def is_still(stream: dict[str, Any]) -> bool:
        marks = stream.get("disposition", {})
        return any(marks.get(mark) for mark in ("attached_pic", "timed_thumbnails", "still_image"))

    def is_empty(stream: dict[str, Any]) -> bool:
        return kind == "audio" and stream.get("sample_rate") == "0"  # announced by a transport stream, never sent

    candidates = [
        stream
        for stream in streams
        if stream.get("codec_type") == kind and "codec_name" in stream and not is_still(stream) and not is_empty(stream)
    ]
    default = [s for s in candidates if s.get("disposition", {}).get("default")]
    return next(iter(default or candidates), None)


def _video_stream(stream: dict[str, Any]) -> VideoStream:
    rotations = [int(side["rotation"]) for side in stream.get("side_data_list", []) if "rotation" in side]
    aspect = _ratio(stream.get("sample_aspect_ratio", "1:1").replace(":", "/"))
    rate = _ratio(stream.get("avg_frame_rate", "0/0")) or _ratio(stream.get("r_frame_rate", "0/0"))
    return VideoStream(
        index=int(stream["index"]),
        codec=str(stream["codec_name"]),
        width_px=int(stream["width"]),
        height_px=int(stream["height"]),
        pixel_aspect=aspect or Fraction(1),
        rotation_deg=rotations[0] if rotations else 0,
        fps=float(rate) if rate else None,
        duration_s=_duration_s(stream),
        start_us=_start_us(stream),
        pixel_format=str(stream.get("pix_fmt", "")),
        matrix=stream.get("color_space"),
        transfer=stream.get("color_transfer"),
        is_interlaced=stream.get("field_order") in ("tt", "bb", "tb", "bt"),
    )


def _audio_stream(stream: dict[str, Any]) -> AudioStream:
    return AudioStream(
        index=int(stream["index"]),
        hz=int(stream["sample_rate"]),
        channels=int(stream["channels"]),
        layout=stream.get("channel_layout"),
        duration_s=_duration_s(stream),
    )


def _duration_s(stream: dict[str, Any]) -> float | None:
    """Duration of a stream. Matroska tells its end on the container's clock, in a tag."""
    if (told := _seconds(stream.get("duration"))) is not None:
        return told
    parts = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.get("tags", {}).get("DURATION", ""))
    if parts is None:
        return None
    hours, minutes, seconds = map(float, parts.groups())
    return max(0.0, 3600 * hours + 60 * minutes + seconds - (_seconds(stream.get("start_time")) or 0.0))


def _seconds(text: str | None) -> float | None:
    return None if text in (None, "N/A") else float(text)


def _start_us(stream: dict[str, Any]) -> int | None:
    time_base = _ratio(stream.get("time_base", "0/0"))
    if "start_pts" not in stream or time_base is None:
        return None
    return math.floor(int(stream["start_pts"]) * time_base * 1_000_000 + Fraction(1, 2))


def _ratio(text: str) -> Fraction | None:
    over, _, under = text.partition("/")
    return Fraction(int(over), int(under)) if int(over) > 0 and int(under) > 0 else None
