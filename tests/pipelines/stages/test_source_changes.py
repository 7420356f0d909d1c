"""Changes of the source that `plan` and `run` tell: each kind alone, two at once, and after a run of real files."""

import json
import os
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from pipelines.cli.soundcap import app
from pipelines.config_file import load_config
from pipelines.engine.runner import run_stages
from pipelines.engine.stage import Refused
from pipelines.engine.storage import Storage
from pipelines.stages.clips import ClipsStage
from pipelines.stages.source_changes import MAY_BE_RENAMED, MAY_BE_SAME, SEEN_COLUMNS, SourceChange, find_changes

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
Video = tuple[str, str | None, str, str | None]
A, B, C = ("a.mp4", "1", "dog", None), ("b.mp4", "2", "rain", "test"), ("c.mp4", "3", "dog", "train")


def _table(*videos: Video) -> pa.Table:
    columns = zip(*videos, strict=True) if videos else [[]] * len(SEEN_COLUMNS)
    return pa.table({n: pa.array(c, pa.string()) for n, c in zip(SEEN_COLUMNS, columns, strict=True)})


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ((A, B, C), []),
        ((C, B, A), []),
        ((A, B, C, ("d.mp4", "4", "dog", None)), ["1 added (d.mp4)"]),
        ((A, B, C, ("d.mp4", None, "dog", None)), ["1 added (d.mp4)"]),
        ((A, C), ["1 removed (b.mp4)"]),
        ((), ["3 removed (a.mp4, b.mp4, c.mp4)"]),
        ((A, ("x.mp4", "2", "rain", "test"), C), ["1 renamed (b.mp4 -> x.mp4)"]),
        ((A, ("x.mp4", None, "rain", "test"), C), [f"1 added (x.mp4); {MAY_BE_RENAMED}", "1 removed (b.mp4)"]),
        ((A, ("b.mp4", "9", "rain", "test"), C), ["1 changed (b.mp4)"]),
        ((A, ("b.mp4", None, "rain", "test"), C), [f"1 changed (b.mp4); {MAY_BE_SAME}"]),
        ((("a.mp4", "1", "cat", None), B, C), ["1 relabelled (a.mp4)"]),
        ((A, ("b.mp4", "2", "rain", "train"), C), ["1 relabelled (b.mp4)"]),
        ((("a.mp4", "1", "dog", "test"), B, C), ["1 relabelled (a.mp4)"]),
        ((("cat/a.mp4", "1", "cat", None), B, C), ["1 renamed (a.mp4 -> cat/a.mp4)", "1 relabelled (cat/a.mp4)"]),
        ((("b.mp4", "1", "dog", None), ("c.mp4", "2", "rain", "test")),
         ["1 removed (c.mp4)", "2 renamed (a.mp4 -> b.mp4, b.mp4 -> c.mp4)"]),
        ((("x.mp4", "1", "dog", None), ("y.mp4", "1", "dog", None), B, C),
         ["1 added (y.mp4)", "1 renamed (a.mp4 -> x.mp4)"]),
        ((A, ("copy.mp4", "1", "dog", None), B, C), ["1 added (copy.mp4)"]),
        ((A, ("copy.mp4", "1", "cat", None), B, C), ["1 added (copy.mp4)"]),
        ((("0/copy.mp4", "1", "cat", None), A, B, C), ["1 added (0/copy.mp4)", "1 relabelled (0/copy.mp4)"]),
        ((("0/copy.mp4", "1", None, None), A, B, C), ["1 added (0/copy.mp4)"]),
        ((("b.mp4", "1", "dog", None), ("a.mp4", "2", "rain", "test"), C),
         ["2 renamed (a.mp4 -> b.mp4, b.mp4 -> a.mp4)"]),
    ],
)  # fmt: skip
def test_videos(now: tuple[Video, ...], told: list[str]) -> None:
    assert [str(change) for change in find_changes(_table(A, B, C), _table(*now), [], {})] == [
        f"source: {words}" for words in told
    ]


def test_missing_and_unlisted_are_told_without_a_record_and_names_are_few() -> None:
    refused = [Refused(f"{n}.mp4", kind, "") for n, kind in enumerate(["MissingFile", "ListedTwice", "MissingFile"])]
    passed_over = {"not in the table": ["e.mp4", "b.mov", "notes.txt", "d.MP4", "c.mkv"], "image": ["x.jpg"]}
    assert find_changes(None, _table(A), refused, passed_over) == [
        SourceChange("listed but missing", 2, ["0.mp4", "2.mp4"]),
        SourceChange("on disk but unlisted", 4, ["b.mov", "c.mkv", "d.MP4"]),
    ]
    [_, unlisted] = find_changes(_table(A), _table(A), refused, passed_over)
    assert str(unlisted) == "source: 4 on disk but unlisted (b.mov, c.mkv, d.MP4, ...)"


def _film(file: Path, hz: int) -> None:
    """Four seconds of a moving picture with a tone."""
    inputs = ["-f", "lavfi", "-i", "testsrc=size=64x48:rate=24:duration=4.2"]
    inputs += ["-f", "lavfi", "-i", f"sine=frequency={hz}:duration=4.2"]
    subprocess.run(["ffmpeg", "-v", "error", *inputs, "-c:v", "libx264", "-c:a", "aac", file], check=True)


def test_after_a_run(tmp_path: Path, local_ray: None) -> None:
    films, table = tmp_path / "films", tmp_path / "list.csv"
    films.mkdir()
    for name, hz in (("a", 220), ("b", 330), ("c", 440)):
        _film(films / f"{name}.mp4", hz)
    (films / "bad.mp4").write_text("no video")
    os.link(films / "a.mp4", films / "double.mp4")
    table.write_text("file,label\na.mp4,dog\nb.mp4,rain\nbad.mp4,rain\ndouble.mp4,dog\ngone.mp4,dog\n")
    settings = [f"root={tmp_path}/store", f"source.folder={films}", f"source.table={table}"]

    def plan(*more: str) -> list[tuple[str, int, list[str]]]:
        sets = [part for one in [*settings, *more] for part in ("--set", one)]
        done = CliRunner().invoke(app, ["plan", str(DEMO), "--json", *sets])
        assert done.exit_code == 0, done.output
        return [(one["kind"], one["count"], one["names"]) for one in json.loads(done.output)["source"]]

    unlisted, missing = ("on disk but unlisted", 1, ["c.mp4"]), ("listed but missing", 1, ["gone.mp4"])
    assert plan() == [missing, unlisted], "nothing is recorded"
    said: list[str] = []
    run_stages([ClipsStage()], load_config(DEMO, settings), say=said.append)
    assert "clips: source: 1 listed but missing (gone.mp4)" in said
    assert plan() == [], "the damaged file and the double were seen too"
    assert plan("source.sample=2") == [], "a canary is another source"

    (films / "more.mp4").write_text("more")
    assert plan() == [missing, ("on disk but unlisted", 2, ["c.mp4", "more.mp4"])]
    (films / "more.mp4").unlink()
    assert plan() == []

    (films / "b.mp4").rename(films / "new.mp4")
    table.write_text("file,label\na.mp4,cat\nnew.mp4,rain\nbad.mp4,rain\ndouble.mp4,dog\ngone.mp4,dog\nc.mp4,dog\n")
    relabelled = ("relabelled", 1, ["a.mp4"])
    added, removed = ("added", 2, ["c.mp4", "new.mp4"]), ("removed", 1, ["b.mp4"])
    assert plan() == [added, removed, relabelled, missing], "a plan hashes nothing"
    config = load_config(DEMO, settings)
    ClipsStage().recipe_to_run(config, Storage(config.root), said.append)
    assert said[-4:] == [
        "clips: source: 1 added (c.mp4)",
        "clips: source: 1 renamed (b.mp4 -> new.mp4)",
        "clips: source: 1 relabelled (a.mp4)",
        "clips: source: 1 listed but missing (gone.mp4)",
    ]
    assert plan() == [("added", 1, ["c.mp4"]), ("renamed", 1, ["b.mp4 -> new.mp4"]), relabelled, missing]

    sets = [part for one in settings for part in ("--set", one)]
    words = CliRunner().invoke(app, ["plan", str(DEMO), *sets])
    assert "source: 1 renamed (b.mp4 -> new.mp4)\n" in words.output
