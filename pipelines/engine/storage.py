"""File storage of a run, on a local disk or in a bucket (s3://): whole files, atomic and durable writes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.engine.local_listing import NO_FILE, PARTIAL, LocalListing
from pipelines.errors import UserError
from pipelines.scratch import scratch

READERS = 32
"""Files read at once from a bucket, where waiting takes longer than reading."""


PARTIAL_S = 3600.0
"""Age at which a file that is being written is abandoned."""
DELETIONS = 1000
"""Files that a bucket removes at once, at most."""
ANSWER_S = 10.0
"""Time in which a bucket has to answer a first request."""
PIECE_BYTES = 8 * 2**20
DIGEST = "sha256"
"""Key of a record's own digest."""
NO_SUCH_FILE = (FileNotFoundError, IsADirectoryError)


LISTING = pa.schema([("name", pa.string()), ("size", pa.int64()), ("version", pa.string())])
"""Columns of a listing, as of FileInfo. What cannot be read as a file has the size NO_FILE, and as version why."""


class FileInfo(NamedTuple):
    """A file under a storage root. `version` changes when the content does (mtime or ETag)."""

    name: str
    size: int
    version: str


class Storage:
    """Files under one root. Names are relative, with `/`. A reader never sees a half-written file.

    `url` is a local folder or `s3://bucket/prefix`; credentials and endpoint come from the environment
    (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...). Instances pickle, so that Ray workers can hold them.
    """

    def __init__(self, url: str) -> None:
        self.is_local = "://" not in url
        if not self.is_local and not re.match("s3://[^/]", url):
            raise UserError(f"cannot open {url!r}: wanted a local folder, or s3://bucket/prefix")
        self.url = str(Path(url).expanduser().absolute()) if self.is_local else url.rstrip("/")

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return Storage, (self.url,)

    @cached_property
    def _fs(self) -> Any:
        protocol = "file" if self.is_local else "s3"
        try:
            # A cached listing would hide what another process has just committed.
            options = {} if self.is_local else {"use_listings_cache": False, "skip_instance_cache": True}
            return fsspec.filesystem(protocol, **options)
        except (ValueError, ImportError) as error:
            raise UserError(f"cannot open {self.url!r}: {error}. Use a local folder or an s3:// address.") from error

    def check_answers(self) -> None:
        """Raises the library's error within seconds if a bucket does not answer; other calls try for minutes."""
        if self.is_local:
            return
        once = {"connect_timeout": ANSWER_S, "read_timeout": ANSWER_S, "retries": {"max_attempts": 0}}
        with contextlib.suppress(FileNotFoundError):
            quick = fsspec.filesystem("s3", skip_instance_cache=True, config_kwargs=once)
            quick.retries = 1
            quick.info(self.path(), refresh=True)

    def path(self, name: str = "") -> str:
        """Full path of `name` for fsspec, without protocol."""
        root = self.url if self.is_local else self.url.split("://", 1)[1]
        return f"{root}/{name}".rstrip("/")

    def address(self, name: str = "") -> str:
        """Full address of `name` for other libraries: a local path or a URL."""
        return f"{self.url}/{name}".rstrip("/")

    def exists(self, name: str) -> bool:
        return bool(self._fs.exists(self.path(name)))

    def files(self, folder: str = "", *, recursive: bool = False) -> list[FileInfo]:
        """Files in `folder`, sorted by name (relative to the root). An absent folder has none."""
        found = map(FileInfo, *self._list(folder, recursive))
        return sorted((info for info in found if info.size != NO_FILE), key=itemgetter(0))

    def names(self, folder: str) -> set[str]:
        """Names of all files below `folder`, relative to the root. Faster than `files`, which looks at each."""
        start = len(self.path()) + 1
        if not self.is_local:
            # The store's folders are listed side by side: a listing has 1000 entries a page.
            with contextlib.suppress(FileNotFoundError), ThreadPoolExecutor(READERS) as pool:
                entries = self._fs.ls(self.path(folder), detail=True)
                folders = [entry["name"] for entry in entries if entry["type"] == "directory"]
                names = [entry["name"] for entry in entries if entry["type"] == "file"]
                return {name[start:] for name in chain(names, *pool.map(self._find, folders))}
            return set()
        return {f"{top}/{file}"[start:] for top, _, files in os.walk(self.path(folder)) for file in files}

    def listing(self) -> tuple[pa.Table, dict[str, int]]:
        """Table of all files, with the columns LISTING, sorted by name; and when a disk's folders were changed (ns).

        Links are followed. What is no readable file is listed too, with the size NO_FILE.
        """
        folders: dict[str, int] = {}
        return pa.table(list(self._list("", True, folders)), schema=LISTING).sort_by("name"), folders

    def _list(
        self, folder: str, recursive: bool, folders: dict[str, int] | None = None
    ) -> tuple[list[str], list[int], list[str]]:
        """Names, sizes and versions of the files in `folder`, in any order. Adds a disk's folders to `folders`."""
        top, start = self.path(folder), len(self.path()) + 1
        if self.is_local:
            listing = LocalListing(start, recursive)
            listing.read(top or "/")
            if folders is not None:
                folders |= listing.folders
            return listing.columns
        columns: tuple[list[str], list[int], list[str]] = ([], [], [])
        for full, info in self._find(top, recursive=recursive).items():
            if info["type"] == "file" and not full.endswith("/") and len(full) >= start:  # else a console's folder
                columns[0].append(full[start:])
                columns[1].append(info.get("size") or 0)
                columns[2].append(info["ETag"])
        return columns

    def _find(self, top: str, *, recursive: bool = True) -> dict[str, dict[str, Any]]:
        """Entries of a bucket below `top`, by full name."""
        try:
            found: dict[str, dict[str, Any]] = self._fs.find(top, maxdepth=None if recursive else 1, detail=True)
        except FileNotFoundError:
            return {}
        return found

    def is_empty(self) -> bool:
        """True if the root is absent or holds only hidden files."""
        try:
            found = self._fs.ls(self.path(), detail=False)
        except FileNotFoundError:
            return True
        names = (str(one).rstrip("/") for one in found)
        return all(name == self.path() or name.rpartition("/")[2].startswith(".") for name in names)

    def read_bytes(self, name: str) -> bytes:
        data: bytes = self._fs.cat_file(self.path(name))
        return data

    def sha256(self, name: str) -> str:
        """SHA-256, in hex, of a file, which is read in pieces."""
        with self._fs.open(self.path(name), "rb") as file:
            digest = hashlib.sha256()
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
        return digest.hexdigest()

    def read_many(self, names: Sequence[str]) -> list[bytes | None]:
        """Content of files, in order; None for one that does not exist."""

        def read(name: str) -> bytes | None:
            try:
                return self.read_bytes(name)
            except NO_SUCH_FILE:
                return None

        if self.is_local or len(names) < 2:
            return [read(name) for name in names]
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(read, names))

    def write_bytes(self, name: str, data: bytes) -> None:
        if self.is_local:
            with self._durable(name) as partial:
                partial.write_bytes(data)
        else:
            self._fs.pipe_file(self.path(name), data)

    @contextlib.contextmanager
    def _durable(self, name: str, *, replace: bool = True) -> Iterator[Path]:
        """Path to write to, which becomes `name` on the disk whole: synced, renamed, and its folder synced.

        Without `replace` raises FileExistsError if the file exists.
        """
        target, partial = Path(self.path(name)), Path(self.path(PARTIAL)) / uuid.uuid4().hex
        for folder in (target.parent, partial.parent):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            _sync(partial)
            if replace and target.is_dir():
                raise IsADirectoryError(
                    f"{target} is a folder, wanted a file; remove it, then run the same command again"
                )
            if replace:
                partial.replace(target)
            else:
                os.link(partial, target)
            _sync(target.parent)
        finally:
            partial.unlink(missing_ok=True)

    def remove_partial(self) -> None:
        """Removes what killed processes began to write; only what is old, for another one may still write."""
        if not self.is_local:
            return  # a bucket has no half-written files
        for path in Path(self.path(PARTIAL)).glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > PARTIAL_S:
                    path.unlink()

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file unless it exists; True if it was written. Of several writers one succeeds, on NFS too."""
        try:
            if self.is_local:
                with self._durable(name, replace=False) as partial:
                    partial.write_bytes(data)
            else:
                self._fs.pipe_file(self.path(name), data, mode="create")
        except FileExistsError:
            return False
        return True

    def upload(self, local: Path, name: str) -> None:
        """Moves the local file `local` to `name`, atomically."""
        if self.is_local:
            with self._durable(name) as partial:
                shutil.move(local, partial)
        else:
            self._fs.put_file(str(local), self.path(name))
            local.unlink()

    def move(self, name: str, to: str) -> None:
        """Renames a file, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            if self.is_local:
                Path(self.path(to)).parent.mkdir(parents=True, exist_ok=True)
                Path(self.path(name)).replace(self.path(to))
            else:
                self._fs.cp_file(self.path(name), self.path(to))
                self.remove_many([name])

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """Local path for reading file or folder `name`; from a bucket it is downloaded until the block ends.

        Raises FileNotFoundError.
        """
        if self.is_local:
            path = Path(self.path(name))
            if not path.exists():
                raise FileNotFoundError(f"{path} is gone; `soundcap run` makes it again")
            yield path
            return
        with scratch("download") as folder:
            target = folder / Path(name).name
            self.download(name, target)
            yield target

    def download(self, name: str, target: Path) -> None:
        """Copies file or folder `name` to the local path `target`."""
        files = self.files(name, recursive=True)
        if files and files[0].name != name:
            for info in files:
                part = target / info.name[len(name) + 1 :]
                part.parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(self.path(info.name), str(part))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._fs.get_file(self.path(name), str(target))

    def remove(self, name: str) -> None:
        """Removes a file or a folder tree, if it exists."""
        if self.is_local:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm(self.path(name), recursive=True)
        else:
            self.remove_many([info.name for info in self.files(name, recursive=True)])

    def remove_many(self, names: Sequence[str]) -> None:
        """Removes files, if they exist; a bucket's by the thousand. Raises OSError if a bucket refuses."""
        if self.is_local:
            for name in names:
                self.remove(name)
            return
        # Not fs.rm: it takes brackets in a name for a pattern, and says nothing when a deletion is refused.
        for start in range(0, len(names), DELETIONS):
            bucket, _, prefix = self.path().partition("/")
            keys = [{"Key": f"{prefix}/{name}".lstrip("/")} for name in names[start : start + DELETIONS]]
            answer = self._fs.call_s3("delete_objects", Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
            for refused in answer.get("Errors", []):
                raise PermissionError(f"cannot remove {refused['Key']} from bucket {bucket}: {refused['Code']}")

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """File opened for reading at any place; from a bucket only what is read is fetched."""
        options = {} if self.is_local else {"cache_type": "none"}
        with self._fs.open(self.path(name), "rb", **options) as file:
            yield file

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def find_record(self, name: str) -> dict[str, Any] | None:
        """What `write_record` wrote, or None if it is absent, cut or changed: then it is made again."""
        try:
            found = self.read_json(name)
        except (*NO_SUCH_FILE, ValueError):
            return None
        if not isinstance(found, dict) or found.pop(DIGEST, None) != _digest(found):
            return None
        return found

    def write_record(self, name: str, record: Mapping[str, Any]) -> None:
        """Writes a JSON object with a digest of itself, by which damage is seen."""
        self.write_json(name, {**record, DIGEST: _digest(record)})

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, json_bytes(value))

    def read_table(self, name: str) -> pa.Table:
        return parquet_table(self.read_bytes(name))

    def write_table(self, name: str, table: pa.Table) -> None:
        self.write_bytes(name, parquet_bytes(table))


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def json_bytes(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()


def parquet_table(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Table of a Parquet file's bytes, or those of the given columns that it has."""
    # Not pq.read_table: it imports pyarrow.dataset and pandas, which costs every command a second.
    return pq.ParquetFile(pa.BufferReader(data)).read(columns=None if columns is None else list(columns))


def parquet_bytes(table: pa.Table) -> bytes:
    """Parquet file of a table. Equal texts of a column are stored once."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_index=True)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
