"""`python -m miniature.models [MODEL ...] [--workers N]`: trains the shipped models from scratch and records them.

All models, or those named; about an hour on one core. `checkpoints/models.json` has each one's digest, held-out
scores and training time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowley.codecs.log_mel import LogMelCodec, LogMelPCACodec
from miniature.models import alignment, encoder_pair, listener
from miniature.models.captioners import train_base, train_teacher
from miniature.models.training import CHECKPOINTS, Say
from miniature.world.film import Film, Split, World, plan_film
from pipelines.engine.fingerprint import file_sha256

RECORD = CHECKPOINTS / "models.json"
SEED = 0
CODEC_FILMS, CODEC_TEST_FILMS = 300, 60
LATENT_DIM = 12
"""Channels of the codec: few, so that a small network can learn a flow over them."""


def train_codec(folder: Path, *, seed: int, say: Say) -> dict[str, float]:
    """Fit principal components of log-mel frames, save them, and return the share of variance kept on test films."""
    say(f"codec: {CODEC_FILMS} films")
    codec = LogMelPCACodec.fit(_waves(seed, "train", CODEC_FILMS), LATENT_DIM)
    codec.save(folder)
    frames = torch.cat([codec.log_mel.encode(wave[None])[0][0] for wave in _waves(seed, "test", CODEC_TEST_FILMS)])
    lost = frames - codec.mean - (frames - codec.mean) @ codec.components.T @ codec.components
    return {"variance_kept": float(1 - lost.square().sum() / (frames - frames.mean(0)).square().sum())}


def _waves(seed: int, split: Split, films: int) -> Iterator[Tensor]:
    world = World()
    for number in range(films):
        sound = Film(world, plan_film(world, seed, split, number)).sound(LogMelCodec.audio_hz, stereo=False)
        yield torch.from_numpy(sound[:, 0]).float()


TRAINERS: dict[str, Callable[..., dict[str, Any]]] = {
    "omni": train_teacher,
    "vl": train_base,
    "clip": encoder_pair.train,
    "codec": train_codec,
    "listener": listener.train,
    "alignment": alignment.train,
}
"""In the order of training: the classifier of alignment needs encoder and codec."""


def rebuild(name: str, workers: int, say: Say) -> None:
    """Train one model; it replaces the shipped one when it is whole."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soundcap-models-") as scratch:
        folder = Path(scratch) / name
        folder.mkdir()
        options = {"workers": workers} if name in ("omni", "vl") else {}
        scores = TRAINERS[name](folder, seed=SEED, say=say, **options)
        target = CHECKPOINTS / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record[name] = {
        "sha256": file_sha256(target / "model.safetensors"),
        "date": date.today().isoformat(),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "scores": scores,
    }
    RECORD.write_text(json.dumps(dict(sorted(record.items())), indent=1) + "\n")
    say(f"{name}: {json.dumps(scores)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ", ".join(TRAINERS)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {names}; all if none is named")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that make films")
    arguments = parser.parse_args()
    if not set(TRAINERS).issuperset(arguments.models) or arguments.workers < 1:
        parser.error(
            f"got models {', '.join(arguments.models) or 'all'} with {arguments.workers} workers, "
            f"wanted some of {names} and at least 1 worker"
        )
    for name in arguments.models or TRAINERS:
        rebuild(name, arguments.workers, partial(print, flush=True))


if __name__ == "__main__":
    main()
