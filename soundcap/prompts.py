"""Prompts: an instruction and noise warnings (paper, section 2.3), read from the YAML files in ``prompts/``.

Only what reaches a model has meaning: :meth:`PromptSet.meaning` is the same for two files that differ in
comments, names, quoting or indentation, so such an edit re-computes nothing.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


class PromptError(ValueError):
    """A prompt file that cannot be used; the message is one line: file, line, what is wrong, what to do."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """What a model is asked to do with every clip."""

    text: str
    """Canonical text: paragraphs separated by a newline, single spaces within."""
    origin: str
    """Where a person finds it, for example ``prompts/av_caption.yaml``."""


@dataclass(frozen=True, slots=True)
class NoiseWarning:
    """One warning against sound that does not belong to the scene, and the labels that it reaches."""

    name: str
    """Unique within a file; for people only, no model sees it."""
    text: str
    """Canonical text, as in :class:`Instruction`."""
    origin: str
    """Where a person finds it, for example "prompts/warnings.yaml (warning `music`)"."""
    labels: tuple[str, ...] | None = None
    """Reaches only clips whose label matches one of these patterns; None: no such limit."""
    except_labels: tuple[str, ...] = ()
    """Does not reach clips whose label matches one of these patterns."""

    def reaches(self, label: str) -> bool:
        """Whether a clip with this label gets the warning (any case; ``*`` in a pattern is any text)."""
        if self.labels is not None and not _matches(label, self.labels):
            return False
        return not _matches(label, self.except_labels)


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The instruction and the ordered warnings of one stage."""

    instruction: Instruction
    warnings: tuple[NoiseWarning, ...] = ()

    def render(self, label: str) -> str:
        """The prompt of a clip with this label: the instruction, then its warnings, one a line."""
        reaching = (warning.text for warning in self.warnings if warning.reaches(label))
        return "\n".join((self.instruction.text, *reaching))

    def meaning(self) -> dict[str, Any]:
        """All that can change a rendered prompt, as plain data in canonical form, for fingerprints."""
        return {
            "instruction": self.instruction.text,
            "warnings": [
                {
                    "text": warning.text,
                    "labels": None if warning.labels is None else list(warning.labels),
                    "except_labels": list(warning.except_labels),
                }
                for warning in self.warnings
            ],
        }

    @property
    def origins(self) -> dict[str, str]:
        """Each element of :meth:`meaning` ("instruction", "warnings[2]") to the place where it is edited."""
        places = {f"warnings[{i}]": warning.origin for i, warning in enumerate(self.warnings)}
        return {"instruction": self.instruction.origin, **places}


def load_prompts(instruction_path: Path, warnings_path: Path | None) -> PromptSet:
    """Read an instruction file and, unless None, a warnings file.

    Raises:
        PromptError: missing or unreadable file, bad YAML, unknown or repeated key, empty text,
            two warnings of one name.
    """
    root = _Reader(instruction_path).root("text")
    instruction = Instruction(_text(root, "text"), str(instruction_path))
    warnings = () if warnings_path is None else _load_warnings(warnings_path)
    return PromptSet(instruction, warnings)


def _load_warnings(path: Path) -> tuple[NoiseWarning, ...]:
    root = _Reader(path).root("warnings")
    items = root.value("warnings")
    if not isinstance(items, yaml.SequenceNode):
        raise root.error("`warnings` must be a list of warnings (`[]` for none)", items)
    warnings: list[NoiseWarning] = []
    for item in items.value:
        fields = root.reader.mapping(item, ("name", "text", "labels", "except_labels"))
        warning = _warning(fields)
        if any(warning.name == other.name for other in warnings):
            raise fields.error(f"warning `{warning.name}` is there twice: rename one or delete it", item)
        warnings.append(warning)
    return tuple(warnings)


def _warning(fields: "_Mapping") -> NoiseWarning:
    name = _text(fields, "name")
    labels, except_labels = _patterns(fields, "labels"), _patterns(fields, "except_labels")
    if labels is not None and except_labels is not None:
        raise fields.error(f"warning `{name}` has both `labels` and `except_labels`: keep one", fields.node)
    origin = f"{fields.reader.path} (warning `{name}`)"
    return NoiseWarning(name, _text(fields, "text"), origin, labels, except_labels or ())


def _patterns(fields: "_Mapping", key: str) -> tuple[str, ...] | None:
    """Sorted label patterns without case, or None where the key is absent."""
    if key not in fields.values:
        return None
    node = fields.values[key]
    items = node.value if isinstance(node, yaml.SequenceNode) else []
    if not items or any(item.tag != "tag:yaml.org,2002:str" or not item.value.strip() for item in items):
        raise fields.error(f"`{key}` must be a list of labels with at least one; remove the key otherwise", node)
    return tuple(sorted({_fold_label(item.value) for item in items}))


def _text(fields: "_Mapping", key: str) -> str:
    node = fields.value(key)
    if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:str" or not node.value.strip():
        raise fields.error(f"`{key}` must be text, not empty (quote it if it looks like a number)", node)
    return _fold(node.value)


def _fold(text: str) -> str:
    """Single spaces within a line, no empty lines; a line break left after YAML's own folding is meant."""
    return "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())


def _fold_label(label: str) -> str:
    return " ".join(label.split()).casefold()


def _matches(label: str, patterns: tuple[str, ...]) -> bool:
    label = _fold_label(label)
    return any(re.fullmatch(".*".join(map(re.escape, p.split("*"))), label) for p in patterns)


class _Mapping:
    """A YAML mapping whose keys are known: its nodes by key, and errors that point at a line."""

    def __init__(self, reader: "_Reader", node: yaml.MappingNode, values: dict[str, yaml.Node]) -> None:
        self.reader = reader
        self.node = node
        self.values = values

    def value(self, key: str) -> yaml.Node:
        if key not in self.values:
            raise self.error(f"`{key}` is missing: add it", self.node)
        return self.values[key]

    def error(self, problem: str, node: yaml.Node) -> PromptError:
        return self.reader.error(problem, node)


class _Reader:
    """One prompt file. Nodes rather than plain data are read, because nodes know their lines."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def root(self, *keys: str) -> _Mapping:
        """The whole file, which must be a mapping with these keys."""
        try:
            node = yaml.compose(self.path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except UnicodeDecodeError as error:
            raise PromptError(f"{self.path}: byte {error.start} is not UTF-8: save the file as UTF-8") from error
        except OSError as error:
            raise PromptError(f"{self.path}: {error.strerror}: a prompt file was wanted here") from error
        except yaml.MarkedYAMLError as error:
            line = 0 if error.problem_mark is None else error.problem_mark.line + 1
            raise PromptError(f"{self.path}:{line}: not valid YAML: {error.problem}") from error
        except yaml.YAMLError as error:
            raise PromptError(f"{self.path}: not valid YAML: {' '.join(str(error).split())}") from error
        if node is None:
            raise PromptError(f"{self.path}: empty: it must have {_listed(keys)}")
        return self.mapping(node, keys)

    def mapping(self, node: yaml.Node, keys: tuple[str, ...]) -> _Mapping:
        if not isinstance(node, yaml.MappingNode):
            raise self.error(f"must be a mapping with {_listed(keys)}", node)
        values: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key not in keys:
                raise self.error(f"unknown key `{key}`: only {_listed(keys)} can stand here", key_node)
            if key in values:
                raise self.error(f"`{key}` is there twice: keep one", key_node)
            values[key] = value_node
        return _Mapping(self, node, values)

    def error(self, problem: str, node: yaml.Node) -> PromptError:
        return PromptError(f"{self.path}:{node.start_mark.line + 1}: {problem}")


def _listed(keys: tuple[str, ...]) -> str:
    return ", ".join(f"`{key}`" for key in keys)
