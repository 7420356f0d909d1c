"""Recipes: the single definition of what determines a stage's rows.

A stage's fingerprint, the key of each of its rows and its worker's settings all derive from one recipe, so they
cannot disagree. A field is hashed into both fingerprint and keys unless it is declared with `per_row` or `unhashed`.

Keys are frozen: stores hold rows under them. A stage that makes other rows of the same fields raises its recipe's
`code_version`; a field that is new, here or in the settings that a recipe holds, is declared with `added`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, ClassVar

import pyarrow as pa

from pipelines.engine.fingerprint import digest

KEY = pa.binary(16)
"""Arrow type of a row's ledger key."""
_ROLE, _BEFORE = "role", "before"
_LONG_CHARS = 64


def per_row(**options: Any) -> Any:
    """Field hashed into the fingerprint only. A row's `parts` hold its share of it (a rendered prompt).

    With `before`, a field that is newer than stored rows, as of `added`.
    """
    newer = {_BEFORE: options.pop(_BEFORE)} if _BEFORE in options else {}
    return field(metadata={_ROLE: "per_row", **newer}, **options)


def unhashed(**options: Any) -> Any:
    """Field in no fingerprint and no key: it locates data, or hashed values cover it."""
    return field(metadata={_ROLE: "unhashed"}, **options)


def added(before: Any, **options: Any) -> Any:
    """Field that is newer than stored rows. With the value `before`, that of the rows made without it, it is in no key.

    Settings of other packages, which do not import this one, write `field(metadata={"before": value})`.
    """
    return field(metadata={_BEFORE: before}, **options)


@dataclass(frozen=True)
class Recipe:
    """Base class of recipes: frozen dataclasses of plain values, dataclasses and values with `meaning()`."""

    code_version: ClassVar[int] = 1
    """Raise it when the same fields and inputs give other rows than before."""

    @property
    def origins(self) -> Mapping[str, str]:
        """Source file to edit, by dotted path of the meaning; collected from fields that have `origins`."""
        return {
            f"{name}.{place}": origin
            for name, _, value in self._fields()
            for place, origin in getattr(value, "origins", {}).items()
        }

    def meaning(self) -> dict[str, Any]:
        """Semantic content of the recipe, as plain data: all that determines the stage's output."""
        own = {name: meaning_of(value) for name, role, value in self._fields() if role != "unhashed"}
        return {"code_version": self.code_version, **own}

    @cached_property
    def shared_digest(self) -> str:
        """Digest of what all row keys share: the code version and the fields without a role."""
        shared = {name: meaning_of(value) for name, role, value in self._fields() if role is None}
        return digest([self.code_version, shared])

    def keys(self, *parts: Sequence[str], added: Sequence[str | None] | None = None) -> list[bytes]:
        """Ledger keys of rows, which the recipe and their `parts` (equally long columns of text) determine.

        `added`: one more part, newer than stored rows; None for a row that has the key of before.
        """
        columns = [[self.shared_digest] * len(parts[0]), *map(_unambiguous, parts)]
        if added is not None:
            texts = _unambiguous([text or "" for text in added])
            columns.append(["" if text is None else one for text, one in zip(added, texts, strict=True)])
        rows = map("".join, zip(*columns, strict=True))
        return [hashlib.sha256(row.encode("utf-8", "surrogatepass")).digest()[: KEY.byte_width] for row in rows]

    def _fields(self) -> Iterator[tuple[str, str | None, Any]]:
        for one in dataclasses.fields(self):
            if not _is_as_before(self, one):
                yield one.name, one.metadata.get(_ROLE), getattr(self, one.name)


def _unambiguous(column: Sequence[str]) -> list[str]:
    """Texts with their lengths in front, so that neighbours cannot run into each other; long ones by their digest."""

    @cache
    def shortened(text: str) -> str:
        return "=" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    short = [text if len(text) <= _LONG_CHARS else shortened(text) for text in column]
    return [f"{len(text)}:{text}" for text in short]


def meaning_of(value: Any) -> Any:
    """Plain data of a recipe's value: its `meaning()` or `to_dict()`, a dataclass's fields, else the value itself."""
    if hasattr(value, "meaning"):
        return value.meaning()
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value.to_dict() if hasattr(value, "to_dict") else value
    fields = dataclasses.fields(value)
    plain = value.to_dict() if hasattr(value, "to_dict") else {one.name: getattr(value, one.name) for one in fields}
    as_before = {one.name for one in fields if _is_as_before(value, one)}
    return {name: meaning_of(part) for name, part in plain.items() if name not in as_before}


def _is_as_before(owner: Any, one: dataclasses.Field[Any]) -> bool:
    """True for an added field with the value that was meant while it did not exist."""
    return _BEFORE in one.metadata and bool(getattr(owner, one.name) == one.metadata[_BEFORE])
