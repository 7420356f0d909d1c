"""Rows of the clips before any is made."""

from pathlib import Path

import pyarrow as pa

from pipelines.config_file import load_config
from pipelines.engine.plan import resolve
from pipelines.engine.stage import Context
from pipelines.engine.storage import Storage
from pipelines.stages.clips import ClipsStage, HashedSource, _recipe
from pipelines.stages.source import KnownFiles

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"


def test_the_same_bytes_are_never_in_both_splits(tmp_path: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    for name, data in (("a.mp4", "one"), ("b.mp4", "one"), ("c.mp4", "two")):
        (films / name).write_text(data)
    (tmp_path / "list.csv").write_text("file,split\nb.mp4,train\na.mp4,test\nc.mp4,test\n")
    config = load_config(
        DEMO, [f"root={tmp_path}/store", f"source.folder={films}", f"source.table={tmp_path}/list.csv"]
    )
    resolved = resolve(ClipsStage(), config, Storage(config.root), {}, to_run=True)
    assert not isinstance(resolved, str)
    rows = ClipsStage().rows(resolved.context)
    found = rows.carried.select(["source_name", "split"]).to_pylist()
    assert found == [{"source_name": "a.mp4", "split": "test"}, {"source_name": "c.mp4", "split": "test"}], (
        "the first by name is kept, in whatever order a table lists them"
    )
    [refused] = rows.refused
    assert refused.error_class == "DuplicateSource" and refused.message == "b.mp4: the same bytes as a.mp4"


def test_clips_beyond_the_limits_are_no_rows(tmp_path: Path) -> None:
    limits = ["clips.limits.silent_share=0.9", "clips.limits.still_share=0.5"]
    config = load_config(DEMO, [f"root={tmp_path}/store", f"source.folder={tmp_path}", *limits])
    recipe = _recipe(config, HashedSource(read=lambda: KnownFiles(pa.table({}), [], {})))
    rows = pa.table(
        {
            "source_name": ["good", "silent", "still", "without sound"],
            "silent_share": [0.9, 0.91, 0.0, None],
            "clipped_share": [1.0, 0.0, 0.0, None],
            "still_share": [0.5, 0.0, 0.51, 0.0],
        }
    )
    found = ClipsStage().unwanted(Context(config, None, {}, None, recipe, print), rows)  # type: ignore[arg-type]
    assert {place: one.error_class for place, one in found.items()} == {1: "BeyondLimits", 2: "BeyondLimits"}
    assert found[1].message == "silent: silent_share 0.91, wanted at most clips.limits.silent_share = 0.9"
