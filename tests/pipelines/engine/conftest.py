"""A storage on a disk and one in a bucket."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.engine.storage import Storage


@pytest.fixture(params=["disk", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "disk":
        yield Storage(str(tmp_path / "root"))
    else:
        url = request.getfixturevalue("s3_url")
        yield Storage(f"{url}/{tmp_path.name}")
