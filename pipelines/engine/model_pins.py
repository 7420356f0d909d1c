"""Commits of the hub models that a configuration names by a branch or tag, and their licences.

A store keeps the first commit that it learns: a branch that moves on the hub changes no caption until
`soundcap fetch-models --update` asks for it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flowley.hub import NoAnswer, describe, is_hub_id, licence_in
from pipelines.engine.model_files import MODELS, is_commit
from pipelines.engine.storage import Storage
from pipelines.errors import UserError
from pipelines.run_config import CodecConfig, Config, ModelRef

PINS = f"{MODELS}/pins.json"
"""Record {"hub id@revision": pin} of a store."""
Reference = ModelRef | CodecConfig


class Unresolved(UserError):
    """Hub model whose commit is not known."""


@dataclass(frozen=True)
class Pin:
    """Commit that a revision of a hub model stands for.

    Attributes:
        licence: as the model's card says it; None if it says nothing, or was never read.
        model_type: as the hub says it, or None.
        asked: when the hub was asked.
    """

    commit: str
    licence: str | None
    model_type: str | None
    asked: str


Pins = Mapping[str, Pin]
"""By `hub id@revision`."""


def references(config: Config) -> dict[str, Reference]:
    """References of a configuration to hub models or folders, by key."""
    return dict(_references(config, ""))


def _references(value: Any, key: str) -> Iterator[tuple[str, Reference]]:
    if isinstance(value, ModelRef | CodecConfig):
        if value.path is not None:
            yield key, value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _references(getattr(value, name), f"{key}.{name}".lstrip("."))


def is_on_hub(reference: Reference, key: str) -> bool:
    """True for a hub id, false for a folder. Raises UserError for a path that is neither."""
    path = reference.path or ""
    folder = Path(path)
    if folder.is_dir():
        return False
    if folder.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1 or not is_hub_id(path):
        raise UserError(f"{key}.path: no such checkpoint folder {path!r}; give a folder or a hub id owner/name")
    if not reference.revision:
        raise UserError(f"{key}.revision: missing; a hub model is pinned to a commit, or old captions would change")
    return True


def read_pins(storage: Storage) -> dict[str, Pin]:
    """Pins that a store has recorded. Raises UserError for a damaged record: a branch would move in silence."""
    record = storage.find_record(PINS)
    if record is None and storage.exists(PINS):
        raise UserError(
            f"{storage.address(PINS)}: not what was written, so the commits of branches are not known; put it back "
            "from a copy, or let `soundcap fsck CONFIG --repair` set it aside: the next run asks the hub again"
        )
    if record is None and (mirrored := sorted(storage.names(MODELS))):
        raise UserError(
            f"{storage.address(PINS)}: is gone, but the store has files of hub models, such as {mirrored[0]}; put it "
            "back from a copy, or remove the folder models: then the hub is asked again, whose branches may have moved"
        )
    return {} if record is None else {name: Pin(**pin) for name, pin in record.items()}


def write_pins(storage: Storage, new: Pins) -> None:
    """Records pins beside those that are there. The caller holds the root's lease."""
    if new:
        pins = read_pins(storage) | dict(new)
        storage.write_record(PINS, {name: asdict(pin) for name, pin in sorted(pins.items())})


def ask_for(reference: Reference, key: str) -> Pin:
    """Pin of a hub model as the hub says, or this machine's cache of it if the hub does not answer.

    Raises:
        UserError: the hub has no such model or revision.
        NoAnswer: it does not answer, and the cache does not know it.
    """
    try:
        found = describe(str(reference.path), reference.revision)
    except NoAnswer:
        raise
    except ValueError as error:
        raise UserError(f"{key}: {error}") from error
    return Pin(*found, asked=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))


def licence_of(folder: Path) -> str | None:
    """Licence that a model's card (README.md) names, or None."""
    from huggingface_hub import ModelCard

    try:
        card = ModelCard.load(folder / "README.md", ignore_metadata_errors=True)
    except (OSError, ValueError):
        return None
    return licence_in(card.data)


def ask_new(config: Config, storage: Storage, *, update: bool = False) -> tuple[dict[str, Pin], str]:
    """Pins of the configuration's hub models that the store has not recorded; with `update`, of all.

    The second value says why the others stay unresolved, if the hub does not know or answer.
    """
    known, found, faults, is_silent = {} if update else read_pins(storage), {}, [], False
    for key, reference in references(config).items():
        name = f"{reference.path}@{reference.revision}"
        with contextlib.suppress(UserError):  # which its stage raises
            if not is_on_hub(reference, key) or name in known or name in found or is_silent:
                continue
            try:
                found[name] = ask_for(reference, key)
            except UserError as error:
                faults.append(str(error))
            except NoAnswer as error:
                is_silent = True
                faults += [] if is_commit(reference.revision) else [f"{key}: {error}"]
    return found, "; ".join(dict.fromkeys(faults))


def pinned(config: Config, pins: Pins) -> Config:
    """Configuration whose hub models have the pins' commits as revisions."""
    found: Config = _pinned(config, pins)
    return found


def _pinned(value: Any, pins: Pins) -> Any:
    if isinstance(value, ModelRef | CodecConfig):
        pin = pins.get(f"{value.path}@{value.revision}")
        return value if pin is None else value.model_copy(update={"revision": pin.commit})
    if isinstance(value, BaseModel):
        parts = {name: getattr(value, name) for name in type(value).model_fields}
        return value.model_copy(update={name: _pinned(part, pins) for name, part in parts.items()})
    return value
