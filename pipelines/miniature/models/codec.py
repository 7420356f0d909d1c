"""The sound codec of the miniature: few channels, so that a small network can learn a flow over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from flowley.codecs.log_mel import LogMelCodec
from flowley.codecs.log_mel_pca import LogMelPCACodec
from pipelines.miniature.world.film import Film, Split, World, plan_film

LATENT_DIM = 12
FILMS, TEST_FILMS = 300, 60


def train(folder: Path, *, seed: int, say: Callable[[str], None]) -> dict[str, float]:
    """Find the components over films of the train split, save them, and return the share that test films keep."""
    say(f"codec: {FILMS} films")
    codec = LogMelPCACodec.fit(_waves(seed, "train", FILMS), LATENT_DIM)
    codec.save(folder)
    frames = torch.cat([codec.log_mel.encode(wave[None])[0][0] for wave in _waves(seed, "test", TEST_FILMS)])
    lost = frames - codec.mean - (frames - codec.mean) @ codec.components.T @ codec.components
    return {"variance_kept": float(1 - lost.square().sum() / (frames - frames.mean(0)).square().sum())}


def _waves(seed: int, split: Split, films: int) -> Iterator[Tensor]:
    world = World()
    for number in range(films):
        sound = Film(world, plan_film(world, seed, split, number)).sound(LogMelCodec.audio_hz, stereo=False)
        yield torch.from_numpy(sound[:, 0]).float()
