"""Files of a published table: what changes when rows change, and that others' readers see what was written."""

import json
import random
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import duckdb
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.publication.published_rows import PUBLISHED_SCHEMA
from pipelines.publication.table_files import FILES, Cuts, RowChanges, parquet_file, sorted_rows

LABELS = [f"sound {number:03}" for number in range(309)]


def _rows(count: int, seed: int = 0) -> pa.Table:
    """Rows like those of VGGSound: labels of different sizes, captions of 28 words."""
    chance = random.Random(seed)
    words = [f"word{number}" for number in range(3000)]
    sizes = [chance.lognormvariate(0, 0.5) for _ in LABELS]
    labels = chance.choices(LABELS, sizes, k=count)
    columns: dict[str, list[object]] = {name: [""] * count for name in PUBLISHED_SCHEMA.names}
    columns |= {
        "video_id": [f"{chance.getrandbits(64):016x}"[:11] for _ in range(count)],
        "start_s": [float(chance.randrange(300)) for _ in range(count)],
        "duration_s": [8.0] * count,
        "label": list(labels),
        "caption": [" ".join(chance.choices(words, k=28)) for _ in range(count)],
        "clip_id": [f"{chance.getrandbits(64):016x}" for _ in range(count)],
    }
    return sorted_rows(pa.table(columns, schema=PUBLISHED_SCHEMA))


def _edited(rows: pa.Table, labels: set[str]) -> pa.Table:
    """The rows with other captions for some labels."""
    pairs = zip(rows["caption"].to_pylist(), rows["label"].to_pylist(), strict=True)
    captions = [f"{caption} softly" if label in labels else caption for caption, label in pairs]
    return rows.set_column(rows.column_names.index("caption"), "caption", pa.array(captions))


@pytest.fixture(scope="module")
def large() -> pa.Table:
    return _rows(200_000)


def test_an_edit_of_whole_labels_changes_few_files(large: pa.Table) -> None:
    """One in a hundred rows: at most 5% of the bytes travel."""
    cuts = Cuts.of(large, 1.0)
    old = {name: parquet_file(part) for name, part in cuts.files(large).items()}
    assert 0.6 * FILES < len(old) < 1.4 * FILES and sum(map(len, cuts.files(large).values())) == large.num_rows
    per_label, chance = Counter(large["label"].to_pylist()), random.Random(1)
    for _ in range(3):
        edited: set[str] = set()
        while sum(per_label[label] for label in edited) < 0.01 * large.num_rows:
            edited.add(chance.choice(LABELS))
        new = cuts.files(_edited(large, edited))
        changed = {name: parquet_file(part) for name, part in new.items() if set(part["label"].to_pylist()) & edited}
        sent = sum(map(len, changed.values()))
        assert sent <= 0.05 * sum(map(len, old.values())), f"{sorted(edited)} took {len(changed)} files"
        kept = random.Random(2).sample(sorted(new.keys() - changed.keys()), 5)
        assert all(parquet_file(new[name]) == old[name] for name in kept), "a file without a changed row changed"


def test_new_and_lost_rows_move_no_cut() -> None:
    rows = _rows(5_000)
    cuts = Cuts.of(rows, 1.0)
    before = cuts.files(rows)
    assert len(before) > 2
    fewer = rows.take([place for place in range(rows.num_rows) if place % 97])
    for name, part in cuts.files(fewer).items():
        labels = set(part["label"].to_pylist())
        assert labels <= set(before[name]["label"].to_pylist()), f"{name} has another label's rows"
    assert cuts.fit(fewer) and not cuts.fit(rows.slice(0, 100))
    assert Cuts.from_record(json.loads(json.dumps(asdict(cuts)))) == cuts


def test_a_large_label_and_no_label_at_all_are_cut_by_clip_id() -> None:
    rows = _rows(9_000)
    rows = sorted_rows(rows.set_column(rows.column_names.index("label"), "label", pa.array([""] * rows.num_rows)))
    parts = Cuts.of(rows, 1.0).files(rows)
    assert len(parts) == 9 and {part.num_rows for part in parts.values()} == {1000}
    assert Cuts.of(rows.slice(0, 0), 1.0).files(rows.slice(0, 0)) == {}


def test_changes_are_counted_by_clip() -> None:
    rows = _rows(6)
    fewer, other = rows.slice(0, 4), rows.slice(1, 5)
    assert RowChanges.between([fewer], [other]) == RowChanges(added=2, changed=0, removed=1)
    label = rows["label"][0].as_py()
    same = Counter(rows["label"].to_pylist())[label]
    assert RowChanges.between([rows], [_edited(rows, {label})]) == RowChanges(changed=same)
    assert not RowChanges.between([rows.select(sorted(rows.column_names))], [rows])


def test_other_readers_see_the_same(tmp_path: Path) -> None:
    rows = _rows(50).set_column(5, "caption", pa.array(['a "quoted", caption; ünïcode \u200b 音'] * 50))
    file = tmp_path / "000.parquet"
    file.write_bytes(parquet_file(rows))
    wanted = rows.to_pylist()
    assert pq.read_table(file).to_pylist() == wanted
    assert pandas.read_parquet(file).to_dict("records") == wanted
    assert polars.read_parquet(file).to_dicts() == wanted
    found = duckdb.sql(f"select * from '{file}'")
    assert [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()] == wanted
    metadata = pq.ParquetFile(file).metadata
    assert metadata.num_row_groups == 1 and metadata.row_group(0).column(0).has_offset_index
    assert {str(field.type) for field in pq.read_schema(file)} == {"string", "double"}
