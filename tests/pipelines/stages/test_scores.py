"""Worker of stage `scores`: the metrics' own values, a bad pair alone refused, and a set like that of `score`."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from flowley.metrics import CLIP_METRICS, score, summarise
from pipelines.engine.ledger import Failed
from pipelines.engine.storage import Storage
from pipelines.stages.scores import EMBEDDINGS, ScoresWorker

HZ = 16_000


@pytest.fixture
def waves(tmp_path: Path) -> list[np.ndarray]:
    """Three sounds, stored as 0.flac to 2.flac, and a short one, short.flac."""
    chance = np.random.default_rng(3)
    waves = [(0.2 * chance.standard_normal(2 * HZ) * np.sin(np.arange(2 * HZ) / 400)).round(3) for _ in range(3)]
    for number, wave in enumerate([*waves, waves[0][: HZ // 2]]):
        name = "short" if number == 3 else str(number)
        soundfile.write(tmp_path / f"{name}.flac", wave, HZ, subtype="PCM_24")
    return [soundfile.read(tmp_path / f"{number}.flac", dtype="float32")[0] for number in range(3)]


def test_rows_and_their_set_are_those_of_score(waves: list[np.ndarray], tmp_path: Path) -> None:
    pairs = [("0", "1"), ("1", "2"), ("short", "2"), ("2", "2")]
    tasks = [{"clip_id": a, "audio": f"{a}.flac", "original_audio": f"{b}.flac"} for a, b in pairs]
    made = ScoresWorker(HZ, Storage(str(tmp_path))).process(tasks)
    failed = [row for row in made if isinstance(row, Failed)]
    good = [row for row in made if not isinstance(row, Failed)]
    assert len(failed) == 1 and "generated lasts 0.50 s, original 2.00 s" in failed[0].message
    expected = score([waves[0], waves[1], waves[2]], [waves[1], waves[2], waves[2]], HZ)
    clip_metrics = {name: [row[name] for row in good] for name in CLIP_METRICS}
    assert clip_metrics == expected.clip_metrics
    generated, original = (np.array([row[name] for row in good]) for name in EMBEDDINGS.names)
    assert summarise(clip_metrics, generated, original, HZ) == expected
