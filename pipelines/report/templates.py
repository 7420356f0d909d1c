"""Jinja rendering of the report's page and of the dataset card."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from pipelines.errors import CONTROL
from pipelines.progress import human_time


def render(template: str, **values: Any) -> str:
    """Rendered template of this folder; HTML templates escape their values, and hold no control character."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(("html.jinja",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"human_time": human_time, "figure": _figure, "markdown": markdown, "quote": _quote}
    text = environment.get_template(template).render(**values)
    return CONTROL.sub(_shown, text) if template.endswith(".html.jinja") else text


def _shown(found: re.Match[str]) -> str:
    """Mark of a control character, which no page may hold; lines and tabs stay."""
    return found.group() if found.group() in "\n\t" else "\N{REPLACEMENT CHARACTER}"


def markdown(text: str) -> str:
    """Text escaped for Markdown: no markup, HTML, table cell or list begins in it."""
    escaped = re.sub(r"([\\`*_\[\]<>|#~&$])", r"\\\1", text)
    escaped = re.sub(r"(?m)^(\s*)([-+=])", r"\1\\\2", escaped)
    return re.sub(r"(?m)^(\s*\d+)([.)])", r"\1\\\2", escaped)


def _quote(text: str) -> str:
    return "\n>\n".join(f"> {markdown(line)}" for line in text.splitlines())


def _figure(value: Any) -> str:
    """Formatted figure of a manifest; a mapping becomes names and values."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_figure(count)}" for key, count in value.items()) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
