"""Formats of exports: files of captions as other projects' own loaders read them.

Facts of each loader, read in its source on 2026-11-27: docs/export.md.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import IO, Any, NamedTuple

from pipelines.engine.storage import Storage
from pipelines.errors import UserError
from pipelines.publication.token_limits import Vocabulary

PANDAS_MISSING = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
     "NULL", "NaN", "None", "n/a", "nan", "null"]
)  # fmt: skip
"""Texts that `pandas.read_csv` takes for no text, in quotes too."""
to_json = json.JSONEncoder(ensure_ascii=False).encode
"""JSON of a value, on one line."""
SHARD_SAMPLES, SHARD_GB = 10_000, 1.0


class Sample(NamedTuple):
    """Caption of a clip, as it is exported.

    Attributes:
        number: from 0 within its split.
        name: of the video, without folder and suffix.
        file: its name without folder.
        path: its path, as the operator wants it.
        scene: its label; where there is none, the caption.
        row: columns of PUBLISHED_SCHEMA; for tables label and caption alone.
        media: storage names of the clip's files by suffix.
    """

    split: str
    number: int
    name: str
    file: str
    path: str
    scene: str
    caption: str
    row: Mapping[str, Any]
    media: Mapping[str, str]


@dataclass(frozen=True)
class TextTable:
    """Text file of a format, with a header, UTF-8, quoted where needed (a quote in quotes is doubled).

    Attributes:
        file: name; with {split}, one for each split.
        columns: by header, the field of a sample.
        delimiter: between columns.
        takes_missing: whether its reader is pandas, which takes some texts for missing.
        names_as_numbers: whether its reader takes names for numbers, if all are.
    """

    file: str
    columns: Mapping[str, str]
    delimiter: str = ","
    takes_missing: bool = True
    names_as_numbers: bool = False


@dataclass(frozen=True)
class Format:
    """Format of an export.

    Attributes:
        about: for people: whose it is.
        vocabulary: of the encoder that reads captions; None: no limit is known.
        tokens: that it reads.
        tables: of a text format; without any it has rows as JSON.
        has_paths: whether `path` is written.
        only_mp4: whether its loader opens `{id}.mp4` and nothing else.
        is_ours: whether the network of the configuration reads it, with a limit of its own.
        is_tar: samples in tar shards.
    """

    about: str
    vocabulary: Vocabulary | None = None
    tokens: int = 77
    tables: Sequence[TextTable] = ()
    has_paths: bool = False
    only_mp4: bool = False
    is_ours: bool = False
    is_tar: bool = False

    @cached_property
    def fields(self) -> set[str]:
        """Fields of a sample that its tables have."""
        return {field for table in self.tables for field in table.columns.values()}

    @cached_property
    def _has_missing(self) -> bool:
        return any(table.takes_missing for table in self.tables)

    def takes_for_missing(self, sample: Sample) -> bool:
        """Whether its reader would take the caption, or the name that it has, for missing."""
        if not self._has_missing:
            return False
        return sample.caption in PANDAS_MISSING or ("name" in self.fields and sample.name in PANDAS_MISSING)


FORMATS: Mapping[str, Format] = {
    "mmaudio": Format(
        "MMAudio's training", "CLIP", only_mp4=True,
        tables=[TextTable("vgg3-{split}.tsv", {"id": "name", "label": "caption"}, "\t")],
    ),
    "thinksound": Format(
        "ThinkSound", "T5", only_mp4=True,
        tables=[TextTable("{split}.csv", {"id": "name", "caption": "scene", "caption_cot": "caption"})],
    ),
    "hunyuan": Format(
        "HunyuanVideo-Foley's batches", "RoBERTa", has_paths=True,
        tables=[TextTable("{split}.csv", {"index": "number", "video": "path", "prompt": "caption"})],
    ),
    "av-benchmark": Format(
        "av-benchmark's text features", "RoBERTa", only_mp4=True,
        tables=[TextTable("{split}.csv", {"name": "name", "caption": "caption"}, names_as_numbers=True)],
    ),
    "flowley": Format(
        "this project's `flowley extract`, and the released code of Flowley", "T5", has_paths=True, is_ours=True,
        tables=[
            TextTable("captions-{split}.csv", {"name": "file", "caption": "caption"}, takes_missing=False),
            TextTable(
                "flowley.tsv",
                {"video_path": "path", "text_description": "caption", "label": "scene", "split": "split"}, "\t",
            ),
        ],
    ),
    "jsonl": Format("any reader of JSON lines", has_paths=True),
    "webdataset": Format("the webdataset library", is_tar=True),
}  # fmt: skip


def write_tables(folder: Path, tables: Sequence[TextTable], samples: Iterable[Sample]) -> None:
    """Writes each sample to all tables of a format. The samples come split by split."""
    for split, of_split in groupby(samples, key=attrgetter("split")):
        with ExitStack() as stack:
            writers = [_row_writer(folder / table.file.format(split=split), table, stack) for table in tables]
            for sample in of_split:
                for write in writers:
                    write(sample)


def _row_writer(path: Path, table: TextTable, stack: ExitStack) -> Callable[[Sample], object]:
    """Writer of samples to a file, which is open until the stack closes; a new one gets its header."""
    is_new = not path.exists()
    rows = csv.writer(
        stack.enter_context(path.open("a", encoding="utf-8", newline="")),
        delimiter=table.delimiter,
        lineterminator="\n",
    )
    if is_new:
        rows.writerow(table.columns)
    cells = attrgetter(*table.columns.values())
    return lambda sample: rows.writerow(cells(sample))


def write_jsonl(folder: Path, samples: Iterable[Sample]) -> None:
    """Writes a JSON object a line: the columns of a row, and `file`, its video's path."""
    for split, of_split in groupby(samples, key=attrgetter("split")):
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            for sample in of_split:
                file.write(to_json({**sample.row, "file": sample.path}) + "\n")


def write_shards(
    folder: Path, samples: Iterable[Sample], storage: Storage | None, *, most_samples: int, most_bytes: int
) -> None:
    """Writes `{split}-000000.tar` and so on: of each sample `{clip_id}.json`, and its media if `storage` has them.

    A shard ends before the sample that would make it larger than allowed; it has one at least. The same samples give
    the same bytes.
    """
    for split, of_split in groupby(samples, key=attrgetter("split")):
        shard = _Shard(folder, split, most_samples, most_bytes)
        for sample in of_split:
            shard.add(sample, storage)
        shard.close()


class _Shard:
    """Tar file that is written, and the next once it is full."""

    def __init__(self, folder: Path, split: str, most_samples: int, most_bytes: int) -> None:
        self._folder, self._split, self._most_samples, self._most_bytes = folder, split, most_samples, most_bytes
        self._number = self._samples = self._bytes = 0
        self._tar: tarfile.TarFile | None = None

    def add(self, sample: Sample, storage: Storage | None) -> None:
        with ExitStack() as stack:
            text = to_json(sample.row).encode()
            members: dict[str, tuple[int, IO[bytes]]] = {"json": (len(text), io.BytesIO(text))}
            if storage is not None:
                members |= dict(_open_media(sample, storage, stack))
            size = sum(tarfile.BLOCKSIZE + _whole(count, tarfile.BLOCKSIZE) for count, _ in members.values())
            tar = self._with_room_for(size)
            for suffix, (count, file) in members.items():
                info = tarfile.TarInfo(f"{sample.row['clip_id']}.{suffix}")  # of time 0 and of nobody
                info.size = count
                tar.addfile(info, file)

    def _with_room_for(self, size: int) -> tarfile.TarFile:
        closed_bytes = _whole(self._bytes + size + 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE)
        if self._samples and (self._samples == self._most_samples or closed_bytes > self._most_bytes):
            self.close()
        if self._tar is None:
            path = self._folder / f"{self._split}-{self._number:06}.tar"
            self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed when it is full
        self._samples, self._bytes = self._samples + 1, self._bytes + size
        return self._tar

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()
        self._tar = None
        self._number, self._samples, self._bytes = self._number + 1, 0, 0


def _whole(count: int, unit: int) -> int:
    """Least whole number of units, in bytes, that holds a number of bytes."""
    return -(-count // unit) * unit


def _open_media(sample: Sample, storage: Storage, stack: ExitStack) -> Iterator[tuple[str, tuple[int, IO[bytes]]]]:
    """Files of a clip by suffix, with their sizes. Raises UserError for one that is gone."""
    for suffix, name in sample.media.items():
        try:
            path = stack.enter_context(storage.local(name))
        except FileNotFoundError as error:
            raise UserError(f"export: {error}, then export again") from error
        yield suffix, (path.stat().st_size, stack.enter_context(path.open("rb")))
