"""Row ledger: every row a stage has ever computed, so that only missing rows are computed.

`ledger/{name}/` holds immutable Parquet parts and their manifest, LIVE. A worker writes its rows as one part before
it answers; a part's name carries its digest and its counts, so that counting reads no part and damage is seen. Only
the driver writes the manifest: it puts new parts behind the known ones, and merges small ones.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.recipe import KEY
from pipelines.engine.storage import Storage, parquet_bytes, parquet_table
from pipelines.engine.store import text_columns

COMMON_COLUMNS = (pa.field("key", KEY), *text_columns("row_id", "error_class", "message"))
"""Columns of every ledger. A quarantined row has an error class and no values, an ok row has none."""
LEDGERS, LIVE = "ledger", "live.json"
MERGED_PARTS = 64
RETIRED_FOR_S = 900.0
"""Time for which a merged part is kept for readers that still have an older manifest."""
READ_AGAIN = 5
DAMAGED, GONE = "damaged", "it is gone"


@dataclass(frozen=True)
class Failed:
    """Failure of one row, as its worker reports it."""

    error_class: str
    message: str


Result = dict[str, Any] | Failed | None
"""Values of a row; its failure; or None, where its input is no longer the planned one: it is not committed."""


class Worker(Protocol):
    """Picklable row worker: sent to an actor, set up there once, then fed batches of tasks."""

    def setup(self) -> None:
        """Loads models, if any. An exception here ends the run."""

    def process(self, tasks: list[dict[str, Any]]) -> Sequence[Result]:
        """Computes rows, in the order of their tasks.

        Failed only on evidence from the row itself: an OSError, raised, is taken for the machine's fault.
        """


class WorkerLost(Exception):
    """End of a streaming worker, which must be started anew. Arguments: message, and places of the rows suspected."""


@runtime_checkable
class StreamingWorker(Protocol):
    """Picklable row worker that works on several batches at once, each call in a thread of its own."""

    @property
    def batches_at_once(self) -> int:
        """Number of batches that it takes."""

    def setup(self) -> None:
        """As of Worker."""

    def stream(self, tasks: list[dict[str, Any]]) -> Iterator[tuple[int, Result]]:
        """Computes rows and yields each, with its place among the tasks, when it is done.

        Raises WorkerLost when all rows are yielded that can be.
        """


AnyWorker = Worker | StreamingWorker


@dataclass(frozen=True)
class Part:
    """Name of a part: `{level}-{ok}-{quarantined}-{SHA-256}-{id}.parquet`. Level n merges parts of level n - 1."""

    level: int
    ok: int
    quarantined: int
    sha256: str
    id: str

    @classmethod
    def parse(cls, name: str) -> Part | None:
        """Part of a file name, or None for another file."""
        fields = name.removesuffix(".parquet").split("-")
        if len(fields) != 5 or not all(one.isdecimal() for one in fields[:3]):
            return None
        level, ok, quarantined = map(int, fields[:3])
        return cls(level, ok, quarantined, *fields[3:])

    def __str__(self) -> str:
        return "-".join(map(str, vars(self).values())) + ".parquet"


Damage = tuple[Part, str]
"""Part that cannot be read, with what is wrong."""


@dataclass
class _Live:
    """Ledger manifest: parts in the order in which the driver found them, and merged ones with the time of merging.

    Of two values with one key the first in this order holds, whatever the clocks of the nodes say.
    """

    parts: list[Part] = field(default_factory=list)
    retired: dict[str, float] = field(default_factory=dict)


class Ledger:
    """Ledger of rows with the columns `values`, which a worker supplies."""

    def __init__(self, storage: Storage, name: str, values: pa.Schema) -> None:
        self.storage, self.name = storage, name
        self.folder = f"{LEDGERS}/{name}"
        self.schema = pa.schema([*COMMON_COLUMNS, *values])
        self.damaged: list[Damage] = []
        """Parts that were found damaged since the last `settle`. Their rows count as missing."""

    @classmethod
    def of_any_schema(cls, storage: Storage, name: str) -> Ledger:
        """Ledger whose values are what its parts hold."""
        return cls(storage, name, pa.schema([]))

    def write(self, keys: Sequence[bytes], row_ids: Sequence[str], results: Sequence[Result]) -> tuple[int, int]:
        """Writes results as one new part, durable when this returns. Returns the numbers of ok and quarantined rows.

        A result of None is left out.
        """
        rows = [
            {"key": key, "row_id": row_id, "error_class": "", "message": ""}
            | (vars(result) if isinstance(result, Failed) else result)
            for key, row_id, result in zip(keys, row_ids, results, strict=True)
            if result is not None
        ]
        if not rows:
            return 0, 0
        part = self._write_part(pa.Table.from_pylist(rows, schema=self.schema), level=0)
        return part.ok, part.quarantined

    def read(self, columns: Sequence[str] = ()) -> pa.Table:
        """Table of all rows, one for each key: `key`, `error_class` and the given columns.

        Of several rows with one key, an ok one holds, the first of those, else the last quarantined one.
        """
        wanted = ["key", "error_class", *columns]
        for _ in range(READ_AGAIN):
            parts = self.parts()
            tables, self.damaged = self.load(parts, wanted)
            if not any(problem == GONE for _, problem in self.damaged):
                break  # else merged and removed after the listing: the new manifest has the merged part
        return _one_for_each_key(pa.concat_tables([self._nothing(wanted), *tables], promote_options="default"))

    def settle(self) -> None:
        """Puts new parts into the manifest, merges small ones and removes what was merged long ago.

        Only the driver calls this, and before it uses values, so that their order is fixed from then on. Parts that
        `read` found damaged are set aside in the folder DAMAGED.
        """
        live, now = self._live(), time.time()
        before = (list(live.parts), dict(live.retired))
        live.parts = self.parts(live)
        while (run := _mergeable(live.parts)) is not None:
            merged = self._merge(live.parts[run])
            live.retired |= {str(part): now for part in live.parts[run]}
            live.parts[run] = [merged]
        for part, problem in self.damaged:
            live.parts = [one for one in live.parts if one != part]
            if problem != GONE:
                self.storage.move(self._path(part), f"{self.folder}/{DAMAGED}/{part}")
        self.damaged = []
        outdated = [name for name, at_s in live.retired.items() if now - at_s > RETIRED_FOR_S]
        live.retired = {name: at_s for name, at_s in live.retired.items() if name not in outdated}
        self.storage.remove_many([f"{self.folder}/{name}" for name in outdated])  # before they are out of the manifest
        if (live.parts, live.retired) != before:
            self._record(live)

    def forget(self, files: Sequence[str]) -> int:
        """Takes out the rows that name any of these files in a text column; returns how many.

        Only the driver calls this. The parts that held them are rewritten in their places.
        """
        live, forgotten = self._live(), 0
        live.parts = self.parts(live)
        for place, part in enumerate(live.parts):
            for table in self.load([part])[0]:
                mask = names_any(table, files)
                if mask.any():
                    live.parts[place] = self._write_part(table.filter(pa.array(~mask)), part.level)
                    live.retired[str(part)] = time.time()
                    forgotten += int(mask.sum())
        self._record(live)
        return forgotten

    def erase(self, is_bad: Callable[[pa.Table], np.ndarray]) -> int:
        """Takes rows out for good, by a mask of each part's table; returns how many.

        Only the driver calls this. No byte of them stays, in merged or damaged parts neither. After a kill the same
        call goes on.
        """
        live, erased = self._live(), 0
        kept: list[Part] = []
        gone = list(live.retired)
        for part in self.parts(live):
            [*tables], damaged = self.load([part])
            gone += [str(part)] * bool(damaged)
            for table in tables:
                mask = is_bad(table)
                erased += int(mask.sum())
                if not mask.any():
                    kept.append(part)
                    continue
                gone.append(str(part))
                if not mask.all():
                    kept.append(self._write_part(_without_unused_texts(table.filter(pa.array(~mask))), part.level))
        if gone:
            self._record(_Live(kept, dict.fromkeys(gone, time.time())))  # so that no reader counts them twice
            self.storage.remove_many([f"{self.folder}/{name}" for name in gone])
            self._record(_Live(kept))
        return erased

    def parts(self, live: _Live | None = None) -> list[Part]:
        """Parts in the manifest's order, and behind them those that it does not have yet."""
        listed = [info.name.rpartition("/")[2] for info in self.storage.files(self.folder)]  # before the manifest
        live = live or self._live()
        known = {str(part) for part in live.parts} | live.retired.keys()
        return live.parts + [part for name in listed if name not in known and (part := Part.parse(name))]

    def _record(self, live: _Live) -> None:
        record = {"parts": [str(part) for part in live.parts], "retired": live.retired}
        self.storage.write_record(f"{self.folder}/{LIVE}", record)

    def _live(self) -> _Live:
        found = self.storage.find_record(f"{self.folder}/{LIVE}")
        if found is None:
            return _Live()
        return _Live([part for name in found["parts"] if (part := Part.parse(name))], dict(found["retired"]))

    def load(self, parts: Sequence[Part], columns: Sequence[str] | None = None) -> tuple[list[pa.Table], list[Damage]]:
        """Tables of the parts that hold what was written, all columns or the given ones, and the damaged parts."""
        tables, damaged = [], []
        for part, data in zip(parts, self.storage.read_many([self._path(part) for part in parts]), strict=True):
            if data is None:
                damaged.append((part, GONE))
            elif _digest(data) != part.sha256:
                damaged.append((part, "its bytes are not those that were written"))
            else:
                tables.append(parquet_table(data, columns))
        return tables, damaged

    def _merge(self, parts: list[Part]) -> Part:
        tables, damaged = self.load(parts)
        self.damaged += [damage for damage in damaged if damage not in self.damaged]
        table = pa.concat_tables([self._nothing(), *tables], promote_options="default")
        return self._write_part(_one_for_each_key(table), level=parts[0].level + 1)

    def _write_part(self, table: pa.Table, level: int) -> Part:
        data = parquet_bytes(table)
        ok = pc.sum(pc.equal(table["error_class"], "")).as_py() or 0
        part = Part(level, ok, table.num_rows - ok, _digest(data), uuid.uuid4().hex[:12])
        self.storage.write_bytes(self._path(part), data)
        return part

    def _nothing(self, columns: Sequence[str] | None = None) -> pa.Table:
        table = self.schema.empty_table()
        return table if columns is None else table.select(columns)

    def _path(self, part: Part) -> str:
        return f"{self.folder}/{part}"


def counted_rows(storage: Storage, name: str) -> tuple[int, int]:
    """Numbers of ok and quarantined rows in a ledger, from the names of its parts."""
    parts = Ledger.of_any_schema(storage, name).parts()
    return sum(part.ok for part in parts), sum(part.quarantined for part in parts)


def names_any(rows: pa.Table, files: Sequence[str]) -> np.ndarray:
    """Mask of the rows that name any of these files in a text column."""
    names = pa.array(files, pa.string())
    texts = [column.cast(pa.string()) for column in rows.columns if _is_text(column.type)]
    mask: np.ndarray = np.any([pc.is_in(text, value_set=names).to_numpy() for text in texts], axis=0)
    return mask


def _without_unused_texts(table: pa.Table) -> pa.Table:
    """Table whose shared texts are those of its rows: a filtered one still has the texts of the others."""
    for place, column in enumerate(table.schema):
        if pa.types.is_dictionary(column.type):
            texts = table[column.name].cast(column.type.value_type).dictionary_encode().cast(column.type)
            table = table.set_column(place, column, texts)
    return table


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_dictionary(kind))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _mergeable(parts: Sequence[Part]) -> slice | None:
    """First MERGED_PARTS neighbours of one level, or None."""
    start = 0
    for _, group in groupby(parts, key=lambda part: part.level):
        length = len(list(group))
        if length >= MERGED_PARTS:
            return slice(start, start + MERGED_PARTS)
        start += length
    return None


def _one_for_each_key(table: pa.Table) -> pa.Table:
    """Rows that hold, in their order: of those with one key the first ok one, else the last."""
    is_ok = pc.equal(table["error_class"], "").to_numpy()
    places = np.arange(table.num_rows)
    order = np.concatenate([places[is_ok], places[~is_ok][::-1]])
    table = table.unify_dictionaries()
    codes = table["key"].combine_chunks().dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes[order], return_index=True)
    return table.take(np.sort(order[first]))
