"""Prompt files: an instruction and noise warnings (paper, section 2.3) from the YAML files in ``prompts/``.

Only what reaches a model has meaning: :meth:`PromptSet.meaning` is the same for two files that differ in
comments, names, quoting or indentation, so such an edit re-computes nothing.
"""

import re
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from soundcap.vocabulary import compiled, first_match


class PromptError(ValueError):
    """A prompt file that cannot be used; the message is one line: file, line, what is wrong, what to do."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """Task that a model gets with every clip."""

    text: str
    """Canonical text: paragraphs separated by a newline, single spaces within."""
    origin: str
    """Where a person edits it, for example ``prompts/av_caption.yaml``."""


@dataclass(frozen=True, slots=True)
class NoiseWarning:
    """Warning against sound that does not belong to the scene: its labels, and the mentions that break it."""

    name: str
    """Unique within a file; no model sees it. Curation names a drop after it."""
    text: str
    """Canonical text, as in :class:`Instruction`."""
    origin: str
    """Where a person edits it, for example "prompts/warnings.yaml (warning `music`)"."""
    labels: tuple[str, ...] | None = None
    """Reaches only clips whose label matches one of these patterns; None: no such limit."""
    except_labels: tuple[str, ...] = ()
    """Does not reach clips whose label matches one of these patterns: there the sound is true."""
    violations: tuple[str, ...] = ()
    """Regular expressions of what a caption must not say, matched as in :mod:`soundcap.vocabulary`."""

    def reaches(self, label: str) -> bool:
        """Whether a clip with this label gets the warning (any case; ``*`` in a pattern is any text)."""
        if self.labels is not None and not _matches(label, self.labels):
            return False
        return not _matches(label, self.except_labels)

    def violation(self, caption: str, label: str) -> str | None:
        """The first mention in a caption that breaks the warning; None if nothing does.

        Nothing does where the warning does not reach the clip's label, or where the label itself says the like.
        """
        mention = first_match(self.violations, caption)
        if mention is None or not self.reaches(label) or first_match(self.violations, label):
            return None
        return mention


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The instruction and the ordered warnings of one stage."""

    instruction: Instruction
    warnings: tuple[NoiseWarning, ...] = ()
    _rendered: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def render(self, label: str) -> str:
        """The prompt of a clip with this label: the instruction, then its warnings, one a line.

        Made once for each label; labels that get the same warnings share one string.
        """
        prompt = self._rendered.get(label)
        if prompt is None:
            reaching = (warning.text for warning in self.warnings if warning.reaches(label))
            prompt = self._rendered[label] = sys.intern("\n".join((self.instruction.text, *reaching)))
        return prompt

    def meaning(self) -> dict[str, Any]:
        """All that can change a rendered prompt, as plain data in canonical form, for fingerprints.

        Violations are no part of it: they judge captions (:func:`soundcap.curate.curation_meaning`).
        """
        return {
            "instruction": self.instruction.text,
            "warnings": [{"text": warning.text} | reach_meaning(warning) for warning in self.warnings],
        }

    @property
    def origins(self) -> dict[str, str]:
        """Each element of :meth:`meaning` ("instruction", "warnings[2]") to the place where it is edited."""
        places = {f"warnings[{i}]": warning.origin for i, warning in enumerate(self.warnings)}
        return {"instruction": self.instruction.origin, **places}


def reach_meaning(warning: NoiseWarning) -> dict[str, Any]:
    """The labels that a warning reaches, as plain data in canonical form, for fingerprints."""
    labels = None if warning.labels is None else list(warning.labels)
    return {"labels": labels, "except_labels": list(warning.except_labels)}


def load_prompts(instruction_path: Path, warnings_path: Path | None) -> PromptSet:
    """Read an instruction file and, unless None, a warnings file.

    Raises:
        PromptError: missing or unreadable file, bad YAML, unknown or repeated key, empty text,
            two warnings of one name, a violation that is no regular expression.
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
    warnings: dict[str, NoiseWarning] = {}
    for item in items.value:
        fields = root.reader.mapping(item, ("name", "text", "labels", "except_labels", "violations"))
        warning = _warning(fields)
        if warning.name in warnings:
            raise fields.error(f"warning `{warning.name}` is there twice: rename one or delete it", item)
        warnings[warning.name] = warning
    return tuple(warnings.values())


def _warning(fields: "_Mapping") -> NoiseWarning:
    name = _text(fields, "name")
    labels, except_labels = _labels(fields, "labels"), _labels(fields, "except_labels")
    if labels is not None and except_labels is not None:
        raise fields.error(f"warning `{name}` has both `labels` and `except_labels`: keep one", fields.node)
    origin = f"{fields.reader.path} (warning `{name}`)"
    return NoiseWarning(name, _text(fields, "text"), origin, labels, except_labels or (), _violations(fields))


def _labels(fields: "_Mapping", key: str) -> tuple[str, ...] | None:
    """Sorted label patterns without case, or None where the key is absent."""
    items = _strings(fields, key)
    return None if items is None else tuple(sorted({_fold_label(item) for item in items}))


def _violations(fields: "_Mapping") -> tuple[str, ...]:
    patterns = tuple(_strings(fields, "violations") or ())
    try:
        compiled(patterns)
    except re.error as error:
        problem = f"`violations` must be regular expressions: {error.pattern!r}: {error.msg}"
        raise fields.error(problem, fields.values["violations"]) from error
    return patterns


def _strings(fields: "_Mapping", key: str) -> list[str] | None:
    if key not in fields.values:
        return None
    node = fields.values[key]
    items = node.value if isinstance(node, yaml.SequenceNode) else []
    if not items or any(item.tag != "tag:yaml.org,2002:str" or not item.value.strip() for item in items):
        raise fields.error(f"`{key}` must be a list of texts with at least one; remove the key otherwise", node)
    return [item.value for item in items]


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
    return _label_regex(patterns).fullmatch(_fold_label(label)) is not None


@cache
def _label_regex(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(".*".join(map(re.escape, p.split("*"))) for p in patterns) or r"(?!)")


@dataclass(frozen=True, slots=True)
class _Mapping:
    """YAML mapping whose keys are known: its nodes by key."""

    reader: "_Reader"
    node: yaml.MappingNode
    values: dict[str, yaml.Node]

    def value(self, key: str) -> yaml.Node:
        if key not in self.values:
            raise self.error(f"`{key}` is missing: add it", self.node)
        return self.values[key]

    def error(self, problem: str, node: yaml.Node) -> PromptError:
        return self.reader.error(problem, node)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reader of one prompt file, as YAML nodes: nodes know their lines."""

    path: Path

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
