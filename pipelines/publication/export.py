"""Export of captions for other projects: files as their own loaders read them, all or none, in a folder."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import basename, splitext
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from flowley.network.presets import preset
from pipelines.engine.storage import Storage
from pipelines.engine.store import Output, open_store
from pipelines.errors import CONTROL, UserError, hint, require_place
from pipelines.publication.contents import PUBLICATION, Head, Identity, read_record
from pipelines.publication.export_formats import (
    FORMATS,
    PANDAS_MISSING,
    SHARD_GB,
    SHARD_SAMPLES,
    Format,
    Sample,
    write_jsonl,
    write_shards,
    write_tables,
)
from pipelines.publication.published_rows import PUBLISHED_SCHEMA, Published, published_rows
from pipelines.publication.token_limits import OnLong, TokenLimit, find_tokenizer
from pipelines.publication.whole_folder import STAGING, refuse_inside, undo_half_swaps, whole_or_not
from pipelines.run_config import Config

Source = Literal["captions", "silent_captions"]
Names = Literal["source", "clip"]
BATCH_ROWS = 4_096
GB = 10**9
MEDIA = {"mp4": "video", "flac": "audio"}
"""Columns of a clip's files, by their suffixes."""
CLIP_COLUMNS = ("clip_id", "source_name", "video", "audio")


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    Attributes:
        source: stage whose captions are exported.
        names: how videos are called: as the files of the source, or as the clips of the store, by their ids.
        media_root: what paths of videos begin with; "": they are relative to the source's folder or to the store.
        on_long: what is done with captions beyond the target's token limit.
        with_media: put the normalised clips into shards.
        shard_samples, shard_gb: most samples and GB of a shard.
    """

    source: Source = "captions"
    names: Names = "source"
    media_root: str = ""
    on_long: OnLong = "warn"
    with_media: bool = False
    shard_samples: int = SHARD_SAMPLES
    shard_gb: float = SHARD_GB


@dataclass
class Exported:
    """Counts and files of an export, and what it left out.

    Attributes:
        rows: number of captions by split.
        long: captions beyond the token limit.
        missing: captions that the target would take for none, which are left out.
    """

    folder: Path
    rows: Counter[str] = field(default_factory=Counter)
    files: Sequence[str] = ()
    long: int = 0
    missing: int = 0


def export(
    config: Config,
    name: str,
    to: Path,
    options: ExportOptions = ExportOptions(),
    *,
    say: Callable[[str], None] = print,
) -> Exported:
    """Writes captions to a folder in a format of FORMATS. An earlier export of the same format is replaced.

    Raises:
        UserError: an unknown format, an option that the format has not, nothing to export, names that the target
            cannot tell apart, or a place that holds something else.
    """
    form = _format(name, options)
    require_place(to, f"--to {to}")
    refuse_inside(to, config.root)
    undo_half_swaps(to)
    folder, what = to.resolve(), f"export {name}"
    _require_ours(folder, what)
    part, clips = _chosen(config, options.source)
    storage = open_store(config.root)
    limit = _limit(form, config, storage)
    exported = Exported(folder)
    videos = _videos(part, clips, form, name, options, say)
    with whole_or_not(folder) as staging:
        _write(staging, form, _samples(part, videos, form, limit, options, exported), options, storage)
        if not exported.rows:
            raise UserError(f"nothing to export: of {part.rows.num_rows} captions none is left; use --on-long cut")
        exported.files = sorted(path.name for path in staging.iterdir())
        record = {"what": what, "stage": options.source, "fingerprint": part.output.fingerprint, "rows": exported.rows}
        record["files"] = [*exported.files, PUBLICATION]
        (staging / PUBLICATION).write_text(json.dumps(record, indent=1), encoding="utf-8")
    _tell(exported, form, name, limit, options, say)
    return exported


def _format(name: str, options: ExportOptions) -> Format:
    """Format of a name. Raises UserError for an unknown one, and for options that it has not."""
    if name not in FORMATS:
        raise UserError(f"--format {name}: unknown; {hint(name, FORMATS)}")
    form = FORMATS[name]
    if options.media_root and not form.has_paths:
        having = ", ".join(other for other, one in FORMATS.items() if one.has_paths)
        raise UserError(f"--media-root: {name} has no paths of videos, {having} have; leave it out")
    if options.with_media and not form.is_tar:
        raise UserError(f"--with-media: {name} holds captions alone; leave it out, or use --format webdataset")
    if options.on_long != "warn" and form.vocabulary is None:
        raise UserError(f"--on-long {options.on_long}: {name} has no token limit; leave it out")
    if CONTROL.search(options.media_root):
        raise UserError("--media-root: has control characters, wanted a path or an address")
    return form


def _write(folder: Path, form: Format, samples: Iterator[Sample], options: ExportOptions, storage: Storage) -> None:
    if form.tables:
        write_tables(folder, form.tables, samples)
    elif form.is_tar:
        media, most_bytes = storage if options.with_media else None, int(options.shard_gb * GB)
        write_shards(folder, samples, media, most_samples=options.shard_samples, most_bytes=most_bytes)
    else:
        write_jsonl(folder, samples)


def _require_ours(folder: Path, what: str) -> None:
    """Raises UserError if a folder holds files that no earlier export of this format wrote."""
    files = [path for path in folder.rglob("*") if not path.is_dir()] if folder.exists() else []
    names = {path.relative_to(folder): path for path in files}
    there = {
        name.as_posix(): Identity(path.lstat().st_size)
        for name, path in names.items()
        if not name.parts[0].startswith(STAGING)
    }
    try:
        read_record(Head(there, lambda name: (folder / name).read_bytes()), what)
    except UserError as error:
        raise UserError(f"--to {folder}: {error}") from error


def _chosen(config: Config, source: Source) -> tuple[Published, Output]:
    """Captions of a stage, and the clips that they are of. Raises UserError while there are none."""
    published, done = published_rows(config)
    for part in published:
        if part.output.stage == source:
            if not part.rows.num_rows:
                raise UserError(f"nothing to export: {source} has no caption; `soundcap report CONFIG` shows why")
            return part, done["clips"]
    raise UserError(f"nothing to export: {source} is not done; `soundcap run CONFIG --until {source}` makes it")


def _limit(form: Format, config: Config, storage: Storage) -> TokenLimit | None:
    """Token limit of a format, with the tokenizer of `features.text` if it counts as the target's."""
    if form.vocabulary is None:
        return None
    if not form.is_ours:
        tokenizer = find_tokenizer(config.features.text, storage, form.vocabulary)
        return TokenLimit(form.tokens, form.vocabulary, tokenizer)
    network = preset(config.flowley.preset, **config.flowley.overrides)
    return TokenLimit(network.max_text_tokens, "features.text", find_tokenizer(config.features.text, storage))


def _videos(
    part: Published, clips: Output, form: Format, name: str, options: ExportOptions, say: Callable[[str], None]
) -> pa.Table:
    """CLIP_COLUMNS and `called`, the path of each row's video, in the order of the rows.

    Raises UserError for names that the target does not tell apart, or reads as others.
    """
    clip = clips.rows(*CLIP_COLUMNS)
    clip = clip.take(pc.index_in(part.rows["clip_id"], value_set=clip["clip_id"].combine_chunks()))
    called = [str(path) for path in clip["source_name" if options.names == "source" else "video"].to_pylist()]
    remedy = "; give --names clip" * (options.names == "source")
    if odd := next((path for path in called if CONTROL.search(path)), None):
        raise UserError(f"export: {odd!r} has control characters, which a table cannot hold; rename it{remedy}")
    if {"name", "file"} & form.fields:
        stems = [_stem(path) for path in called]
        twice = next((stem for stem, count in Counter(stems).items() if count > 1), None)
        if twice is not None:
            raise UserError(f"export: two videos are called {twice!r}, which {name} cannot tell apart{remedy}")
        if any(table.names_as_numbers for table in form.tables) and (number := _misread(stems)):
            raise UserError(
                f"export: all videos are called by numbers, which {name} reads as such, {number!r} as "
                f"{float(number):g}{remedy}"
            )
    others = sum(not path.lower().endswith(".mp4") for path in called) if form.only_mp4 else 0
    if others:
        say(f"{name} opens {{id}}.mp4 alone, and {others} of {len(called)} videos are of another kind{remedy}")
    return clip.append_column("called", pa.array(called, pa.string()))


def _misread(stems: Sequence[str]) -> str | None:
    """First name that is read as another, if all names are numbers."""
    if not all(re.fullmatch(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?", stem) for stem in stems):
        return None
    return next((stem for stem in stems if not re.fullmatch(r"0|-?[1-9]\d{0,17}", stem)), None)


def _samples(
    part: Published,
    videos: pa.Table,
    form: Format,
    limit: TokenLimit | None,
    options: ExportOptions,
    exported: Exported,
) -> Iterator[Sample]:
    """Samples by split and clip id, batch by batch; what is left out, cut and written is counted in `exported`."""
    root = options.media_root and options.media_root.rstrip("/") + "/"
    of_clip = videos["clip_id"].combine_chunks()
    for split, rows in part.splits.items():
        clips = videos.take(pc.index_in(rows["clip_id"], value_set=of_clip)).select(
            ["called", "video", "audio"] if options.with_media else ["called"]
        )
        wanted = rows.select(["label", "caption"] if form.tables else PUBLISHED_SCHEMA.names)
        for start in range(0, rows.num_rows, BATCH_ROWS):
            batch = _readable(_dicts(wanted.slice(start, BATCH_ROWS)), limit, options.on_long, exported)
            for row, clip in zip(batch, _dicts(clips.slice(start, BATCH_ROWS)), strict=True):
                if row is None:
                    continue
                sample = _sample(row, clip, split, exported.rows[split], root)
                if form.takes_for_missing(sample):
                    exported.missing += 1
                    continue
                exported.rows[split] += 1
                yield sample


def _sample(row: Mapping[str, Any], clip: Mapping[str, Any], split: str, number: int, root: str) -> Sample:
    called, caption, label = clip["called"], row["caption"], row["label"]
    media = {suffix: clip[kind] for suffix, kind in MEDIA.items() if clip.get(kind)}
    scene = caption if label in PANDAS_MISSING else label
    return Sample(split, number, _stem(called), basename(called), f"{root}{called}", scene, caption, row, media)


def _dicts(rows: pa.Table) -> list[dict[str, Any]]:
    """Rows as `to_pylist` has them, in half its time."""
    names = rows.column_names
    return [dict(zip(names, row, strict=True)) for row in zip(*(rows[name].to_pylist() for name in names), strict=True)]


def _stem(path: str) -> str:
    """Name of a file without folder and suffix."""
    return splitext(basename(path))[0]


def _readable(
    rows: list[dict[str, Any]], limit: TokenLimit | None, on_long: OnLong, exported: Exported
) -> Iterator[dict[str, Any] | None]:
    """Rows in order, with captions within the limit as `on_long` says; None for one that is dropped."""
    counts = [] if limit is None else limit.counts([row["caption"] for row in rows])
    for place, row in enumerate(rows):
        if limit is None or counts[place] <= limit.tokens:
            yield row
            continue
        exported.long += 1
        if on_long == "cut":
            row["caption"] = limit.cut(row["caption"])
        yield None if on_long == "drop" else row


def _tell(
    exported: Exported,
    form: Format,
    name: str,
    limit: TokenLimit | None,
    options: ExportOptions,
    say: Callable[[str], None],
) -> None:
    done = {"warn": "their ends are not read (--on-long cut or drop)", "cut": "cut at a word", "drop": "left out"}
    if exported.long:
        say(f"{exported.long:,} captions are longer than {limit}: {done[options.on_long]}")
    if exported.missing:
        say(f"{exported.missing:,} rows are left out: {name} takes a text like 'None' or 'NA' for a missing one")
    counts = ", ".join(f"{count:,} {split}" for split, count in exported.rows.items())
    say(f"{exported.folder}: {counts} captions for {form.about}, in {', '.join(_shortened(exported.files))}")


def _shortened(files: Sequence[str], most: int = 4) -> list[str]:
    return [*files] if len(files) <= most else [files[0], "...", files[-1]]
