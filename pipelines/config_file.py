"""Reader of a run's configuration: YAML and overrides into the typed sections, each fault in one line."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import ValidationError

from pipelines.errors import UserError, hint
from pipelines.run_config import Config, Section

MOVED_KEYS = {
    "captioner.training.frames_fps": "captioner.training.frames.fps",
    "captioner.training.min_frame_px": "captioner.training.frames.min_px",
    "captioner.training.max_frame_px": "captioner.training.frames.max_px",
    "captioner.execution.settings.use_gpu": "captioner.execution.use_gpu",
    "curation.rules.music_words": "`violations` of the warning `music` in prompts/warnings.yaml",
    "curation.rules.music_labels": "`except_labels` of the warning `music` in prompts/warnings.yaml",
    "curation.rules.speech_words": "`violations` of the warning `speech` in prompts/warnings.yaml",
    "curation.rules.speech_labels": "`except_labels` of the warning `speech` in prompts/warnings.yaml",
    "miniature": "an option of `python -m miniature`",
}
"""New names of moved keys, for the error message. Old names are not read."""


DEEPEST = 20
"""Levels of a configuration, beyond which nothing is looked into."""


class _Loader(yaml.SafeLoader):
    """YAML loader that refuses a key that is given twice, of which the last would win in silence.

    It takes 1e-4 for a number, as YAML 1.2 does.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen and name != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"the key {name} is given twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {  # no key takes a date
    first: [(tag, regex) for tag, regex in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads and validates a configuration; `overrides` are `dotted.key=value` with YAML values.

    Raises UserError: one line with the key, what was got and what was wanted.
    """
    file = Path(path).expanduser()
    if not os.path.isfile(file):  # noqa: PTH113 (Path's raises for a name that is too long)
        raise UserError(f"{path}: no such configuration file. Give the path of a YAML file, like configs/demo.yaml")
    try:
        data = yaml.load(file.read_text(), _Loader)
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply for a configuration") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.start}: {error.reason}); save it so") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: got {type(data).__name__}, wanted a mapping with keys like root and source")
    for override in overrides:
        _apply(data, override)
    try:
        text = json.dumps(data, default=str, allow_nan=False)
    except (ValueError, RecursionError, TypeError) as error:
        infinite = next(_infinite(data, ""), None) if isinstance(error, ValueError) else None
        told = infinite or f"a section holds itself, or has a key that is no text ({error})"
        raise UserError(f"{path}: {told}") from error
    try:
        # Strict in JSON's terms: else `true` and "1" are numbers, though a list may stay a tuple's value.
        return Config.model_validate_json(text, strict=True)
    except ValidationError as error:
        faults = "; ".join(_explain(dict(fault)) for fault in error.errors())
        raise UserError(f"{path}: {faults}") from error


def parse_assignment(assignment: str, example: str) -> tuple[str, Any]:
    """Key and YAML value of `--set key=value`. Raises UserError for anything else, with an example."""
    key, equals, text = assignment.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"--set {assignment}: wanted key=value, for example --set {example}")
    try:
        return key, yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"--set {assignment}: the value is not valid YAML; quote it if it is text") from error


def _apply(data: dict[str, Any], override: str) -> None:
    key, value = parse_assignment(override, "clips.fps=25")
    parts = key.split(".")
    for part in parts[:-1]:
        inner = data[part] = {} if data.get(part) is None else data[part]
        if not isinstance(inner, dict):
            raise UserError(f"--set {override}: {part} is a value, not a section")
        data = inner
    data[parts[-1]] = value


def _infinite(value: Any, key: str, depth: int = 0) -> Iterator[str]:
    """Messages on the numbers below a key that are not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{key}: got {value}, wanted a finite number"
    elif isinstance(value, dict | list) and depth < DEEPEST:
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _infinite(part, f"{key}.{name}".lstrip("."), depth + 1)


def _explain(fault: dict[str, Any]) -> str:
    """Message of one validation error, as `key: got, wanted`."""
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        if key in MOVED_KEYS:
            return f"{key}: this key is now {MOVED_KEYS[key]}"
        return f"{key}: unknown key; {hint(str(fault['loc'][-1]), _fields_at(fault['loc'][:-1]))}"
    if fault["type"] == "missing":
        return f"{key}: missing; {'it is required' if key else 'wanted a value'}"
    if fault["type"] == "value_error":
        told = str(fault["ctx"]["error"])
        return f"{key}.{told}" if dataclasses.is_dataclass(_type_at(fault["loc"])) else told
    wanted = fault["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    if wanted == "an object":
        wanted = "keys with values, or this section left out"
    if fault["type"] == "string_type" and isinstance(fault["input"], bool | int | float):
        wanted = "text: put it in quotes, as it is to be read"  # 0012 is 10 already
    return f"{key}: got {fault['input']!r}, wanted {wanted}"


def _fields_at(location: Sequence[int | str]) -> list[str]:
    model = _type_at(location)
    return [f.name for f in dataclasses.fields(model)] if dataclasses.is_dataclass(model) else list(model.model_fields)


def _type_at(location: Sequence[int | str]) -> Any:
    model: Any = Config
    for part in location:
        model = section_of(get_type_hints(model)[str(part)])
    return model


def section_of(hint: Any) -> Any:
    """Type of a section that may be null; another type hint as it is."""
    kinds = [one for one in get_args(hint) if isinstance(one, type) and issubclass(one, Section)]
    return kinds[0] if len(kinds) == 1 else hint
