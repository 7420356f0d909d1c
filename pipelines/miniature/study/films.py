"""Films of a study and what is made of them once for all cells that use them: features and captions.

Everything lies in a work folder under the digest of what it depends on, and is made again if that changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowley.codecs import AudioCodec, load_codec
from flowley.encoders import TextEncoder, VisualEncoder
from flowley.features import AVFeatures, TextFeatures, write_av_features, write_text_features
from pipelines.fingerprint import digest
from pipelines.media.normalise import temporary_beside
from pipelines.miniature.world.corpus import CORPUS_VERSION
from pipelines.miniature.world.film import Film, FilmPlan, Split, World, plan_film

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
ENCODER = str(CHECKPOINTS / "clip")
CODEC = str(CHECKPOINTS / "codec")
SYNC_HZ = 24
"""Of the frames that stand in for Synchformer's features, where a network takes such."""


@dataclass(frozen=True, slots=True)
class Films:
    """Films of one world, drawn by one seed."""

    world: World
    seed: int
    train: int
    test: int

    def plans(self, split: Split) -> list[FilmPlan]:
        """The films of a split."""
        count = self.train if split == "train" else self.test
        return [plan_film(self.world, self.seed, split, number) for number in range(count)]

    def ids(self, split: Split) -> list[str]:
        """A name for each film of a split."""
        return [f"{split}-{number:05d}" for number in range(len(self.plans(split)))]

    def made_once(
        self, work: Path, what: str, make: Callable[[Path], None], *, models: Sequence[str], **depends: Any
    ) -> Path:
        """The file `what` of these films, made by `make` with shipped models if it is not there yet."""
        weights = {model: _weights(model) for model in models}
        key = digest([CORPUS_VERSION, asdict(self), what, weights, {k: str(v) for k, v in sorted(depends.items())}])
        file = work / "made" / f"{what}-{key[:20]}"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with temporary_beside(file) as temporary:
                make(temporary)
                temporary.replace(file)
        return file


def open_codec() -> AudioCodec:
    """The codec of all studies."""
    return load_codec("log_mel_pca", path=CODEC)


@cache
def _weights(model: str) -> str:
    """What a shipped model is."""
    return digest((CHECKPOINTS / model / "model.safetensors").read_bytes().hex())


def av_file(films: Films, split: Split, work: Path, *, r_v: float, sync: bool) -> Path:
    """Feature file of picture (at r_v frames per second) and sound."""

    def make(file: Path) -> None:
        write_av_features(file, list(_av_features(films, split, r_v, sync)))

    return films.made_once(work, f"av-{split}", make, models=["clip", "codec"], r_v=r_v, sync=sync)


def _av_features(films: Films, split: Split, r_v: float, sync: bool) -> Iterator[AVFeatures]:
    visual, codec = VisualEncoder(ENCODER), open_codec()
    for name, plan in zip(films.ids(split), films.plans(split), strict=True):
        film = Film(films.world, plan)
        wave = torch.from_numpy(film.sound(codec.audio_hz, stereo=False)[:, 0]).float()
        with torch.inference_mode():
            mean, std = codec.encode(wave[None])
        seen = [_every(films.world, rate) for rate in ([r_v, SYNC_HZ] if sync else [r_v])]
        encoded = [visual.encode(film.frames(times_s)) for times_s in seen]
        yield AVFeatures(name, encoded[0], mean[0].numpy(), std[0].numpy(), encoded[1] if sync else None)


def _every(world: World, rate: float) -> list[float]:
    return [k / rate for k in range(int(np.ceil(world.duration_s * rate)))]


def text_file(captions: Sequence[str], films: Films, split: Split, work: Path, *, max_tokens: int) -> Path:
    """Feature file of one caption for each film."""

    def make(file: Path) -> None:
        encoder = TextEncoder(ENCODER, max_tokens=max_tokens)
        texts = encoder.encode(captions)
        rows = [
            TextFeatures(name, text.features, text.n_tokens) for name, text in zip(films.ids(split), texts, strict=True)
        ]
        write_text_features(file, rows)

    asked = {"captions": digest(list(captions)), "max_tokens": max_tokens}
    return films.made_once(work, f"text-{split}", make, models=["clip"], **asked)


def kept_captions(
    films: Films, split: Split, work: Path, source: str, make: Callable[[list[FilmPlan]], list[str]], *, model: str,
    **depends: Any,
) -> list[str]:  # fmt: skip
    """Captions of a source, which a shipped model is asked for once."""

    def write(file: Path) -> None:
        file.write_text(json.dumps(make(films.plans(split)), indent=0))

    file = films.made_once(work, f"captions-{source}-{split}", write, models=[model], **depends)
    captions: list[str] = json.loads(file.read_text())
    return captions
