"""Tables that users bring: what is read, and the line that names each fault."""

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from pipelines.commands.extract import CAPTIONS
from pipelines.errors import UserError
from pipelines.stages.source import TABLE
from pipelines.tables import NameFinder, TableKind, UserTable, read_table


def table_of(folder: Path, data: str | bytes, kind: TableKind = CAPTIONS, name: str = "table.csv") -> UserTable:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return read_table(str(path), kind)


ROWS = [("clip1", "a dog, close"), ("clip2", "rain")]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.csv", 'name,caption\nclip1,"a dog, close"\nclip2,rain\n'),
        ("t.csv", 'clip1,"a dog, close"\nclip2,rain'),
        ("t.csv", '\ufeffname,caption\r\n\r\nclip1,"a dog, close"\r\nclip2, rain \r\n'),
        ("t.csv", 'name,caption\rclip1,"a dog, close"\rclip2,rain\r'),
        ("t.CSV", 'Clip ID,licence,Text\nclip1,x,"a dog, close"\nclip2,,rain\n'),
        ("t.csv", '# of mine\nclip1,"a dog, close"\nclip2,rain\n'),
        ("t.csv", 'name,caption\nclip1,"a dog, close"\nclip2,rain\n'.encode("utf-16")),
        ("t.tsv", "name\tcaption\nclip1\ta dog, close\nclip2\train\n"),
    ],
    ids=["header", "bare", "BOM and CRLF", "CR", "other names", "comment", "UTF-16", "tabs"],
)
def test_layouts_of_one_table(tmp_path: Path, name: str, data: str | bytes) -> None:
    table = table_of(tmp_path, data, name=name)
    assert list(zip(table.columns["name"], table.columns["caption"], strict=True)) == ROWS


def test_a_line_separator_inside_a_text_is_no_line_end(tmp_path: Path) -> None:
    table = table_of(tmp_path, "clip1,a dog\u2028barks\x0b\n")
    assert table.columns["caption"] == ("a dog\u2028barks",)


def test_parquet_with_numbers_and_nulls(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b"], "start": [1.5, 20.0], "label": ["cat", None], "other": [[1], [2]]})
    parquet.write_table(table, tmp_path / "t.parquet")
    read = read_table(str(tmp_path / "t.parquet"), TABLE)
    assert read.columns == {"video_id": ["a", "b"], "start_s": ["1.5", "20"], "label": ["cat", ""]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            "name,caption\nclip1,a dog\nclip2,a dog, barks\n",
            "line 3: got 3 fields, wanted 2: put a text with a comma in",
        ),
        ("filenam,labl,split\na,b,c\n", "line 1: got 3 fields, wanted 2, and filenam, labl, split is no header"),
        ("name;caption\na;b\n", "line 1: got 1 fields, wanted 2: put a comma between them, not ';'"),
        ('a,x\nb,"open\nc,y\n', "line 2: a quote is not closed on its line"),
        ('a,x\nb,wa"ter\nc,y"\n', "line 2: a quote is not closed"),
        ('a,x\nb,"two" words\n', "line 2: ',' expected after '\"'"),
        ('a,"x\n' + "b,y\n" * 50_000, "line 1: a quote is not closed"),
        (f"a,{'x' * 200_000}\n", "line 1: field larger than field limit"),
        (b"a,x\r\nb,caf\xe9\r\n", "line 2: byte 0xe9 is not UTF-8"),
        (b"a,x\n\nb,\x00y\n", "line 3: a zero byte"),
        ("", "has no rows; wanted name,caption in each line, or a header with name,caption"),
        ("name,caption\n\n", "has no rows"),
        ("id,name,caption\na,b,c\n", "line 1: two columns for name"),
    ],
    ids=str,
)
def test_a_fault_is_one_line_with_its_place(tmp_path: Path, data: str | bytes, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        table_of(tmp_path, data)
    assert str(caught.value).startswith(f"--captions: {tmp_path}/table.csv")


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--captions: .*/none.csv' does not exist; give a CSV"):
        read_table(f"{tmp_path}/none.csv", CAPTIONS)
    with pytest.raises(UserError, match="does not exist"):
        read_table(str(tmp_path), CAPTIONS)
    with pytest.raises(UserError, match=r"t.parquet cannot be read as Parquet"):
        table_of(tmp_path, "name,caption\n", name="t.parquet")
    parquet.write_table(pa.table({"name": ["a"], "words": ["b"]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"has the columns name, words; wanted"):
        read_table(f"{tmp_path}/t.parquet", CAPTIONS)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("dog", ["dog.mp4"]),
        ("dog.mp4", ["dog.mp4"]),
        ("dog.remix", ["dog.remix.mp4"]),
        ("cat.remix", []),
        ("dog.wav", ["dog.mp4"]),
        ("Y0a1b_30.000_40.000", ["Y0a1b_30.000_40.000.mp4"]),
        ("Y0a1b_30.500_40.500", []),
        ("two", ["sub/two.mkv", "two.mp4"]),
        ("two.mkv", ["sub/two.mkv"]),
        ("sub/two.mkv", ["sub/two.mkv"]),
        ("sub/two", ["sub/two.mkv"]),
        ("sub/two.wav", ["sub/two.mkv"]),
        ("other/two.mkv", []),
        ("./dog.mp4", ["dog.mp4"]),
        ("one.jpg", ["one.jpg"]),
        ("one", ["one.mp4"]),
    ],
)
def test_a_name_means_the_file_of_that_name_before_any_of_its_stem(wanted: str, found: list[str]) -> None:
    names = ["cat.mp4", "dog.mp4", "dog.remix.mp4", "Y0a1b_30.000_40.000.mp4", "sub/two.mkv", "two.mp4", "one.jpg",
             "one.mp4", "one.txt"]  # fmt: skip
    assert [names[place] for place in NameFinder(names).find(wanted)[1]] == found
