"""Drops of each rule on each label: a rule that eats one label shows."""

import pyarrow as pa

from pipelines.stages.curation import LabelDrops, drops_by_label


def test_drops_by_label_are_shares_of_the_labels_clips() -> None:
    rows = pa.table(
        {
            "label": ["rain"] * 4 + ["dog"] * 2 + [""],
            "kept": [False, False, True, False, False, True, True],
            "rule": ["music", "music", None, "too_short", "music", None, None],
        }
    )
    assert drops_by_label(rows) == [
        LabelDrops("dog", "music", 1, 2),
        LabelDrops("rain", "music", 2, 4),
        LabelDrops("rain", "too_short", 1, 4),
    ]
    assert drops_by_label(rows.slice(6)) == []
