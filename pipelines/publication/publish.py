"""Dataset publication for a data hub: captions as Parquet and a dataset card, never media."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from pipelines.engine.store import Output
from pipelines.errors import UserError
from pipelines.publication.published_rows import Published, published_rows
from pipelines.report.templates import render
from pipelines.run_config import Config

PUBLICATION = "publication.json"
"""Record of a publication: stages, fingerprints and file names. A folder that has it can be published to again."""

STAGING = ".publication-"
"""Start of the name of the folder in which a publication is written."""

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def publish(config: Config, target: Path) -> Path:
    """Writes the committed captions of `config` to `target`, and returns it.

    `data/{stage}/{split}.parquet` for stages captions (those that curation kept) and, once done,
    silent_captions; README.md, a dataset card; prompts.json, the text behind each prompt fingerprint. All of it
    appears or nothing, and replaces an earlier publication.

    Raises UserError while captions or curation are not done, and for a target that holds anything else.
    """
    if re.match(r"[a-z0-9]+:/", str(target)):
        raise UserError(f"--to {target}: wanted a local folder; copy it to a bucket from there")
    target = target.resolve()  # a link is written through
    _check_target(target)
    published, done = published_rows(config)
    with _whole_or_not(target) as folder:
        _write(folder, published, done)
    return target


def _write(folder: Path, published: Sequence[Published], done: Mapping[str, Output]) -> None:
    for part in published:
        for split, rows in part.splits.items():
            file = folder / "data" / part.output.stage / f"{split}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(rows, file, compression="zstd")
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
    largest = max(part.rows.num_rows for part in published)
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
    curated = done["curation"].rows("rule", "kept")
    dropped = Counter(curated.filter(pc.invert(curated["kept"]))["rule"].to_pylist())
    rows = [("curation", "dropped", rule, count) for rule, count in sorted(dropped.items())]
    for stage, output in done.items():
        reasons = Counter(output.quarantine()["error_class"].to_pylist())
        rows += [(stage, "quarantined", reason, count) for reason, count in sorted(reasons.items())]
    return rows


def _check_target(target: Path) -> None:
    """Raises UserError unless `target` is absent, empty, or an earlier publication with nothing added."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target}: is a file, wanted a folder to publish to; give another path")
    there = _files(target)
    if not there:
        return
    try:
        known = set(json.loads((target / PUBLICATION).read_text())["files"])
    except (OSError, ValueError, TypeError, KeyError):  # none, or none of ours
        known = set()
    foreign = sorted(set(there) - known)
    if foreign:
        what = f"holds {foreign[0]}" + (f" and {len(foreign) - 1} more files" if len(foreign) > 1 else "")
        raise UserError(
            f"{target}: {what} that no earlier publication wrote, and would be replaced; give a new or an empty folder"
        )


def _files(folder: Path) -> list[str]:
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if not path.is_dir()]
    return [path.as_posix() for path in paths if not path.parts[0].startswith(STAGING)]


@contextlib.contextmanager
def _whole_or_not(target: Path) -> Iterator[Path]:
    """Staging folder inside `target`, whose entries replace those of `target`; an error leaves `target` as it is.

    Inside, because a folder that is linked to, mounted, or somebody's working folder cannot be replaced itself.
    """
    is_new = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    for left in target.glob(f"{STAGING}*"):
        shutil.rmtree(left)
    staging = target / f"{STAGING}{uuid.uuid4().hex[:12]}"
    new, old = staging / "new", staging / "old"
    try:
        new.mkdir(parents=True)
        old.mkdir()
        yield new
        _swap(target, new, old)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty
                target.rmdir()


def _swap(target: Path, new: Path, old: Path) -> None:
    """Moves the entries of `target` to `old` and those of `new` to `target`; after an error, back."""
    moved: list[tuple[Path, Path]] = []
    try:
        for source, to in ((target, old), (new, target)):
            for entry in sorted(source.iterdir()):
                if entry != new.parent:
                    entry.rename(to / entry.name)
                    moved.append((entry, to / entry.name))
    except OSError:
        for entry, now in reversed(moved):
            now.rename(entry)
        raise
