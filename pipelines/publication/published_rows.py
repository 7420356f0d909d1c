"""Rows of captions as they are published and exported: of each stage that captions, from its committed output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.exclusion import Exclusion, read_exclusion
from pipelines.engine.fingerprint import digest
from pipelines.engine.plan import make_plan
from pipelines.engine.store import Output, open_store, text_columns
from pipelines.errors import CONTROL, UserError, hint, user_input
from pipelines.run_config import Config
from pipelines.stages import wanted_stages
from pipelines.stages.listing import SourceListing
from pipelines.stages.source import videos_of_licences
from soundcap.prompts import label_matches

PUBLISHED_SCHEMA = pa.schema(
    [
        *text_columns("video_id"),
        ("start_s", pa.float64()),
        ("duration_s", pa.float64()),
        *text_columns("split", "label", "caption", "source"),
        *text_columns("prompt_fingerprint", "model", "revision", "adapter", "clip_id"),
    ]
)
"""`source`: the stage that wrote the caption. Of a caption that no model was asked for, prompt and model are empty."""


@dataclass(frozen=True)
class Published:
    """Published data of one stage: its output, spec, rows in PUBLISHED_SCHEMA, and prompts by fingerprint."""

    output: Output
    spec: dict[str, Any]
    rows: pa.Table
    prompts: dict[str, str]

    @cached_property
    def splits(self) -> dict[str, pa.Table]:
        """Rows by non-empty split, sorted by clip id."""
        rows = self.rows.sort_by("clip_id")
        found = {split: rows.filter(pc.equal(rows["split"], split)) for split in ("train", "test")}
        return {split: rows for split, rows in found.items() if rows.num_rows}


def published_rows(config: Config) -> tuple[list[Published], dict[str, Output]]:
    """Data of `captions` (those that curation kept) and, once done, `silent_captions`; and all outputs behind them.

    What `publish.exclude` keeps back is not among them. Raises UserError while captions or curation are not done, or
    without any row.
    """
    done, states = _done_outputs(config)
    for stage in ("captions", "curation", "clips"):
        if stage not in done:
            raise UserError(
                f"nothing to publish: stage {stage} is {states[stage]}, wanted done; "
                "`soundcap run CONFIG --until curation` makes it"
            )
    curated = done["curation"].rows("clip_id", "kept")
    clips = done["clips"].rows("clip_id", "video_id", "start_s", "duration_s")
    published = [_published(done["captions"], clips, curated.filter(curated["kept"])["clip_id"])]
    if "silent_captions" in done:
        published.append(_published(done["silent_captions"], clips, clips["clip_id"]))
    if not any(part.rows.num_rows for part in published):
        raise UserError("nothing to publish: curation kept no caption; `soundcap report CONFIG` shows why")
    kept_back = KeptBack.of(config)
    kept_back.require_labels(done["clips"].rows("label")["label"].unique().to_pylist())
    published = [replace(part, rows=part.rows.filter(pc.invert(kept_back.has(part.rows)))) for part in published]
    if not any(part.rows.num_rows for part in published):
        raise UserError("nothing to publish: publish.exclude and `soundcap forget` leave no caption")
    return published, done


@dataclass(frozen=True)
class KeptBack:
    """What must not leave: videos that the configuration excludes, and forgotten ones.

    Attributes:
        labels: patterns of labels, in lower case.
        videos: ids. Of a video in a folder its name alone counts too.
        forgotten: those of the store.
    """

    labels: tuple[str, ...]
    videos: pa.Array
    forgotten: Exclusion

    @classmethod
    def of(cls, config: Config) -> KeptBack:
        """What a configuration and its store keep back. Raises UserError for a file or licences that are not there."""
        exclude, ids = config.publish.exclude, set()
        if exclude.videos is not None:
            with user_input():
                try:
                    lines = Path(exclude.videos).read_text(encoding="utf-8-sig").split("\n")
                except OSError as error:
                    raise UserError(
                        f"publish.exclude.videos: {exclude.videos}: {error.strerror}; give a file"
                    ) from error
            ids |= {line.strip() for line in lines} - {""}
        if exclude.licences:
            if config.source.table is None:
                raise UserError(
                    "publish.exclude.licences: source.table is null; a table with a column licence is wanted"
                )
            ids |= videos_of_licences(config.source.table, exclude.licences)
        labels = tuple(" ".join(label.split()).casefold() for label in exclude.labels)
        return cls(labels, pa.array(sorted(ids), pa.string()), read_exclusion(open_store(config.root)))

    def __bool__(self) -> bool:
        return bool(self.labels or len(self.videos) or self.forgotten)

    def require_labels(self, known: Sequence[str]) -> None:
        """Raises UserError for a pattern that no known label matches: misspelt, it would keep nothing back."""
        for pattern in self.labels:
            if not any(label_matches(label, (pattern,)) for label in known):
                told = hint(pattern, known)
                told = told if len(told) < 200 else f"{told[:200]}..."
                raise UserError(f"publish.exclude.labels: {pattern!r} is no label of the clips; {told}")

    def has(self, rows: pa.Table) -> pa.Array | pa.ChunkedArray:
        """Mask of the rows that must not leave."""
        labels = [
            label for label in rows["label"].unique().to_pylist() if self.labels and label_matches(label, self.labels)
        ]
        found = pc.or_(self.forgotten.has(rows), pc.is_in(rows["label"], value_set=pa.array(labels, pa.string())))
        for ids in (rows["video_id"], pc.replace_substring_regex(rows["video_id"], r"^.*/", "")):
            found = pc.or_(found, pc.is_in(ids, value_set=self.videos))
        return found


def clean_text(text: str) -> str:
    """Single-line text with single spaces, without control characters and lone surrogates."""
    return " ".join(CONTROL.sub(" ", text).split())


def _done_outputs(config: Config) -> tuple[dict[str, Output], dict[str, str]]:
    """Committed outputs of this configuration, and each stage's state, up to silent_captions."""
    storage = open_store(config.root)
    listing = SourceListing(config.source.folder, rescan=False)
    plans = make_plan(wanted_stages(config, "silent_captions", listing=listing), config, storage)
    done = {p.name: Output(storage, p.name, p.fingerprint) for p in plans if p.state == "done" and p.fingerprint}
    return done, {p.name: f"{p.state.replace('_', ' ')} ({p.reason})" for p in plans}


def _published(output: Output, clips: pa.Table, kept: pa.ChunkedArray) -> Published:
    """Published data of an output's rows whose clip ids are in `kept`. clips: clip_id and what follows from it."""
    spec = output.spec()
    model, _, revision = spec["meaning"]["model"].partition("@")
    rows = output.rows()
    rows = rows.filter(pc.is_in(rows["clip_id"], value_set=kept.combine_chunks()))
    clips = clips.take(pc.index_in(rows["clip_id"], value_set=clips["clip_id"].combine_chunks()))
    prompt = rows["prompt"].unify_dictionaries().combine_chunks()
    texts, is_asked = prompt.dictionary.to_pylist(), pc.not_equal(prompt.cast(pa.string()), "")
    fingerprints = [text and digest(text)[:12] for text in texts]  # a silent clip has no prompt
    published = {
        "video_id": clips["video_id"],
        "start_s": clips["start_s"],
        "duration_s": clips["duration_s"],
        "split": rows["split"],
        "label": [clean_text(label) for label in rows["label"].to_pylist()],
        "caption": [clean_text(caption) for caption in rows["caption"].to_pylist()],
        "source": pa.repeat(output.stage, rows.num_rows),
        "prompt_fingerprint": pa.array(fingerprints, pa.string()).take(prompt.indices),
        "model": pc.if_else(is_asked, model, ""),
        "revision": pc.if_else(is_asked, revision, ""),
        "adapter": pc.if_else(is_asked, spec["inputs"].get("captioner", ""), ""),
        "clip_id": rows["clip_id"],
    }
    used = {fingerprints[index]: texts[index] for index in prompt.indices.unique().to_pylist() if texts[index]}
    return Published(output, spec, pa.table(published, schema=PUBLISHED_SCHEMA), used)
