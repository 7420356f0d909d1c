"""Copies of a bucket's files on a node: downloaded once, shared, replaced when their source is, limited by the disk."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.engine import node_cache
from pipelines.engine.node_cache import on_this_node
from pipelines.engine.storage import Storage
from pipelines.errors import MachineFault

NAMES = [f"features/part-{number}.arrow" for number in range(12)]
Usage = namedtuple("Usage", "total used free")

READER = """
import json, sys, time
from pathlib import Path
from pipelines.engine import node_cache
from pipelines.engine.storage import Storage
downloads, download = [], Storage.download
def counted(self, name, target):
    time.sleep(0.05)
    downloads.append(name)
    download(self, name, target)
Storage.download = counted
names = json.loads(sys.argv[2])
with node_cache.on_this_node(Storage(sys.argv[1]), names, lambda line: None) as files:
    print(json.dumps([downloads, [files[name].read_text() for name in names]]), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def bucket(s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """Bucket of twelve files of 1000 bytes, and a node without copies."""
    (tmp_path / "node").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "node"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "node"))
    storage = Storage(f"{s3_url}/{tmp_path.name}")
    for name in NAMES:
        storage.write_bytes(name, _content(name))
    return storage


def _content(name: str) -> bytes:
    return name.ljust(1000, ".").encode()


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the files that this process downloads."""
    names: list[str] = []
    download = Storage.download
    monkeypatch.setattr(Storage, "download", lambda self, name, to: (names.append(name), download(self, name, to))[1])
    yield names


def _reader(bucket: Storage, names: list[str]) -> Any:
    command = [sys.executable, "-c", READER, bucket.url, json.dumps(names)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _use(bucket: Storage, names: list[str]) -> list[str]:
    """Uses files once; returns the lines that were said."""
    said: list[str] = []
    with on_this_node(bucket, names, said.append) as files:
        assert [files[name].read_bytes() for name in names] == [_content(name) for name in names]
    return said


def test_processes_that_start_together_download_each_file_once(bucket: Storage) -> None:
    readers = [_reader(bucket, NAMES) for _ in range(3)]
    found = [json.loads(reader.stdout.readline()) for reader in readers]
    for reader in readers:
        reader.communicate("\n")
    assert sorted(name for names, _ in found for name in names) == sorted(NAMES)
    assert all(texts == [_content(name).decode() for name in NAMES] for _, texts in found)


def test_the_next_start_downloads_nothing_and_a_changed_file_anew(bucket: Storage, downloads: list[str]) -> None:
    [said] = _use(bucket, NAMES)
    assert said.startswith("  12 files, 0.00 GiB, to ")
    assert sorted(downloads) == sorted(NAMES)
    assert _use(bucket, NAMES) == []
    assert len(downloads) == 12
    bucket.write_bytes(NAMES[3], b"another")
    with on_this_node(bucket, NAMES, print) as files:
        assert files[NAMES[3]].read_bytes() == b"another"
    assert downloads[12:] == [NAMES[3]]


def test_a_copy_that_was_begun_is_made_again(bucket: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(self: Storage, name: str, target: Path) -> None:
        target.write_bytes(b"begun")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "download", cut)
        with pytest.raises(MachineFault, match="got 5 of 1000 bytes"):
            _use(bucket, NAMES[:1])
    _use(bucket, NAMES[:1])
    [copy] = Path(tempfile.gettempdir()).glob("soundcap.cache-*/*.arrow")
    copy.write_bytes(b"")  # as after a power loss
    _use(bucket, NAMES[:1])


def test_unused_copies_make_room_the_longest_unused_first(
    bucket: Storage, downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(bucket, NAMES[:4])
    for age, number in enumerate((2, 0, 1, 3)):
        [copy] = Path(tempfile.gettempdir()).glob(f"soundcap.cache-*/*part-{number}.arrow")
        os.utime(copy, (2e9 + age, 2e9 + age))
    _disk(monkeypatch, free=11_000)  # of 100,000 bytes, of which a tenth stays free
    _use(bucket, NAMES[4:7])
    downloads.clear()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 10**9))
    _use(bucket, NAMES[:4])
    assert sorted(downloads) == [NAMES[0], NAMES[2]]


def test_copies_in_use_stay_and_those_of_a_dead_process_do_not(
    bucket: Storage, downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = _reader(bucket, NAMES[:4])
    reader.stdout.readline()
    _disk(monkeypatch, free=10_000)
    with pytest.raises(MachineFault, match="set TMPDIR on the nodes to a larger disk"):
        _use(bucket, NAMES[4:6])
    assert _use(bucket, NAMES[:4]) == []
    reader.kill()
    reader.wait()
    _use(bucket, NAMES[4:6])


def test_a_file_that_is_gone_is_named(bucket: Storage) -> None:
    with pytest.raises(FileNotFoundError, match="part-99.arrow is gone"):
        _use(bucket, ["features/part-99.arrow"])


def test_a_disk_is_read_where_it_is(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("a/b", b"x")
    with on_this_node(storage, ["a/b"], print) as files:
        assert files == {"a/b": tmp_path / "a/b"}


def _disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(node_cache.shutil, "disk_usage", lambda path: Usage(100_000, 0, free))
