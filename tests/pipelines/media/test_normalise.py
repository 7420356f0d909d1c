"""Good sources of every odd kind come through with picture and sound at the right times."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.media.clip import NormalisedClip, NormaliserSettings
from pipelines.media.normalise import normalise
from pipelines.media.probe import open_source
from pipelines.media.process import Deadline
from pipelines.media.read import read_frames

ONE_FRAME_S = 1 / 25 + 1e-6
SOUND_S = 0.006


def run(source: Path, settings: NormaliserSettings) -> tuple[NormalisedClip, Path, Path]:
    video, audio = source.parent / "clip.mp4", source.parent / "clip.flac"
    return normalise(open_source(source, Deadline(60)), video, audio, settings, deadline=Deadline(60)), video, audio


def check(
    source: Path, settings: NormaliserSettings, look: Callable, flash_s: float, click_s: float
) -> tuple[NormalisedClip, object]:
    """Normalise, then expect all frames and samples, the flash within a frame and the click within 6 ms."""
    clip, video, audio = run(source, settings)
    seen = look(video, audio)
    assert clip.n_frames == len(seen.frames) == 200
    assert len(seen.sound) == 8 * seen.hz == 8 * clip.audio_hz
    assert abs(seen.flash_s - flash_s) <= ONE_FRAME_S, f"flash at {seen.flash_s:.3f} s, not {flash_s:.3f} s"
    assert abs(seen.click_s - click_s) <= SOUND_S, f"click at {seen.click_s:.4f} s, wanted {click_s:.4f} s"
    return clip, seen


def test_a_plain_source_keeps_every_time(base, settings, look):
    clip, seen = check(base, settings, look, 3.0, 3.0)
    off = [shown / 30 - k / 25 for k, shown in enumerate(seen.counters)]
    assert max(map(abs, off)) <= 0.5 / 25 + 1e-6, "each frame is the source's nearest in time"
    assert (clip.width_px, clip.height_px, clip.audio_channels) == (128, 96, 1)


def test_ffmpeg_and_decord_read_the_same_frames(base, settings, look):
    _, video, audio = run(base, settings)
    raw = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", video, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    independent = np.frombuffer(raw, np.uint8).reshape(-1, 96, 128, 3).astype(int)
    assert np.abs(independent - look(video, audio).frames).mean() < 2, "decord shows other frames than ffmpeg"


def test_the_container_starts_at_zero_with_constant_steps_and_frequent_keyframes(base, settings):
    _, video, _ = run(base, settings)
    text = subprocess.run(
        ["ffprobe", "-v", "error", "-show_entries", "packet=pts_time,flags", "-of", "csv=p=0", video],
        capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    rows = [line.split(",") for line in text.split()]
    assert np.allclose([float(row[0]) for row in rows], np.arange(200) / 25)
    keyframes = [k for k, row in enumerate(rows) if row[1].startswith("K")]
    assert max(np.diff([*keyframes, 200])) <= 12


def test_the_same_source_gives_the_same_bytes(base, settings):
    _, video, audio = run(base, settings)
    before = video.read_bytes(), audio.read_bytes()
    run(base, settings)
    assert before == (video.read_bytes(), audio.read_bytes())


@pytest.mark.parametrize("container", ["mkv", "ts"])
def test_both_streams_start_late(base, make, settings, look, container):
    source = make(f"late.{container}", "-i", base, "-c", "copy", "-output_ts_offset", "5")
    check(source, settings, look, 3.0, 3.0)


def test_sound_that_starts_later_is_padded(base, make, settings, look):
    source = make("late.mkv", "-i", base, "-itsoffset", "0.5", "-i", base, "-map", "0:v", "-map", "1:a", "-c", "copy")
    _, seen = check(source, settings, look, 3.0, 3.5)
    assert not seen.sound[: int(0.4 * seen.hz)].any(), "silence until the sound starts"


def test_sound_that_starts_earlier_is_trimmed(base, make, settings, look):
    source = make("early.mkv", "-itsoffset", "0.5", "-i", base, "-i", base, "-map", "0:v", "-map", "1:a", "-c", "copy")
    check(source, settings, look, 3.0, 2.5)


def test_sound_that_ends_early_is_padded(base, make, settings, look):
    source = make("short_sound.mkv", "-i", base, "-t", "5", "-i", base, "-map", "0:v", "-map", "1:a", "-c", "copy")
    _, seen = check(source, settings, look, 3.0, 3.0)
    assert not seen.sound[int(5.1 * seen.hz) :].any()


def test_a_gap_in_the_sound_is_silence_and_shifts_nothing(base, make, settings, look):
    source = make(
        "gap.mkv", "-i", base, "-map", "0:v", "-map", "0:a", "-c:v", "copy", "-c:a", "pcm_s16le",
        "-af", "aselect='not(between(t,1,2.5))'",
    )  # fmt: skip
    check(source, settings, look, 3.0, 3.0)


def test_a_stream_copied_cut_inside_a_gop(long_gop, make, settings, look):
    source = make("cut.mp4", "-ss", "12.3", "-i", long_gop, "-t", "10", "-c", "copy")
    _, seen = check(source, settings, look, 2.7, 2.7)
    assert abs(seen.flash_s - seen.click_s) <= ONE_FRAME_S
    off = [(shown - seen.counters[0]) / 30 - k / 25 for k, shown in enumerate(seen.counters)]
    assert max(map(abs, off)) <= 0.5 / 25 + 1e-6, "no frame from before the cut, none twice"


def test_variable_frame_rate(base, make, settings, look):
    keep = "select='between(t,2.5,3.5)+not(mod(n,7))+eq(mod(n,11),3)'"
    source = make("vfr.mp4", "-i", base, "-vf", keep, "-vsync", "vfr", "-c:a", "copy")
    _, seen = check(source, settings, look, 3.0, 3.0)
    off = [shown / 30 - k / 25 for k, shown in enumerate(seen.counters)]
    assert min(off) >= -7 / 30 - 0.02 and max(off) <= 0.5 / 25 + 1e-6, "a frame stays until the next is due"


@pytest.mark.parametrize("codec", [["-c:v", "libx265", "-x265-params", "log-level=none"], ["-c:v", "mpeg4"]])
def test_other_codecs(base, make, settings, look, codec):
    check(make("other.mp4", "-i", base, *codec, "-c:a", "copy"), settings, look, 3.0, 3.0)


def test_an_hevc_cut_at_an_open_gop(long_gop, make, settings, look):
    hevc = make(
        "hevc.mp4",
        "-i",
        long_gop,
        "-c:v",
        "libx265",
        "-x265-params",
        "log-level=none:keyint=90",
        "-c:a",
        "copy",
    )
    check(make("cut.mp4", "-ss", "12.3", "-i", hevc, "-t", "10", "-c", "copy"), settings, look, 2.7, 2.7)


@pytest.mark.parametrize(("turn", "axis", "bright"), [(90, 2, 0), (180, 1, 1), (270, 2, 1)])
def test_a_rotated_source_stands_upright(base, make, settings, turn, axis, bright):
    """Turns are counter-clockwise, as ffprobe counts them: at 90 the upper half comes to lie on the left."""
    source = make("turned.mp4", "-i", base, "-c", "copy", "-metadata:s:v", f"rotate={turn}")
    clip, video, _ = run(source, settings)
    assert (clip.width_px, clip.height_px) == ((96, 128) if turn % 180 else (128, 96))
    flash = read_frames(video, 25)[[76]].astype(int)
    halves = [half.mean() for half in np.array_split(flash, 2, axis=axis)]
    assert np.argmax(halves) == bright, f"turned by {turn} the flashing upper half lies elsewhere: {halves}"


@pytest.mark.parametrize(
    ("long_side_px", "filters", "wanted"),
    [
        (64, "null", (64, 48)),
        (448, "null", (128, 96)),
        (448, "scale=127:95", (128, 96)),
        (100, "scale=90:160", (56, 100)),
        (448, "setsar=2/1", (256, 96)),
    ],
)
def test_sizes_are_even_and_never_enlarged(base, make, settings, long_side_px, filters, wanted):
    source = make("sized.mkv", "-i", base, "-vf", filters, "-pix_fmt", "yuv444p", "-c:a", "copy", "-t", "9")
    clip, _, _ = run(source, replace(settings, long_side_px=long_side_px))
    assert (clip.width_px, clip.height_px) == wanted


@pytest.mark.parametrize(
    ("channels", "hz", "wanted"),
    [(1, 16_000, (16_000, 1)), (2, 48_000, (48_000, 2)), (6, 44_100, (44_100, 2)), (2, 96_000, (48_000, 2))],
)
def test_sound_keeps_its_rate_and_channels_within_limits(base, make, settings, look, channels, hz, wanted):
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
    source = make(
        "sound.mkv", "-i", base, "-c:v", "copy", "-c:a", "flac", "-ar", str(hz),
        "-af", f"pan={layout}|" + "|".join(f"c{k}=c0" for k in range(channels)),
    )  # fmt: skip
    clip, _ = check(source, settings, look, 3.0, 3.0)
    assert (clip.audio_hz, clip.audio_channels) == wanted


def test_colours_survive_reading_back(make, settings):
    """Untagged HD is BT.709 by convention; a reader that assumes BT.601 must still see this orange."""
    colour = "color=c=0xE07828:s=1280x720:r=25:d=9,scale=out_color_matrix=bt709,format=yuv420p"
    source = make("orange.mp4", "-f", "lavfi", "-i", colour, "-f", "lavfi", "-i", "sine=d=9", "-shortest")
    _, video, _ = run(source, settings)
    shown = read_frames(video, 1)[2].mean(axis=(0, 1))
    assert np.abs(shown - [0xE0, 0x78, 0x28]).max() < 6, f"got RGB {shown}"


def test_of_two_pictures_the_default_one_is_taken(base, make, settings, look):
    source = make(
        "two.mkv", "-f", "lavfi", "-i", "color=red:s=320x240:r=25:d=12", "-i", base,
        "-map", "0", "-map", "1:v", "-map", "1:a", "-c:a", "copy",
        "-disposition:v:0", "0", "-disposition:v:1", "default",
    )  # fmt: skip
    check(source, settings, look, 3.0, 3.0)


def test_cover_art_and_subtitles_are_not_the_picture(base, make, settings, look, tmp_path):
    (tmp_path / "words.srt").write_text("1\n00:00:01,000 --> 00:00:20,000\nhello\n")
    cover = make("cover.png", "-f", "lavfi", "-i", "color=red:s=640x480", "-frames:v", "1")
    source = make(
        "art.mp4", "-i", cover, "-i", base, "-i", tmp_path / "words.srt",
        "-map", "0", "-map", "1", "-map", "2", "-c", "copy", "-c:s", "mov_text",
        "-disposition:v:0", "attached_pic",
    )  # fmt: skip
    check(source, settings, look, 3.0, 3.0)


def test_a_silent_source_comes_through_where_sound_is_not_required(base, make, settings):
    source = make("silent.mp4", "-i", base, "-an", "-c", "copy")
    (source.parent / "clip.flac").write_bytes(b"of an earlier source")
    clip, video, audio = run(source, replace(settings, require_audio=False))
    assert video.exists() and not audio.exists()
    assert (clip.has_audio, clip.audio_hz, clip.audio_channels) == (False, None, None)


def test_damage_after_the_wanted_seconds_does_not_matter(base, settings, look, tmp_path):
    source = tmp_path / "cut_short.mp4"
    whole = base.read_bytes()
    source.write_bytes(whole[: int(len(whole) * 0.9)])
    check(source, settings, look, 3.0, 3.0)


@pytest.mark.parametrize(
    "wrong", [{"fps": 0}, {"duration_s": 1.01}, {"long_side_px": 447}, {"crf": 52}, {"max_audio_hz": 0}]
)
def test_settings_that_fit_no_clip_are_refused(settings, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(settings, **wrong)
