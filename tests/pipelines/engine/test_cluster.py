"""What keeps Ray from starting is known before it is tried."""

import pytest

from pipelines.engine.cluster import ensure_ray, local_ray_fault
from pipelines.errors import UserError

LONG = "/tmp/" + "x" * 40


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"TMPDIR": "/tmp/caf\u00e9"}, "TMPDIR: got '/tmp/caf\u00e9', wanted a folder with a plain ASCII name"),
        ({"TMPDIR": LONG}, f"TMPDIR: got '{LONG}' of 45 bytes, wanted at most 39 for Ray's sockets; export RAY_TMPDIR"),
        ({"RAY_TMPDIR": LONG}, "RAY_TMPDIR: got"),
        ({"HOME": "/proc/none"}, "HOME: /proc/none/.ray cannot be made"),
    ],
)
def test_a_folder_that_ray_cannot_use_is_named(
    variables: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert local_ray_fault().startswith(words)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match="TMPDIR|HOME"):
        ensure_ray()


def test_a_short_folder_for_ray_serves_a_long_one_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", LONG)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert local_ray_fault() == ""
