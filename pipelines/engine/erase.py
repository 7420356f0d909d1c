"""Removal of all that a store holds of forgotten videos: rows, files, outputs, and what killed processes left."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.exclusion import LONG_CHARS, Traces
from pipelines.engine.fsck import files_of, ledger_names, manifest_places
from pipelines.engine.ledger import DAMAGED, LEDGERS, Ledger, names_any
from pipelines.engine.local_listing import PARTIAL
from pipelines.engine.model_files import MODELS
from pipelines.engine.storage import PIECE_BYTES, FileInfo, Storage, json_bytes, parquet_bytes
from pipelines.engine.store import MANIFEST, QUARANTINE, ROWS, RUNS, Manifest, Output
from pipelines.errors import RunError

NOT_SEARCHED = (".mp4", ".flac", ".arrow", ".safetensors")
"""Media and features go by the rows that name them; weights name no clip."""
LONGEST_BYTES = 8192
"""Bytes of a word that is looked for, at most."""
NOTHING = rb"(?!)"
"""Regular expression that matches nowhere."""
REDACTED = "forgotten"
"""Text in place of id and message of a quarantined row in an output that stays."""


@dataclass
class Erased:
    """Removals: rows, files and bytes by kind, and the stages whose outputs go."""

    rows: Counter[str] = field(default_factory=Counter)
    files: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    stages: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.rows.total() or self.files.total())

    def counts(self) -> dict[str, dict[str, int]]:
        """Counts by kind, for a record."""
        kinds = sorted(kind for kind, number in (self.rows + self.files).items() if number)
        return {k: {"rows": self.rows[k], "files": self.files[k], "bytes": self.bytes[k]} for k in kinds}


@dataclass(frozen=True)
class Layout:
    """Folders of a store that only its stages know.

    Attributes:
        of_rows: in which each file is named by rows; one that is not was left by a killed process.
        pages: which are written anew when they are asked for.
        models: of stages whose outputs stay, without what in them tells of the videos.
        index: name of a table of other videos too, by which those are found later; of an output that goes it stays.
    """

    of_rows: Collection[str]
    pages: Collection[str]
    models: Collection[str]
    index: str


def erase(storage: Storage, traces: Traces, layout: Layout) -> Erased:
    """Removes all that tells of some videos. After a kill the same call goes on. The caller holds the root's lease.

    Rows of ledgers go last, because they name the files. With a feature file go the rows of the other clips in it.
    """
    storage.remove(PARTIAL)
    going, named = set[str](), set[str]()
    for table in _row_tables(storage):
        named |= set(files_of(table)["name"].to_pylist())
        going |= set(files_of(table.filter(pa.array(traces.rows(table))))["name"].to_pylist())
    eraser = _Eraser(storage, traces, layout, going, named)
    infos = storage.files(recursive=True)
    for place, group in groupby(sorted(infos, key=eraser.place_of), key=eraser.place_of):
        eraser.erase_at(place, list(group))
    files = sorted(going)
    for name in ledger_names(storage):
        rows = Ledger.of_any_schema(storage, name).erase(lambda table: traces.rows(table) | names_any(table, files))
        eraser.erased.rows[f"ledger {name}"] += rows
    return eraser.erased


def _row_tables(storage: Storage) -> Iterator[pa.Table]:
    """Tables of all rows: of ledgers, and of committed outputs."""
    for name in ledger_names(storage):
        ledger = Ledger.of_any_schema(storage, name)
        yield from ledger.load(ledger.parts())[0]
    for stage, fingerprint in manifest_places(storage):
        output = Output(storage, stage, fingerprint)
        if (manifest := output.manifest()) is not None and ROWS in manifest.files:
            with contextlib.suppress(RunError):  # it is damaged, and goes as such
                yield output.rows()


@dataclass(frozen=True)
class _Eraser:
    """Removal of files. `going`: those that rows of the videos name. `named`: those that any row names."""

    storage: Storage
    traces: Traces
    layout: Layout
    going: Collection[str]
    named: Collection[str]
    erased: Erased = field(default_factory=Erased)

    def place_of(self, info: FileInfo) -> str:
        """Folder of a file, as far as its files go together; "" for what is none of ours or tells nothing."""
        name, parts = info.name, info.name.split("/")
        if DAMAGED in parts[:-1]:
            return DAMAGED
        for folder in (*self.layout.of_rows, *self.layout.pages):
            if name.startswith(f"{folder}/"):
                return folder
        depth = 3 if parts[0] == RUNS else 2
        return "" if len(parts) <= depth or parts[0] in (LEDGERS, MODELS) else "/".join(parts[:depth])

    def erase_at(self, place: str, infos: list[FileInfo]) -> None:
        """Removes what goes of the files at a place."""
        if place == DAMAGED or place in self.layout.pages:  # nobody knows what damaged files hold
            self._remove(place, infos)
        elif place in self.layout.of_rows:
            self._remove(place, [one for one in infos if one.name in self.going or one.name not in self.named])
        elif place.partition("/")[0] in self.layout.models:
            self._redact(place, infos)
        elif place and any(self._tells(info.name) for info in infos):
            self._remove_place(place, infos)

    def _remove(self, kind: str, infos: Sequence[FileInfo]) -> None:
        self.storage.remove_many([info.name for info in infos])
        self.erased.files[kind] += len(infos)
        self.erased.bytes[kind] += sum(info.size for info in infos)
        self.erased.names |= {info.name for info in infos}

    def _remove_place(self, place: str, infos: Sequence[FileInfo]) -> None:
        """Removes an output, its manifest first, but for the index of others; or the working files of a training."""
        top = place.partition("/")[0]
        others = [info for info in infos if info.name != f"{place}/{self.layout.index}"]
        self._remove(top, sorted(others, key=lambda info: not info.name.endswith(f"/{MANIFEST}")))
        if len(others) < len(infos):
            index = self.storage.read_table(f"{place}/{self.layout.index}")
            index = index.filter(pa.array(~self.traces.told(index)))
            self.storage.write_table(f"{place}/{self.layout.index}", index)
        if top != RUNS:
            self.erased.stages.add(top)

    def _redact(self, place: str, infos: Sequence[FileInfo]) -> None:
        """Takes what tells of the videos out of a model's output. If the model's own files tell, all of it goes."""
        stage, _, fingerprint = place.partition("/")
        output = Output(self.storage, stage, fingerprint)
        manifest = output.manifest()
        own = {output.name(file) for file in (*(manifest.files if manifest else ()), MANIFEST)}
        quarantine = output.name(QUARANTINE)
        names = {info.name for info in infos if self._tells(info.name)}
        if names & own - {quarantine}:
            self._remove_place(place, infos)
            return
        for folder in sorted({name.rpartition("/")[0] for name in names - {quarantine}}):
            beside = [one for one in infos if one.name.startswith(f"{folder}/") and one.name not in own]
            self._remove(f"{stage}, beside the model", beside)
        if manifest is not None and quarantine in names:
            self._redact_quarantine(output, manifest)

    def _redact_quarantine(self, output: Output, manifest: Manifest) -> None:
        """Replaces id and message of the videos' rows, so that the counts stay."""
        rows = self.storage.read_table(output.name(QUARANTINE))
        mask = self.traces.rows(rows)
        for name in ("row_id", "message"):
            column = pc.if_else(pa.array(mask), REDACTED, rows[name])
            rows = rows.set_column(rows.column_names.index(name), name, column)
        data = parquet_bytes(rows)
        files = manifest.files | {QUARANTINE: hashlib.sha256(data).hexdigest()}
        # The manifest first: after a kill the old rows are still there, and are found.
        self.storage.write_record(output.name(MANIFEST), asdict(replace(manifest, files=files)))
        self.storage.write_bytes(output.name(QUARANTINE), data)
        self.erased.rows[f"{output.stage}, quarantine"] += int(mask.sum())

    def _tells(self, name: str) -> bool:
        """Whether a file tells of the videos, or names a file that goes. One that cannot be read counts."""
        if name.endswith(NOT_SEARCHED):
            return False
        of_model = name.partition("/")[0] in (*self.layout.models, RUNS)
        if not name.endswith(".parquet"):
            return self._is_in_bytes(name, self._marks if of_model else self._words)
        try:
            table = self.storage.read_table(name)
        except pa.ArrowException:
            return True
        mask = self.traces.rows(table) if of_model else self.traces.told(table)
        return bool(np.any(mask) or np.any(names_any(table, sorted(self.going))))

    def _is_in_bytes(self, name: str, words: re.Pattern[bytes]) -> bool:
        before = b""
        with self.storage.open(name) as file:
            while piece := file.read(PIECE_BYTES):
                if words.search(before + piece):
                    return True
                before = (before + piece)[-LONGEST_BYTES:]
        return False

    @cached_property
    def _words(self) -> re.Pattern[bytes]:
        """Words to look for in files of any kind, as JSON has them too; short names as a whole text of it."""
        quoted = {json_bytes(name).decode() for name in self.traces.names}
        long = {word[1:-1] for word in quoted} | self.traces.names
        return _any_of({*self.traces.marks, *self.going, *quoted, *(word for word in long if len(word) >= LONG_CHARS)})

    @cached_property
    def _marks(self) -> re.Pattern[bytes]:
        """Words to look for in what a training wrote: by chance a model's settings may hold a name."""
        return _any_of({*self.traces.marks, *self.going})


def _any_of(words: Iterable[str]) -> re.Pattern[bytes]:
    return re.compile("|".join(map(re.escape, sorted(words))).encode() or NOTHING)
