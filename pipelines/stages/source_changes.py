"""Changes of the source since the last output of stage `clips`, counted and named by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.exclusion import FORGOTTEN
from pipelines.engine.fingerprint import digest
from pipelines.engine.stage import Refused
from pipelines.engine.storage import parquet_bytes, parquet_table
from pipelines.engine.store import Output
from pipelines.media.kinds import VIDEO
from pipelines.stages.source import MISSING_FILE, NOT_IN_TABLE

Kind = Literal[
    "added", "removed", "changed", "renamed", "relabelled", "listed but missing", "on disk but unlisted", "forgotten"
]
NAMED = 3
SEEN = "source.parquet"
"""File of an output of `clips`: the videos that it saw, quarantined ones too, with SEEN_COLUMNS,
`video_id` and `clip`, the id of the clip of its bytes. By it a video is found that is to be forgotten."""
SEEN_COLUMNS = ("name", "sha256", "label", "split")
MAY_BE_SAME = "not hashed yet at this place or time: equal ones count as changed until a run hashes them"
MAY_BE_RENAMED = "not hashed yet: a renamed one counts as added and removed until a run hashes it"


@dataclass(frozen=True)
class SourceChange:
    """Change of one kind: number of videos, the first names, and a remark or "".

    Kinds, against what the last output saw; the same video means the same recorded SHA-256, nothing less:

    - added, removed: a video that was not there, or is no longer.
    - renamed: the same video under another name.
    - changed: another video under a name; also one that was written to since it was hashed.
    - relabelled: the same video with another label, or another split in the source. Of several files with the same
      bytes the one counts that `kept_of_same` names.
    - listed but missing: a row of the table without a file, whether it ever had one or not.
    - on disk but unlisted: a video without a row in the table.
    - forgotten: a video that is there and is kept out, because it was forgotten on request.
    """

    kind: Kind
    count: int
    names: Sequence[str]
    remark: str = ""

    def __str__(self) -> str:
        more = ", ..." * (self.count > len(self.names))
        words = f"source: {self.count} {self.kind} ({', '.join(self.names)}{more})"
        return f"{words}; {self.remark}" if self.remark else words


def record_seen(output: Output, files: pa.Table) -> None:
    """Records the videos that an output saw: hashed files, with the columns of SEEN among theirs."""
    output.write_bytes(SEEN, parquet_bytes(files.select([*SEEN_COLUMNS, "video_id", "clip"]).sort_by("name")))


def read_seen(output: Output) -> pa.Table:
    """Videos that an output saw. Raises RunError if that is gone."""
    return parquet_table(output.read_bytes(SEEN))


def find_changes(
    before: pa.Table | None, now: pa.Table, refused: Sequence[Refused], passed_over: Mapping[str, Sequence[str]]
) -> list[SourceChange]:
    """Changes of a source, by kind; kinds without a video are left out.

    Args:
        before: what the last output saw, with SEEN_COLUMNS; None if nothing is recorded.
        now: videos with the same columns; `sha256` is null where a file is not hashed yet.
        refused, passed_over: as of SourceFolder.
    """
    missing = [one.row_id for one in refused if one.error_class == MISSING_FILE]
    forgotten = pa.array([one.row_id for one in refused if one.error_class == FORGOTTEN], pa.string())
    if before is not None:  # a forgotten video is not removed: its file is there
        before = before.filter(pc.invert(pc.is_in(before["name"], value_set=forgotten)))
    changes = [] if before is None else _of_videos(before, now)
    changes += [_named("listed but missing", pa.array(missing, pa.string()))]
    changes += [_named("on disk but unlisted", _unlisted(passed_over)), _named("forgotten", forgotten)]
    return [change for change in changes if change.count]


def unlisted_digest(passed_over: Mapping[str, Sequence[str]]) -> str:
    """Digest of the names of the videos that the table does not list."""
    return digest(_unlisted(passed_over).to_pylist())


def _unlisted(passed_over: Mapping[str, Sequence[str]]) -> pa.Array:
    names = pa.array(passed_over.get(NOT_IN_TABLE, []), pa.string())
    return names.filter(pc.match_substring_regex(names, VIDEO, ignore_case=True))


class _Pairs(NamedTuple):
    """Places of the same videos in two tables."""

    old: np.ndarray
    new: np.ndarray


def _of_videos(before: pa.Table, now: pa.Table) -> list[SourceChange]:
    """Changes of the videos between two tables with SEEN_COLUMNS."""
    before, now = (table.select(SEEN_COLUMNS).combine_chunks() for table in (before, now))
    same = _pairs(before, now, named=True)
    old_left, new_left = (_others(t, places) for t, places in zip((before, now), same, strict=True))
    moved = _pairs(before.take(old_left), now.take(new_left), named=False)
    renamed = _Pairs(old_left[moved.old], new_left[moved.new])
    old_left, new_left = np.setdiff1d(old_left, renamed.old), np.setdiff1d(new_left, renamed.new)
    gone, come = (t["name"].take(left) for t, left in ((before, old_left), (now, new_left)))
    is_other = pc.is_in(come, value_set=gone.combine_chunks())
    removed = gone.filter(pc.invert(pc.is_in(gone, value_set=come.combine_chunks())))
    added = pc.invert(is_other)
    unhashed = pc.is_null(now["sha256"].take(new_left))
    may_be_same = pc.any(unhashed.filter(is_other)).as_py()
    may_be_renamed = len(removed) and pc.any(unhashed.filter(added)).as_py()
    arrows = [f"{a} -> {b}" for a, b in _first_names(before, now, renamed)]
    return [
        _named("added", come.filter(added), MAY_BE_RENAMED if may_be_renamed else ""),
        _named("removed", removed),
        _named("changed", come.filter(is_other), MAY_BE_SAME if may_be_same else ""),
        SourceChange("renamed", len(renamed.old), arrows),
        _named("relabelled", _relabelled(before, now)),
    ]


def _pairs(old: pa.Table, new: pa.Table, *, named: bool) -> _Pairs:
    """Places of rows with the same hash, and the same name if `named`. Each row is in one pair at most."""
    places = pc.index_in(_identities(new, named=named), value_set=_identities(old, named=named), skip_nulls=True)
    found = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False))
    return _Pairs(places.drop_null().to_numpy().astype(np.int64), found)


def _identities(table: pa.Table, *, named: bool) -> pa.Array:
    """Hash with the name, or with the number of the row among those of this hash; null without a hash."""
    sha256 = table["sha256"].combine_chunks()
    if named:
        return pc.binary_join_element_wise(sha256, table["name"].combine_chunks(), "/")
    codes = sha256.dictionary_encode().indices.fill_null(-1).to_numpy()
    order = np.argsort(codes, kind="stable")
    is_first = np.diff(codes[order], prepend=-2) != 0
    numbers = np.empty(len(codes), np.int64)
    places = np.arange(len(codes))
    numbers[order] = places - np.maximum.accumulate(np.where(is_first, places, 0))
    return pc.binary_join_element_wise(sha256, pa.array(numbers).cast(pa.string()), "/")


def _others(table: pa.Table, places: np.ndarray) -> np.ndarray:
    return np.setdiff1d(np.arange(table.num_rows), places)


def _first_names(before: pa.Table, now: pa.Table, pairs: _Pairs) -> list[tuple[str, str]]:
    names = (t["name"].take(places[:NAMED]).to_pylist() for t, places in zip((before, now), pairs, strict=True))
    return list(zip(*names, strict=True))


def kept_of_same(files: pa.Table) -> pa.Array:
    """Name of the file that is kept of those with the same bytes, for each file (name, sha256, label); null unhashed.

    It is the first by name, of those with a label if there are any.
    """
    unlabelled = pc.equal(pc.fill_null(files["label"], ""), "")
    table = pa.table({"sha256": files["sha256"], "unlabelled": unlabelled, "name": files["name"]})
    table = table.filter(pc.is_valid(table["sha256"])).sort_by([(name, "ascending") for name in table.column_names])
    table = table.group_by("sha256", use_threads=False).aggregate([("name", "first")])
    places = pc.index_in(files["sha256"].combine_chunks(), value_set=table["sha256"].combine_chunks(), skip_nulls=True)
    return table["name_first"].combine_chunks().take(places)


def _relabelled(before: pa.Table, now: pa.Table) -> pa.Array:
    """Names of the videos whose label or split is another one."""
    old, new = (table.filter(pc.equal(table["name"], kept_of_same(table))) for table in (before, now))
    places = pc.index_in(new["sha256"], value_set=old["sha256"].combine_chunks())
    old, new = old.take(places.drop_null()), new.filter(pc.is_valid(places))
    columns: Any = [
        pc.not_equal(pc.fill_null(old[name], ""), pc.fill_null(new[name], "")) for name in ("label", "split")
    ]
    return new["name"].filter(pc.or_(*columns))


def _named(kind: Kind, names: pa.Array | pa.ChunkedArray, remark: str = "") -> SourceChange:
    first = pc.take(names, pc.sort_indices(names)[:NAMED]).to_pylist() if len(names) else []
    return SourceChange(kind, len(names), first, remark)
