"""Models of a configuration: where they are from, and `soundcap fetch-models`, which brings them into a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.engine.lease import lease
from pipelines.engine.model_files import is_commit, mirror, mirrored
from pipelines.engine.model_pins import (
    Pin,
    Pins,
    Reference,
    ask_new,
    is_on_hub,
    licence_of,
    read_pins,
    references,
    write_pins,
)
from pipelines.engine.storage import Storage
from pipelines.engine.store import mark_store, open_store
from pipelines.errors import UserError
from pipelines.run_config import CodecConfig, Config
from pipelines.stages.model_refs import check_type, codec_files


@dataclass(frozen=True)
class ModelState:
    """Model of a configuration key, as a plan shows it.

    Attributes:
        revision: as configured; empty for a folder.
        commit: that it stands for; empty for a folder, or while it is not known.
        known_by: "given", "recorded {when}", "the hub" (a run will record it), "unresolved" or "folder".
        licence: as the model's card says it, or empty.
        is_mirrored: the store has its files.
    """

    key: str
    path: str
    revision: str
    commit: str
    known_by: str
    licence: str
    is_mirrored: bool

    def words(self) -> str:
        """Line of a plan."""
        licence = f", licence {self.licence or 'not said'}" if self.commit or not self.revision else ""
        if not self.revision:
            return f"{self.key}: {self.path}{licence}"
        is_named = self.revision != self.commit and self.commit
        commit = f" = {self.commit[:12]} ({self.known_by})" if is_named else ", commit not known" * (not self.commit)
        place = ", in the store" if self.is_mirrored else ""
        return f"{self.key}: {self.path}@{self.revision[:40]}{commit}{licence}{place}"


def model_states(config: Config, storage: Storage, asked: Pins) -> list[ModelState]:
    """States of a configuration's models; `asked`: what the hub just said. An absent folder has none."""
    recorded = read_pins(storage)
    found = []
    for key, one in references(config).items():
        try:
            on_hub = is_on_hub(one, key)
        except UserError:  # its stage says so
            continue
        path, revision = str(one.path), str(one.revision)
        if not on_hub:
            found.append(ModelState(key, path, "", "", "folder", licence_of(Path(path)) or "", False))
            continue
        name = f"{path}@{revision}"
        pin = recorded.get(name) or asked.get(name)
        commit = pin.commit if pin else revision if is_commit(revision) else ""
        by = "unresolved" if not commit else "the hub" if name in asked else ""
        by = by or (f"recorded {recorded[name].asked}" if name in recorded else "given")
        licence = (pin.licence if pin else None) or ""
        found.append(ModelState(key, path, revision, commit, by, licence, bool(mirrored(storage, path, commit))))
    return found


@dataclass(frozen=True)
class Fetched:
    """Hub model that `fetch_models` brought into a store."""

    model: str
    commit: str
    licence: str
    bytes: int
    new_bytes: int


def fetch_models(config: Config, to: str | None, *, update: bool, say: Callable[[str], None]) -> list[Fetched]:
    """Brings the files of all hub models into the mirror of a store, and records their commits.

    Args:
        config: whose models are meant.
        to: root of the store; None: the configuration's.
        update: asks the hub again for the commits of branches and tags that the store has recorded.
        say: takes lines of progress.

    Raises:
        UserError: a model that the hub does not know or let this user have, or no answer.
        RunError: another driver works on the store.
    """
    storage = open_store(to or config.root)
    wanted = {(str(one.path), str(one.revision)): one for key, one in references(config).items() if is_on_hub(one, key)}
    if not wanted:
        return []
    pins, fault = ask_new(config, storage, update=update)
    known = read_pins(storage) | pins
    unknown = [f"{path}@{revision}" for path, revision in wanted if f"{path}@{revision}" not in known]
    if unknown:
        raise UserError(fault or f"{unknown[0]}: the hub does not answer")
    for key, one in references(config).items():
        if (pin := known.get(f"{one.path}@{one.revision}")) is not None:
            check_type(key, str(one.path), pin.model_type)
    open_store(storage.url, write=True)
    with lease(storage, say):
        mark_store(storage)
        write_pins(storage, pins)
        return [_fetch(storage, one, known[f"{path}@{revision}"], say) for (path, revision), one in wanted.items()]


def _fetch(storage: Storage, reference: Reference, pin: Pin, say: Callable[[str], None]) -> Fetched:
    path = str(reference.path)
    files: Sequence[str] | None = codec_files(reference.name) if isinstance(reference, CodecConfig) else None
    say(f"{path}@{reference.revision}: {pin.commit}")
    total, new = mirror(storage, path, pin.commit, files, say)
    return Fetched(path, pin.commit, pin.licence or "", total, new)
