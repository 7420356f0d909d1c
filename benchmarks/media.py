"""Normalisation time of a clip against its floor: ffmpeg decoding the same seconds to the null muxer.

`python -m benchmarks.media [--json]`
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipelines.media.clip import NormaliserSettings
from pipelines.media.normalise import normalise
from pipelines.media.probe import open_source
from pipelines.media.process import Deadline
from pipelines.media.read import read_frames

ROUNDS = 5
SECONDS = 8.0


def main() -> None:
    """Prints median times (ms) and ratios to the floor. Cases are interleaved, so noise hits all alike."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, video, audio = folder / "source.mp4", folder / "clip.mp4", folder / "clip.flac"
        _ffmpeg(
            "-f", "lavfi", "-i", "testsrc2=size=1280x720:rate=30", "-f", "lavfi", "-i", "sine=440:sample_rate=44100",
            "-t", "10", "-pix_fmt", "yuv420p", str(source),
        )  # fmt: skip
        settings = NormaliserSettings(duration_s=SECONDS)
        cases: dict[str, Callable[[], object]] = {
            "decode_floor": lambda: _ffmpeg("-t", str(SECONDS), "-i", str(source), "-f", "null", "-"),
            "normalise": lambda: normalise(
                open_source(source, Deadline(120)), video, audio, settings, deadline=Deadline(120)
            ),
            "read_2_fps": lambda: read_frames(video, 2),
            "read_8_fps": lambda: read_frames(video, 8),
        }
        times: dict[str, list[float]] = {case: [] for case in cases}
        for _ in range(ROUNDS):
            for case, work in cases.items():
                started = time.perf_counter()
                work()
                times[case].append(1000 * (time.perf_counter() - started))
    floor = statistics.median(times["decode_floor"])
    rows = [
        {"case": case, "ms": round(statistics.median(ms), 1), "ratio_to_floor": round(statistics.median(ms) / floor, 2)}
        for case, ms in times.items()
    ]
    if "--json" in sys.argv:
        print(json.dumps(rows))
    else:
        for row in rows:
            print(f"{row['case']:14} {row['ms']:>8} ms   {row['ratio_to_floor']:>6} x floor")


def _ffmpeg(*arguments: str) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-nostdin", *arguments], check=True)


if __name__ == "__main__":
    main()
