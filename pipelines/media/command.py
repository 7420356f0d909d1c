"""ffmpeg command that turns a source into a clip."""

from pathlib import Path

import ffmpeg

from pipelines.media.clip import NORMALISED_TAG, NormaliserSettings
from pipelines.media.probe import GLOBAL_ARGS, AudioStream, Source, VideoStream, open_input

HARD_COMPENSATION_S = 0.02
"""Longest gap in sound timestamps that counts as container rounding; longer ones become silence."""

SCALING = "bicubic+accurate_rnd+full_chroma_int"
STILL_NOISE, STILL_S = 0.001, 0.5
"""Mean difference of pixels (of 1) below which a picture stands still, and for how long before it counts."""

UNREAD_WIDTHS_PX = frozenset({2, 4, 6, 8, 12, 16, 24, 48, 72})
"""Widths of pictures that decord 0.6 cannot read. They are stretched to the next width, by at most 4% from 48 px on."""

HDR_TRANSFERS = frozenset({"smpte2084", "arib-std-b67"})
"""Transfer functions of high dynamic range: PQ and HLG."""
HDR_WHITE_NITS = 203
"""Luminance of diffuse white in HDR (ITU-R BT.2408), which becomes white."""

MATRICES = {"bt709": "bt709", "smpte240m": "smpte240m", "fcc": "fcc", "bt2020nc": "bt2020"}
"""Matrices other than BT.601's, by ffprobe's name, as the filter `colormatrix` calls them. It takes a tenth of the time
that `scale` takes for the same on the source's own size."""

ZSCALE_MATRICES = frozenset({"ycgco"})
"""Matrices that only the filter `zscale` knows, by ffprobe's name and by its own."""
READ_MATRICES = frozenset({None, "bt470bg", "smpte170m", "gbr", "rgb", *MATRICES, *ZSCALE_MATRICES})
"""Matrices that are read, by ffprobe's name; BT.601's are left as they are."""
LAYOUT_CHANNELS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 16, 24})
"""Numbers of channels for which ffmpeg knows a layout without being told."""

HD_HEIGHT_PX = 720
"""Height from which players decode untagged colours as BT.709; below it as BT.601."""


def normalising_command(
    source: Source, settings: NormaliserSettings, *, video_out: Path | None, audio_out: Path | None
) -> list[str]:
    """Argument list of ffmpeg that writes `video_out` and, if the source has sound, `audio_out`; None omits one."""
    opened = open_input(source.path)
    outputs = []
    if video_out is not None:
        outputs.append(_picture(opened, source, video_out, settings))
    if audio_out is not None and source.audio is not None:
        outputs.append(_sound(opened, source, source.audio, audio_out, settings))
    # ffmpeg's own limit of decode errors is off: its log is evaluated afterwards, stream by stream.
    both = ffmpeg.merge_outputs(*outputs).global_args(*GLOBAL_ARGS, "-max_error_rate", "1")
    argv: list[str] = both.compile(overwrite_output=True)
    return argv


def output_size_px(video: VideoStream, long_side_px: int) -> tuple[int, int]:
    """(width, height) of the clip: upright, square pixels, even, the long side at most as configured."""
    width, height = video.display_size_px()
    shrink = min(1.0, long_side_px / max(width, height))
    width_px, height_px = (max(2, 2 * round(side * shrink / 2)) for side in (width, height))
    while width_px in UNREAD_WIDTHS_PX:
        width_px += 2
    return width_px, height_px


def _picture(
    opened: ffmpeg.nodes.FilterableStream, source: Source, out: Path, settings: NormaliserSettings
) -> ffmpeg.nodes.OutputStream:
    video = source.video
    width_px, height_px = output_size_px(video, settings.long_side_px)
    frames = opened[str(video.index)].filter("settb", "AVTB").filter("setpts", f"PTS-({source.origin_us})")
    frames = frames.filter("showinfo", checksum=0)  # the source's own times
    if video.is_interlaced:
        frames = frames.filter("bwdif", mode="send_frame", deint="interlaced").filter("settb", "AVTB")
    frames = (
        frames.filter("fps", fps=settings.fps, round="near")
        # Rounding may leave the last slot empty: one repeated frame is allowed, no more.
        .filter("tpad", stop_mode="clone", stop=1)
        # ffmpeg stops reading when the whole graph has ended, so a long source costs only the wanted seconds.
        .filter("trim", end_frame=settings.n_frames)
    )
    tags = {}
    frames = frames.filter("scale", width_px, height_px, flags=SCALING, out_range="tv")
    if video.transfer in HDR_TRANSFERS:
        if video.is_grey:  # zscale takes no picture without colours
            frames = frames.filter("format", "yuv420p10le")
        if not video.is_rgb:  # nor one that is only half tagged
            whole = {"colorspace": "bt2020nc", "color_primaries": "bt2020", "color_trc": video.transfer}
            frames = frames.filter("setparams", range="tv", **whole)
        frames = _standard_range(frames, video.transfer).filter("format", "yuv420p")
        tags = {"color_primaries": "bt709", "color_trc": "bt709"}
    else:
        frames = frames.filter("format", "yuv420p")
        untagged_hd = video.matrix is None and not video.is_rgb and video.height_px >= HD_HEIGHT_PX
        matrix = MATRICES.get("bt709" if untagged_hd else video.matrix or "")
        if matrix is not None:
            frames = frames.filter("colormatrix", matrix, "bt601")
        if video.matrix in ZSCALE_MATRICES:
            frames = frames.filter("zscale", matrixin=video.matrix, matrix="170m", rangein="tv", range="tv")
    frames = (
        frames.filter("setsar", 1)
        # Readers assume this matrix for untagged video, so those that ignore the tag show right colours too.
        .filter("setparams", range="tv", colorspace="smpte170m", **tags)
        .filter("freezedetect", noise=STILL_NOISE, duration=STILL_S)
    )
    encoder = {"c:v": "libx264", "preset": "veryfast", "crf": settings.crf, "threads:v": 1}
    # Without B-frames timestamps are index / fps, with no edit list; two keyframes a second make seeks short.
    timing = {"bf": 0, "g": max(1, settings.fps // 2)}
    header = {"map_metadata": -1, "map_chapters": -1, "metadata": f"comment={NORMALISED_TAG}"}
    container = {"f": "mp4", "movflags": "+faststart", "video_track_timescale": settings.fps * 512}
    return frames.output(str(out), fflags="+bitexact", **encoder, **timing, **header, **container)


def _standard_range(frames: ffmpeg.nodes.FilterableStream, transfer: str) -> ffmpeg.nodes.FilterableStream:
    """HDR frames in BT.2020 as BT.709, up to the matrix: white stays white, what is brighter is compressed."""
    given = {"transferin": transfer, "primariesin": "bt2020", "matrixin": "bt2020nc", "rangein": "tv"}
    return (
        frames.filter("zscale", **given, transfer="linear", npl=HDR_WHITE_NITS)
        .filter("format", "gbrpf32le")
        .filter("zscale", primaries="bt709")
        .filter("tonemap", tonemap="mobius", desat=0)
        .filter("zscale", transfer="bt709", matrix="170m", range="tv")
    )


def _sound(
    opened: ffmpeg.nodes.FilterableStream, source: Source, audio: AudioStream, out: Path, settings: NormaliserSettings
) -> ffmpeg.nodes.OutputStream:
    hz = min(audio.hz, settings.max_audio_hz)
    n_samples = round(settings.duration_s * hz)
    samples = (
        opened[str(audio.index)]
        .filter("asetpts", f"round(PTS-({source.origin_us})/1000000/TB)")
        .filter("atrim", end=settings.duration_s)
        .filter("ashowinfo")
        # first_pts=0 trims sound before the first picture and pads with silence where sound starts later.
        .filter("aresample", hz, **{"async": 1, "first_pts": 0, "min_hard_comp": HARD_COMPENSATION_S})
        .filter("aformat", sample_fmts="s16", channel_layouts="mono" if audio.channels == 1 else "stereo")
        .filter("apad", whole_len=n_samples)
        .filter("atrim", end_sample=n_samples)
    )
    return samples.output(str(out), f="flac", fflags="+bitexact", map_metadata=-1, **{"c:a": "flac"})
