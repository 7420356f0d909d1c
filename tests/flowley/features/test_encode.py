"""Encoding step: against encoders and codec called by hand; only what is needed is loaded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowley.codecs import load_codec
from flowley.features.encode import CAPTIONS_PER_BATCH, Encoders, checked_sync, encode_captions, encode_clip
from flowley.features.encoders import TextEncoder, VisualEncoder
from flowley.network.feature_spec import FeatureSpec
from flowley.network.presets import preset

CONFIG = preset("tiny", max_text_tokens=4)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_builders: dict) -> FeatureSpec:
    folder = tmp_path_factory.mktemp("encoders")
    for name, build in tiny_encoder_builders.items():
        (folder / name).mkdir()
        build(folder / name, 0)
    return FeatureSpec(visual=f"{folder}/clip", text=f"{folder}/t5", codec="log_mel", duration_s=1.0)


def test_a_clip(spec: FeatureSpec) -> None:
    """Without the text encoder, which is not there."""
    rng = np.random.default_rng(0)
    frames, wave = rng.integers(0, 255, (8, 32, 32, 3), np.uint8), rng.uniform(-0.5, 0.5, 16_000)
    sync = np.ones((24, 3))
    found = encode_clip(Encoders(spec, CONFIG), "c", frames, wave, sync=sync)
    mean, std = load_codec("log_mel").encode(torch.from_numpy(wave).float()[None])
    assert found.clip_id == "c" and found.sync is sync
    np.testing.assert_allclose(found.visual, VisualEncoder(spec.visual).encode(frames), atol=1e-6)
    np.testing.assert_allclose(found.audio_mean, mean[0], atol=1e-6)
    np.testing.assert_allclose(found.audio_std, std[0], atol=1e-6)


def test_captions_in_their_order_and_what_is_cut(spec: FeatureSpec) -> None:
    texts = {"": "", "long": "rain rain rain rain rain rain"} | {f"c{k}": "bell" for k in range(CAPTIONS_PER_BATCH)}
    encoders = Encoders(spec, CONFIG)
    found = encode_captions(encoders, texts)
    assert [one.clip_id for one in found] == list(texts)
    assert [one.tokens_cut for one in found[:4]] == [0, 3, 0, 0] and len(found[1].text) == 4
    [alone] = TextEncoder(spec.text, max_tokens=4).encode(["bell"])
    np.testing.assert_allclose(found[-1].text, alone.features, atol=1e-3)
    assert "visual" not in vars(encoders) and "codec" not in vars(encoders)


@pytest.mark.parametrize(
    ("sync", "found"),
    [
        (np.zeros((23, 768)), r"float64 of shape \(23, 768\)"),
        (np.zeros((24, 767)), r"float64 of shape \(24, 767\)"),
        (np.zeros((24, 768), np.int64), r"int64 of shape \(24, 768\)"),
        (np.full((24, 768), np.inf), r"float64 of shape \(24, 768\)"),
        (np.zeros(24), r"float64 of shape \(24,\)"),
    ],
)
def test_synchronisation_features_of_others(sync: np.ndarray, found: str) -> None:
    config = preset("mmaudio_small_16k")
    good = np.zeros((25, 768), np.float32)
    assert checked_sync(good, config, 1.0, name="good.npy") is good
    with pytest.raises(ValueError, match=rf"bad.npy: {found}, wanted finite floats \(24 or more, 768\): extract"):
        checked_sync(sync, config, 1.0, name="bad.npy")
