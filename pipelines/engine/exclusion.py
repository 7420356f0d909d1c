"""Exclusion of a store: videos that were forgotten on request, and that no run takes in again."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.fingerprint import digest
from pipelines.engine.storage import Storage
from pipelines.errors import UserError

EXCLUSION = "forgotten.json"
DONE = "forgotten"
"""Folder of records of what was done. They name no video."""
FORGOTTEN = "Forgotten"
"""Error class of a source file that is kept out."""
ID_COLUMNS = ("row_id", "video_id", "source_name")
LONG_CHARS = 8
"""Characters from which on a name is looked for within words too."""


@dataclass(frozen=True)
class Forgotten:
    """Forgotten video, as far as it is known.

    Attributes:
        names: of its source files.
        sha256: of their bytes.
        clips: ids of clips that were made of it.
        since: when it was asked for.
        is_done: all that the store held of it is removed.
    """

    names: Sequence[str] = ()
    sha256: Sequence[str] = ()
    clips: Sequence[str] = ()
    since: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))

    is_done: bool = False

    def with_more(self, other: Forgotten) -> Forgotten:
        """The same video, with what another look at it found. It is not done if that is new."""
        names, sha256, clips = (
            sorted({*old, *new})
            for old, new in ((self.names, other.names), (self.sha256, other.sha256), (self.clips, other.clips))
        )
        is_done = self.is_done and {*other.sha256, *other.clips} <= {*self.sha256, *self.clips}
        return Forgotten(names, sha256, clips, self.since, is_done)


@dataclass(frozen=True)
class Exclusion:
    """Forgotten videos by id."""

    videos: Mapping[str, Forgotten] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.videos)

    @property
    def digest(self) -> str:
        """Digest of all that decides what is kept out."""
        return digest([sorted(self.videos), sorted(self.sha256.to_pylist())])

    @property
    def unfinished(self) -> list[str]:
        """Ids of the videos that the store may still hold something of."""
        return [video for video, one in self.videos.items() if not one.is_done]

    @cached_property
    def sha256(self) -> pa.Array:
        """SHA-256 of all files."""
        return self._all("sha256")

    @cached_property
    def clips(self) -> pa.Array:
        """Ids of all clips."""
        return self._all("clips")

    @cached_property
    def traces(self) -> Traces:
        """What tells of these videos."""
        names = {*self.videos, *(name for one in self.videos.values() for name in one.names)}
        return Traces(frozenset(names), frozenset([*self.sha256.to_pylist(), *self.clips.to_pylist()]))

    def has(self, rows: pa.Table) -> pa.ChunkedArray:
        """Mask of the rows with a forgotten video's `video_id`, or, where these columns are, `sha256` or `clip_id`."""
        mask = pc.is_in(rows["video_id"], value_set=pa.array(sorted(self.videos), pa.string()))
        for column, known in (("sha256", self.sha256), ("clip_id", self.clips)):
            if column in rows.column_names:
                mask = pc.or_(mask, pc.is_in(rows[column], value_set=known, skip_nulls=True))
        return mask

    def _all(self, name: str) -> pa.Array:
        found = {value for one in self.videos.values() for value in getattr(one, name)}
        return pa.array(sorted(found), pa.string())


@dataclass(frozen=True)
class Traces:
    """Texts that tell of some videos.

    Attributes:
        names: ids of the videos and names of their files, which other texts may hold by chance.
        marks: ids of clips and SHA-256 of files, which none holds by chance.
    """

    names: frozenset[str]
    marks: frozenset[str]

    def rows(self, table: pa.Table) -> np.ndarray:
        """Mask of the rows that are of these videos: by an id or name, a mark in any text, or a message."""
        there = set(table.column_names)
        ids = pa.array(sorted(self.names | self.marks), pa.string())
        found = [pc.is_in(table[name].cast(pa.string()), value_set=ids) for name in ID_COLUMNS if name in there]
        found += [_matches(text, self.marks) for text in _texts(table)]
        found += [_matches(table["message"].cast(pa.string()), self.names)] if "message" in there else []
        mask: np.ndarray = np.any([np.zeros(table.num_rows, bool), *(one.to_numpy() for one in found)], axis=0)
        return mask

    def told(self, table: pa.Table) -> np.ndarray:
        """Mask of the rows with a text that tells of these videos."""
        found = [_matches(text, self.names | self.marks).to_numpy() for text in _texts(table)]
        mask: np.ndarray = np.any([np.zeros(table.num_rows, bool), *found], axis=0)
        return mask


def pattern(words: Iterable[str]) -> str:
    """Regular expression, of RE2 and Python, of any of these words; of a short one only where it stands alone."""
    return "|".join(
        re.escape(word) if len(word) >= LONG_CHARS else rf"(?:^|[^\w-]){re.escape(word)}(?:$|[^\w-])"
        for word in sorted(words)
    )


def _matches(texts: pa.ChunkedArray, words: frozenset[str]) -> pa.ChunkedArray:
    if not words:
        return pa.chunked_array([pa.array(np.zeros(len(texts), bool))])
    return pc.fill_null(pc.match_substring_regex(texts, pattern(words)), False)


def _texts(table: pa.Table) -> list[pa.ChunkedArray]:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_dictionary)
    return [column.cast(pa.string()) for column in table.columns if any(is_kind(column.type) for is_kind in kinds)]


def read_exclusion(storage: Storage) -> Exclusion:
    """Exclusion of a store; nothing is forgotten where no record is.

    Raises UserError for a record that is damaged, or gone though something was forgotten.
    """
    found = storage.find_record(EXCLUSION)
    if found is not None:
        return Exclusion({video: Forgotten(**one) for video, one in found["videos"].items()})
    if storage.exists(EXCLUSION) or storage.names(DONE):
        problem = "is not what was written" if storage.exists(EXCLUSION) else "is gone"
        raise UserError(
            f"{storage.address(EXCLUSION)} {problem}: it says which videos this store must not take in; put it back "
            "from a copy. Without one: move it and the folder 'forgotten' away, then forget each of them again"
        )
    return Exclusion()


def write_exclusion(storage: Storage, exclusion: Exclusion) -> None:
    """Writes the exclusion. The caller holds the root's lease."""
    record: dict[str, Any] = {"videos": {video: asdict(one) for video, one in sorted(exclusion.videos.items())}}
    storage.write_record(EXCLUSION, record)
