"""The scores of a set of clips, and the embedding under its distances."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flowley.metrics import score, score_pair
from flowley.metrics.distances import log_mel_statistics
from flowley.metrics.spectral import N_BANDS

HZ = 16_000


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    t_s = np.arange(HZ) / HZ

    def hit(start_s: float, pitch_hz: float) -> np.ndarray:
        after_s = np.maximum(t_s - start_s, 0)
        tone = np.sin(2 * np.pi * pitch_hz * after_s) * np.exp(-8 * after_s) * (t_s >= start_s)
        return (0.3 * tone + 1e-3 * rng.standard_normal(HZ)).astype(np.float32)

    return [hit(0.2 + 0.15 * i, 300.0 * (i + 1)) for i in range(4)]


def test_perfect_copies(clips: list[np.ndarray]) -> None:
    scores = score(clips, clips, HZ)
    means = scores.set_metrics
    assert means["frechet_distance"] == pytest.approx(0, abs=1e-9)
    assert means["kernel_distance"] is not None and means["kernel_distance"] < 0, "unbiased: below 0 for a copy"
    assert means["onset_f1"] == 1 and means["log_mel_correlation"] == pytest.approx(1)
    assert means["log_mel_distance_db"] == means["multi_resolution_stft_distance"] == 0
    assert means["loudness_difference_db"] == means["loudness_error_db"] == 0
    assert scores.missing == {}


def test_damage_lowers_every_score(clips: list[np.ndarray]) -> None:
    rng = np.random.default_rng(1)
    noise = [0.05 * rng.standard_normal(HZ) for _ in clips]
    good, bad = score(clips, clips, HZ).set_metrics, score(noise, clips, HZ).set_metrics
    for name in good:
        sign = -1 if name in ("onset_f1", "log_mel_correlation") else 1
        if name != "loudness_difference_db":
            assert sign * bad[name] > sign * good[name], name


def test_onset_f1_sees_which_clip_belongs_to_which(clips: list[np.ndarray]) -> None:
    swapped = score(clips[::-1], clips, HZ).set_metrics
    assert swapped["onset_f1"] == 0
    assert swapped["frechet_distance"] == pytest.approx(0, abs=1e-9), "the sets are the same"


def test_table_is_plain_and_complete(clips: list[np.ndarray]) -> None:
    scores = score([clip[: HZ - 100] * 0.5 for clip in clips], clips, HZ)
    table = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert table["n_clips"] == 4 and table["hz"] == HZ
    assert table["embedding"] == "log-mel statistics" and table["kernel_bandwidth_of"] == "reference"
    for name, values in table["clip_metrics"].items():
        assert len(values) == 4
        assert table["set_metrics"][name] == pytest.approx(np.mean(values))
    assert table["set_metrics"]["loudness_difference_db"] == pytest.approx(-6.02, abs=0.05)


def test_one_clip_has_no_distance_between_sets(clips: list[np.ndarray]) -> None:
    scores = score(clips[:1], clips[:1], HZ)
    assert scores.set_metrics["frechet_distance"] is None and scores.set_metrics["kernel_distance"] is None
    assert set(scores.missing) == {"frechet_distance", "kernel_distance"}
    assert "at least 2" in scores.missing["kernel_distance"]
    assert scores.set_metrics["onset_f1"] == 1


def test_silence_scores_without_nan() -> None:
    silence = [np.zeros(HZ), np.zeros(HZ)]
    means = score(silence, silence, HZ).set_metrics
    assert means["onset_f1"] == means["log_mel_correlation"] == 1
    assert means["frechet_distance"] == means["kernel_distance"] == 0


def test_refuses(clips: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="more than 3 originals, 3 of the others: wanted one for each"):
        score(clips[:3], clips, HZ)
    with pytest.raises(ValueError, match="no clips"):
        score([], [], HZ)
    broken = [*clips[:2], np.where(np.arange(HZ) == 5, np.nan, clips[2]), clips[3]]
    with pytest.raises(ValueError, match="clip 2: generated: 1 of 16000 samples are not finite, first at 5"):
        score(broken, clips, HZ)
    with pytest.raises(ValueError, match=r"clip 1: original has shape \(2, 16000\)"):
        score(clips, [clips[0], np.stack([clips[1]] * 2), *clips[2:]], HZ)
    with pytest.raises(ValueError, match=r"generated lasts 0\.50 s, original 1\.00 s"):
        score_pair(clips[0][: HZ // 2], clips[0], HZ)


def test_embedding_is_mean_spread_and_rate(clips: list[np.ndarray]) -> None:
    embedded = log_mel_statistics(clips[0], HZ)
    assert embedded.shape == (2 * N_BANDS + 1,)
    assert embedded[-1] == 1, "one hit in one second"
    noise = 0.1 * np.random.default_rng(2).standard_normal(HZ)
    gained = log_mel_statistics(noise * 10**0.5, HZ) - log_mel_statistics(noise, HZ)
    np.testing.assert_allclose(gained, [1.0] * N_BANDS + [0.0] * (N_BANDS + 1), atol=1e-9, err_msg="10 dB: one unit")
    silence = log_mel_statistics(np.zeros(HZ), HZ)
    np.testing.assert_array_equal(silence, [-8.0] * N_BANDS + [0.0] * (N_BANDS + 1))
