"""Short form of `make chaos`: kills in stage `clips`, with the store in a bucket."""

import random
from pathlib import Path

import pytest

from tests.pipelines.chaos import Chaos, compare


@pytest.mark.first
@pytest.mark.timeout(900)
def test_rows_survive_kills_in_a_bucket(s3_url: str, tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, until="clips", chance=random.Random(8))
    chaos.make_corpus()
    chaos.run(f"{s3_url}/chaos/undisturbed", kills_a_stage=0)
    undisturbed = chaos.rows(f"{s3_url}/chaos/undisturbed")
    chaos.run(f"{s3_url}/chaos/disturbed", kills_a_stage=2)
    print(dict(chaos.kills))
    compare(undisturbed, chaos.rows(f"{s3_url}/chaos/disturbed"))
    assert sum(chaos.kills.values()) >= 1, "nothing was killed, so nothing was tested"
