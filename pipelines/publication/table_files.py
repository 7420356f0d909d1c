"""Parquet files of a published table, cut at keys that stay: a changed label changes its own file alone."""

from __future__ import annotations

import io
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FILES, LEAST_ROWS = 150, 1_000
"""Number of files of a large table, about, and rows of a file of a small one."""
GROWTH = 4
"""Growth or decline of a table from which it is cut anew."""

Key = tuple[str, str]
"""Label and clip id, by which rows are sorted."""


@dataclass(frozen=True)
class Cuts:
    """Cuts of a table: the first key of each file but the first, and the number of rows that they were made for."""

    rows: int
    starts: Sequence[Key]

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Cuts:
        """Inverse of `asdict`, through JSON."""
        return cls(record["rows"], [(label, clip_id) for label, clip_id in record["starts"]])

    @classmethod
    def of(cls, rows: pa.Table, share: float) -> Cuts:
        """Cuts of sorted rows, which are a share of all rows that are published. Labels stay whole if they can."""
        wanted = max(LEAST_ROWS, round(rows.num_rows / share / FILES))
        starts: list[Key] = []
        held = 0
        for label, keys in groupby(_keys(rows), key=itemgetter(0)):
            of_label = list(keys)
            parts = max(1, round(len(of_label) / wanted))
            if held and (parts > 1 or held + len(of_label) - wanted > wanted - held):
                starts.append((label, ""))
                held = 0
            starts += [of_label[len(of_label) * part // parts] for part in range(1, parts)]
            held = len(of_label) + held if parts == 1 else wanted
        return cls(rows.num_rows, starts)

    def fit(self, rows: pa.Table) -> bool:
        """Whether a table is about as large as the one that they were made for."""
        now: int = rows.num_rows
        return self.rows <= GROWTH * now and now <= GROWTH * max(self.rows, LEAST_ROWS)

    def without(self, clips: Collection[str], rows: pa.Table) -> Cuts:
        """The same cuts of sorted rows, with no start at one of these clips, which are not among them."""
        keys = _keys(rows)
        moved = [keys[bisect_left(keys, one) :][:1] if one[1] in clips else [one] for one in self.starts]
        return Cuts(self.rows, [start for one in moved for start in one])

    def files(self, rows: pa.Table) -> dict[str, pa.Table]:
        """Sorted rows by the name of their file; a file without a row is left out."""
        keys = _keys(rows)
        places = [0, *(bisect_left(keys, start) for start in self.starts), len(keys)]
        parts = ((number, rows.slice(a, b - a)) for number, (a, b) in enumerate(pairwise(places)))
        return {f"{number:03}.parquet": part for number, part in parts if part.num_rows}


def _keys(rows: pa.Table) -> list[Key]:
    return list(zip(rows["label"].to_pylist(), rows["clip_id"].to_pylist(), strict=True))


def sorted_rows(rows: pa.Table) -> pa.Table:
    """Rows by label and clip id."""
    return rows.sort_by([("label", "ascending"), ("clip_id", "ascending")])


def parquet_file(rows: pa.Table) -> bytes:
    """Bytes of a Parquet file; the same rows give the same bytes with one release of pyarrow.

    It has a page index, and chunks that depend on contents, so that storage that knows equal chunks keeps them once.
    """
    sink = io.BytesIO()
    pq.write_table(
        rows, sink, compression="zstd", flavor="spark", write_page_index=True, use_content_defined_chunking=True
    )
    return sink.getvalue()


@dataclass(frozen=True)
class RowChanges:
    """Number of rows that were added, changed and removed between two versions."""

    added: int = 0
    changed: int = 0
    removed: int = 0

    @classmethod
    def between(cls, old: Sequence[pa.Table], new: Sequence[pa.Table]) -> RowChanges:
        """Changes between rows, each known by its clip id. Rows that are equal in both may be left out of both."""
        before, after = _by_clip(old), _by_clip(new)
        common = before.keys() & after.keys()
        changed = sum(before[clip] != after[clip] for clip in common)
        return cls(len(after) - len(common), changed, len(before) - len(common))

    def __bool__(self) -> bool:
        return self != RowChanges()

    def __str__(self) -> str:
        return f"+{self.added:,} ~{self.changed:,} -{self.removed:,}"


def _by_clip(tables: Sequence[pa.Table]) -> Mapping[str, tuple[object, ...]]:
    """Rows by clip id, as values by the order of the column names."""
    rows: dict[str, tuple[object, ...]] = {}
    for table in tables:
        names = sorted(table.column_names)
        columns = [table[name].to_pylist() for name in names]
        rows |= dict(zip(table["clip_id"].to_pylist(), zip(*columns, strict=True), strict=True))
    return rows
