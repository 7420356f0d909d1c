"""Every bad source fails with its own true reason; nothing hangs; nothing half-written stays."""

import os
import pickle
import signal
import struct
import subprocess
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import machine_fault
from pipelines.media import process as process_module
from pipelines.media.clip import NormaliserSettings
from pipelines.media.faults import (
    ChangingSource,
    DamagedSource,
    DeadlineExceeded,
    EmptyFile,
    FfmpegMissing,
    KilledProcess,
    MediaError,
    NoAudioStream,
    NoVideoStream,
    TooShort,
    UnreadableSource,
)
from pipelines.media.normalise import normalise
from pipelines.media.probe import open_source, probe
from pipelines.media.process import Deadline


def made(source: Path, video: Path, audio: Path, settings: NormaliserSettings, deadline_s: float = 60):
    deadline = Deadline(deadline_s)
    return normalise(open_source(source, deadline), video, audio, settings, deadline=deadline)


def refuse(source: Path, settings: NormaliserSettings, deadline_s: float = 60) -> MediaError:
    """The error of a source. No output, no leftover, no folder in the message, and it can be pickled."""
    out = source.parent / "out"
    out.mkdir()
    with pytest.raises(MediaError) as caught:
        made(source, out / "a.mp4", out / "a.flac", settings, deadline_s)
    assert not list(out.iterdir()), "a refused source must leave nothing behind"
    text = str(caught.value)
    assert text.startswith(f"{source.name}: ") and "\n" not in text and len(text) < 600
    assert str(source.parent) not in text and ".part" not in text and "@ 0x" not in text, f"temporary: {text}"
    assert str(pickle.loads(pickle.dumps(caught.value))) == text
    return caught.value


def damaged(whole: Path, source: Path, start: float, end: float) -> Path:
    """A copy with every 97th byte of a stretch of the file flipped."""
    data = np.fromfile(whole, np.uint8)
    data[int(start * len(data)) : int(end * len(data)) : 97] ^= 0xFF
    data.tofile(source)
    return source


def test_missing_file(settings, tmp_path):
    error = refuse(tmp_path / "gone.mp4", settings)
    assert type(error) is UnreadableSource and "No such file" in str(error)


def test_empty_file(settings, tmp_path):
    (tmp_path / "a.mp4").touch()
    assert type(refuse(tmp_path / "a.mp4", settings)) is EmptyFile


@pytest.mark.parametrize("name", ["a.mp4", "a.txt"])
def test_text_is_not_media(settings, tmp_path, name):
    (tmp_path / name).write_text("This is no film.\n" * 500)
    assert type(refuse(tmp_path / name, settings)) is UnreadableSource


def test_a_playlist_cannot_send_ffmpeg_to_other_files(settings, base, tmp_path):
    (tmp_path / "other.mp4").write_bytes(base.read_bytes())
    (tmp_path / "a.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    assert type(refuse(tmp_path / "a.mp4", settings)) is UnreadableSource


def test_a_fifo_is_refused_at_once(settings, tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    error = refuse(tmp_path / "a.mp4", settings)
    assert type(error) is UnreadableSource and "not a regular file" in str(error)


def test_no_header(settings, long_gop, tmp_path):
    """An MP4 cut off before its index, which lies at its end."""
    (tmp_path / "a.mp4").write_bytes(long_gop.read_bytes()[:400_000])
    error = refuse(tmp_path / "a.mp4", settings)
    assert type(error) is UnreadableSource and "moov" in str(error)


def test_sound_only(settings, base, make):
    error = refuse(make("a.m4a", "-i", base, "-vn", "-c", "copy"), settings)
    assert type(error) is NoVideoStream


def test_sound_with_cover_art_has_no_video(settings, base, make):
    cover = make("cover.png", "-f", "lavfi", "-i", "color=red:s=64x64", "-frames:v", "1")
    args = ["-map", "0", "-map", "1:a", "-c:v", "copy", "-disposition:v", "attached_pic"]
    assert type(refuse(make("a.m4a", "-i", cover, "-i", base, *args), settings)) is NoVideoStream


def test_no_sound(settings, base, make):
    error = refuse(make("a.mp4", "-i", base, "-an", "-c", "copy"), settings)
    assert type(error) is NoAudioStream and "picture;" not in str(error)


def test_sound_that_starts_after_the_clip_is_no_sound(settings, base, make):
    late = ["-i", base, "-itsoffset", "9", "-i", base, "-map", "0:v", "-map", "1:a", "-c", "copy"]
    error = refuse(make("a.mkv", *late), settings)
    assert type(error) is NoAudioStream and "no sound in the first 8 s" in str(error)


def test_too_short(settings, base, make):
    error = refuse(make("a.mp4", "-i", base, "-t", "5", "-c:v", "libx264", "-c:a", "copy"), settings)
    assert type(error) is TooShort and "5.0 s of picture" in str(error) and "wanted 8 s" in str(error)


def test_one_missing_frame_is_not_too_short(settings, base, make, tmp_path):
    source = make("a.mp4", "-i", base, "-frames:v", "239", "-c:v", "libx264", "-c:a", "copy")
    assert (
        normalise(
            open_source(source, Deadline(60)), tmp_path / "o.mp4", tmp_path / "o.flac", settings, deadline=Deadline(60)
        ).n_frames
        == 200
    )


def test_all_faults_are_named_and_the_most_fundamental_is_the_class(settings, base, make):
    error = refuse(make("a.mp4", "-i", base, "-t", "5", "-an", "-c:v", "libx264"), settings)
    assert type(error) is NoAudioStream
    assert "no audio stream; 5.0 s of picture" in str(error)


def test_flipped_bits_are_damage(settings, base, tmp_path):
    error = refuse(damaged(base, tmp_path / "a.mp4", 0.3, 0.4), settings)
    assert type(error) is DamagedSource and "do not decode" in str(error)


def test_flipped_bits_after_the_wanted_seconds_do_no_harm(settings, base, tmp_path):
    source = damaged(base, tmp_path / "a.mp4", 0.92, 0.97)
    assert (
        normalise(
            open_source(source, Deadline(60)), tmp_path / "o.mp4", tmp_path / "o.flac", settings, deadline=Deadline(60)
        ).n_frames
        == 200
    )


def test_a_file_cut_off_behind_its_header(settings, base, tmp_path):
    (tmp_path / "a.mp4").write_bytes(base.read_bytes()[: base.stat().st_size // 2])
    error = refuse(tmp_path / "a.mp4", settings)
    assert type(error) is DamagedSource and "12.0 s" in str(error)


@pytest.mark.parametrize("change", [["-ac", "2"], ["-s", "64x48"]])
def test_a_source_that_changes_on_the_way_is_refused(settings, base, make, change):
    """Each change restarts ffmpeg's filters, which would misplace what follows."""
    one = make("one.mkv", "-i", base, "-t", "3", "-c:v", "libx264", "-c:a", "mp2")
    make("two.mkv", "-ss", "3", "-i", base, "-c:v", "libx264", "-c:a", "mp2", *change)
    (one.parent / "list").write_text("file one.mkv\nfile two.mkv\n")
    error = refuse(make("a.nut", "-f", "concat", "-i", one.parent / "list", "-c", "copy"), settings)
    assert type(error) is ChangingSource and "on the way" in str(error)


def fake_tool(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.parametrize("tool", ["ffmpeg", "ffprobe"])
def test_a_hanging_decoder_is_killed_with_its_children(settings, base, tmp_path, monkeypatch, tool):
    """Fault injection: a program on PATH that hangs, ignores SIGTERM and has a child that holds its pipes."""
    tools, source = tmp_path / "bin", tmp_path / "in" / "a.mp4"
    tools.mkdir()
    source.parent.mkdir()
    source.write_bytes(base.read_bytes())
    fake_tool(tools, tool, f"trap '' TERM\nsleep 600 &\necho $$ $! > {tools}/pids\nwait")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    started = time.monotonic()
    error = refuse(source, settings, deadline_s=1.5)
    assert type(error) is DeadlineExceeded and f"{tool} was killed after 1.5 s" in str(error)
    assert time.monotonic() - started < 60, "the child's open pipes must not be waited for"
    for pid in map(int, (tools / "pids").read_text().split()):
        for _ in range(100):
            if not alive(pid):
                break
            time.sleep(0.05)
        assert not alive(pid), os.kill(pid, signal.SIGKILL)


def test_an_earlier_clip_survives_a_later_failure(settings, base, tmp_path):
    video, audio = tmp_path / "a.mp4", tmp_path / "a.flac"
    made(base, video, audio, settings)
    before = video.read_bytes(), audio.read_bytes()
    with pytest.raises(TooShort):
        normalise(
            open_source(base, Deadline(60)), video, audio, replace(settings, duration_s=20.0), deadline=Deadline(60)
        )
    assert before == (video.read_bytes(), audio.read_bytes())


def test_a_missing_ffmpeg_is_no_fault_of_the_source(settings, base, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FfmpegMissing, match="install ffmpeg"):
        normalise(
            open_source(base, Deadline(60)), tmp_path / "a.mp4", tmp_path / "a.flac", settings, deadline=Deadline(60)
        )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_ffmpeg_that_somebody_ended_is_no_fault_of_the_source(settings, base, tmp_path, monkeypatch, number):
    """As beside an out-of-memory killer: the row is tried again, not quarantined."""
    tools = tmp_path / "bin"
    tools.mkdir()
    fake_tool(tools, "ffmpeg", f"kill -{int(number)} $$")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    with pytest.raises(KilledProcess, match=f"ffmpeg was ended by signal {int(number)}") as caught:
        made(base, tmp_path / "a.mp4", tmp_path / "a.flac", settings)
    assert machine_fault(caught.value) is caught.value


def test_a_file_that_wants_too_much_memory_is_refused_by_itself(settings, tmp_path, monkeypatch):
    """The machine keeps its memory, and the other rows their workers."""
    large = tmp_path / "large.mov"
    picture = ["-f", "lavfi", "-i", "color=c=red:size=8000x8000:rate=2", "-frames:v", "5", "-c:v", "mjpeg"]
    subprocess.run(["ffmpeg", "-v", "error", *picture, large], check=True)
    monkeypatch.setattr(process_module, "MEMORY_BYTES", 150 * 2**20)
    with pytest.raises(MediaError) as caught:
        made(large, tmp_path / "a.mp4", tmp_path / "a.flac", replace(settings, require_audio=False))
    assert machine_fault(caught.value) is None
    assert "large.mov" in str(caught.value)


def test_a_crash_of_ffmpeg_is_evidence_against_the_source(settings, base, tmp_path, monkeypatch):
    tools, source = tmp_path / "bin", tmp_path / "in" / "a.mp4"
    tools.mkdir()
    source.parent.mkdir()
    source.write_bytes(base.read_bytes())
    fake_tool(tools, "ffmpeg", f"kill -{int(signal.SIGSEGV)} $$")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    assert isinstance(refuse(source, settings), DamagedSource)


def test_a_picture_that_would_fill_the_memory_is_not_decoded(settings, tmp_path):
    picture, source = tmp_path / "huge.png", tmp_path / "huge.mkv"
    header = struct.pack(">IIBBBBB", 16_000, 16_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(16_001) * 64)), (b"IEND", b"")]
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks))
    subprocess.run(["ffmpeg", "-v", "error", "-i", picture, "-c", "copy", source], check=True)
    error = refuse(source, settings)
    assert type(error) is UnreadableSource and "more than 134217728 pixels" in str(error)
    with pytest.raises(NoVideoStream, match="a still picture; wanted a video"):
        probe(picture, Deadline(60))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
