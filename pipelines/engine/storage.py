"""File storage of a run, on a local disk or in a bucket (s3://): whole files, atomic writes."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import UserError


@dataclass(frozen=True)
class FileInfo:
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
        self.url = str(Path(url).absolute()) if self.is_local else url.rstrip("/")

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return Storage, (self.url,)

    @cached_property
    def _fs(self) -> Any:
        protocol = "file" if self.is_local else self.url.split("://", 1)[0]
        try:
            # A cached listing would hide what another process has just committed.
            options = {} if self.is_local else {"use_listings_cache": False, "skip_instance_cache": True}
            return fsspec.filesystem(protocol, **options)
        except (ValueError, ImportError) as error:
            raise UserError(f"cannot open {self.url!r}: {error}. Use a local folder or an s3:// address.") from error

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
        top = self.path(folder)
        try:
            found = self._fs.find(top, maxdepth=None if recursive else 1, detail=True)
        except FileNotFoundError:
            return []
        start = len(self.path()) + 1
        infos = [
            FileInfo(
                full[start:],
                int(info.get("size") or 0),
                str(info.get("ETag") or int(info.get("mtime", 0) * 1e6)),
            )
            for full, info in found.items()
            if info["type"] == "file" and "/.tmp-" not in full
        ]
        return sorted(infos, key=lambda info: info.name)

    def is_empty(self) -> bool:
        """True if the root is absent or holds only hidden files."""
        try:
            found = self._fs.ls(self.path(), detail=False)
        except FileNotFoundError:
            return True
        return all(str(one).rstrip("/").rpartition("/")[2].startswith(".") for one in found)

    def read_bytes(self, name: str) -> bytes:
        data: bytes = self._fs.cat_file(self.path(name))
        return data

    def write_bytes(self, name: str, data: bytes) -> None:
        if self.is_local:
            target = Path(self.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.parent / f".tmp-{uuid.uuid4().hex}"
            partial.write_bytes(data)
            partial.replace(target)
        else:
            self._fs.pipe_file(self.path(name), data)

    def upload(self, local: Path, name: str) -> None:
        """Moves the local file `local` to `name`, atomically."""
        if self.is_local:
            target = Path(self.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.parent / f".tmp-{uuid.uuid4().hex}"
            shutil.move(local, partial)
            partial.replace(target)
        else:
            self._fs.put_file(str(local), self.path(name))
            local.unlink()

    def upload_folder(self, local: Path, name: str) -> None:
        """Moves every file below the local folder `local` to below `name`."""
        for file in sorted(local.rglob("*")):
            if file.is_file():
                self.upload(file, f"{name}/{file.relative_to(local).as_posix()}")

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """Local path for reading file or folder `name`; from a bucket it is downloaded until the block ends."""
        if self.is_local:
            yield Path(self.path(name))
            return
        with tempfile.TemporaryDirectory(prefix="soundcap-") as folder:
            target = Path(folder) / Path(name).name
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
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self.path(name), recursive=True)

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def find_json(self, name: str) -> Any:
        """Content of a JSON file, or None if it is absent."""
        try:
            return self.read_json(name)
        except FileNotFoundError:
            return None

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, json.dumps(value, indent=2, ensure_ascii=False).encode())

    def read_table(self, name: str) -> pa.Table:
        # Not pq.read_table: it imports pyarrow.dataset and pandas, which costs every command a second.
        return pq.ParquetFile(pa.BufferReader(self.read_bytes(name))).read()

    def write_table(self, name: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", write_page_index=True)
        self.write_bytes(name, sink.getvalue().to_pybytes())
