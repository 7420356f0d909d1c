"""Models' files: fetched once a node, from a mirror in the store or from the hub, and the mirror itself.

A mirror is the folder `models/{owner}/{name}/{commit}/` of a store. Its record FILES is written last.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import re
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flowley.hub import find_folder, hub_files
from pipelines.engine.fingerprint import digest, file_sha256
from pipelines.engine.node_cache import on_this_node
from pipelines.engine.storage import Storage
from pipelines.errors import UserError
from pipelines.scratch import scratch

MODELS = "models"
FILES = "files.json"
"""Record of a mirrored model: {"files": {name: sha256}}."""
_COMMIT = re.compile("[0-9a-f]{40}")
_held = ExitStack()
"""Copies that this process uses; they stay until it ends."""
atexit.register(_held.close)


def is_commit(revision: str | None) -> bool:
    """True for the name of a commit, whose files never change."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def mirror_of(path: str, commit: str) -> str:
    """Folder of a hub model's mirror in a store."""
    return f"{MODELS}/{path}/{commit}"


def mirrored_file(record: str, name: str) -> str:
    """Storage name of a file that a mirror's record names."""
    return f"{record.removesuffix(FILES)}{name}"


def local_folder(
    storage: Storage,
    path: str,
    revision: str | None,
    files: Sequence[str] | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Folder with a model's files on this node, valid as long as this process lives.

    Args:
        storage: store whose mirror has them, if any has.
        path: local folder, which is returned as it is, or hub id.
        revision: commit of a hub id.
        files: names or patterns; None: those that transformers needs.
        say: takes a line about what is fetched, or waited for.

    Raises:
        UserError: no mirror, and the hub cannot be reached or has no such model; or a mirror that is not whole.
        MachineFault: the node's disk is too small.
    """
    if Path(path).is_dir():
        return path
    folder = mirror_of(path, revision or "")
    digests = mirrored(storage, path, revision)
    if not digests:
        return str(hub_folder(path, revision, files, say))
    try:
        copies = _held.enter_context(on_this_node(storage, [f"{folder}/{name}" for name in digests], say))
        with _one_at_a_time(path, say):
            for name, sha256 in digests.items():
                _check(copies[f"{folder}/{name}"], sha256)
    except (FileNotFoundError, _Damaged) as error:
        raise UserError(
            f"{storage.address(folder)}: a file of this model is gone or not what was written ({error}); "
            "`soundcap fsck CONFIG --repair`, then `soundcap fetch-models CONFIG`, put it there again"
        ) from error
    if storage.is_local:
        return storage.path(folder)
    return str(_linked(f"{path}/{revision}", {name: copies[f"{folder}/{name}"] for name in digests}))


class _Damaged(Exception):
    """File that has another SHA-256 than its record."""


def _check(file: Path, sha256: str) -> None:
    """Compares a file with its SHA-256, once a node while it does not change. Raises _Damaged, FileNotFoundError."""
    status = file.stat()
    seen = _node_folder() / "checked" / digest([str(file), status.st_size, status.st_mtime_ns, sha256])
    if seen.exists():
        return
    if file_sha256(file) != sha256:
        raise _Damaged(file.name)
    seen.parent.mkdir(parents=True, exist_ok=True)
    seen.touch()


def mirrored(storage: Storage, path: str, revision: str | None) -> dict[str, str]:
    """SHA-256 by name of a model's files in the store's mirror; empty if it is not there."""
    record = storage.find_record(f"{mirror_of(path, revision)}/{FILES}") if revision and is_commit(revision) else None
    return {} if record is None else dict(record["files"])


def hub_folder(path: str, revision: str | None, files: Sequence[str] | None, say: Callable[[str], None]) -> Path:
    """Folder of a hub model's files in this node's cache of the hub; one process fetches them while others wait."""
    with _one_at_a_time(path, say):
        try:
            return find_folder(path, files, revision=revision, wanted="a model's files", say=say)
        except ValueError as error:
            raise UserError(
                f"{error}; `soundcap fetch-models CONFIG`, where the hub can be reached, puts models into the store"
            ) from error


def mirror(
    storage: Storage, path: str, commit: str, files: Sequence[str] | None, say: Callable[[str], None]
) -> tuple[int, int]:
    """Copies a hub model's missing files into the store's mirror; returns the bytes of all files, and of the new ones.

    Raises UserError as `hub_folder`.
    """
    source, folder = hub_folder(path, commit, files, say), mirror_of(path, commit)
    there = {info.name: info.size for info in storage.files(folder, recursive=True)}
    known = mirrored(storage, path, commit)
    found, total, new = {}, 0, 0
    for name in sorted(one.filename for one in hub_files(path, files, revision=commit)):
        file = source / name
        size = file.stat().st_size
        total += size
        found[name] = known.get(name) or file_sha256(file)
        if there.get(f"{folder}/{name}") != size:
            new += size
            with scratch("mirror") as copy:
                shutil.copyfile(file, copy / "file")
                storage.upload(copy / "file", f"{folder}/{name}")
    if found != known:
        storage.write_record(f"{folder}/{FILES}", {"files": found})
    return total, new


def _linked(name: str, copies: dict[str, Path]) -> Path:
    """Folder of links to a node's copies of a model's files, the same for all processes of a user."""
    folder = _node_folder() / name
    for file, copy in copies.items():
        link, new = folder / file, folder / f"{file}.{uuid.uuid4().hex}"
        link.parent.mkdir(parents=True, exist_ok=True)
        new.symlink_to(copy)
        new.replace(link)
    return folder


def _node_folder() -> Path:
    """Folder of this user on this node for what is known of models' files."""
    return Path(tempfile.gettempdir()) / f"soundcap.models-{os.getuid()}"


@contextmanager
def _one_at_a_time(path: str, say: Callable[[str], None]) -> Iterator[None]:
    """Context that one process of this node is in at a time, for each model."""
    name = f"soundcap.models-{os.getuid()}-{path.replace('/', '--')}.lock"
    with (Path(tempfile.gettempdir()) / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"  waits for another process on {socket.gethostname()} that fetches {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
