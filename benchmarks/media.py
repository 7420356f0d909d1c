"""CPU time of a clip through stage `clips`, against a bare ffmpeg command that makes the same streams; and of reading.

`python -m benchmarks.media [--source FILE] [--json]`. The source is 720p, at least 8 s; without one it is generated.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipelines.engine.fingerprint import file_sha256
from pipelines.engine.storage import Storage
from pipelines.media.clip import NormaliserSettings
from pipelines.media.read import read_frames
from pipelines.stages.clips import ClipWorker

ROUNDS = 5
SETTINGS = NormaliserSettings(duration_s=8.0)
DEADLINE_S = 120.0


def main() -> None:
    """Prints median CPU times (ms) and their ratios to `bare`. Cases are interleaved, so noise hits all alike."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soundcap-media-") as name:
        folder = Path(name)
        source = (options.source or _generated(folder / "source.mp4")).resolve()
        worker = ClipWorker(SETTINGS, Storage(str(source.parent)), Storage(f"{folder}/store"), DEADLINE_S)
        task = {"source_name": source.name, "clip_id": "0" * 16, "source_sha256": file_sha256(source)}
        clip = folder / "store" / "media" / "00" / f"{'0' * 16}.mp4"
        cases: dict[str, Callable[[], object]] = {
            "bare": lambda: _bare(source, folder),
            "decode": lambda: _ffmpeg("-threads", "1", "-t", "8", "-i", source, "-f", "null", "-"),
            "clips": lambda: worker.process([task]),
            "read_2_fps": lambda: read_frames(clip, 2),
            "read_8_fps": lambda: read_frames(clip, 8),
        }
        worker.process([task])  # libraries are loaded once a worker
        times: dict[str, list[float]] = {case: [] for case in cases}
        for _ in range(ROUNDS):
            for case, work in cases.items():
                times[case].append(_cpu_ms(work))
    floor = statistics.median(times["bare"])
    rows = [
        {"case": case, "cpu_ms": round(statistics.median(ms), 1), "of_bare": round(statistics.median(ms) / floor, 2)}
        for case, ms in times.items()
    ]
    if options.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            print(f"{row['case']:12} {row['cpu_ms']:>8} ms of CPU   {row['of_bare']:>6} x bare")


def _bare(source: Path, folder: Path) -> None:
    """Bare command for a clip: no facts, no checks, no place in time."""
    _ffmpeg(
        "-threads", "1", "-i", source, "-filter_complex_threads", "1",
        "-filter_complex", "[0:v]fps=25,scale=448:252:flags=bicubic,format=yuv420p[picture]",
        "-map", "[picture]", "-t", "8", "-c:v", "libx264", "-preset", "veryfast", "-crf", "12", "-bf", "0", "-g", "12",
        "-threads:v", "1", folder / "bare.mp4", "-map", "0:a", "-t", "8", "-c:a", "flac", folder / "bare.flac",
    )  # fmt: skip


def _cpu_ms(work: Callable[[], object]) -> float:
    """CPU time of this process and of its children."""
    before = _cpu_s()
    work()
    return 1000 * (_cpu_s() - before)


def _cpu_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _generated(path: Path) -> Path:
    _ffmpeg(
        "-f", "lavfi", "-i", "testsrc2=size=1280x720:rate=30", "-f", "lavfi", "-i", "sine=440:sample_rate=44100",
        "-t", "10", "-pix_fmt", "yuv420p", path,
    )  # fmt: skip
    return path


def _ffmpeg(*arguments: object) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-nostdin", *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
