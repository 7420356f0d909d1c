"""Listing of a folder on a disk, with what in it cannot be read as a file."""

from __future__ import annotations

import os
import stat
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

PARTIAL = ".partial"
"""Folder for files that are being written, on the same disk as all others. It is in no listing."""
NO_FILE = -1
BROKEN_LINK, LISTED_FOLDER, SPECIAL_FILE, NOT_UTF_8 = "BrokenLink", "ListedFolder", "SpecialFile", "NameNotUtf8"
"""Size of what cannot be read as a file; and why it cannot, which a listing has in place of a version."""


@dataclass
class LocalListing:
    """Listing of a local folder and of folders that are linked to, each once, by its own place if it has one.

    Attributes:
        start: length of what is cut off a path for its name.
        columns: names, sizes and versions.
        folders: time of change (ns) of each folder.
    """

    start: int
    recursive: bool
    columns: tuple[list[str], list[int], list[str]] = field(default_factory=lambda: ([], [], []))
    folders: dict[str, int] = field(default_factory=dict)
    _seen: set[tuple[int, int]] = field(default_factory=set)
    _linked: deque[tuple[str, tuple[int, int]]] = field(default_factory=deque)

    def read(self, folder: str) -> None:
        """Lists a folder and what is below it."""
        self._read(folder)
        while self._linked:
            path, inode = self._linked.popleft()
            if inode in self._seen:
                self._add(path, NO_FILE, LISTED_FOLDER)
            else:
                self._read(path)

    def _read(self, folder: str) -> None:
        try:
            status = Path(folder).stat()
            self.folders[folder] = status.st_mtime_ns  # before its files, so that a later change is seen
            entries = os.scandir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return
        self._seen.add((status.st_dev, status.st_ino))
        names, sizes, versions = self.columns
        with entries:
            for entry in entries:
                try:
                    found = entry.stat()
                except OSError:
                    if entry.is_symlink():
                        self._add(entry.path, NO_FILE, BROKEN_LINK)
                    continue  # else it is gone since the listing
                if stat.S_ISREG(found.st_mode):
                    name = entry.path[self.start :]
                    if not name.isascii():
                        self._add(entry.path, found.st_size, str(found.st_mtime_ns))
                        continue
                    names.append(name)  # most names: there are many
                    sizes.append(found.st_size)
                    versions.append(str(found.st_mtime_ns))
                elif not stat.S_ISDIR(found.st_mode):
                    self._add(entry.path, NO_FILE, SPECIAL_FILE)
                elif self.recursive and entry.is_symlink():
                    self._linked.append((entry.path, (found.st_dev, found.st_ino)))
                elif self.recursive and entry.name != PARTIAL:
                    self._read(entry.path)

    def _add(self, path: str, size: int, version: str) -> None:
        name = path[self.start :]
        if not name.isascii() and not _is_utf_8(name):
            escaped = os.fsencode(name).replace(b"\\", b"\\\\")
            name, size, version = escaped.decode("utf-8", "backslashreplace"), NO_FILE, NOT_UTF_8
        for column, value in zip(self.columns, (name, size, version), strict=True):
            column.append(value)  # type: ignore[attr-defined]


def _is_utf_8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes of a file system's name that are no text
        return False
    return True
