"""Bytes that each stage reads from a bucket, against those that its rows hold: `python -m benchmarks.bytes_read`.

A small corpus goes through all stages with source and store in a bucket. What a stage reads of media and features is
divided by the size of the media and of the features' rows that its own rows name, each counted once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.bucket import BUCKET, bucket
from miniature.world.corpus import generate_corpus
from miniature.world.film import World
from pipelines.config_file import load_config
from pipelines.engine.plan import make_plan
from pipelines.engine.storage import Storage
from pipelines.engine.store import Output
from pipelines.stages import wanted_stages

ROOT = Path(__file__).parents[1]
CONFIG = "configs/demo.yaml"
SOURCE, STORE = f"s3://{BUCKET}/source", f"s3://{BUCKET}/store"
SETTINGS = [
    f"root={STORE}",
    f"source.folder={SOURCE}",
    "source.table=null",
    "source.test_fraction=0.3",
    "clips.duration_s=4.0",
    "curation.rules.min_words=1",
    "captions.sampling.max_new_tokens=16",
    "silent_captions.sampling.max_new_tokens=16",
    "captioner.training.max_steps=8",
    "features.execution.batch_rows=64",
    "samples.execution.batch_rows=8",
    "flowley.training.steps=10",
    "flowley.training.batch_size=4",
    "flowley.training.duration_s=4.0",
    "flowley.execution.workers=2",
]


def main() -> None:
    """Prints a line for each stage, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = measure(arguments.clips)
    if arguments.json:
        print(json.dumps(figures))
        return
    for stage, one in figures.items():
        print(f"{stage:16} " + "  ".join(f"{name} {value}" for name, value in one.items()))


def measure(clips: int) -> dict[str, dict[str, float | None]]:
    """MB read by each stage, of media and features and of all else, and the ratio to what its rows hold."""
    figures = {}
    with bucket() as served, tempfile.TemporaryDirectory(prefix="soundcap-bytes-") as name:
        generate_corpus(Path(name), clips=clips, seed=3, workers=2, world=World(duration_s=4.0))
        for film in sorted((Path(name) / "videos").iterdir()):
            Storage(SOURCE).write_bytes(film.name, film.read_bytes())
        environment = served.environment | {"TMPDIR": name, "XDG_CACHE_HOME": name}
        for stage in wanted_stages(load_config(str(ROOT / CONFIG), SETTINGS)):
            served.read_bytes.clear()
            sets = [part for one in SETTINGS for part in ("--set", one)]
            command = [sys.executable, "-m", "pipelines.cli.soundcap", "run", CONFIG, "--until", stage.name, *sets]
            subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=sys.stderr)
            figures[stage.name] = _figures(stage.name, served.read_bytes)
            for key, size in served.read_bytes.most_common(5):
                print(f"  {stage.name}: {size} bytes of {key}", file=sys.stderr)
    return figures


def _figures(stage: str, read_bytes: Mapping[str, int]) -> dict[str, float | None]:
    held = _held(stage)
    of_rows = sum(size for name, size in read_bytes.items() if _is_data(name))
    return {
        "rows_mb": round(of_rows / 1e6, 3),
        "held_mb": round(held / 1e6, 3),
        "ratio": round(of_rows / held, 3) if held else None,
        "other_mb": round((sum(read_bytes.values()) - of_rows) / 1e6, 3),
    }


def _is_data(name: str) -> bool:
    return name.startswith(("source/", "store/media/", "store/features/parts/", "store/samples/media/"))


def _held(stage: str) -> float:
    """Bytes of the media, and of the rows of feature files, that the rows of a stage need."""
    config, storage = load_config(str(ROOT / CONFIG), SETTINGS), Storage(STORE)
    plans = {plan.name: plan for plan in make_plan(wanted_stages(config), config, storage)}

    def rows(name: str) -> list[dict[str, Any]]:
        fingerprint = plans[name].fingerprint
        assert fingerprint is not None
        found: list[dict[str, Any]] = Output(storage, name, fingerprint).rows().to_pylist()
        return found

    sizes = {info.name: info.size for info in storage.files(recursive=True)}
    clips = {row["clip_id"]: row for row in rows("clips")}
    if stage == "clips":
        return float(sum(info.size for info in Storage(SOURCE).files()))
    if stage in ("captions", "features"):
        return float(sum(sizes[row[kind]] for row in clips.values() for kind in ("video", "audio")))
    if stage in ("captioner", "silent_captions"):
        is_wanted = {row["clip_id"] for row in rows("curation") if row["kept"] and row["split"] == "train"}
        wanted = clips if stage == "silent_captions" else is_wanted
        return float(sum(sizes[clips[clip_id]["video"]] for clip_id in wanted))
    if stage == "flowley":
        return _bytes_of_features(rows("features"), rows("features"), sizes)
    if stage == "samples":
        test = [row for row in rows("features") if row["split"] == "test"]
        return _bytes_of_features(test, rows("features"), sizes) + sum(sizes[row["video"]] for row in test)
    if stage == "scores":
        return float(sum(sizes[row[name]] for row in rows("samples") for name in ("audio", "original_audio")))
    return 0.0


def _bytes_of_features(wanted: Iterable[Mapping[str, Any]], all_rows: list[dict[str, Any]], sizes: Any) -> float:
    """Bytes of the wanted rows of feature files: each file's size, shared among its rows."""
    total = 0.0
    for kind in ("av_file", "text_file"):
        rows_of = Counter(row[kind] for row in all_rows)
        total += sum(sizes[row[kind]] / rows_of[row[kind]] for row in wanted)
    return total


if __name__ == "__main__":
    main()
