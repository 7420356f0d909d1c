"""The identity of a model: what it is, never where it lies."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.config import CodecConfig, ModelRef
from pipelines.errors import UserError
from pipelines.fingerprint import folder_digest

if TYPE_CHECKING:
    from flowley.codecs import AudioCodec


def model_identity(model: ModelRef, key: str) -> str:
    """`id@revision` of a hub model, or the digest of a local folder's files. `key` names the configuration key.

    Raises UserError for a folder that is absent and for a hub id without a revision.
    """
    folder = Path(model.path)
    if folder.is_dir():
        return "files:" + _digest_of(str(folder.resolve()), _listing(folder))
    looks_local = folder.is_absolute() or model.path.startswith(".") or model.path.count("/") != 1
    if looks_local:
        raise UserError(f"{key}.path: no such checkpoint folder {model.path!r}; give a folder or a hub id owner/name")
    if not model.revision:
        raise UserError(f"{key}.revision: missing; a hub model is pinned to a commit, or old captions would change")
    return f"{model.path}@{model.revision}"


def model_location(model: ModelRef) -> str:
    """What workers load it from: the folder's absolute path (their working directory is another), or the hub id."""
    folder = Path(model.path)
    return str(folder.resolve()) if folder.is_dir() else model.path


def codec_identity(codec: CodecConfig) -> str:
    """The codec's name and, where it has weights, theirs. Raises UserError as `model_identity`."""
    if codec.path is None:
        return codec.name
    return f"{codec.name}:{model_identity(ModelRef(path=codec.path, revision=codec.revision), 'features.codec')}"


def located(codec: CodecConfig) -> CodecConfig:
    """The same codec for workers in other working directories: see `model_location`."""
    if codec.path is None:
        return codec
    return codec.model_copy(update={"path": model_location(ModelRef(path=codec.path))})


def open_codec(codec: CodecConfig, device: str) -> AudioCodec:
    """The codec, loaded. Raises ValueError where its weights do not load."""
    from flowley.codecs import load_codec

    return load_codec(codec.name, path=codec.path, revision=codec.revision, device=device)


def _listing(folder: Path) -> tuple[tuple[str, int, int], ...]:
    files = [f for f in sorted(folder.rglob("*")) if f.is_file()]
    return tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files)


@lru_cache
def _digest_of(folder: str, listing: tuple[tuple[str, int, int], ...]) -> str:
    """Keyed on the listing too, so that a folder that changed within one process is read again."""
    return folder_digest(Path(folder))
