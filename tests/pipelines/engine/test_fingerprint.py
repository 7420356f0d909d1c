"""Fingerprints stand still between versions and machines, and refuse what has no canonical form."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.engine.fingerprint import digest, folder_digest, stage_fingerprint

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_golden_values() -> None:
    """If one of these changes, every store in the world becomes stale: do not change them lightly."""
    assert digest({"b": [1, 2.5, None], "a": "é"}) == (
        "d764fee2563da33e3d57334755404e635da33c995824b0adfabc4b6e1af4f608"
    )
    assert stage_fingerprint("captions", {"prompt": "p"}, {"clips": "d"}) == "1f54bd16190a"


@given(PLAIN)
def test_digest_is_that_of_sorted_json(value: object) -> None:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    assert digest(value) == sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def test_order_of_keys_does_not_count_but_types_do() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert len({digest(v) for v in (1, 1.0, "1", True, [1], {"1": 1})}) == 6


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"model": {"path": Path("x")}}, "value.model.path: got a PosixPath"),
        ({"fields": [print]}, "value.fields[0]: got a builtin_function_or_method"),
        ({1: "x"}, "wanted text keys"),
        (float("nan"), "wanted a finite number"),
        ({"s": {1, 2}}, "value.s: got a set"),
    ],
)
def test_what_is_not_plain_data_is_refused_by_name(value: object, where: str) -> None:
    with pytest.raises(TypeError) as caught:
        digest(value)
    assert where in str(caught.value)


def test_folder_digest_is_of_names_and_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "w.bin").write_bytes(b"same")
    assert folder_digest(tmp_path / "a") == folder_digest(tmp_path / "b"), "the folder's own path must not count"
    (tmp_path / "b" / "deep" / "w.bin").write_bytes(b"other")
    assert folder_digest(tmp_path / "a") != folder_digest(tmp_path / "b")


def test_what_a_download_leaves_in_hidden_places_is_no_part_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"weights")
    before = folder_digest(tmp_path)
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / ".cache" / "huggingface" / "w.bin.metadata").write_text("today")
    (tmp_path / ".gitattributes").write_text("*.bin filter=lfs")
    assert folder_digest(tmp_path) == before
