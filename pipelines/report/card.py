"""Dataset card of a publication: front matter that loaders read, and what a reader has to know."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from pipelines.engine.store import Manifest, Output

SPLITS = ("train", "test")

TITLES = {
    "captions": "Sound-aware captions, written from picture and sound",
    "silent_captions": "Captions predicted from the silent picture",
}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass(frozen=True)
class Published:
    """One stage as it is published: its output, what made it, and its rows in PUBLISHED_SCHEMA."""

    output: Output
    manifest: Manifest
    spec: dict[str, Any]
    rows: list[dict[str, Any]]
    prompts: dict[str, str]

    @property
    def name(self) -> str:
        return self.manifest.stage

    @cached_property
    def splits(self) -> dict[str, list[dict[str, Any]]]:
        """Rows of each split that has some, in the order of the clips' ids."""
        rows = sorted(self.rows, key=lambda row: str(row["clip_id"]))
        found = {split: [row for row in rows if row["split"] == split] for split in SPLITS}
        return {split: rows for split, rows in found.items() if rows}


def write_card(published: Sequence[Published], done: Mapping[str, Output]) -> str:
    """README.md of the publication, from the manifests and specs of what was done."""
    sections = [
        "---\n" + yaml.safe_dump(_front_matter(published), sort_keys=False, allow_unicode=True) + "---",
        "# Sound captions of video clips",
        "What can be heard in short video clips, one caption a clip. Captions only: no picture and no sound is "
        "included; `video_id` and `start_s` say where a clip is from, and media stay under their owners' terms. "
        "The licence covers the captions. They are written by models and were not checked by people.",
        *(_section(part) for part in published),
        _left_out(done),
        "## Columns\n\n" + "\n".join(f"- `{name}`: {text}" for name, text in COLUMNS.items()),
    ]
    return "\n\n".join(sections) + "\n"


COLUMNS = {
    "video_id": "the source video",
    "start_s": "where the clip begins in it, seconds; 0 where the source gives no times",
    "split": "train or test",
    "label": "the source's sound label",
    "caption": "the caption",
    "clip_id": "digest of the source's bytes and of how the clip was normalised",
    "prompt_fingerprint": "which prompt was asked; `prompts.json` has the texts",
    "model": "the model at its revision (`files:` and a digest for local weights), and its adapter if it has one",
}


def markdown(text: str) -> str:
    """`text` so that Markdown shows it as it is: no markup, HTML, table cell or list begins in it."""
    escaped = re.sub(r"([\\`*_\[\]<>|#~&$])", r"\\\1", text)
    escaped = re.sub(r"(?m)^(\s*)([-+=])", r"\1\\\2", escaped)
    return re.sub(r"(?m)^(\s*\d+)([.)])", r"\1\\\2", escaped)


def _front_matter(published: Sequence[Published]) -> dict[str, Any]:
    largest = max(len(part.rows) for part in published)
    size = next((name for limit, name in SIZES if largest < limit), "1M<n<10M")
    return {
        "pretty_name": "Sound captions of video clips",
        "license": "cc-by-4.0",
        "language": ["en"],
        "tags": ["audio-captioning", "video-to-audio", "sound", "synthetic"],
        "size_categories": [size],
        "configs": [
            {
                "config_name": part.name,
                "data_files": [{"split": split, "path": f"data/{part.name}/{split}.parquet"} for split in part.splits],
            }
            for part in published
            if part.splits
        ],
    }


def _section(part: Published) -> str:
    meaning = part.spec["meaning"]
    counts = ", ".join(f"{len(rows)} {split}" for split, rows in part.splits.items()) or "none"
    facts = {
        "captions": counts,
        "model": meaning["model"],
        "adapter": part.spec["inputs"].get("captioner"),
        "frames": _settings(meaning["frames"]),
        "sampling": _settings(meaning["sampling"]),
        "output fingerprint": part.manifest.fingerprint,
    }
    lines = [f"## `{part.name}`: {TITLES[part.name]}", _table(("", ""), [(k, v) for k, v in facts.items() if v])]
    lines += ["### Prompt", _quote(meaning["prompts"]["instruction"])]
    warnings = meaning["prompts"]["warnings"]
    if warnings:
        lines += ["### Warnings", "Added to the prompt of the labels that each reaches, in this order."]
        lines += [f"{_quote(warning['text'])}\n>\n> ({_reach(warning)})" for warning in warnings]
    return "\n\n".join(lines)


def _reach(warning: Mapping[str, Any]) -> str:
    if warning["labels"] is not None:
        return "only: " + markdown(", ".join(warning["labels"]))
    if warning["except_labels"]:
        return "all labels except: " + markdown(", ".join(warning["except_labels"]))
    return "all labels"


def _left_out(done: Mapping[str, Output]) -> str:
    """Counts of dropped and quarantined rows by stage and reason."""
    dropped = Counter(("curation", row["rule"]) for row in done["curation"].rows() if not row["kept"])
    rows = [(stage, "dropped", rule, str(count)) for (stage, rule), count in sorted(dropped.items())]
    for stage, output in done.items():
        reasons = Counter(row["error_class"] for row in output.quarantine())
        rows += [(stage, "quarantined", reason, str(count)) for reason, count in sorted(reasons.items())]
    table = _table(("stage", "what happened", "reason", "rows"), rows) if rows else "Nothing."
    return "## What was left out\n\n" + table


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _quote(text: str) -> str:
    return "\n>\n".join(f"> {markdown(line)}" for line in text.splitlines())


def _table(head: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *(tuple(markdown(str(cell)) for cell in row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
