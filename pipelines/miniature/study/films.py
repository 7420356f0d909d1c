"""Films of a study and what is made of them once for all cells that use them: features and captions.

Everything lies in a work folder under the digest of what it depends on, and is made again if that changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowley.codecs import AudioCodec, load_codec
from flowley.encoders import TextEncoder, VisualEncoder
from flowley.features import AVFeatures, TextFeatures, write_av_features, write_text_features
from pipelines.fingerprint import digest
from pipelines.media.normalise import temporary_beside
from pipelines.miniature.models import alignment
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

    def films(self, split: Split) -> list[Film]:
        """The same, to be looked at and listened to."""
        return [Film(self.world, plan) for plan in self.plans(split)]

    def ids(self, split: Split) -> list[str]:
        """A name for each film of a split."""
        return [f"{split}-{number:05d}" for number in range(len(self.plans(split)))]

    def made_once(
        self,
        work: Path,
        what: str,
        make: Callable[[Path], None],
        *,
        models: Sequence[str],
        package: str,
        **depends: Any,
    ) -> Path:
        """The file `what` of these films, made by `make` if it is not there yet.

        It depends on the films, on the shipped `models` and on the sources of the `package` that make it, and on
        `depends`.
        """
        made_by = {model: _weights(model) for model in models} | {package: _sources(package)}
        key = digest([CORPUS_VERSION, asdict(self), what, made_by, {k: str(v) for k, v in sorted(depends.items())}])
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


@cache
def _sources(package: str) -> str:
    """What the code of a package of this project is."""
    folder = Path(str(find_spec(package).submodule_search_locations[0]))  # type: ignore[union-attr,index]
    return digest([[str(file.relative_to(folder)), file.read_text()] for file in sorted(folder.rglob("*.py"))])


def av_file(films: Films, split: Split, work: Path, *, r_v: float, sync: bool) -> Path:
    """Feature file of picture (at r_v frames per second) and sound."""

    def make(file: Path) -> None:
        write_av_features(file, list(_av_features(films, split, r_v, sync)))

    return films.made_once(work, f"av-{split}", make, models=["clip", "codec"], package="flowley", r_v=r_v, sync=sync)


def _av_features(films: Films, split: Split, r_v: float, sync: bool) -> Iterator[AVFeatures]:
    visual, codec = VisualEncoder(ENCODER), open_codec()
    for name, film in zip(films.ids(split), films.films(split), strict=True):
        wave = torch.from_numpy(film.sound(codec.audio_hz, stereo=False)[:, 0]).float()
        with torch.inference_mode():
            mean, std = codec.encode(wave[None])
        seen = [_every(films.world, rate) for rate in ([r_v, SYNC_HZ] if sync else [r_v])]
        encoded = [visual.encode(film.frames(times_s)) for times_s in seen]
        yield AVFeatures(name, encoded[0], mean[0].numpy(), std[0].numpy(), encoded[1] if sync else None)


def seen_by_judge(films: Films, split: Split, work: Path) -> np.ndarray:
    """(films, T, D): frames' features as the classifier of alignment takes them."""

    def make(file: Path) -> None:
        encoder = VisualEncoder(ENCODER)
        with file.open("wb") as opened:
            np.save(opened, np.stack([alignment.features(encoder, film) for film in films.films(split)]))

    kept: np.ndarray = np.load(films.made_once(work, f"judged-{split}", make, models=["clip"], package="flowley"))
    return kept


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
    return films.made_once(work, f"text-{split}", make, models=["clip"], package="flowley", **asked)


def kept_captions(
    films: Films, split: Split, work: Path, source: str, make: Callable[[list[FilmPlan]], list[str]], *, model: str,
    **depends: Any,
) -> list[str]:  # fmt: skip
    """Captions of a source, which a shipped model is asked for once."""

    def write(file: Path) -> None:
        file.write_text(json.dumps(make(films.plans(split)), indent=0))

    file = films.made_once(work, f"captions-{source}-{split}", write, models=[model], package="soundcap", **depends)
    captions: list[str] = json.loads(file.read_text())
    return captions
