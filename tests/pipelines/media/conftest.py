"""Sources with a flash in the picture and a click in the sound at known times, and eyes and ears for them."""

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipelines.media.clip import NormaliserSettings
from pipelines.media.read import read_frames

FPS, WIDTH_PX, HEIGHT_PX, HZ = 30, 128, 96, 44_100
FLASH_FRAMES, CLICK_S = 3, 0.004
COUNTER_BITS, BIT_PX = 10, 12

Make = Callable[..., Path]


@dataclass(frozen=True)
class Seen:
    """What someone sees and hears in a finished clip."""

    frames: np.ndarray  # (T, H, W, 3) uint8
    sound: np.ndarray  # (N, channels) float32
    hz: int
    flash_s: float
    click_s: float
    counters: list[int]  # source frame number drawn into each frame


def draw(n_frames: int, flash_s: float) -> np.ndarray:
    """(n, H, W, 3): upper half flashes once; bottom rows spell the frame number in binary blocks.

    The rows between hold noise, so that a file is mostly picture data and damage hits that.
    """
    frames = np.full((n_frames, HEIGHT_PX, WIDTH_PX, 3), 40, np.uint8)
    first = round(flash_s * FPS)
    frames[first : first + FLASH_FRAMES, : HEIGHT_PX // 2] = 230
    noise = np.random.default_rng(0).integers(0, 160, (n_frames, 20, WIDTH_PX, 1), np.uint8)
    frames[:, HEIGHT_PX // 2 + 2 : HEIGHT_PX // 2 + 22] = noise
    for bit in range(COUNTER_BITS):
        lit = (np.arange(n_frames) >> bit) & 1 == 1
        frames[lit, -24:, bit * BIT_PX : (bit + 1) * BIT_PX] = 230
    return frames


def click(duration_s: float, click_s: float, hz: int = HZ) -> np.ndarray:
    """(N,) silence with one short tone burst."""
    sound = np.zeros(round(duration_s * hz), np.float32)
    burst = np.sin(2 * np.pi * 3000 * np.arange(round(CLICK_S * hz)) / hz)
    first = round(click_s * hz)
    sound[first : first + len(burst)] = 0.8 * burst
    return sound


def ffmpeg(*args: str | Path, stdin: bytes | None = None) -> None:
    done = subprocess.run(
        ["ffmpeg", "-v", "error", "-y", *map(str, args)], input=stdin, capture_output=True, timeout=120
    )
    assert done.returncode == 0, f"the fixture itself failed: {done.stderr.decode()}"


def write_source(out: Path, duration_s: float, at_s: float, encode: Sequence[str]) -> Path:
    """An ordinary file with flash and click at `at_s`."""
    wav = out.with_suffix(".wav")
    soundfile.write(wav, click(duration_s, at_s), HZ)
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH_PX}x{HEIGHT_PX}", "-r", str(FPS), "-i", "-"]
    frames = draw(round(duration_s * FPS), at_s)
    ffmpeg(*raw, "-i", wav, *encode, "-pix_fmt", "yuv420p", out, stdin=frames.tobytes())
    return out


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 s, 30 fps H.264 with B-frames, AAC mono, header in front; flash and click at 3 s."""
    out = tmp_path_factory.mktemp("media") / "base.mp4"
    return write_source(out, 12.0, 3.0, ["-c:v", "libx264", "-g", "60", "-movflags", "+faststart"])


@pytest.fixture(scope="session")
def long_gop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 s with a keyframe each 250 frames and B-frames; flash and click at 15 s."""
    out = tmp_path_factory.mktemp("media") / "long.mp4"
    return write_source(out, 25.0, 15.0, ["-c:v", "libx264", "-g", "250", "-sc_threshold", "0", "-bf", "3"])


@pytest.fixture
def settings() -> NormaliserSettings:
    return NormaliserSettings(long_side_px=128)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make(name, *ffmpeg_arguments)` -> path of the written file."""

    def written(name: str, *args: str | Path) -> Path:
        ffmpeg(*args, tmp_path / name)
        return tmp_path / name

    return written


@pytest.fixture
def look() -> Callable[[Path, Path], Seen]:
    def seen(video: Path, audio: Path) -> Seen:
        frames = read_frames(video, 25)
        sound, hz = soundfile.read(audio, dtype="float32", always_2d=True)
        flashes = np.flatnonzero(frames[:, 4 : HEIGHT_PX // 2 - 4].mean(axis=(1, 2, 3)) > 128)
        clicks = np.flatnonzero(np.abs(sound).max(axis=1) > 0.2)
        centres = (np.arange(COUNTER_BITS) * BIT_PX + BIT_PX // 2).tolist()
        bits = frames[:, HEIGHT_PX - 12, centres, 1] > 128
        return Seen(
            frames=frames,
            sound=sound,
            hz=hz,
            flash_s=flashes[0] / 25 if len(flashes) else float("nan"),
            click_s=clicks[0] / hz if len(clicks) else float("nan"),
            counters=(bits @ (1 << np.arange(COUNTER_BITS))).tolist(),
        )

    return seen
