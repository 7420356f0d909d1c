"""Listing and hashing of sources."""

from pathlib import Path

import pytest

from pipelines.engine.storage import Storage
from pipelines.run_config import Config, load_config
from pipelines.stages.source import SourceHashes, list_source

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    folder = tmp_path / "films"
    for name in ("a.mp4", "dogs/b.MKV", "dogs/deep/c.d.webm", ".hidden/x.mp4", "dogs/.y.mp4", "notes.txt", "mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return load_config(DEMO, [f"root={tmp_path}/store", f"source.folder={folder}", "source.csv=null"])


def test_a_plain_folder_is_listed_with_labels_and_stems(config: Config) -> None:
    source = list_source(config)
    rows = [(row["name"], row["label"], row["video_id"], row["split"]) for row in source.files.to_pylist()]
    assert rows == [
        ("a.mp4", "", "a", None),
        ("dogs/b.MKV", "dogs", "b", None),
        ("dogs/deep/c.d.webm", "dogs", "c.d", None),
    ]
    assert {one.row_id: one.error_class for one in source.refused} == {"notes.txt": "NotMedia", "mp4": "NotMedia"}


def test_a_list_gives_order_labels_and_splits(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    (folder / "vid_000007.mp4").write_text("x")
    csv = tmp_path / "list.csv"
    csv.write_text('vid,7,"dog, barking",test\nnone,3,cat,train\n\nvid, 7.5 ,again,train\n')
    source = list_source(config.model_copy(update={"source": config.source.model_copy(update={"csv": str(csv)})}))
    assert [(r["name"], r["label"], r["split"], r["start_s"]) for r in source.files.to_pylist()] == [
        ("vid_000007.mp4", "dog, barking", "test", 7.0)
    ]
    assert [(one.row_id, one.error_class) for one in source.refused] == [
        ("none_000003", "MissingFile"),
        ("vid_000007#3", "ListedTwice"),
    ]


def test_a_file_that_could_not_be_read_is_tried_again_in_each_run(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read error says nothing about the file: it is not kept for ever."""
    storage, sha256 = Storage(config.root), Storage.sha256

    def fails_for_a(self: Storage, name: str) -> str:
        if name == "a.mp4":
            raise OSError(5, "Input/output error")
        return sha256(self, name)

    monkeypatch.setattr(Storage, "sha256", fails_for_a)
    hashes = SourceHashes(list_source(config), storage)
    assert hashes.count_missing() == 3
    hashes.complete(1, print)
    files, refused = hashes.read()
    assert files.num_rows == 2 and [one.error_class for one in refused] == ["UnreadableSource"]
    assert hashes.count_missing() == 0, "a plan counts it as refused, and says so"
    monkeypatch.undo()
    hashes.complete(1, print)
    files, refused = hashes.read()
    assert files.num_rows == 3 and not refused
