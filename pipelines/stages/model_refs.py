"""Model references of the configuration: identity for recipes, location for workers, and existing weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from flowley.features.model_types import CLAP_CLASSES, TEXT_CLASSES, VISION_CLASSES
from pipelines.engine.fingerprint import file_sha256, folder_digest
from pipelines.engine.model_files import is_commit, local_folder
from pipelines.engine.model_pins import Unresolved, is_on_hub, licence_of, read_pins
from pipelines.engine.stage import Context, Result
from pipelines.engine.storage import Storage
from pipelines.errors import UserError
from pipelines.run_config import CodecConfig, ModelRef
from pipelines.scratch import scratch
from soundcap.pretrained import FAMILIES

WANTED_TYPES: Mapping[str, Collection[str]] = {
    "agreement.model": CLAP_CLASSES,
    "captioner.model": [name for name, family in FAMILIES.items() if not family.hears],
    "captions.model": FAMILIES,
    "features.text": TEXT_CLASSES,
    "features.visual": VISION_CLASSES,
    "judge.model": FAMILIES,
}
"""`model_type` of the checkpoints that each key takes: told before a run, not after the stages before."""


@dataclass(frozen=True)
class Model:
    """Model of a recipe. Only `identity` is hashed; `path` is a local folder, or the id of a hub model."""

    identity: str
    path: str
    revision: str | None = None
    """Commit of a hub model."""
    licence: str | None = None

    def meaning(self) -> str:
        """`id@commit` of a hub model, or the digest of a local folder's files."""
        return self.identity

    def on_node(self, storage: Storage, files: Sequence[str] | None = None) -> Model:
        """The same model as a folder of this node, fetched if it is not there; arguments and errors: `local_folder`."""
        folder = local_folder(storage, self.path, self.revision, files)
        return self if folder == self.path else replace(self, path=folder, revision=None)


def model_of(reference: ModelRef | CodecConfig, key: str, storage: Storage) -> Model:
    """Model of a configuration key.

    Raises:
        UserError: an absent folder, a hub id without revision, or a checkpoint of a type that the key does not take.
        Unresolved: a hub id whose commit neither the configuration says nor the store has recorded.
    """
    if not is_on_hub(reference, key):
        folder = Path(str(reference.path)).resolve()  # workers run in other working directories
        check_type(key, str(reference.path), _type_of(folder))
        return Model("files:" + _digest_of(str(folder), _listing(folder)), str(folder), licence=licence_of(folder))
    path, revision = str(reference.path), str(reference.revision)
    pins = read_pins(storage)
    known = [pin for name, pin in pins.items() if pin.commit == revision and name.startswith(f"{path}@")]
    pin = pins.get(f"{path}@{revision}") or next(iter(known), None)
    commit = revision if pin is None else pin.commit
    if not is_commit(commit):
        raise Unresolved(f"unresolved: {key}.revision: got {revision!r} of {path}, whose commit is not known")
    check_type(key, path, None if pin is None else pin.model_type)
    return Model(f"{path}@{commit}", path, commit, None if pin is None else pin.licence)


def _type_of(folder: Path) -> str | None:
    """`model_type` of a checkpoint folder, or None if it does not say."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError:
        return ""
    except (OSError, ValueError):  # told where it is loaded
        return None
    return config.get("model_type") if isinstance(config, dict) else None


def check_type(key: str, path: str, model_type: str | None) -> None:
    """Raises UserError for a model type that a configuration key does not take; None: it is not known."""
    wanted = WANTED_TYPES.get(key)
    if wanted is not None and model_type == "":
        raise UserError(f"{key}: {path} has no config.json; wanted a checkpoint folder, as `save_pretrained` writes it")
    if wanted is not None and model_type is not None and model_type not in wanted:
        raise UserError(f"{key}: {path} is a {model_type!r} checkpoint, wanted one of type {', '.join(sorted(wanted))}")


@dataclass(frozen=True)
class Codec:
    """Audio codec of a recipe. Only its name and the identity of its weights, if any, are hashed."""

    name: str
    weights: Model | None = None

    def meaning(self) -> str:
        return self.name if self.weights is None else f"{self.name}:{self.weights.identity}"

    @property
    def path(self) -> str | None:
        """Folder or hub id of its weights."""
        return None if self.weights is None else self.weights.path

    @property
    def revision(self) -> str | None:
        """Commit of a hub id."""
        return None if self.weights is None else self.weights.revision

    def on_node(self, storage: Storage) -> Codec:
        """The same codec with its weights on this node; errors: `local_folder`."""
        if self.weights is None:
            return self
        return replace(self, weights=self.weights.on_node(storage, codec_files(self.name)))


def codec_of(reference: CodecConfig, storage: Storage) -> Codec:
    """Codec of the configuration. Raises UserError as `model_of`."""
    return Codec(reference.name, None if reference.path is None else model_of(reference, "features.codec", storage))


def codec_files(name: str) -> Sequence[str]:
    """Names or patterns of the files of a codec's weights."""
    from flowley.codecs import PRETRAINED

    return PRETRAINED[name].files


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
