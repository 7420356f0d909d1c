"""Dataset publication for a data hub: captions as Parquet and a dataset card, never media."""

from __future__ import annotations

import contextlib
import json
import shutil
import unicodedata
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipelines.engine.fingerprint import digest
from pipelines.engine.plan import make_plan
from pipelines.engine.store import SPEC, Output, open_store, text_columns
from pipelines.errors import UserError
from pipelines.report.templates import render
from pipelines.run_config import Config
from pipelines.stages import STAGES

PUBLICATION = "publication.json"
"""Record of a publication: stages, fingerprints and file names. A folder that has it can be published to again."""

PUBLISHED_SCHEMA = pa.schema(
    [
        *text_columns("video_id"),
        ("start_s", pa.float64()),
        *text_columns("split", "label", "caption", "clip_id", "prompt_fingerprint", "model"),
    ]
)
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass(frozen=True)
class Published:
    """Published data of one stage: its output, spec, rows in PUBLISHED_SCHEMA, and prompts by fingerprint."""

    output: Output
    spec: dict[str, Any]
    rows: list[dict[str, Any]]
    prompts: dict[str, str]

    @cached_property
    def splits(self) -> dict[str, list[dict[str, Any]]]:
        """Rows by non-empty split, sorted by clip id."""
        rows = sorted(self.rows, key=lambda row: str(row["clip_id"]))
        found = {split: [row for row in rows if row["split"] == split] for split in ("train", "test")}
        return {split: rows for split, rows in found.items() if rows}


def publish(config: Config, target: Path) -> Path:
    """Writes the committed captions of `config` to `target`, and returns it.

    `data/{stage}/{split}.parquet` for stages captions (those that curation kept) and, once done,
    silent_captions; README.md, a dataset card; prompts.json, the text behind each prompt fingerprint. The folder
    appears whole or not at all, and replaces an earlier publication.

    Raises UserError while captions or curation are not done, and for a target that holds anything else.
    """
    _check_target(target)
    done, states = _done_outputs(config)
    for stage in ("captions", "curation"):
        if stage not in done:
            raise UserError(
                f"nothing to publish: stage {stage} is {states[stage]}, wanted done; "
                "`soundcap run CONFIG --until curation` makes it"
            )
    kept = {row["clip_id"] for row in done["curation"].rows() if row["kept"]}
    clips = {clip["clip_id"]: clip for clip in done["clips"].rows()}
    published = [_published(done["captions"], clips, kept)]
    if "silent_captions" in done:
        published.append(_published(done["silent_captions"], clips, set(clips)))
    if not any(part.rows for part in published):
        raise UserError("nothing to publish: curation kept no caption; `soundcap report CONFIG` shows why")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _whole_or_not(target) as folder:
        _write(folder, published, done)
    return target


def clean_text(text: str) -> str:
    """Single-line text with single spaces, without control characters and lone surrogates."""
    kept = (" " if unicodedata.category(char) in ("Cc", "Cs") else char for char in text)
    return " ".join("".join(kept).split())


def _done_outputs(config: Config) -> tuple[dict[str, Output], dict[str, str]]:
    """Committed outputs of this configuration, and each stage's state, up to silent_captions."""
    storage = open_store(config.root)
    last = [stage.name for stage in STAGES].index("silent_captions")
    plans = make_plan(STAGES[: last + 1], config, storage)
    done = {p.name: Output(storage, p.name, p.fingerprint) for p in plans if p.state == "done" and p.fingerprint}
    return done, {p.name: f"{p.state.replace('_', ' ')} ({p.reason})" for p in plans}


def _published(output: Output, clips: Mapping[str, Mapping[str, Any]], kept: set[str]) -> Published:
    spec: dict[str, Any] = output.storage.read_json(output.name(SPEC))
    model = spec["meaning"]["model"]
    if adapter := spec["inputs"].get("captioner"):
        model = f"{model}+adapter:{adapter}"
    rows, prompts = [], {}
    for row in output.rows():
        if row["clip_id"] not in kept:
            continue
        clip = clips[row["clip_id"]]
        fingerprint = digest(row["prompt"])[:12]
        prompts[fingerprint] = row["prompt"]
        rows.append(
            {
                "video_id": clip["video_id"],
                "start_s": clip["start_s"],
                "split": row["split"],
                "label": clean_text(row["label"]),
                "caption": clean_text(row["caption"]),
                "clip_id": row["clip_id"],
                "prompt_fingerprint": fingerprint,
                "model": model,
            }
        )
    return Published(output, spec, rows, prompts)


def _write(folder: Path, published: Sequence[Published], done: Mapping[str, Output]) -> None:
    for part in published:
        for split, rows in part.splits.items():
            file = folder / "data" / part.output.stage / f"{split}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows, schema=PUBLISHED_SCHEMA), file, compression="zstd")
    prompts = {fingerprint: text for part in published for fingerprint, text in part.prompts.items()}
    (folder / "prompts.json").write_text(json.dumps(prompts, indent=2, ensure_ascii=False, sort_keys=True))
    (folder / "README.md").write_text(_card(published, done), encoding="utf-8")
    record = {
        "stages": {name: output.fingerprint for name, output in done.items()},
        "files": sorted([*_files(folder), PUBLICATION]),
    }
    (folder / PUBLICATION).write_text(json.dumps(record, indent=2))


def _card(published: Sequence[Published], done: Mapping[str, Output]) -> str:
    """Dataset card: YAML front matter for loaders, and text for readers."""
    largest = max(len(part.rows) for part in published)
    configs = [
        {
            "config_name": part.output.stage,
            "data_files": [
                {"split": split, "path": f"data/{part.output.stage}/{split}.parquet"} for split in part.splits
            ],
        }
        for part in published
        if part.splits
    ]
    matter = {
        "pretty_name": "Sound captions of video clips",
        "license": "cc-by-4.0",
        "language": ["en"],
        "tags": ["audio-captioning", "video-to-audio", "sound", "synthetic"],
        "size_categories": [next((name for limit, name in SIZES if largest < limit), "1M<n<10M")],
        "configs": configs,
    }
    front_matter = yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)
    return render("card.md.jinja", front_matter=front_matter, published=published, left_out=_left_out(done))


def _left_out(done: Mapping[str, Output]) -> list[tuple[str, str, str, int]]:
    """Counts of dropped or quarantined rows, as (stage, what happened, reason, rows)."""
    dropped = Counter(row["rule"] for row in done["curation"].rows() if not row["kept"])
    rows = [("curation", "dropped", rule, count) for rule, count in sorted(dropped.items())]
    for stage, output in done.items():
        reasons = Counter(row["error_class"] for row in output.quarantine())
        rows += [(stage, "quarantined", reason, count) for reason, count in sorted(reasons.items())]
    return rows


def _check_target(target: Path) -> None:
    """Raises UserError unless `target` is absent, empty, or an earlier publication with nothing added."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target}: is a file, wanted a folder to publish to; give another path")
    there = _files(target)
    if not there:
        return
    record = target / PUBLICATION
    known = json.loads(record.read_text())["files"] if record.is_file() else []
    foreign = sorted(set(there) - set(known))
    if foreign:
        what = f"holds {foreign[0]}" + (f" and {len(foreign) - 1} more files" if len(foreign) > 1 else "")
        raise UserError(
            f"{target}: {what} that no earlier publication wrote, and would be replaced; give a new or an empty folder"
        )


def _files(folder: Path) -> list[str]:
    return [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if not p.is_dir()]


@contextlib.contextmanager
def _whole_or_not(target: Path) -> Iterator[Path]:
    """Staging folder that replaces `target` by renaming; an error at any point leaves `target` as it is."""
    mark = uuid.uuid4().hex[:12]
    new, old = target.with_name(f".{target.name}.{mark}.new"), target.with_name(f".{target.name}.{mark}.old")
    new.mkdir()
    try:
        yield new
        if target.exists():
            target.rename(old)
        new.rename(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
