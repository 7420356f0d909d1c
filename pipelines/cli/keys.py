"""Keys of a configuration with their types, defaults and meanings, from the fields' own descriptions."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pipelines.run_config import Config

REQUIRED = "required"
NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", dict: "mapping"}


@dataclass(frozen=True)
class Key:
    """Key of a configuration. `default` is as YAML writes it, or REQUIRED."""

    name: str
    kind: str
    default: str
    meaning: str


def all_keys() -> list[Key]:
    """All keys, in the order of the sections."""
    return list(_keys_of(Config, PydanticUndefined, ""))


def markdown() -> str:
    """Content of docs/configuration.md."""
    keys = all_keys()
    lines = [
        "# Configuration",
        "",
        "`soundcap keys` writes this page. A key goes into the YAML file by its sections, or behind `--set`.",
    ]
    for section in dict.fromkeys(key.name.split(".")[0] for key in keys):
        own = get_type_hints(Config)[section]
        lines += ["", f"## {section}", ""]
        if _is_section(own):
            lines += [inspect.cleandoc(own.__doc__ or "").split("\n\n")[0].replace("\n", " "), ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for key in keys:
            if key.name.split(".")[0] == section:
                kind, meaning = (text.replace("|", "\\|") for text in (key.kind, key.meaning))
                lines.append(f"| `{key.name}` | {kind} | {key.default and f'`{key.default}`'} | {meaning} |")
    return "\n".join(lines) + "\n"


def _keys_of(section: type, default: Any, path: str) -> Iterator[Key]:
    """Keys below a section. `default`: the section's own, whose values are those of its fields."""
    hints, meanings = get_type_hints(section, include_extras=True), _meanings(section)
    for name, own, described in _fields(section):
        value = own if default is PydanticUndefined else getattr(default, name)
        key, hint = f"{path}{name}", _bare(hints[name])
        if _is_section(hint):
            yield from _keys_of(hint, value, f"{key}.")
        else:
            yield Key(key, _kind(hint), _written(value), described or meanings.get(name, ""))


def _fields(section: type) -> Iterator[tuple[str, Any, str]]:
    """Name, default and description of each field."""
    if issubclass(section, BaseModel):
        for name, field in section.model_fields.items():
            yield name, field.get_default(call_default_factory=True), field.description or ""  # type: ignore[call-arg]
        return
    hints = get_type_hints(section, include_extras=True)
    for one in dataclasses.fields(section):  # type: ignore[arg-type]
        default = PydanticUndefined if one.default is dataclasses.MISSING else one.default
        notes = [note.description for note in getattr(hints[one.name], "__metadata__", ()) if note.description]
        yield one.name, default, next(iter(notes), "")


@cache
def _meanings(section: type) -> dict[str, str]:
    """Docstrings of a class's attributes, those of its bases too."""
    found: dict[str, str] = {}
    for base in reversed(section.__mro__[:-1]):
        if base.__module__.split(".")[0] not in ("pipelines", "soundcap", "flowley"):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, text in pairwise(body):
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if is_text and isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def _bare(hint: Any) -> Any:
    return _bare(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and (issubclass(hint, BaseModel) or dataclasses.is_dataclass(hint))


def _kind(hint: Any) -> str:
    hint = _bare(hint)
    origin = get_origin(hint)
    if origin is Literal:
        return ", ".join(map(str, get_args(hint)))
    if origin in (Union, types.UnionType):
        return " or ".join("null" if one is type(None) else _kind(one) for one in get_args(hint))
    if origin in (tuple, list):
        return f"list of {_kind(get_args(hint)[0])}s"
    return NAMES.get(origin or hint, "text")


def _written(value: Any) -> str:
    if value is PydanticUndefined:
        return REQUIRED
    if isinstance(value, tuple) and any(isinstance(one, str) for one in value):
        return f"{len(value)} patterns"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value) if isinstance(value, tuple) else value)
