"""CLAP agreement against transformers called directly, and against windows and texts that are cut by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import resample_poly
from transformers import ClapModel, ClapProcessor

from flowley.metrics.clap import Clap
from miniature.models.tiny import CLAP_HZ, CLAP_TEXT_TOKENS, CLAP_WINDOW_S, build_tiny_clap

TEXTS = ["A dog barks twice.", "Rain patters on a tin roof while a bell rings.", "hum"]
Waves = Callable[..., list[np.ndarray]]


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny checkpoint with the layers for long sounds."""
    folder = tmp_path_factory.mktemp("clap") / "fused"
    build_tiny_clap(folder, seed=1, fusion=True)
    return folder


@pytest.fixture(scope="module")
def waves() -> Waves:
    """Chirps of the given lengths in s over noise, at hz."""

    def make(*lengths_s: float, hz: int = CLAP_HZ) -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        times = [np.arange(round(length_s * hz)) / hz for length_s in lengths_s]
        return [
            0.3 * np.sin(2 * np.pi * (300 * (k + 1) + 200 * t) * t) + 0.01 * rng.normal(size=len(t))
            for k, t in enumerate(times)
        ]

    return make


def direct(folder: Path, waves: list[np.ndarray], texts: list[str]) -> np.ndarray:
    """Cosines (N,) by transformers' whole forward pass, one pair at a time; sounds of at most CLAP_WINDOW_S."""
    model: Any = ClapModel.from_pretrained(folder).eval()
    processor: Any = ClapProcessor.from_pretrained(folder)
    found = []
    for wave, text in zip(waves, texts, strict=True):
        inputs = processor(text=[text], audio=[wave], sampling_rate=CLAP_HZ, return_tensors="pt")
        inputs["is_longer"] = torch.zeros(1, 1, dtype=torch.bool)
        with torch.inference_mode():
            outputs = model(**inputs)
        found.append(float(torch.cosine_similarity(outputs.audio_embeds, outputs.text_embeds)[0]))
    return np.array(found)


def test_agreement_is_that_of_transformers(tiny_clap: Path, fused: Path, waves: Waves) -> None:
    """Also for sounds shorter than the model's window, which its extractor repeats, and in one batch."""
    sounds = waves(2.0, 10.0, 7.3)
    for folder in (tiny_clap, fused):
        found = Clap(str(folder)).agreement(sounds, CLAP_HZ, TEXTS)
        assert found.shape == (3,) and found.dtype == np.float32
        np.testing.assert_allclose(found, direct(folder, sounds, TEXTS), atol=1e-5)
        assert np.ptp(found) > 1e-3, "three pairs that all agree alike show nothing"


def test_the_same_sound_has_the_same_embedding_in_any_company(fused: Path, waves: Waves) -> None:
    """transformers' extractor draws one of a batch, and the part of a long sound that is heard, by chance."""
    clap, sounds = Clap(str(fused)), waves(2.0, 25.0, 3.0)
    together = clap.embed_sounds(sounds, CLAP_HZ)
    for seed, batch_size in ((1, 1), (2, 2), (3, 16)):
        np.random.seed(seed)
        np.testing.assert_allclose(clap.embed_sounds(sounds, CLAP_HZ, batch_size=batch_size), together, atol=1e-5)
        np.testing.assert_allclose(clap.embed_sounds(sounds[1:2], CLAP_HZ)[0], together[1], atol=1e-5)


def test_a_long_sound_is_heard_from_its_start_to_its_end(tiny_clap: Path, waves: Waves) -> None:
    clap, [wave] = Clap(str(tiny_clap)), waves(24.0)
    assert clap.window_s == CLAP_WINDOW_S
    starts_s = (0, 7, 14)  # three windows of 10 s
    parts = [wave[start * CLAP_HZ : (start + CLAP_WINDOW_S) * CLAP_HZ] for start in starts_s]
    mean = clap.embed_sounds(parts, CLAP_HZ).mean(0)
    [found] = clap.embed_sounds([wave], CLAP_HZ)
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-5)
    [whole] = clap.embed_sounds([wave[: 10 * CLAP_HZ]], CLAP_HZ)
    assert np.abs(found - whole).max() > 1e-4, "the first window alone is not the sound"


def test_sounds_of_other_rates_are_resampled(tiny_clap: Path, waves: Waves) -> None:
    clap, [at_16k] = Clap(str(tiny_clap)), waves(4.0, hz=16_000)
    [found] = clap.embed_sounds([at_16k], 16_000)
    [wanted] = clap.embed_sounds([resample_poly(at_16k, 3, 1)], CLAP_HZ)
    assert found @ wanted > 1 - 2e-3, "filters differ a little at their edges"
    [unresampled] = clap.embed_sounds([at_16k], CLAP_HZ)
    assert unresampled @ wanted < 1 - 8e-3, "else the rate would be of no account"


def test_a_long_text_is_cut_at_the_encoders_limit(tiny_clap: Path) -> None:
    clap = Clap(str(tiny_clap))
    assert clap.max_tokens == CLAP_TEXT_TOKENS
    cut, longer, other = clap.embed_texts(["buzz " * 100, "buzz " * 20_000, "buzz"])
    np.testing.assert_allclose(cut, longer, atol=1e-6)
    assert np.abs(cut - other).max() > 1e-3
    assert np.linalg.norm(cut) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("wave", "words"),
    [
        (np.zeros(0), r"shape \(0,\), wanted mono"),
        (np.zeros((2, 48_000)), r"shape \(2, 48000\), wanted mono"),
        (np.array([0.1, np.nan] * 400), "400 of 800 samples are not finite"),
    ],
)
def test_sounds_that_cannot_be_heard(tiny_clap: Path, wave: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Clap(str(tiny_clap)).embed_sounds([wave], CLAP_HZ)


def test_counts_that_differ_and_nothing_at_all(tiny_clap: Path, waves: Waves) -> None:
    clap = Clap(str(tiny_clap))
    with pytest.raises(ValueError, match="1 sounds and 3 texts"):
        clap.agreement(waves(1.0), CLAP_HZ, TEXTS)
    with pytest.raises(ValueError, match="no sounds to listen to"):
        clap.embed_sounds([], CLAP_HZ)
    with pytest.raises(ValueError, match="no texts to read"):
        clap.embed_texts([])


@pytest.mark.parametrize(
    "damage", ["no folder", "no config", "not JSON", "empty config", "another model", "no processor", "no weights"]
)
def test_folders_that_are_no_checkpoints(tiny_clap: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "clap"
    if damage != "no folder":
        shutil.copytree(tiny_clap, folder)
    config = folder / "config.json"
    if damage == "no config":
        config.unlink()
    elif damage in ("not JSON", "empty config"):
        config.write_text("{" if damage == "not JSON" else "{}")
    elif damage == "another model":
        config.write_text(json.dumps({"model_type": "t5"}))
    elif damage == "no processor":
        for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()
    elif damage == "no weights":
        (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is not a CLAP checkpoint") as raised:
        Clap(str(folder))
    assert "\n" not in str(raised.value) and "ClapModel" in str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there_is_not_the_checkpoints_fault(tiny_clap: Path) -> None:
    with pytest.raises((RuntimeError, AssertionError)) as raised:
        Clap(str(tiny_clap), device="cuda")
    assert "CLAP checkpoint" not in str(raised.value)
