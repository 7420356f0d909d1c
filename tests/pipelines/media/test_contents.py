"""Sources that are whole by count and would be wrong by content; and the facts that a clip tells of itself."""

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.media.clip import NormalisedClip, NormaliserSettings
from pipelines.media.faults import ChangingSource
from pipelines.media.normalise import normalise
from pipelines.media.probe import open_source
from pipelines.media.process import Deadline
from pipelines.media.read import read_audio, read_frames

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


SIZES = [(2, 96), (8, 96), (48, 96), (72, 96), (96, 2), (720, 1680), (1234, 18)]


@pytest.mark.parametrize(("width_px", "height_px"), SIZES)
def test_what_is_written_can_be_read(make, settings, width_px, height_px):
    filters = f"testsrc2=size={width_px}x{height_px}:rate=10:duration=1"
    source = make("s.mkv", "-f", "lavfi", "-i", filters, "-c:v", "ffv1")
    clip, video, _ = run(source, settings, duration_s=1.0, fps=10, require_audio=False, long_side_px=112)
    frames = read_frames(video, 10)
    assert frames.shape == (10, clip.height_px, clip.width_px, 3)
    assert max(frames.shape[1:3]) <= 112


@pytest.mark.parametrize(
    ("coded", "tags"),
    [
        ("scale=out_color_matrix=bt709:out_range=tv,format=yuv420p", ("bt709", "tv")),
        ("scale=out_color_matrix=bt709:out_range=pc,format=yuv420p", ("bt709", "pc")),
        ("scale=out_color_matrix=bt601:out_range=tv,format=yuv420p", ("smpte170m", "tv")),
        ("scale=out_color_matrix=bt2020:out_range=tv,format=yuv420p10", ("bt2020nc", "tv")),
        ("scale=out_color_matrix=smpte240m:out_range=tv,format=yuv444p", ("smpte240m", "tv")),
        ("format=gbrp", ("rgb", "pc")),
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
