"""Keys of a configuration with their types, defaults and meanings, from the fields' own descriptions.

The page docs/configuration.md and the comments of a configuration file are made of them.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pipelines.config_file import section_of
from pipelines.run_config import Config

REQUIRED = "required"
END = "\n..."
"""YAML's mark after a bare value."""
WIDTH = 110
"""Characters of a line of a configuration file."""
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
        own = section_of(get_type_hints(Config)[section])
        lines += ["", f"## {section}", ""]
        if _is_section(own):
            lines += [inspect.cleandoc(own.__doc__ or "").split("\n\n")[0].replace("\n", " "), ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for key in keys:
            if key.name.split(".")[0] == section:
                kind, meaning = (text.replace("|", "\\|") for text in (key.kind, key.meaning))
                lines.append(f"| `{key.name}` | {kind} | {key.default and f'`{key.default}`'} | {meaning} |")
    return "\n".join(lines) + "\n"


def commented(data: Mapping[str, Any], reasons: Mapping[str, str]) -> str:
    """YAML of a configuration. Above each key stands its reason, else behind it what it means."""
    meanings = {key.name: key.meaning for key in all_keys()}
    return "\n".join(_lines(data, "", meanings, reasons)) + "\n"


def _lines(data: Mapping[str, Any], path: str, meanings: Mapping[str, str], reasons: Mapping[str, str]) -> list[str]:
    lines: list[str] = []
    indent = "  " * path.count(".")
    for name, value in data.items():
        key = f"{path}{name}"
        if not path and isinstance(value, dict):
            lines.append("")
        if key in reasons:
            lines += textwrap.wrap(reasons[key], WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        if isinstance(value, dict) and key not in meanings:
            lines += [f"{indent}{name}:", *_lines(value, f"{key}.", meanings, reasons)]
            continue
        written = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
        line = f"{indent}{name}: {written.strip().removesuffix(END)}"
        meaning = "" if key in reasons else meanings.get(key, "")
        meaning += " Null: not used." * (bool(meaning) and value is None)
        if meaning and len(line) + len(meaning) + 4 > WIDTH:
            lines += textwrap.wrap(meaning, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        elif meaning:
            line += f"  # {meaning}"
        lines.append(line)
    return lines


def _keys_of(section: type, default: Any, path: str) -> Iterator[Key]:
    """Keys below a section. `default`: the section's own, whose values are those of its fields."""
    hints, meanings = get_type_hints(section, include_extras=True), _meanings(section)
    for name, own, described in _fields(section):
        value = own if default is PydanticUndefined else getattr(default, name)
        key, hint = f"{path}{name}", section_of(_bare(hints[name]))
        if _is_section(hint):
            yield from _keys_of(hint, PydanticUndefined if value is None else value, f"{key}.")
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
