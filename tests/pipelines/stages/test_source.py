"""Listing and hashing of sources."""

from pathlib import Path

import pytest

from pipelines.engine.storage import Storage
from pipelines.errors import UserError
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


def _with_csv(config: Config, csv: Path, text: str) -> Config:
    csv.write_text(text)
    return config.model_copy(update={"source": config.source.model_copy(update={"csv": str(csv)})})


def test_a_sidecar_is_passed_over_and_two_films_of_one_name_are_named(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    for name in ("one_000001.mp4", "one_000001.txt", "two_000002.mkv", "sub/two_000002.mp4"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    source = list_source(_with_csv(config, tmp_path / "list.csv", "one,1,cat,train\ntwo,2,dog,train\n"))
    assert source.files["name"].to_pylist() == ["one_000001.mp4"]
    [refused] = source.refused
    assert refused.error_class == "AmbiguousFile"
    assert "sub/two_000002.mp4 and two_000002.mkv are there; leave one" in refused.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("\n\na,1,cat\n", "line 3: got 3 fields"),
        ("a,x,cat,train\n", "line 1: got the start 'x'"),
        ("a,1,cat,validation\n", "line 1: got the split 'validation'"),
        ('a,1,cat,train\nb,2,"dog,train\nc,3,cow",train\n', "line 2: a quote is opened and closed 1 lines later"),
        (f"a,1,{'x' * 200_000},train\n", "line 1: field larger than field limit"),
    ],
)
def test_a_fault_in_the_list_is_one_line_with_its_place(config: Config, tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        list_source(_with_csv(config, tmp_path / "list.csv", text))


def test_a_file_is_no_folder(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a.mp4' is a file; give the folder"):
        list_source(load_config(DEMO, [f"source.folder={tmp_path}/films/a.mp4", "source.csv=null"]))


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
    assert files.num_rows == 2 and refused[-1].error_class == "UnreadableSource"
    assert hashes.count_missing() == 0, "a plan counts it as refused, and says so"
    monkeypatch.undo()
    hashes.complete(1, print)
    files, refused = hashes.read()
    assert files.num_rows == 3 and "UnreadableSource" not in [one.error_class for one in refused]
