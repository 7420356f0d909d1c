"""Tables that users bring: CSV, TSV and Parquet, read strictly. Every error names the file and the line.

A text table is UTF-8 (or UTF-16 with its mark), one row a line, with any line ends. Its header is optional: the first
row is one if its cells name the columns that the table must have.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.storage import Storage, parquet_table
from pipelines.errors import UserError, one_line
from pipelines.media.kinds import kind_of

_LINE_END = re.compile(r"\r\n|\r|\n")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class TableKind:
    """Kind of table.

    Attributes:
        key: configuration key or option that gives its address, for messages.
        columns: names of the columns, each with other names that a header may use. Case, spaces and a leading `#`
            do not matter.
        required: sets of columns; a table has all columns of one of them at least.
        bare: columns of a table without header, in order.
    """

    key: str
    columns: Mapping[str, Sequence[str]]
    required: Sequence[frozenset[str]]
    bare: Sequence[str]

    @property
    def wanted(self) -> str:
        """Words on what a table of this kind holds."""
        heads = " or ".join(",".join(name for name in self.columns if name in one) for one in self.required)
        return f"wanted {','.join(self.bare)} in each line, or a header with {heads}"

    def header(self, cells: Sequence[str]) -> list[str] | None:
        """Column names of a header's cells, "" for an unknown one; None if the cells are no header."""
        names = [self._column(cell) for cell in cells]
        return names if any(one <= set(names) for one in self.required) else None

    def _column(self, cell: str) -> str:
        said = re.sub(r"[\s_/-]+", "_", cell.strip().lstrip("#").strip().casefold())
        return next((name for name, others in self.columns.items() if said == name or said in others), "")


@dataclass(frozen=True)
class UserTable:
    """Rows of a table as columns of stripped text, and the line of each row (in Parquet, its number from 1)."""

    kind: TableKind
    path: str
    columns: Mapping[str, Sequence[str]]
    lines: Sequence[int]

    def where(self, row: int) -> str:
        """Words on the place of a row, for messages."""
        return f"{self.kind.key}: {self.path} line {self.lines[row]}"


Places = tuple[int, ...]


Found = tuple[int, Places]
"""Looseness with which a name was taken, 0 for exactly, and the places of files that it may mean: one if clear."""


class NameFinder:
    """Files by what a table calls them: their whole name; without folder, or, of videos, without suffix, or both.

    The first of these that fits any file holds, so that an exact name never means another file. A name that has a
    folder means no file of another folder.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find(self, wanted: str) -> Found:
        """Files that `wanted` may mean."""
        wanted = wanted.removeprefix("./")
        has_folder = "/" in wanted
        names, stems = ((self._whole,), self._whole_stems) if has_folder else ((self._whole, self._base), self._stems)
        for looseness, known in enumerate((*names, stems)):
            if places := known.get(wanted):
                return looseness, places
        # dog.wav may stand for dog.mp4, but dog.remix for no other name
        stem = wanted.rpartition(".")[0] if kind_of(wanted) != "other" else ""
        return len(names) + 1, stems.get(stem)

    def find_stem(self, stem: str) -> Found:
        """Videos of this name without folder and suffix."""
        return 0, self._stems.get(stem)

    @cached_property
    def _whole(self) -> _Index:
        return _Index(self.names, range(len(self.names)))

    @cached_property
    def _base(self) -> _Index:
        return _Index([_base_of(name) for name in self.names], range(len(self.names)))

    @cached_property
    def _stems(self) -> _Index:
        return _Index([_base_of(self.names[place]).rpartition(".")[0] for place in self._videos], self._videos)

    @cached_property
    def _whole_stems(self) -> _Index:
        return _Index([self.names[place].rpartition(".")[0] for place in self._videos], self._videos)

    @cached_property
    def _videos(self) -> list[int]:
        return [place for place, name in enumerate(self.names) if kind_of(name) == "video"]


def _base_of(name: str) -> str:
    return name.rpartition("/")[2]


class _Index:
    """Places by key. Almost every key has one, which is kept without a tuple of its own: there are many."""

    def __init__(self, keys: Sequence[str], places: Sequence[int]) -> None:
        self.one = dict(zip(keys, places, strict=True))
        self.several: dict[str, Places] = {}
        if len(self.one) < len(keys):
            counts = Counter(keys)
            for key, place in zip(keys, places, strict=True):
                if counts[key] > 1:
                    self.several[key] = (*self.several.get(key, ()), place)

    def get(self, key: str) -> Places:
        """Places of a key, none if it is unknown."""
        if key in self.several:
            return self.several[key]
        return (self.one[key],) if key in self.one else ()


def read_table_bytes(path: str, key: str) -> bytes:
    """Content of a table's file, which may lie in a bucket. Raises UserError if it does not exist."""
    folder, _, name = path.rpartition("/")
    try:
        return Storage(folder or ("/" if path.startswith("/") else ".")).read_bytes(name)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"{key}: {path!r} does not exist; give a CSV, TSV or Parquet file") from error


def read_table(path: str, kind: TableKind) -> UserTable:
    """Rows of a table. Raises UserError that names the first line which is not as wanted."""
    data = read_table_bytes(path, kind.key)
    if path.casefold().endswith(".parquet"):
        return _from_parquet(data, path, kind)
    return _from_text(_decoded(data, path, kind), path, kind)


def _from_parquet(data: bytes, path: str, kind: TableKind) -> UserTable:
    try:
        table = parquet_table(data)
    except pa.ArrowException as error:
        raise UserError(f"{kind.key}: {path} cannot be read as Parquet: {one_line(error)}") from error
    names = kind.header(table.column_names)
    if names is None:
        raise UserError(f"{kind.key}: {path} has the columns {', '.join(table.column_names)}; {kind.wanted}")
    _refuse_doubles(names, kind, f"{kind.key}: {path}")
    columns = {}
    for name, column in zip(names, table.columns, strict=True):
        if name:
            try:
                columns[name] = pc.utf8_trim_whitespace(column.cast(pa.string()).fill_null("")).to_pylist()
            except pa.ArrowException as error:
                raise UserError(f"{kind.key}: {path} column {name}: {column.type}, wanted text or numbers") from error
    if not table.num_rows:
        raise UserError(f"{kind.key}: {path} has no rows; {kind.wanted}")
    return UserTable(kind, path, columns, range(1, table.num_rows + 1))


def _decoded(data: bytes, path: str, kind: TableKind) -> str:
    if data.startswith(_UTF_16):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise UserError(f"{kind.key}: {path} is cut UTF-16 text; save it again as UTF-8") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + len(_LINE_END.findall(data[: error.start].decode("latin-1")))
        raise UserError(
            f"{kind.key}: {path} line {line}: byte 0x{data[error.start]:02x} is not UTF-8 text; save the file as UTF-8"
        ) from error
    if "\0" in text:
        line = 1 + len(_LINE_END.findall(text[: text.index("\0")]))
        raise UserError(f"{kind.key}: {path} line {line}: a zero byte; save the file as UTF-8 text")
    return text


def _from_text(text: str, path: str, kind: TableKind) -> UserTable:
    rows = _cells(text, path, kind)
    numbers = [number for number, row in enumerate(rows, start=1) if any(map(str.strip, row))]
    names: Sequence[str] | None = None
    while numbers and names is None:
        first = rows[numbers[0] - 1]
        names = kind.header(first)
        if names is not None:
            _refuse_doubles(names, kind, f"{kind.key}: {path} line {numbers.pop(0)}")
        elif first[0].startswith("#"):
            numbers.pop(0)
        else:
            names = kind.bare
    width = len(names or ())
    for number in [number for number in numbers if len(rows[number - 1]) != width]:
        cells = [cell.strip() for cell in rows[number - 1]]
        if cells[0].startswith("#"):
            numbers.remove(number)  # a comment
            continue
        cause = _miscount(cells, names or (), path, is_first=number == numbers[0])
        raise UserError(f"{kind.key}: {path} line {number}: {cause}; {kind.wanted}")
    if names is None or not numbers:
        raise UserError(f"{kind.key}: {path} has no rows; {kind.wanted}")
    cells_of = zip(*(rows[number - 1] for number in numbers), strict=True)
    columns = {name: tuple(map(str.strip, column)) for name, column in zip(names, cells_of, strict=True) if name}
    return UserTable(kind, path, columns, numbers)


def _cells(text: str, path: str, kind: TableKind) -> list[list[str]]:
    """Cells of each line. A quoted text ends on its line, so that one row is one line."""
    lines = _LINE_END.split(text)
    reader = csv.reader(lines, delimiter=_delimiter(path), skipinitialspace=True, strict=True)
    unclosed = "a quote is not closed on its line; close it, or double it inside a quoted text"
    odd = [number for number, line in enumerate(lines, start=1) if line.count('"') % 2] if '"' in text else []
    rows: list[list[str]] = []
    try:
        for row in reader:
            rows.append(row)
            if reader.line_num > len(rows) or (odd and odd[0] <= len(rows)):
                raise UserError(f"{kind.key}: {path} line {len(rows)}: {unclosed}")
    except csv.Error as error:
        number = len(rows) + 1
        said = unclosed if odd and odd[0] == number else f"{error}; {kind.wanted}"
        raise UserError(f"{kind.key}: {path} line {number}: {said}") from error
    return rows


def _miscount(cells: Sequence[str], names: Sequence[str], path: str, *, is_first: bool) -> str:
    """Words on a line of another number of fields than `names`, with the likely cause."""
    got = f"got {len(cells)} fields, wanted {len(names)}"
    if len(cells) == 1 and (other := next((mark for mark in ";\t|," if mark in cells[0]), None)):
        return f"{got}: put {'a tab' if _delimiter(path) != ',' else 'a comma'} between them, not {other!r}"
    if is_first:
        return f"{got}, and {', '.join(cells)} is no header that is known"
    return f"{got}: put a text with a {'tab' if _delimiter(path) != ',' else 'comma'} in quotes"


def _delimiter(path: str) -> str:
    return "\t" if path.casefold().endswith((".tsv", ".tab")) else ","


def _refuse_doubles(names: Sequence[str], kind: TableKind, where: str) -> None:
    doubled = sorted({name for name in names if name and names.count(name) > 1})
    if doubled:
        raise UserError(f"{where}: two columns for {', '.join(doubled)}; leave one of each")
