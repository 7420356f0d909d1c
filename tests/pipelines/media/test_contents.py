"""Sources that are whole by count and would be wrong by content; and the facts that a clip tells of itself."""

import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as settings_of
from hypothesis import strategies as st

from pipelines.media.clip import NormalisedClip, NormaliserSettings
from pipelines.media.faults import ChangingSource, UnreadStream
from pipelines.media.normalise import normalise
from pipelines.media.probe import open_source
from pipelines.media.process import Deadline
from pipelines.media.read import read_audio, read_frames
from tests.pipelines.media.conftest import ffmpeg

BARS = ("-f", "lavfi", "-i", "smptehdbars=size=320x180:rate=25:duration=3")
TONE = ("-f", "lavfi", "-i", "sine=440:duration=4")


def run(source: Path, settings: NormaliserSettings, **changes: object) -> tuple[NormalisedClip, Path, Path]:
    video, audio = source.parent / "clip.mp4", source.parent / "clip.flac"
    used = replace(settings, **changes)
    return normalise(open_source(source, Deadline(60)), video, audio, used, deadline=Deadline(60)), video, audio


def tagged(video: Path, entries: str) -> list[str]:
    command = ["ffprobe", "-v", "error", "-select_streams", "v", "-show_entries", f"stream={entries}", "-of", "csv=p=0"]
    return subprocess.run([*command, video], capture_output=True, check=True, text=True).stdout.strip().split(",")


@pytest.mark.parametrize(("transfer", "name"), [("smpte2084", "pq.mp4"), ("arib-std-b67", "hlg.mp4")])
def test_high_dynamic_range_keeps_its_colours(make, settings, transfer, name):
    """Bars of 75% as PQ and HLG, at the brightness of the same bars in BT.709, look as those do."""
    tags = "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
    coded = ("-c:v", "libx264", "-crf", "5")
    bars = make("bars.mp4", *BARS, "-vf", f"scale=out_color_matrix=bt709,{tags},format=yuv420p", *coded)
    linear = "zscale=tin=bt709:pin=bt709:min=bt709:rin=tv:t=linear:npl=203,format=gbrpf32le,zscale=p=bt2020"
    convert = f"{linear},zscale=t={transfer}:m=bt2020nc:r=tv:npl=203,format=yuv420p10le"
    source = make(name, "-i", bars, "-vf", convert, *coded)
    assert tagged(source, "color_transfer") == [transfer]
    seen = {}
    for path in (bars, source):
        _, video, _ = run(path, settings, duration_s=2.0, require_audio=False, long_side_px=320)
        seen[path] = read_frames(video, 5).astype(float)
        assert tagged(video, "color_space") == ["smpte170m"]
    assert tagged(video, "color_transfer") == ["bt709"] and tagged(video, "color_primaries") == ["bt709"]
    saturation = {path: (frames.max(-1) - frames.min(-1)).max() for path, frames in seen.items()}
    assert saturation[source] > 0.8 * saturation[bars], "washed out"
    assert np.abs(seen[source] - seen[bars]).mean() < 12, "other colours than the same bars in BT.709"


@pytest.mark.parametrize("offset_s", [0, 600], ids=["the clock starts again", "the clock jumps"])
@pytest.mark.parametrize("sound", [True, False], ids=["sound", "silent"])
def test_joined_recordings_are_refused(make, settings, tmp_path, offset_s, sound):
    streams = [*BARS, *TONE, "-shortest"] if sound else [*BARS]
    one = make("one.mpg", *streams, "-c:v", "mpeg2video")
    two = make("two.mpg", "-i", one, "-c", "copy", "-output_ts_offset", str(offset_s))
    joined = tmp_path / "joined.mpg"
    joined.write_bytes(one.read_bytes() + two.read_bytes())
    with pytest.raises(ChangingSource, match="its clock jumps from [23].* as where recordings were joined"):
        run(joined, settings, duration_s=5.0, require_audio=False)


def test_a_picture_that_stands_for_seconds_is_no_jump(make, settings):
    """A slide of a screen recording: one frame for three seconds, while the sound goes on."""
    source = make("slides.mkv", "-f", "lavfi", "-i", "testsrc=size=160x120:rate=25:duration=6", "-f", "lavfi", "-i",
                  "sine=440:duration=6", "-vf", "select='not(between(t,1,4))'", "-vsync", "vfr")  # fmt: skip
    clip, _, _ = run(source, settings, duration_s=5.0)
    assert clip.still_share == pytest.approx(3 / 5, abs=0.05)


@pytest.mark.parametrize("sound", [("0", "20"), ("0", "3"), ("4", "8")], ids=["all through", "ends early", "late"])
def test_a_film_of_a_frame_every_two_seconds_is_no_jump(make, settings, sound):
    """A time lapse, whose last frame in the clip is followed by one after its sound."""
    starts, lasts = sound
    source = make("lapse.mkv", "-f", "lavfi", "-i", "testsrc=size=160x120:rate=1/2:duration=20", "-itsoffset", starts,
                  "-f", "lavfi", "-i", f"sine=440:duration={lasts}", "-c:v", "libx264", "-c:a", "aac")  # fmt: skip
    frames = read_frames(run(source, settings, duration_s=6.0)[1], 25).astype(int)
    changes = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    assert set(np.argsort(changes)[-2:]) == {49, 99}, "frames show at 2 and at 4 s"


@pytest.mark.parametrize("fields", [True, False])
def test_interlaced_pictures_are_deinterlaced(make, settings, fields):
    """A bar that moves fast: two fields in one frame make combs, rows that differ from both neighbours."""
    moving = ["-f", "lavfi", "-i", "color=black:size=320x240:rate=50:duration=3", "-f", "lavfi", "-i",
              "color=white:size=40x240:rate=50:duration=3", "-filter_complex"]  # fmt: skip
    picture = "[0][1]overlay=x='mod(200*t,280)'"
    coded = ["-c:v", "mpeg2video", "-q:v", "2"]
    woven, flags = ("tinterlace=interleave_top,setfield=tff", ["-flags", "+ilme+ildct"]) if fields else ("fps=25", [])
    source = make("moving.mpg", *moving, f"{picture},{woven}", *coded, *flags)
    clip, video, _ = run(source, settings, duration_s=2.0, require_audio=False, long_side_px=320)
    frames = read_frames(video, 25).astype(float).mean(-1)
    combs = np.abs(frames[:, 1:-1] - (frames[:, :-2] + frames[:, 2:]) / 2) > 60
    assert clip.is_interlaced is fields
    assert combs.mean() < 0.001


@pytest.mark.parametrize(
    ("mix", "mono_from"),
    [
        ("c0=c0|c1=-0.9*c0", "left"),
        ("c0=0.5*c0|c1=-0.6*c0", "right"),
        ("c0=c0|c1=c0", "mean"),
        ("c0=c0|c1=0*c0", "mean"),
    ],
)
def test_channels_that_cancel_are_not_mixed(base, make, settings, mix, mono_from):
    source = make("stereo.mkv", "-i", base, "-c:v", "copy", "-c:a", "flac", "-af", f"pan=stereo|{mix}")
    clip, _, audio = run(source, settings)
    assert clip.mono_from == mono_from
    loud = np.flatnonzero(np.abs(read_audio(audio, 16_000)) > 0.1)
    assert len(loud) and abs(loud[0] / 16_000 - 3.0) < 0.01, "the click is heard where it is"


def test_a_sound_is_measured(make, settings):
    tone = "aevalsrc='if(between(t,1,1.2),2*sin(2*PI*440*t),0)':s=16000:d=4"
    source = make("short.mkv", "-f", "lavfi", "-i", "testsrc=size=160x120:rate=25:duration=4", "-f", "lavfi", "-i",
                  tone, "-c:a", "flac")  # fmt: skip
    clip, _, _ = run(source, settings, duration_s=4.0)
    assert clip.silent_share == pytest.approx(0.95, abs=0.005)
    assert clip.peak == pytest.approx(1, abs=0.001)
    assert 0.02 < clip.clipped_share < 0.05
    assert clip.still_share == 0.0


def test_a_sound_pid_without_packets_is_no_sound(make, settings, tmp_path):
    """A transport stream announces a sound and never sends one."""
    whole = make("whole.ts", *BARS, *TONE, "-shortest", "-c:v", "libx264", "-c:a", "aac")
    packets = np.frombuffer(whole.read_bytes(), np.uint8).reshape(-1, 188)
    pids = ((packets[:, 1].astype(int) & 0x1F) << 8) + packets[:, 2]
    source = tmp_path / "announced.ts"
    source.write_bytes(packets[pids != 0x101].tobytes())
    opened = open_source(source, Deadline(60))
    assert opened.audio is None
    clip, _, _ = run(source, settings, duration_s=2.0, require_audio=False)
    assert not clip.has_audio and clip.mono_from is None


def _quadrants(width_px, height_px, rate, duration_s):
    """ffmpeg input: red, green / blue, white, each from the middle of the picture on."""
    right, low = f"gte(X\\,{width_px / 2})", f"gte(Y\\,{height_px / 2})"
    colours = f"r='255*eq({right}\\,{low})':g='255*{right}':b='255*{low}'"
    return f"color=s={width_px}x{height_px}:r={rate}:d={duration_s},format=rgb24,geq={colours}"


QUADRANTS = np.array([[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 255)]])
sizes_px = st.integers(2, 150) | st.sampled_from([2, 4, 6, 8, 12, 16, 24, 48, 72, 640, 1234])


@settings_of(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    size_px=st.tuples(sizes_px, sizes_px),
    rate=st.sampled_from(["5", "25", "30000/1001", "24000/1001", "37/3", "120", "1000"]),
    pixel_aspect=st.sampled_from([(1, 1), (1, 1), (4, 3), (3, 4), (16, 11), (8, 9), (2, 1), (1, 3)]),
    turns=st.integers(0, 3),
    long_side_px=st.integers(1, 70).map(lambda half: 2 * half),
    fps=st.integers(1, 60),
    n_frames=st.integers(1, 12),
    sound=st.tuples(st.sampled_from([8_000, 11_025, 22_050, 44_100, 48_000, 96_000]), st.sampled_from([1, 2, 6])),
)
@example((2, 96), "10", (1, 1), 0, 112, 10, 10, (48_000, 1))
@example((720, 1680), "10", (1, 1), 0, 112, 10, 10, (48_000, 2))
@example((1234, 18), "10", (1, 1), 1, 112, 10, 10, (48_000, 2))
@example((64, 48), "50", (1, 1), 0, 112, 49, 1, (48_000, 2))
def test_whatever_the_source_the_clip_is_read_back(
    tmp_path, size_px, rate, pixel_aspect, turns, long_side_px, fps, n_frames, sound
):
    """Sizes, rates, pixel aspects, rotations and sounds: as many frames and samples as wanted, each where it was."""
    duration_s, (hz, channels) = n_frames / fps, sound
    length_s = duration_s + 2 * max(1 / float(Fraction(rate)), 1 / fps)
    tone = ["-f", "lavfi", "-i", f"sine=440:sample_rate={hz}:duration={length_s}", "-ac", channels]
    picture = ["-f", "lavfi", "-i", _quadrants(*size_px, rate, length_s), "-vf", "setsar={}/{}".format(*pixel_aspect)]
    plain, source = tmp_path / "plain.mov", tmp_path / "source.mov"
    ffmpeg(*picture[:4], *tone[:4], *picture[4:], *tone[4:], "-c:v", "png", "-c:a", "pcm_s16le", plain)
    ffmpeg("-i", plain, "-c", "copy", "-metadata:s:v", f"rotate={90 * turns}", source)
    wanted = NormaliserSettings(duration_s=duration_s, fps=fps, long_side_px=long_side_px, crf=0)
    clip, video, audio = run(source, wanted)
    frames = read_frames(video, fps)
    assert frames.shape == (n_frames, clip.height_px, clip.width_px, 3) and clip.n_frames == n_frames
    assert len(read_audio(audio, clip.audio_hz)) == round(duration_s * min(hz, 48_000))
    _require_shape(frames.shape[2:0:-1], size_px, pixel_aspect, turns, long_side_px)
    if min(*frames.shape[1:3], *size_px) >= 8:
        height, width = frames.shape[1:3]
        corners = [[frames[-1, y, x] for x in (1, width - 2)] for y in (1, height - 2)]
        np.testing.assert_array_equal(np.array(corners) > 127, np.rot90(QUADRANTS, turns) > 127)


def _require_shape(shape_px, size_px, pixel_aspect, turns, long_side_px):
    """Size (width, height) of a clip: the source's shape to an even pixel, and the next width that decord can read."""
    upright = np.array([size_px[0] * pixel_aspect[0] / pixel_aspect[1], size_px[1]])[:: -1 if turns % 2 else 1]
    exact = upright * min(1, long_side_px / max(upright))
    more = shape_px - exact
    unread = {2, 4, 6, 8, 12, 16, 24, 48, 72}
    assert -1.01 <= more[1] <= 2 and more[0] >= -1.01, f"{shape_px} for {exact}"
    assert more[0] <= 2 or all(width in unread for width in range(2, shape_px[0], 2) if width >= exact[0]), shape_px
    assert shape_px[1] <= long_side_px and (shape_px[0] <= long_side_px or long_side_px in unread)


@pytest.mark.parametrize("coding", [("png", "rgb24"), ("qtrle", "rgb24"), ("utvideo", "gbrp"), ("ffv1", "bgr0")])
def test_red_green_and_blue_are_coded_by_no_matrix(make, settings, coding):
    """Untagged, and as high as pictures whose colours are taken for BT.709's."""
    codec, pixels = coding
    orange = f"color=c=0xE07828:s=1280x720:r=25:d=1,format={pixels}"
    source = make("orange.mov" if codec == "qtrle" else "orange.mkv", "-f", "lavfi", "-i", orange, "-c:v", codec)
    shown = read_frames(run(source, settings, duration_s=1.0, require_audio=False)[1], 1)[0].mean(axis=(0, 1))
    np.testing.assert_allclose(shown, (0xE0, 0x78, 0x28), atol=6)


@pytest.mark.parametrize("pixels", ["gray10le", "yuv420p10le"])
def test_high_dynamic_range_that_tells_only_its_transfer_is_read(make, settings, pixels):
    source = make("half.mkv", *BARS, "-vf", f"format={pixels}", "-c:v", "ffv1", "-color_trc", "arib-std-b67")
    frames = read_frames(run(source, settings, duration_s=1.0, require_audio=False)[1], 1).astype(int)
    colours = np.ptp(frames, axis=-1).max()
    assert colours <= 4 if pixels == "gray10le" else colours > 100
    assert np.ptp(frames) > 100, "from dark to bright"


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ((*BARS, "-c:v", "libx264", "-colorspace", "bt2020c"), "colours are coded as bt2020c, wanted BT.601,"),
        (
            (
                *BARS,
                "-f",
                "s16le",
                "-ar",
                "48000",
                "-ac",
                "10",
                "-i",
                "/dev/zero",
                "-t",
                "2",
                "-c:v",
                "ffv1",
                "-c:a",
                "copy",
            ),
            "sound has 10 channels and does not say",
        ),
    ],
)
def test_what_is_not_read_is_said(make, settings, made, message):
    with pytest.raises(UnreadStream, match=message):
        run(make("odd.mkv", *made), settings, duration_s=1.0)


@pytest.mark.parametrize(
    ("coded", "tags"),
    [
        ("scale=out_color_matrix=bt709:out_range=tv,format=yuv420p", ("bt709", "tv")),
        ("scale=out_color_matrix=bt709:out_range=pc,format=yuv420p", ("bt709", "pc")),
        ("scale=out_color_matrix=bt601:out_range=tv,format=yuv420p", ("smpte170m", "tv")),
        ("scale=out_color_matrix=bt2020:out_range=tv,format=yuv420p10", ("bt2020nc", "tv")),
        ("scale=out_color_matrix=smpte240m:out_range=tv,format=yuv444p", ("smpte240m", "tv")),
        ("format=gbrp", ("rgb", "pc")),
        ("zscale=matrix=ycgco:range=tv,format=yuv444p", ("ycgco", "tv")),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_an_orange_stays_orange_whatever_its_matrix(make, settings, coded, tags):
    orange = f"color=c=0xE07828:s=320x180:r=25:d=1,format=gbrp,{coded}"
    tagged = ("-colorspace", tags[0], "-color_range", tags[1])
    source = make("orange.mkv", "-f", "lavfi", "-i", orange, "-c:v", "ffv1", *tagged)
    _, video, _ = run(source, settings, duration_s=1.0, require_audio=False)
    shown = read_frames(video, 1)[0].mean(axis=(0, 1))
    assert np.abs(shown - [0xE0, 0x78, 0x28]).max() < 8, f"got RGB {shown}"
