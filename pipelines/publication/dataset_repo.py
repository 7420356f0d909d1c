"""Contents of a dataset's repository: Parquet files of each prompt version, a card, prompts and the record."""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from pipelines.engine.exclusion import Exclusion
from pipelines.engine.store import Output
from pipelines.publication.contents import PUBLICATION, Content, Head, read_record, refuse_leak
from pipelines.publication.published_rows import PUBLISHED_SCHEMA, KeptBack, Published, published_rows
from pipelines.publication.table_files import Cuts, RowChanges, parquet_file, sorted_rows
from pipelines.report.templates import render
from pipelines.run_config import Config, PublishConfig
from pipelines.stages.captions import read_prompts

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
DEFAULT = "captions"
"""Name of the configuration that a reader gets who names none."""


@dataclass(frozen=True)
class Edition:
    """Next state of a dataset's repository.

    Attributes:
        wanted: contents by path; None: as it is there.
        changes: of the rows of each configuration that this publication writes.
        tag: of the version that these rows are; the earlier one's if no row changes.
        stages: fingerprints of the outputs behind the rows.
        rows: number of rows by configuration.
        is_new_version: whether any row changes.
    """

    wanted: Mapping[str, Content | None]
    changes: Mapping[str, RowChanges]
    tag: str
    stages: Mapping[str, str]
    rows: Mapping[str, int]
    is_new_version: bool


def next_edition(config: Config, head: Head, repository: str | None, tag: str | None, note: str = "") -> Edition:
    """Next state of a dataset's repository for the committed captions of a configuration.

    Args:
        head: what is there.
        repository: id on the hub, for the card; None: a folder.
        tag: name of the version; None: the next number.
        note: stands beside the version in the card.

    Raises:
        UserError: captions or curation are not done, nothing is kept, or the place holds something else.
    """
    record = read_record(head, "captions")
    published, done = published_rows(config)
    kept_back = KeptBack.of(config)
    exclusion = kept_back.forgotten
    known: dict[str, Any] = record.get("configurations", {})
    configurations, changes = dict(known), {}
    wanted: dict[str, Content | None] = {}
    forgotten: set[str] = set()
    for part in published:
        name = configuration_name(part.output.stage, config.publish)
        files, facts = _files(part, name, known.get(name, {}).get("cuts", {}), exclusion)
        wanted |= files
        old, new = _differing(head, f"data/{name}/", files)
        changes[name] = RowChanges.between(old, new)
        forgotten |= _forgotten(old, exclusion)
        facts |= {"left_out": _left_out(done, part), "files": sorted(files)}
        configurations[name] = facts | ({"judged_by": _judged_by(config)} if part.output.stage == "captions" else {})
        refuse_leak(f"data/{name}", "\n".join(_texts(part.rows)), config)
    for name in sorted(known.keys() - changes.keys()):
        files = _kept_files(head, known[name]["files"], kept_back)
        wanted |= files
        if any(content is not None for content in files.values()) or len(files) < len(known[name]["files"]):
            old, new = _differing(head, f"data/{name}/", files)
            changes[name] = RowChanges.between(old, new)
            forgotten |= _forgotten(old, exclusion)
            configurations[name] = _facts_of_kept(known[name], head, files, exclusion)
            if not files:
                del configurations[name]
    versions = list(record.get("versions", []))
    is_new_version = any(changes.values()) or not versions
    if is_new_version:
        versions.append(
            {
                "tag": tag or _next_number([version["tag"] for version in versions]),
                "date": time.strftime("%Y-%m-%d", time.gmtime()),
                "changes": {name: asdict(one) for name, one in changes.items() if one},
                "note": "; ".join(filter(None, (note, _words_on_forgotten(len(forgotten))))),
            }
        )
    record = {"what": "captions", "configurations": configurations, "versions": versions}
    return Edition(
        wanted | _texts_beside(record, config.publish, repository),
        changes,
        versions[-1]["tag"],
        {name: output.fingerprint for name, output in done.items()},
        {name: sum(facts["rows"].values()) for name, facts in configurations.items()},
        is_new_version,
    )


def _judged_by(config: Config) -> list[dict[str, Any]]:
    """Violations that a configuration's warnings forbid, for the gate of a later release."""
    prompts = read_prompts(config.captions.instruction, config.captions.warnings)
    return [{"name": one.name, "violations": one.violations, **one.reach()} for one in prompts.warnings]


def _next_number(tags: Sequence[str]) -> str:
    return next(f"v{number}" for number in range(len(tags) + 1, 2 * len(tags) + 2) if f"v{number}" not in tags)


def configuration_name(stage: str, settings: PublishConfig) -> str:
    """Name of a stage's captions among the repository's configurations."""
    return f"{stage}-{settings.version}" if settings.version else stage


def _words_on_forgotten(videos: int) -> str:
    return f"{videos} video{'s' * (videos > 1)} forgotten on request" if videos else ""


def _forgotten(tables: Sequence[pa.Table], exclusion: Exclusion) -> set[str]:
    """Ids of the forgotten videos in some tables."""
    return {video for rows in tables for video in rows.filter(exclusion.has(rows))["video_id"].to_pylist()}


def _kept_files(head: Head, paths: Sequence[str], kept_back: KeptBack) -> dict[str, Content | None]:
    """Files of a configuration that is not written anew, without rows that are kept back; None: as it is there."""
    files: dict[str, Content | None] = dict.fromkeys(paths)
    for path in paths if kept_back else ():
        rows = _table(head.read(path))
        kept = rows.filter(pc.invert(kept_back.has(rows)))
        if not kept.num_rows:
            del files[path]
        elif kept.num_rows < rows.num_rows:
            files[path] = parquet_file(kept)
    return files


def _facts_of_kept(
    facts: Mapping[str, Any], head: Head, files: Mapping[str, Content | None], exclusion: Exclusion
) -> dict[str, Any]:
    """Facts of such a configuration, whose rows became fewer."""
    rows: dict[str, int] = {}
    cuts: dict[str, Any] = {}
    clips, labels = set(exclusion.clips.to_pylist()), set[str]()
    for split in facts["rows"]:
        paths = [path for path in sorted(files) if path.split("/")[-2] == split]
        tables = [_table(head.read(path) if (data := files[path]) is None else data) for path in paths]
        if tables:
            table = pa.concat_tables(tables)
            rows[split] = table.num_rows
            labels |= set(table["label"].to_pylist())
            cuts[split] = asdict(Cuts.from_record(facts["cuts"][split]).without(clips, sorted_rows(table)))
    return {**facts, "rows": rows, "cuts": cuts, "labels": len(labels), "files": sorted(files)}


def _files(
    part: Published, name: str, known: Mapping[str, Any], exclusion: Exclusion
) -> tuple[dict[str, Content | None], dict[str, Any]]:
    """Parquet files of a configuration, and its facts for record and card. known: cuts of earlier files, by split."""
    files: dict[str, Content | None] = {}
    cuts: dict[str, Any] = {}
    for split, unsorted in part.splits.items():
        rows = sorted_rows(unsorted)
        cut = Cuts.from_record(known[split]) if split in known else None
        if cut is None or not cut.fit(rows):
            cut = Cuts.of(rows, rows.num_rows / part.rows.num_rows)
        cut = cut.without(exclusion.clips.to_pylist(), rows)
        cuts[split] = asdict(cut)
        files |= {f"data/{name}/{split}/{file}": parquet_file(some) for file, some in cut.files(rows).items()}
    meaning, output = part.spec["meaning"], part.output
    prompts = meaning["prompts"]
    facts = {
        "stage": output.stage,
        "fingerprint": output.fingerprint,
        "rows": {split: rows.num_rows for split, rows in part.splits.items()},
        "labels": len(part.rows["label"].unique()),
        "model": meaning["model"],
        "model_licence": output.committed().figures.get("licence", ""),
        "adapter": part.spec["inputs"].get("captioner", ""),
        "frames": meaning["frames"],
        "sampling": meaning["sampling"],
        "instruction": prompts["instruction"],
        "warnings": prompts["warnings"],
        "prompts": part.prompts,
        "cuts": cuts,
    }
    return files, facts


def _differing(head: Head, folder: str, files: Mapping[str, Content | None]) -> tuple[list[pa.Table], list[pa.Table]]:
    """Tables under a folder, as they are there and as they are wanted, of the files that change."""
    there = {path: one for path, one in head.files.items() if path.startswith(folder)}
    same = {path for path, data in files.items() if path in there and (data is None or there[path].is_of(data))}
    old = [_table(head.read(path)) for path in sorted(there.keys() - same)]
    new = [_table(content) for path, content in files.items() if path not in same and isinstance(content, bytes)]
    return old, new


def _table(data: Content) -> pa.Table:
    return pq.read_table(io.BytesIO(data) if isinstance(data, bytes) else data)


def _texts(rows: pa.Table) -> list[str]:
    names = [field.name for field in PUBLISHED_SCHEMA if pa.types.is_string(field.type)]
    return [text for name in names for text in rows[name].unique().to_pylist() if text]


def _left_out(done: Mapping[str, Output], part: Published) -> list[tuple[str, str, str, int]]:
    """Counts of dropped or quarantined rows up to a stage, as (stage, what happened, reason, rows)."""
    rows: list[tuple[str, str, str, int]] = []
    if part.output.stage == "captions":
        curated = done["curation"].rows("rule", "kept")
        dropped = Counter(curated.filter(pc.invert(curated["kept"]))["rule"].to_pylist())
        rows = [("curation", "dropped", rule, count) for rule, count in sorted(dropped.items())]
    for stage in ("clips", part.output.stage):
        reasons = Counter(done[stage].quarantine()["error_class"].to_pylist())
        rows += [(stage, "quarantined", reason, count) for reason, count in sorted(reasons.items())]
    return rows


def _texts_beside(record: Mapping[str, Any], settings: PublishConfig, repository: str | None) -> dict[str, Content]:
    """Card, prompts, citation and record of a repository."""
    configurations: dict[str, Any] = record["configurations"]
    prompts = {key: text for one in configurations.values() for key, text in one["prompts"].items()}
    author = settings.author or (repository or "").partition("/")[0]
    texts = {
        "README.md": _card(configurations, record["versions"], settings, repository),
        "prompts.json": json.dumps(prompts, indent=2, ensure_ascii=False, sort_keys=True),
    }
    if author:
        texts["CITATION.cff"] = _citation(record["versions"][-1], author, settings, repository)
    paths = [*texts, PUBLICATION, *(path for one in configurations.values() for path in one["files"])]
    texts[PUBLICATION] = json.dumps({**record, "files": sorted(paths)}, indent=1, ensure_ascii=False)
    return {path: text.encode() for path, text in texts.items()}


def _card(
    configurations: Mapping[str, Any], versions: Sequence[Any], settings: PublishConfig, repository: str | None
) -> str:
    """Dataset card: YAML front matter for loaders, and text for readers."""
    largest = max(sum(one["rows"].values()) for one in configurations.values())
    names = sorted(configurations, key=lambda name: (name != DEFAULT, name))
    matter = {
        "pretty_name": "Sound captions of video clips",
        "license": settings.licence,
        "language": ["en"],
        "tags": ["audio-captioning", "video-to-audio", "sound", "synthetic"],
        "size_categories": [next((size for limit, size in SIZES if largest < limit), "1M<n<10M")],
        "configs": [_loading(name, configurations[name], is_default=name == names[0]) for name in names],
    }
    return render(
        "card.md.jinja",
        front_matter=yaml.safe_dump(matter, sort_keys=False, allow_unicode=True),
        configurations={name: configurations[name] for name in names},
        first_split=next(iter(configurations[names[0]]["rows"]), "train"),
        versions=list(reversed(versions)),
        licence=settings.licence,
        repository=repository or "path/to/this/folder",
    )


def _loading(name: str, facts: Mapping[str, Any], *, is_default: bool) -> dict[str, Any]:
    """Entry of a configuration in a card's front matter, by which loaders find its files."""
    files = [{"split": split, "path": f"data/{name}/{split}/*.parquet"} for split in facts["rows"]]
    return {"config_name": name, "data_files": files} | ({"default": True} if is_default else {})


def _citation(version: Mapping[str, Any], author: str, settings: PublishConfig, repository: str | None) -> str:
    """Citation file (CFF 1.2.0)."""
    where = {} if repository is None else {"url": f"https://huggingface.co/datasets/{repository}"}
    citation = {
        "cff-version": "1.2.0",
        "message": "If you use these captions, please cite them.",
        "type": "dataset",
        "title": "Sound captions of video clips",
        "authors": [{"name": author}],
        "version": version["tag"],
        "date-released": version["date"],
        "license": settings.licence.upper() if settings.licence.startswith("cc") else settings.licence,
        **where,
    }
    return yaml.safe_dump(citation, sort_keys=False, allow_unicode=True)
