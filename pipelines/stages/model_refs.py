"""Model references of the configuration: identity for recipes, location for workers, and existing weights."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipelines.engine.fingerprint import file_sha256, folder_digest
from pipelines.engine.stage import Context, Result
from pipelines.errors import UserError
from pipelines.run_config import CodecConfig, ModelRef
from pipelines.scratch import scratch


@dataclass(frozen=True)
class Model:
    """Model of a recipe. Only `identity` is hashed; workers load the model from `path` and `revision`."""

    identity: str
    path: str
    revision: str | None = None

    def meaning(self) -> str:
        """`id@revision` of a hub model, or the digest of a local folder's files."""
        return self.identity


def model_of(reference: ModelRef, key: str) -> Model:
    """Model of a configuration key. Raises UserError for an absent folder and a hub id without revision."""
    folder = Path(reference.path)
    if folder.is_dir():
        identity = "files:" + _digest_of(str(folder.resolve()), _listing(folder))
        return Model(identity, str(folder.resolve()), reference.revision)  # workers run in other working directories
    looks_local = folder.is_absolute() or reference.path.startswith(".") or reference.path.count("/") != 1
    if looks_local:
        raise UserError(
            f"{key}.path: no such checkpoint folder {reference.path!r}; give a folder or a hub id owner/name"
        )
    if not reference.revision:
        raise UserError(f"{key}.revision: missing; a hub model is pinned to a commit, or old captions would change")
    return Model(f"{reference.path}@{reference.revision}", reference.path, reference.revision)


@dataclass(frozen=True)
class Codec:
    """Audio codec of a recipe. Only its name and the `identity` of its weights, if any, are hashed."""

    name: str
    identity: str | None = None
    path: str | None = None
    revision: str | None = None

    def meaning(self) -> str:
        return self.name if self.identity is None else f"{self.name}:{self.identity}"


def codec_of(reference: CodecConfig) -> Codec:
    """Codec of the configuration. Raises UserError as `model_of`."""
    if reference.path is None:
        return Codec(reference.name)
    weights = model_of(ModelRef(path=reference.path, revision=reference.revision), "features.codec")
    return Codec(reference.name, weights.identity, weights.path, weights.revision)


def _listing(folder: Path) -> tuple[tuple[str, int, int], ...]:
    files = [f for f in sorted(folder.rglob("*")) if f.is_file()]
    return tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files)


@lru_cache
def _digest_of(folder: str, listing: tuple[tuple[str, int, int], ...]) -> str:
    """Cached digest of a folder, keyed on the listing too, so that a changed folder is read again."""
    return folder_digest(Path(folder))


# --- weights taken over instead of trained ---------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """Existing weights, which a stage copies instead of training; later stages see no difference."""

    folder: str
    files: dict[str, str]
    """SHA-256 by name."""

    def meaning(self) -> dict[str, str]:
        """The files' digests."""
        return self.files


def weights_of(folder: str, names: Sequence[str], key: str) -> Weights:
    """Weights in a folder. Raises UserError that names the missing files."""
    missing = [name for name in names if not (Path(folder) / name).is_file()]
    if missing:
        raise UserError(f"{key}: {folder!r} has no {' and no '.join(missing)}; give a folder with {', '.join(names)}")
    return Weights(folder, {name: file_sha256(Path(folder) / name) for name in names})


def take_over(context: Context, weights: Weights, into: str, digest: str) -> Result:
    """Copies the files into the stage's output. Its one row is the set of weights."""
    with scratch("weights") as copy:
        for name in weights.files:
            shutil.copyfile(Path(weights.folder) / name, copy / name)
        context.output.upload_folder(copy, into)
    return Result(1, 1, digest, figures={"weights": "given, not trained"})
