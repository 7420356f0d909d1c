"""The decoding side of captioning: how fast clips come, whether an engine ever waits for them, and what it takes.

`python -m benchmarks.captioning --source FILE [--clips N] [--vllm] [--json]`. Clips pass through the real worker and
the row engine on a local Ray; only the engine is a stand-in, which sleeps for each clip (lognormal, sigma .6). The
source becomes clips of 8 s as configs/vggsound.yaml makes them; for the memory, of 60 s too, from the source in a loop.

- `read`: CPU time of one clip, picture at 2 frames/s and sound, in one thread.
- `busy`: time slept / time from the first request to the last answer, at a mean sleep of 1.25 x `read` / cores.
- `feed`: clips a second where the engine takes no time. Cores cannot feed one that is faster.
- `peak`: memory of an actor whose engine is slow, so that all that may wait does.
- `vllm`: with --vllm, captions a second of the miniature's model on the CPU, through the stream and by the bare engine,
  which gets the same requests prepared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa

from pipelines.config_file import load_config
from pipelines.engine.cluster import ensure_ray
from pipelines.engine.fanout import fan_out
from pipelines.engine.ledger import Ledger
from pipelines.engine.recipe import KEY
from pipelines.engine.storage import Storage
from pipelines.media.normalise import normalise
from pipelines.media.probe import open_source
from pipelines.media.process import Deadline
from pipelines.run_config import CaptioningExecution
from pipelines.stages.captions import CAPTION, CaptionRecipe, CaptionsStage, CaptionWorker
from pipelines.stages.clips import SETTINGS, NormaliserSettings
from soundcap.engines import CaptionEngine, EngineExecution, load_engine

ROOT = Path(__file__).parents[1]
SIGMA, SLACK, SLOTS, READS = 0.6, 1.25, 4, 15
LONG_S = 60.0
MEMORY_CLIPS, MEMORY_SLEEP_S = 60, 0.5
VLLM_CLIPS = 32


class SleepingEngine(CaptionEngine):
    """Engine that sleeps for each request, one after the other, and notes when it began and ended each."""

    fills_batches = False

    def __init__(self, mean_s: float, notes: Path) -> None:
        self.mean_s, self.notes, self.inside, self.chance = mean_s, notes, list[str](), random.Random(0)

    def prepare(self, request: Any) -> Any:
        return None

    @property
    def has_room(self) -> bool:
        return len(self.inside) < SLOTS

    def add(self, key: str, prepared: Any) -> None:
        self.inside.append(key)

    def step(self) -> list[tuple[str, str | Exception]]:
        began = time.time()
        time.sleep(self.mean_s * self.chance.lognormvariate(-(SIGMA**2) / 2, SIGMA))
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with self.notes.open("a") as file:
            file.write(f"{began} {time.time()} {peak_kb}\n")
        return [(self.inside.pop(0), "A dog barks.")]

    def close(self) -> None: ...


@dataclass
class SleepingWorker(CaptionWorker):
    """The captioning worker with that engine."""

    mean_s: float = 0.0
    notes: str = ""

    def load(self) -> CaptionEngine:
        return SleepingEngine(self.mean_s, Path(self.notes))


def main() -> None:
    """Prints the figures, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="a video of 8 s or more, with sound")
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--vllm", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soundcap-captioning-") as name:
        figures = measure(Path(name), options.source, options.clips, with_vllm=options.vllm)
    print(json.dumps(figures) if options.json else "\n".join(f"{k:24} {v}" for k, v in figures.items()))


def measure(folder: Path, source: Path, clips: int, *, with_vllm: bool) -> dict[str, float]:
    """Figures by name, with their units."""
    config = load_config(ROOT / "configs/vggsound.yaml")
    settings = NormaliserSettings(**{one.name: getattr(config.clips, one.name) for one in SETTINGS})
    storage = Storage(f"{folder}/store")
    clip_8 = _clip(folder, source, settings)
    clip_60 = _clip(folder, _looped(folder, source), replace(settings, duration_s=LONG_S))
    execution = replace(config.captions.execution, gpus_per_worker=0, workers=1, cpus_per_worker=os.cpu_count() or 1)
    recipe = _recipe(folder)
    worker = SleepingWorker(recipe, execution, storage)
    read_s = _read_s(worker, clip_8)
    cores = int(execution.cpus_per_worker)
    mean_s = SLACK * read_s / cores
    ensure_ray()
    figures = {"cores": cores, "read_cpu_ms_a_clip": round(1000 * read_s, 1)}
    times = _run(folder, worker, clip_8, clips, mean_s)
    figures["sleep_mean_ms"] = round(1000 * mean_s, 1)
    figures["busy"] = round(sum(end - begin for begin, end, _ in times) / (times[-1][1] - times[0][0]), 4)
    times = _run(folder, worker, clip_8, clips, 0.0)
    figures["feed_clips_a_s"] = round((len(times) - 1) / (times[-1][1] - times[0][1]), 2)
    figures["feed_of_read"] = round(figures["feed_clips_a_s"] * read_s / cores, 3)
    for name, clip in (("peak_gb_8_s", clip_8), ("peak_gb_60_s", clip_60)):
        times = _run(folder, worker, clip, MEMORY_CLIPS, MEMORY_SLEEP_S)
        figures[name] = round(max(peak_kb for _, _, peak_kb in times) / 2**20, 2)
    return figures | (_vllm(worker, clip_8) if with_vllm else {})


def _recipe(folder: Path) -> CaptionRecipe:
    """The demo's recipe, whose model is there, with the frames of configs/vggsound.yaml."""
    config = load_config(ROOT / "configs/demo.yaml", [f"root={folder}/store"])
    return CaptionsStage().recipe(config, Storage(config.root))


def _looped(folder: Path, source: Path) -> Path:
    looped = folder / "looped.mp4"
    command = ["ffmpeg", "-v", "error", "-stream_loop", "-1", "-i", source, "-t", str(LONG_S + 1), "-c:v", "libx264"]
    subprocess.run([*command, "-preset", "ultrafast", "-c:a", "aac", looped], check=True)
    return looped


def _clip(folder: Path, source: Path, settings: NormaliserSettings) -> dict[str, str]:
    """Files of a clip in the storage."""
    video, audio = (f"media/{settings.duration_s:g}{suffix}" for suffix in (".mp4", ".flac"))
    (folder / "store" / "media").mkdir(parents=True, exist_ok=True)
    deadline = Deadline(600)
    paths = folder / "store" / video, folder / "store" / audio
    normalise(open_source(source.resolve(), deadline), *paths, settings, deadline=deadline)
    return {"video": video, "audio": audio}


def _read_s(worker: CaptionWorker, clip: dict[str, str]) -> float:
    """CPU time of reading a clip as the worker does."""
    times = []
    for _ in range(READS):
        began = _cpu_s()
        worker._read({**clip, "prompt": "Describe the sound."})
        times.append(_cpu_s() - began)
    return median(times)


def _cpu_s() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _run(
    folder: Path, worker: SleepingWorker, clip: dict[str, str], clips: int, mean_s: float
) -> list[tuple[float, float, float]]:
    """Captions so many clips; beginning, end (s) and the actor's peak memory (KB) of each sleep."""
    notes = folder / f"notes-{time.time()}"
    ledger = Ledger(worker.storage, f"sleeps-{time.time()}", CAPTION)
    ids = [f"clip{n}" for n in range(clips)]
    tasks = pa.table({"clip_id": ids, **{k: [v] * clips for k, v in clip.items()}, "prompt": ["Describe it."] * clips})
    keys = pa.array([n.to_bytes(KEY.byte_width) for n in range(clips)], KEY)
    asleep = replace(worker, mean_s=mean_s, notes=str(notes))
    fan_out(tasks, keys, asleep, ledger=ledger, recipe=worker.recipe, workers=worker.execution, say=lambda _: None)
    assert ledger.read(("caption",))["caption"].to_pylist() == ["A dog barks."] * clips
    return [tuple(map(float, line.split())) for line in notes.open()]  # type: ignore[misc]


def _vllm(worker: CaptionWorker, clip: dict[str, str]) -> dict[str, float]:
    """Captions a second through the stream, and by the engine alone with prepared requests; the engine is the same."""
    recipe = worker.recipe
    execution = EngineExecution(engine="vllm", device="cpu", dtype="float32")
    engine = load_engine(
        recipe.model.path, None, None, frames=recipe.frames, sampling=recipe.sampling, execution=execution
    )
    streaming = _Loaded(recipe, CaptioningExecution(cpus_per_worker=worker.execution.cpus_per_worker), worker.storage)
    streaming.engine = engine
    tasks = [{**clip, "clip_id": n, "prompt": f"Describe the sound, as number {n}."} for n in range(VLLM_CLIPS)]
    requests = [worker._read(task) for task in tasks]
    engine.caption(requests[:2])  # type: ignore[arg-type]
    prepared = [engine.prepare(request) for request in requests]  # type: ignore[arg-type]
    began = time.monotonic()
    done = 0
    for number, one in enumerate(prepared):
        engine.add(f"bare{number}", one)
    while done < len(prepared):
        done += len(engine.step())
    bare_s = time.monotonic() - began
    streaming.setup()
    began = time.monotonic()
    assert len(list(streaming.stream(tasks))) == VLLM_CLIPS
    stream_s = time.monotonic() - began
    rates = VLLM_CLIPS / bare_s, VLLM_CLIPS / stream_s
    return {
        "vllm_bare_captions_a_s": round(rates[0], 2),
        "vllm_stream_captions_a_s": round(rates[1], 2),
        "vllm_stream_of_bare": round(rates[1] / rates[0], 3),
    }


class _Loaded(CaptionWorker):
    """Worker whose engine is loaded already."""

    engine: CaptionEngine

    def load(self) -> CaptionEngine:
        return self.engine


if __name__ == "__main__":
    main()
