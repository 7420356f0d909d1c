"""Folder as the place of a publication: all of it appears, or nothing, and what somebody else put there stays."""

from __future__ import annotations

import contextlib
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.engine.fingerprint import file_sha256
from pipelines.errors import UserError
from pipelines.publication.contents import Changes, Head, Identity

STAGING = ".publication-"
"""Start of the name of the folder in which a publication is written."""


@dataclass(frozen=True)
class PublicationFolder:
    """Local folder that a publication is written to. A link is written through."""

    path: Path

    @classmethod
    def of(cls, option: Path) -> PublicationFolder:
        """Folder that `--to` names. Raises UserError for an address of something else."""
        if re.match(r"[a-z0-9]+:/", str(option)):
            raise UserError(f"--to {option}: wanted a local folder (copy it from there), or a repository in --push")
        path = option.resolve()
        if path.exists() and not path.is_dir():
            raise UserError(f"--to {option}: is a file, wanted a folder to publish to; give another path")
        return cls(path)

    @property
    def name(self) -> str:
        """Address, for people."""
        return str(self.path)

    def head(self) -> Head:
        """What is there."""
        files = (path for path in sorted(self.path.rglob("*")) if not path.is_dir())
        names = {path: path.relative_to(self.path) for path in files}
        there = {
            name.as_posix(): Identity(path.stat().st_size, file_sha256(path))
            for path, name in names.items()
            if not name.parts[0].startswith(STAGING)
        }
        return Head(there, lambda name: (self.path / name).read_bytes())

    def write(self, head: Head, changes: Changes) -> None:
        """Makes the changes to what is there, all of them or none."""
        kept = head.files.keys() - changes.add.keys() - set(changes.remove)
        with whole_or_not(self.path) as folder:
            for name, content in (*changes.add.items(), *((name, self.path / name) for name in sorted(kept))):
                file = folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    file.write_bytes(content)
                else:
                    shutil.copyfile(content, file)


@contextlib.contextmanager
def whole_or_not(target: Path) -> Iterator[Path]:
    """Staging folder inside `target`, whose entries replace those of `target`; an error leaves `target` as it is.

    Inside, because a folder that is linked to, mounted, or somebody's working folder cannot be replaced itself.
    """
    is_new = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    for left in target.glob(f"{STAGING}*"):
        shutil.rmtree(left)
    staging = target / f"{STAGING}{uuid.uuid4().hex[:12]}"
    new, old = staging / "new", staging / "old"
    try:
        new.mkdir(parents=True)
        old.mkdir()
        yield new
        _swap(target, new, old)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty
                target.rmdir()


def _swap(target: Path, new: Path, old: Path) -> None:
    """Moves the entries of `target` to `old` and those of `new` to `target`; after an error, back."""
    moved: list[tuple[Path, Path]] = []
    try:
        for source, to in ((target, old), (new, target)):
            for entry in sorted(source.iterdir()):
                if entry != new.parent:
                    entry.rename(to / entry.name)
                    moved.append((entry, to / entry.name))
    except OSError:
        for entry, now in reversed(moved):
            now.rename(entry)
        raise
