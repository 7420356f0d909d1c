"""Recipes: the single definition of what determines a stage's rows.

A stage's fingerprint, the key of each of its rows and its worker's settings all derive from one recipe, so they
cannot disagree. A field is hashed into both fingerprint and keys unless it is declared with `per_row` or `unhashed`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pipelines.engine.fingerprint import digest

_ROLE = "role"


def per_row(**options: Any) -> Any:
    """Field hashed into the fingerprint only. A row's `parts` hold its share of it (a rendered prompt)."""
    return field(metadata={_ROLE: "per_row"}, **options)


def unhashed(**options: Any) -> Any:
    """Field in no fingerprint and no key: it locates data, or hashed values cover it."""
    return field(metadata={_ROLE: "unhashed"}, **options)


@dataclass(frozen=True)
class Recipe:
    """Base class of recipes: frozen dataclasses of plain values, dataclasses and values with `meaning()`."""

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
        return {name: meaning_of(value) for name, role, value in self._fields() if role != "unhashed"}

    @cached_property
    def shared_digest(self) -> str:
        """Digest of the fields that all row keys share."""
        return digest({name: meaning_of(value) for name, role, value in self._fields() if role is None})

    def key(self, parts: Mapping[str, Any]) -> str:
        """Ledger key of the row that `parts` and this recipe determine."""
        return digest([self.shared_digest, parts])

    def _fields(self) -> Iterator[tuple[str, str | None, Any]]:
        for one in dataclasses.fields(self):
            yield one.name, one.metadata.get(_ROLE), getattr(self, one.name)


def meaning_of(value: Any) -> Any:
    """Plain data of a recipe's value: its `meaning()` or `to_dict()`, a dataclass's fields, else the value itself."""
    for name in ("meaning", "to_dict"):
        if hasattr(value, name):
            return getattr(value, name)()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: meaning_of(getattr(value, one.name)) for one in dataclasses.fields(value)}
    return value
