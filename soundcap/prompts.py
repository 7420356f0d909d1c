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

SPECIAL_TOKEN = re.compile(r"<\|[^|\s]*\|>")
"""Form of the tokens that structure a chat, which no prompt may hold."""

PLACEHOLDER = re.compile(r"\{\{?\s*[A-Za-z_][\w.]*\s*\}?\}|\$\{?[A-Za-z_]\w*\}?")
"""Form of names that other tools replace, as in {label} or $label."""


class PromptError(ValueError):
    """Unusable prompt file; the message is one line: file, line, what is wrong, what to do."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """Task that a model gets with every clip."""

    text: str
    """Canonical text: paragraphs separated by a newline, single spaces within."""
    origin: str
    """Place where a person edits it, for example ``prompts/av_caption.yaml``."""


@dataclass(frozen=True, slots=True)
class NoiseWarning:
    """Warning against sound that does not belong to the scene: its labels, and the mentions that break it."""

    name: str
    """Unique within a file; no model sees it. Curation names a drop after it."""
    text: str
    """Canonical text, as in :class:`Instruction`."""
    origin: str
    """Place where a person edits it, for example "prompts/warnings.yaml (warning `music`)"."""
    labels: tuple[str, ...] | None = None
    """Reaches only clips whose label matches one of these patterns; None: no such limit."""
    except_labels: tuple[str, ...] = ()
    """Does not reach clips whose label matches one of these patterns: there the sound is true."""
    violations: tuple[str, ...] = ()
    """Regular expressions of what a caption must not say, matched as by :func:`compiled`."""

    def reaches(self, label: str) -> bool:
        """True if a clip with this label gets the warning (any case; ``*`` in a pattern is any text)."""
        if self.labels is not None and not label_matches(label, self.labels):
            return False
        return not label_matches(label, self.except_labels)

    def reach(self) -> dict[str, Any]:
        """Labels that the warning reaches, as plain data, for fingerprints."""
        return {"labels": self.labels, "except_labels": self.except_labels}

    def violation(self, caption: str, label: str) -> str | None:
        """First mention in a caption that breaks the warning; None if nothing does.

        Nothing does where the warning does not reach the clip's label, or where the label itself says the like.
        """
        mention = first_match(self.violations, caption)
        if mention is None or not self.reaches(label) or first_match(self.violations, label):
            return None
        return mention


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Instruction and ordered warnings of one stage."""

    instruction: Instruction
    warnings: tuple[NoiseWarning, ...] = ()
    _rendered: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def render(self, label: str) -> str:
        """Prompt of a clip with this label: the instruction, then its warnings, one a line.

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
            "warnings": [{"text": warning.text} | warning.reach() for warning in self.warnings],
        }

    @property
    def origins(self) -> dict[str, str]:
        """Place where each element of :meth:`meaning` ("instruction", "warnings[2]") is edited."""
        places = {f"warnings[{i}]": warning.origin for i, warning in enumerate(self.warnings)}
        return {"instruction": self.instruction.origin, **places}


def load_prompts(instruction_path: Path, warnings_path: Path | None) -> PromptSet:
    """Read an instruction file and, unless None, a warnings file.

    Raises:
        PromptError: missing or unreadable file, bad YAML, unknown or repeated key, empty text,
            two warnings of one name, a violation that is no regular expression.
    """
    instruction = Instruction(_read(instruction_path, "text").text("text"), str(instruction_path))
    return PromptSet(instruction, () if warnings_path is None else _load_warnings(warnings_path))


def _load_warnings(path: Path) -> tuple[NoiseWarning, ...]:
    root = _read(path, "warnings")
    items = root.value("warnings")
    if not isinstance(items, yaml.SequenceNode):
        raise root.error("`warnings` must be a list of warnings (`[]` for none)", items)
    warnings: dict[str, NoiseWarning] = {}
    for item in items.value:
        fields = _Mapping(path, item, ("name", "text", "labels", "except_labels", "violations"))
        warning = _warning(fields)
        if warning.name in warnings:
            raise fields.error(f"warning `{warning.name}` is there twice: rename one or delete it", item)
        warnings[warning.name] = warning
    return tuple(warnings.values())


def _warning(fields: "_Mapping") -> NoiseWarning:
    name = fields.text("name")
    labels, except_labels = _labels(fields, "labels"), _labels(fields, "except_labels")
    if labels is not None and except_labels is not None:
        raise fields.error(f"warning `{name}` has both `labels` and `except_labels`: keep one", fields.node)
    origin = f"{fields.path} (warning `{name}`)"
    return NoiseWarning(name, fields.text("text"), origin, labels, except_labels or (), _violations(fields))


def _labels(fields: "_Mapping", key: str) -> tuple[str, ...] | None:
    """Sorted label patterns without case, or None where the key is absent."""
    items = fields.texts(key)
    return None if items is None else tuple(sorted({_fold_label(item) for item in items}))


def _violations(fields: "_Mapping") -> tuple[str, ...]:
    patterns = tuple(fields.texts("violations") or ())
    if fault := pattern_fault(patterns):
        raise fields.error(f"`violations`: {fault}", fields.values["violations"])
    return patterns


def _fold_label(label: str) -> str:
    return " ".join(label.split()).casefold()


def label_matches(label: str, patterns: tuple[str, ...]) -> bool:
    """True if a label, in any case, is one of the patterns; `*` in a pattern is any text."""
    return _label_regex(patterns).fullmatch(_fold_label(label)) is not None


@cache
def compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """One expression for whole words of any pattern, in any case; without patterns it matches nothing."""
    return re.compile(rf"\b(?:{'|'.join(patterns)})\b" if patterns else r"(?!)", re.IGNORECASE)


def pattern_fault(patterns: tuple[str, ...]) -> str | None:
    """What is wrong with patterns, or None: no regular expression, or one that matches the text without a word."""
    for one in (*((pattern,) for pattern in patterns), patterns):  # together, they may still clash
        try:
            compiled(one)
        except re.error as error:
            return f"{', '.join(one)!r} is no regular expression: {error.msg}"
        if len(one) == 1 and re.fullmatch(one[0], ""):
            return f"{one[0]!r} matches nothing at all, so every caption would have it; leave it out"
    return None


def first_match(patterns: tuple[str, ...], text: str) -> str | None:
    """First words of a text that match, in lower case; None without a match."""
    match = compiled(patterns).search(text)
    return None if match is None else match.group().lower()


@cache
def _label_regex(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(".*".join(map(re.escape, p.split("*"))) for p in patterns) or r"(?!)")


class _Mapping:
    """YAML mapping of a prompt file with some known keys: its nodes, which know their lines, by key."""

    def __init__(self, path: Path, node: yaml.Node, keys: tuple[str, ...]) -> None:
        self.path, self.node = path, node
        self.values: dict[str, yaml.Node] = {}
        listed = ", ".join(f"`{key}`" for key in keys)
        if not isinstance(node, yaml.MappingNode):
            raise self.error(f"must be a mapping with {listed}", node)
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key not in keys:
                raise self.error(f"unknown key `{key}`: only {listed} can stand here", key_node)
            if key in self.values:
                raise self.error(f"`{key}` is there twice: keep one", key_node)
            self.values[key] = value_node

    def value(self, key: str) -> yaml.Node:
        if key not in self.values:
            raise self.error(f"`{key}` is missing: add it", self.node)
        return self.values[key]

    def text(self, key: str) -> str:
        """Canonical text: single spaces within a line, no empty lines; a line break left by YAML's folding is meant."""
        node = self.value(key)
        if not _is_text(node):
            raise self.error(f"`{key}` must be text, not empty (quote it if it looks like a number)", node)
        if token := SPECIAL_TOKEN.search(node.value):
            raise self.error(f"`{key}` holds {token.group()}, a special token of models: take it out", node)
        if place := PLACEHOLDER.search(node.value):
            raise self.error(f"`{key}` holds {place.group()}, and nothing fills names in: write it out", node)
        return "\n".join(" ".join(line.split()) for line in node.value.splitlines() if line.strip())

    def texts(self, key: str) -> list[str] | None:
        """Texts of a list, or None where the key is absent."""
        if key not in self.values:
            return None
        node = self.values[key]
        items = node.value if isinstance(node, yaml.SequenceNode) else []
        if not items or not all(_is_text(item) for item in items):
            raise self.error(f"`{key}` must be a list of texts with at least one; remove the key otherwise", node)
        return [item.value for item in items]

    def error(self, problem: str, node: yaml.Node) -> PromptError:
        return PromptError(f"{self.path}:{node.start_mark.line + 1}: {problem}")


def _is_text(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str" and bool(node.value.strip())


def _read(path: Path, key: str) -> _Mapping:
    """The whole file, which must be a mapping with this one key."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}: byte {error.start} is not UTF-8: save the file as UTF-8") from error
    except OSError as error:
        raise PromptError(f"{path}: {error.strerror}: a prompt file was wanted here") from error
    except yaml.MarkedYAMLError as error:
        line = 0 if error.problem_mark is None else error.problem_mark.line + 1
        raise PromptError(f"{path}:{line}: not valid YAML: {error.problem}") from error
    except RecursionError as error:
        raise PromptError(f"{path}: nested too deeply for a prompt file") from error
    except yaml.YAMLError as error:
        raise PromptError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if node is None:
        raise PromptError(f"{path}: empty: it must have `{key}`")
    return _Mapping(path, node, (key,))
