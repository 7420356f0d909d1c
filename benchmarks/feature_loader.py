"""Rate at which feature files become batches, against reading the same bytes and against the demand of a GPU.

    loader  training data loader: FeatureDataset, step_clips and collate in a DataLoader; the paper's settings,
            captions of 40 tokens, shuffled clips, batches of 256
    floor   sequential reads of the same files into one buffer, without decoding
    need    twice the training throughput of `flowley_169m` at 45% MFU on an H100 (989 TFLOP/s, bf16)

Sources: the local disk with a cold and with a warm page cache, and an S3 server. From S3 the files are downloaded
once by `pipelines.engine.storage`, as in the training worker, then memory-mapped, so every epoch after the download
is warm. The server is one Python process on this machine: its rate is a lower bound.

`python -m benchmarks.feature_loader [--json] [--clips N] [--workers N] [--batch N] [--no-s3]`
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from benchmarks.flops import flops_of
from flowley.features.dataset import Batch, Entry, FeatureDataset, Row, collate
from flowley.features.files import AVFeatures, TextFeatures, write_av_features, write_text_features
from flowley.network.presets import preset
from flowley.training.trainer import step_clips
from pipelines.engine.storage import Storage

CONFIG = preset("flowley_169m")
DURATION_S, CAPTION_TOKENS = 8.0, 40
CLIPS_PER_FILE = 512
H100_FLOPS, MFU, HEADROOM = 989e12, 0.45, 2.0
PASSES = 3


def need_clips_per_s() -> float:
    """Throughput (clips/s) that the loader must reach."""
    clip = flops_of(CONFIG, duration_s=DURATION_S, L_txt=CAPTION_TOKENS).training
    return HEADROOM * MFU * H100_FLOPS / clip


def write_features(folder: Path, n_clips: int) -> list[Entry]:
    """Writes feature files of random clips at the paper's settings; returns their dataset entries."""
    g = np.random.default_rng(0)
    frames_aud, frames_vis = CONFIG.lengths(DURATION_S)
    mean = g.standard_normal((frames_aud, CONFIG.latent_dim), np.float32)
    visual = g.standard_normal((frames_vis, CONFIG.visual_dim), np.float32)
    text = g.standard_normal((CAPTION_TOKENS, CONFIG.text_dim), np.float32)
    entries: list[Entry] = []
    for first in range(0, n_clips, CLIPS_PER_FILE):
        ids = [f"clip_{n:06}" for n in range(first, min(first + CLIPS_PER_FILE, n_clips))]
        av_path, text_path = folder / f"av-{first:06}.arrow", folder / f"text-{first:06}.arrow"
        write_av_features(av_path, [AVFeatures(clip_id, visual, mean, abs(mean)) for clip_id in ids])
        write_text_features(text_path, [TextFeatures(clip_id, text, len(text)) for clip_id in ids])
        entries += [Entry(clip_id, Row(str(av_path), n), Row(str(text_path), n)) for n, clip_id in enumerate(ids)]
    return entries


def loader_clips_per_s(entries: list[Entry], *, workers: int, batch: int) -> float:
    """Loader throughput (clips/s) over one epoch, start-up excluded."""
    steps = max(2, len(entries) // batch)
    sampler = step_clips(len(entries), batch_size=batch, seed=0, start_step=0, end_step=steps + 1)
    loader: DataLoader[Batch] = DataLoader(
        FeatureDataset(entries),  # type: ignore[arg-type]
        batch_sampler=sampler, num_workers=workers,
        collate_fn=partial(collate, config=CONFIG, duration_s=DURATION_S),
    )  # fmt: skip
    batches = iter(loader)
    next(batches)
    started = time.perf_counter()
    n = sum(len(b.clip_ids) for b in batches)
    return n / (time.perf_counter() - started)


def floor_clips_per_s(files: list[Path], n_clips: int) -> float:
    """Raw read throughput (clips/s) of the files."""
    buffer = bytearray(max(file.stat().st_size for file in files))
    started = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    return n_clips / (time.perf_counter() - started)


def forget(files: list[Path]) -> None:
    """Drops the files' pages from the page cache, as far as the kernel complies."""
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def s3_server() -> Iterator[str]:
    """URL of a bucket on a moto server process; environment variables point every S3 client at it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    before = dict(os.environ)
    os.environ.update(
        AWS_ENDPOINT_URL=endpoint, AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
    )  # fmt: skip
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(endpoint, timeout=1).read()
                break
            except OSError:
                time.sleep(0.1)
        import s3fs

        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
        yield "s3://bucket"
    finally:
        server.kill()
        server.wait()
        for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            os.environ.pop(name)
        os.environ.update(before)


def download_clips_per_s(files: list[Path], n_clips: int, target: Path) -> float:
    """Download throughput (clips/s) from the object store to a local folder."""
    with s3_server() as url:
        storage = Storage(f"{url}/features")
        for file in files:
            storage.write_bytes(file.name, file.read_bytes())
        started = time.perf_counter()
        for file in files:
            storage.download(file.name, target / file.name)
        return n_clips / (time.perf_counter() - started)


def moved(entries: list[Entry], folder: Path) -> list[Entry]:
    """Entries of the same clips, with their files in another folder."""

    def there(row: Row) -> Row:
        return Row(str(folder / Path(row.path).name), row.row)

    return [Entry(entry.clip_id, there(entry.av), there(entry.text)) for entry in entries]


def measure(*, clips: int, workers: int, batch: int, s3: bool) -> list[dict[str, Any]]:
    """Result rows: first clip size and demand, then one row per source, the best of PASSES passes."""
    with tempfile.TemporaryDirectory(prefix="feature-loader-") as name:
        here, downloaded = Path(name) / "here", Path(name) / "downloaded"
        here.mkdir()
        downloaded.mkdir()
        entries = write_features(here, clips)
        files = sorted(here.iterdir())
        bytes_per_clip = sum(file.stat().st_size for file in files) / clips
        need = need_clips_per_s()
        rows: list[dict[str, Any]] = [{
            "clips": clips, "bytes_per_clip": round(bytes_per_clip), "workers": workers, "batch": batch,
            "need_clips_per_s": round(need), "need_mb_per_s": round(need * bytes_per_clip / 1e6),
        }]  # fmt: skip

        def add(source: str, entries: list[Entry], files: list[Path], *, cold: bool, **more: Any) -> None:
            floors, loads = [], []
            for _ in range(PASSES):
                if cold:
                    forget(files)
                floors.append(floor_clips_per_s(files, clips))
                if cold:
                    forget(files)
                loads.append(loader_clips_per_s(entries, workers=workers, batch=batch))
            rows.append({
                "source": source, "clips_per_s": round(max(loads)), "floor_clips_per_s": round(max(floors)),
                "ratio_to_floor": round(max(floors) / max(loads), 2), "times_need": round(max(loads) / need, 2), **more,
            })  # fmt: skip

        add("local_cold", entries, files, cold=True)
        add("local_warm", entries, files, cold=False)
        if s3:
            rate = download_clips_per_s(files, clips, downloaded)
            more = {"download_clips_per_s": round(rate), "download_mb_per_s": round(rate * bytes_per_clip / 1e6)}
            local = [downloaded / file.name for file in files]
            add("s3_downloaded", moved(entries, downloaded), local, cold=False, **more)
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.feature_loader", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--clips", type=int, default=4096, help="195 kB each on disk")
    parser.add_argument("--workers", type=int, default=0, help="loader processes; 0: the training's own")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--no-s3", action="store_true", help="local disk only")
    given = parser.parse_args()
    rows = measure(clips=given.clips, workers=given.workers, batch=given.batch, s3=not given.no_s3)
    if given.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print("   ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
