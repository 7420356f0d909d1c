"""Folder as the place of a publication: all of it appears, or nothing, and what somebody else put there stays."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.engine.fingerprint import file_sha256
from pipelines.errors import UserError, require_place
from pipelines.publication.contents import Changes, Head, Identity

SWAP = "swap.json"
"""File of a staging folder while entries move: names of those that its target had, and of those that come."""
STAGING = ".publication-"
"""Start of the name of the folder in which a publication is written."""


@dataclass(frozen=True)
class PublicationFolder:
    """Local folder that a publication is written to. A link is written through."""

    path: Path

    @classmethod
    def of(cls, option: Path, root: str) -> PublicationFolder:
        """Folder that `--to` names, outside the store's root. Raises UserError for an address of something else."""
        if re.match(r"[a-z0-9]+:/", str(option)):
            raise UserError(f"--to {option}: wanted a local folder (copy it from there), or a repository in --push")
        path = option.resolve()
        if path.exists() and not path.is_dir():
            raise UserError(f"--to {option}: is a file, wanted a folder to publish to; give another path")
        refuse_inside(path, root)
        require_place(path, f"--to {option}")
        return cls(path)

    @property
    def name(self) -> str:
        """Address, for people."""
        return str(self.path)

    def head(self) -> Head:
        """What is there, after what a killed publication left is undone."""
        undo_half_swaps(self.path)
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


def refuse_inside(path: Path, root: str) -> None:
    """Raises UserError for a folder in the store: what is there is the store's, which removes and forgets."""
    if "://" not in root and path.resolve().is_relative_to(Path(root).expanduser().resolve()):
        raise UserError(
            f"--to {path}: is inside the root {root}, where the store keeps its own files; give another place"
        )


@contextlib.contextmanager
def whole_or_not(target: Path) -> Iterator[Path]:
    """Staging folder inside `target`, whose entries replace those of `target`; an error leaves `target` as it is.

    Inside, because a folder that is linked to, mounted, or somebody's working folder cannot be replaced itself.
    """
    is_new = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    undo_half_swaps(target)
    staging = target / f"{STAGING}{uuid.uuid4().hex[:12]}"
    new, old = staging / "new", staging / "old"
    try:
        new.mkdir(parents=True)
        old.mkdir()
        yield new
        _swap(target, new, old)
    finally:
        if not (staging / SWAP).exists():  # else the next call undoes what was half moved
            shutil.rmtree(staging, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty
                target.rmdir()


def undo_half_swaps(target: Path) -> None:
    """Removes what killed publications left; one that was killed while it moved entries is undone first."""
    for left in target.glob(f"{STAGING}*"):
        if (left / SWAP).exists():
            swap = json.loads((left / SWAP).read_text())
            for name in swap["new"]:  # others may have put entries of their own there since
                entry = target / name
                came = name not in swap["before"] or (left / "old" / name).exists()
                if came and (entry.exists() or entry.is_symlink()):
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            for entry in (left / "old").iterdir():
                entry.rename(target / entry.name)
        shutil.rmtree(left)


def _swap(target: Path, new: Path, old: Path) -> None:
    """Moves the entries of `target` to `old` and those of `new` to `target`; after an error, back."""
    moved: list[tuple[Path, Path]] = []
    before = [entry.name for entry in target.iterdir() if entry != new.parent]
    swap, part = new.parent / SWAP, new.parent / f"{SWAP}.part"
    part.write_text(json.dumps({"before": before, "new": [entry.name for entry in new.iterdir()]}))
    part.rename(swap)
    try:
        for source, to in ((target, old), (new, target)):
            for entry in sorted(source.iterdir()):
                if entry != new.parent:
                    entry.rename(to / entry.name)
                    moved.append((entry, to / entry.name))
    except BaseException:  # Ctrl-C too
        for entry, now in reversed(moved):
            now.rename(entry)
        swap.unlink()
        raise
    swap.unlink()  # before the entries of `old` go one by one
