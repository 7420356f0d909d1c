"""Contents of a publication: what is there, what is wanted, and what has to travel."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.engine.fingerprint import file_sha256
from pipelines.errors import UserError
from pipelines.run_config import Config

PUBLICATION = "publication.json"
"""Record of a publication. A place that has it can be published to again."""
Content = bytes | Path
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")
TEXT = (".md", ".json", ".cff")
LEAST_SECRET = 16
"""Characters of a token at least; a shorter one, as test servers take, may stand in a text by chance."""
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY")
"""Environment variables whose values must not leave."""


@dataclass(frozen=True)
class Identity:
    """Identity of a file that is there: its SHA-256, or, as git has it, its SHA-1 with a header."""

    size: int
    sha256: str | None = None
    git_sha1: str | None = None

    def is_of(self, content: Content) -> bool:
        """Whether the file holds this content."""
        if self.size != size_of(content):
            return False
        if self.sha256 is not None:
            return self.sha256 == sha256_of(content)
        data = content if isinstance(content, bytes) else content.read_bytes()
        return self.git_sha1 == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Head:
    """State of a publication's place before it.

    Attributes:
        files: by path in the place.
        read: bytes of one of them.
        commit: of a repository with one.
    """

    files: Mapping[str, Identity]
    read: Callable[[str], bytes]
    commit: str | None = None


@dataclass(frozen=True)
class Changes:
    """Files to add or replace, and to remove."""

    add: Mapping[str, Content]
    remove: Sequence[str]

    @classmethod
    def between(cls, head: Head, wanted: Mapping[str, Content | None]) -> Changes:
        """Changes from a head to wanted contents; None: as it is there. Files that nobody named are removed."""
        given = {path: content for path, content in wanted.items() if content is not None}
        add = {
            path: content
            for path, content in sorted(given.items())
            if path not in head.files or not head.files[path].is_of(content)
        }
        return cls(add, sorted(head.files.keys() - wanted.keys() - {".gitattributes"}))

    @cached_property
    def bytes(self) -> int:
        """Bytes to send."""
        return sum(map(size_of, self.add.values()))

    def __bool__(self) -> bool:
        return bool(self.add or self.remove)


def sha256_of(content: Content) -> str:
    """SHA-256 of a content, in hex."""
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else file_sha256(content)


def size_of(content: Content) -> int:
    """Bytes of a content."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def read_record(head: Head, what: str) -> dict[str, Any]:
    """Record of the earlier publication, or {} at an empty place. Raises UserError for a place of something else."""
    there = sorted(head.files.keys() - {".gitattributes"})
    if not there:
        return {}
    try:
        record = json.loads(head.read(PUBLICATION)) if PUBLICATION in head.files else {}
        foreign = sorted(set(there) - set(record["files"]))
    except (ValueError, TypeError, KeyError):  # none, or none of ours
        record, foreign = {}, there
    if foreign:
        more = f" and {len(foreign) - 1} more files" * (len(foreign) > 1)
        raise UserError(
            f"holds {foreign[0]}{more} that no earlier publication wrote, and would be replaced; give a new or an "
            "empty place"
        )
    if record.get("what") != what:
        raise UserError(f"holds a publication of {record.get('what')!r}, wanted one of {what!r}; give another place")
    found: dict[str, Any] = record
    return found


def refuse_leaks(wanted: Mapping[str, Content | None], config: Config) -> None:
    """Raises UserError if a text file of a publication holds a path, host or token of this machine."""
    for path, content in wanted.items():
        if content is not None and path.endswith(TEXT):
            data = content if isinstance(content, bytes) else content.read_bytes()
            refuse_leak(path, data.decode(errors="replace"), config)


def refuse_leak(path: str, text: str, config: Config) -> None:
    """Raises UserError if the text of a file holds what must not leave this machine."""
    for what, secret in _private(config):
        if secret in text and re.search(rf"(?<![\w.-]){re.escape(secret)}(?![\w-])", text):
            raise UserError(f"{path} would publish {what}; nothing was sent. Take it out of prompts or configuration")
    if HUB_TOKEN.search(text):
        raise UserError(f"{path} would publish a token of the hub; nothing was sent. Take it out, and revoke it")


def _private(config: Config) -> Iterator[tuple[str, str]]:
    """Words for each secret of this machine, and the secret."""
    for key, value in (("root", config.root), ("source.folder", config.source.folder)):
        yield f"the path that {key} names", value if "://" in value else str(Path(value).expanduser().resolve())
    yield from (("the home folder's path", str(Path.home())), ("the working folder's path", str(Path.cwd())))
    host = socket.gethostname()
    if not host.isalpha():  # one that is a word stands in texts by chance
        yield "this machine's name", host
    for name in TOKENS:
        if len(secret := os.environ.get(name, "")) >= LEAST_SECRET:
            yield f"the value of {name}", secret
