"""Films of a cell, and files made from them once for all cells that use the same: features and captions.

Every file lies in a work folder under the digest of its inputs and of the code that makes it, and is made again if
that changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from flowley.codecs import AudioCodec, load_codec
from flowley.features.dataset import FeatureDataset, index_files
from flowley.features.encode import Encoders, encode_captions, encode_clip
from flowley.features.encoders import VisualEncoder
from flowley.features.files import EMPTY_CAPTION_ID, AVFeatures, write_av_features, write_text_features
from flowley.network.config import NetworkConfig
from flowley.network.feature_spec import FeatureSpec
from miniature.models.alignment import frame_features
from miniature.models.training import CHECKPOINTS
from miniature.world.corpus import CORPUS_VERSION
from miniature.world.film import Film, FilmPlan, Split, World, plan_film
from pipelines.engine.fingerprint import digest, file_sha256

ENCODER = str(CHECKPOINTS / "clip")
CODEC, CODEC_PATH = "log_mel_pca", str(CHECKPOINTS / "codec")
SYNC_HZ = 24
"""Rate of the frames that stand in for Synchformer's features, where a network takes such."""
MAX_TEXT_TOKENS = 77
"""More than any caption has, and within the text encoder's limit, which that of `tiny` is not."""


@dataclass(frozen=True, slots=True)
class FilmDataset:
    """Films of one world and seed, in two splits."""

    world: World
    seed: int
    train: int
    test: int

    def plans(self, split: Split) -> list[FilmPlan]:
        count = self.train if split == "train" else self.test
        return [plan_film(self.world, self.seed, split, number) for number in range(count)]

    def films(self, split: Split) -> list[Film]:
        return [Film(self.world, plan) for plan in self.plans(split)]

    def ids(self, split: Split) -> list[str]:
        return [f"{split}-{number:05d}" for number in range(len(self.plans(split)))]

    def make_once(
        self, work: Path, what: str, make: Callable[[Path], None], *, models: Sequence[str], package: str,
        **depends: Any,
    ) -> Path:  # fmt: skip
        """File or folder `what` of these films in the work folder, made if it is not there yet.

        Args:
            make: writes it to a path beside.
            models: shipped models that it depends on.
            package: package of this project whose sources it depends on.
            depends: all else that it depends on.
        """
        made_by = {model: file_sha256(CHECKPOINTS / model / "model.safetensors") for model in models}
        made_by[package] = _sources(package)
        key = digest([CORPUS_VERSION, asdict(self), what, made_by, {k: str(v) for k, v in sorted(depends.items())}])
        target = work / "made" / f"{what}-{key[:20]}"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=".", dir=target.parent) as scratch:
                make(Path(scratch) / what)
                try:
                    (Path(scratch) / what).rename(target)
                except OSError:
                    if not target.exists():  # else another cell was faster
                        raise
        return target


@cache
def open_codec() -> AudioCodec:
    """Codec of all networks of the study."""
    return load_codec(CODEC, path=CODEC_PATH)


@cache
def _sources(package: str) -> str:
    """Digest of the code of a package of this project."""
    folder = Path(str(find_spec(package).submodule_search_locations[0]))  # type: ignore[union-attr,index]
    return digest([[str(file.relative_to(folder)), file.read_text()] for file in sorted(folder.rglob("*.py"))])


def feature_dataset(
    films: FilmDataset, split: Split, captions: Sequence[str], config: NetworkConfig, work: Path
) -> FeatureDataset:
    """Features of a split's frames, sounds and captions, for a network."""
    r_v, has_sync, max_tokens = float(config.r_v), config.sync_dim > 0, min(MAX_TEXT_TOKENS, config.max_text_tokens)
    spec = FeatureSpec(
        visual=ENCODER, text=ENCODER, codec=CODEC, codec_path=CODEC_PATH, duration_s=films.world.duration_s
    )
    encoders = Encoders(spec, replace(config, max_text_tokens=max_tokens))

    def encoded(name: str, film: Film) -> AVFeatures:
        wave = film.sound(encoders.codec.audio_hz, stereo=False)[:, 0]
        sync = encoders.visual.encode(film.frames(_times_s(film, SYNC_HZ))) if has_sync else None
        return encode_clip(encoders, name, film.frames(_times_s(film, r_v)), wave, sync=sync)

    def make_av(file: Path) -> None:
        named = zip(films.ids(split), films.films(split), strict=True)
        write_av_features(file, [encoded(name, film) for name, film in named])

    def make_text(file: Path) -> None:
        named = dict(zip(films.ids(split), captions, strict=True))
        write_text_features(file, encode_captions(encoders, named | {EMPTY_CAPTION_ID: ""}))

    av = films.make_once(
        work, f"av-{split}", make_av, models=["clip", "codec"], package="flowley", r_v=r_v, sync=has_sync
    )
    text = films.make_once(
        work, f"text-{split}", make_text, models=["clip"], package="flowley", captions=digest(list(captions)),
        max_tokens=max_tokens,
    )  # fmt: skip
    return FeatureDataset.from_rows(index_files([av]), index_files([text]))


def _times_s(film: Film, fps: float) -> list[float]:
    return [k / fps for k in range(int(np.ceil(film.world.duration_s * fps)))]


def alignment_features(films: FilmDataset, split: Split, work: Path) -> np.ndarray:
    """(films, T, D): frames' features as the classifier of alignment takes them."""

    def make(file: Path) -> None:
        encoder = VisualEncoder(ENCODER)
        with file.open("wb") as opened:
            np.save(opened, np.stack([frame_features(encoder, film) for film in films.films(split)]))

    kept: np.ndarray = np.load(films.make_once(work, f"alignment-{split}", make, models=["clip"], package="flowley"))
    return kept
