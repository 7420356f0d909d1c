"""Listing and hashing of sources."""

import os
from pathlib import Path

import pytest

from pipelines.config_file import load_config
from pipelines.engine.storage import Storage
from pipelines.errors import UserError
from pipelines.run_config import Config
from pipelines.stages.source import SourceHashes, list_source, videos_of_licences

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    folder = tmp_path / "films"
    for name in ("a.mp4", "dogs/b.MKV", "dogs/deep/c.d.webm", ".hidden/x.mp4", "dogs/.y.mp4", "notes.txt", "mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return load_config(DEMO, [f"root={tmp_path}/store", f"source.folder={folder}", "source.table=null"])


def test_a_plain_folder_is_listed_with_labels_and_ids(config: Config) -> None:
    source = list_source(config)
    rows = [(row["name"], row["label"], row["video_id"], row["split"]) for row in source.files.to_pylist()]
    assert rows == [
        ("a.mp4", "", "a", None),
        ("dogs/b.MKV", "dogs", "dogs/b", None),
        ("dogs/deep/c.d.webm", "dogs", "dogs/deep/c.d", None),
    ]
    assert source.refused == [] and source.passed_over == {"other": ["mp4", "notes.txt"]}


def test_a_list_gives_order_labels_and_splits(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    (folder / "vid_000007.mp4").write_text("x")
    csv = tmp_path / "list.csv"
    csv.write_text('vid,7,"dog, barking",test\nnone,3,cat,train\n\nvid, 7.5 ,again,train\n')
    source = list_source(config.model_copy(update={"source": config.source.model_copy(update={"table": str(csv)})}))
    assert [(r["name"], r["label"], r["split"], r["start_s"]) for r in source.files.to_pylist()] == [
        ("vid_000007.mp4", "dog, barking", "test", 7.0)
    ]
    assert [(one.row_id, one.error_class) for one in source.refused] == [
        ("none_000003", "MissingFile"),
        ("vid_000007#4", "ListedTwice"),
    ]


def _with_csv(config: Config, csv: Path, text: str) -> Config:
    csv.write_text(text)
    return config.model_copy(update={"source": config.source.model_copy(update={"table": str(csv)})})


def test_a_sidecar_is_passed_over_and_two_films_of_one_name_are_named(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    for name in ("one_000001.mp4", "one_000001.wav", "one_000001.webp", "two_000002.mkv", "sub/two_000002.mp4"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    source = list_source(_with_csv(config, tmp_path / "list.csv", "one,1,cat,train\ntwo,2,dog,train\n"))
    assert source.files["name"].to_pylist() == ["one_000001.mp4"]
    [refused] = source.refused
    assert refused.error_class == "AmbiguousFile"
    assert "sub/two_000002.mp4 and two_000002.mkv are there; leave one" in refused.message


def test_a_table_with_a_header_names_files(config: Config, tmp_path: Path) -> None:
    text = "file,label,split,source\ndogs/deep/c.d.webm,growl,Test,x\nb,bark,,y\na.mp4,,train,z\n"
    source = list_source(_with_csv(config, tmp_path / "list.csv", text))
    rows = [(row["name"], row["label"], row["split"], row["video_id"]) for row in source.files.to_pylist()]
    assert rows == [
        ("dogs/deep/c.d.webm", "growl", "test", "dogs/deep/c.d"),
        ("dogs/b.MKV", "bark", None, "dogs/b"),
        ("a.mp4", "", "train", "a"),
    ]
    assert source.passed_over == {"not in the table": ["mp4", "notes.txt"]}


def test_links_pipes_and_names_that_are_no_text(config: Config, tmp_path: Path) -> None:
    """A link stands for its file or folder; what cannot be read costs itself, and is named."""
    folder, elsewhere = tmp_path / "films", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "blob").write_text("bytes")
    (elsewhere / "more.mp4").write_text("more")
    (folder / "linked.mp4").symlink_to(elsewhere / "blob")
    (folder / "birds").symlink_to(elsewhere)
    (folder / "dogs" / "deep" / "up").symlink_to(folder)
    (folder / "gone.mp4").symlink_to(tmp_path / "nothing")
    (folder / "self.mp4").symlink_to(folder / "self.mp4")
    os.mkfifo(folder / "pipe.mp4")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.mp4")).write_text("x")
    source = list_source(config)
    assert source.files["name"].to_pylist() == [
        "a.mp4", "birds/more.mp4", "dogs/b.MKV", "dogs/deep/c.d.webm", "linked.mp4",
    ]  # fmt: skip
    assert sorted((one.row_id, one.error_class) for one in source.refused) == [
        ("caf\\xe9.mp4", "NameNotUtf8"),
        ("gone.mp4", "BrokenLink"),
        ("self.mp4", "BrokenLink"),
    ]
    assert source.passed_over["a pipe, a socket or a device"] == ["pipe.mp4"]
    assert source.passed_over["a link to a folder that is read already"] == ["dogs/deep/up"]


def test_folders_that_link_to_one_another_are_read_once(config: Config, tmp_path: Path) -> None:
    """Ten of them have millions of paths."""
    folder = tmp_path / "films" / "linked"
    for one in "abcdefghij":
        (folder / one).mkdir(parents=True)
        for other in set("abcdefghij") - {one}:
            (folder / one / other).symlink_to(f"../{other}")
    (folder / "a" / "film.mp4").write_text("x")
    names = list_source(config).files["name"].to_pylist()
    assert [name for name in names if name.startswith("linked")] == ["linked/a/film.mp4"]


def test_a_listed_file_of_another_folder_is_missing(config: Config, tmp_path: Path) -> None:
    """A row takes no other folder's file of the same name, and an exact name on a later line comes first."""
    (tmp_path / "films" / "001.mp4").write_text("root")
    (tmp_path / "films" / "dogs" / "001.mp4").write_text("dog")
    text = "file,label,split\ncats/001.mp4,cat,test\n001,any,test\ndogs/001,dog,train\n001.mp4,root,train\n"
    source = list_source(_with_csv(config, tmp_path / "list.csv", text))
    rows = [(row["name"], row["label"], row["split"]) for row in source.files.to_pylist()]
    assert rows == [("dogs/001.mp4", "dog", "train"), ("001.mp4", "root", "train")]
    assert [(one.row_id, one.error_class) for one in source.refused] == [
        ("cats/001.mp4", "MissingFile"),
        ("001", "AmbiguousFile"),
    ]


def test_a_table_that_names_no_file_is_said(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of its 1 rows names a video .*line 2, A\.MP4; in the folder is a\.mp4"):
        list_source(_with_csv(config, tmp_path / "list.csv", "file,label\nA.MP4,bark\n"))


def test_a_folder_without_videos_and_a_root_inside_are_refused(config: Config, tmp_path: Path) -> None:
    inside = config.model_copy(update={"root": f"{tmp_path}/films/store"})
    with pytest.raises(UserError, match="lies in source.folder, .*give a root outside"):
        list_source(inside)
    for name in ("a.mp4", "dogs/b.MKV", "dogs/deep/c.d.webm"):
        (tmp_path / "films" / name).unlink()
    with pytest.raises(UserError, match=r"no videos in .*films', only others \(other 2\); give a folder of videos"):
        list_source(config)


def test_a_linked_source_folder_is_read(config: Config, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "films")
    linked = config.model_copy(update={"source": config.source.model_copy(update={"folder": str(tmp_path / "link")})})
    assert list_source(linked).files["name"].equals(list_source(config).files["name"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no rows; wanted video_id,start_s,label,split in each line"),
        ("\n\na,1,cat\n", "line 3: got 3 fields"),
        ("a,nan,cat,train\n", "line 1: got the start 'nan'"),
        ("file,split\n,train\n", "line 2: names no file"),
        ("a,x,cat,train\n", "line 1: got the start 'x'"),
        ("a,1,cat,validation\n", "line 1: got the split 'validation'"),
        ('a,1,cat,train\nb,2,"dog,train\nc,3,cow",train\n', "line 2: a quote is not closed on its line"),
    ],
)
def test_a_fault_in_the_list_is_one_line_with_its_place(config: Config, tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        list_source(_with_csv(config, tmp_path / "list.csv", text))


def test_a_file_is_no_folder(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a.mp4' is a file; give the folder"):
        list_source(load_config(DEMO, [f"source.folder={tmp_path}/films/a.mp4", "source.table=null"]))


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
    files, refused, _ = hashes.read()
    assert files.num_rows == 2 and refused[-1].error_class == "UnreadableSource"
    assert hashes.count_missing() == 0, "a plan counts it as refused, and says so"
    monkeypatch.undo()
    hashes.complete(1, print)
    files, refused, _ = hashes.read()
    assert files.num_rows == 3 and "UnreadableSource" not in [one.error_class for one in refused]


def test_videos_of_licences(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("video_id,start,label,License\na,0,dog,CC-BY\nb,3,dog,own\nc,0,rain,\n")
    assert videos_of_licences(str(table), ["cc-by"]) == {"a"} and videos_of_licences(str(table), ["x"]) == set()
    table.write_text("file,license\ncat/a.b.mp4,own\nb,CC-BY\n")
    assert videos_of_licences(str(table), ["own", "cc-by"]) == {"cat/a.b", "b"}
    table.write_text("file,label\na.mp4,dog\n")
    with pytest.raises(UserError, match="list.csv has no column licence"):
        videos_of_licences(str(table), ["own"])
