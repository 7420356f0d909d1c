"""Sample of a canary: each label has its share, whatever the order, and a larger sample contains a smaller one."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config_file import load_config
from pipelines.errors import UserError
from pipelines.stages.canary import stratified
from pipelines.stages.source import list_source

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"


@given(st.lists(st.sampled_from(["dog", "rain", "bell", ""]), min_size=1, max_size=60), st.data())
def test_each_label_has_its_share(labels: list[str], data: st.DataObject) -> None:
    names = [f"{place}.mp4" for place in range(len(labels))]
    size = data.draw(st.integers(1, len(labels)))
    places = stratified(labels, names, size)
    assert len(set(places)) == size and places == sorted(places)
    of_all, of_sample = Counter(labels), Counter(labels[place] for place in places)
    for label, count in of_all.items():
        # exact where a label is alone; else the others' rounding may move the limit of the shares by a video
        assert abs(of_sample[label] - size * count / len(labels)) <= 1 + len(of_all) * count / len(labels)


@given(st.permutations(list(range(12))), st.integers(1, 11))
def test_the_order_is_nothing_and_samples_are_nested(order: list[int], size: int) -> None:
    labels, names = ["dog", "rain", "rain", "bell"] * 3, [f"{place}.mp4" for place in range(12)]
    plain = {names[place] for place in stratified(labels, names, size)}
    moved = stratified([labels[k] for k in order], [names[k] for k in order], size)
    assert {names[order[place]] for place in moved} == plain
    assert plain < {names[place] for place in stratified(labels, names, size + 1)}


def test_a_sample_of_the_source(tmp_path: Path) -> None:
    films = tmp_path / "films"
    for label in ("dog", "rain"):
        (films / label).mkdir(parents=True)
        for number in range(10):
            (films / label / f"{number}.mp4").write_text("x")
    (films / "notes.txt").write_text("x")
    settings = [f"root={tmp_path}/store", f"source.folder={films}", "source.table=null"]
    found = list_source(load_config(DEMO, [*settings, "source.sample=6"]))
    assert Counter(found.files["label"].to_pylist()) == {"dog": 3, "rain": 3}
    assert not found.refused and not found.passed_over
    with pytest.raises(UserError, match="of 21 videos: the source has 20; take fewer"):
        list_source(load_config(DEMO, [*settings, "source.sample=21"]))
