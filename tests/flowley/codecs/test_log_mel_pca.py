"""The log-mel codec's principal components: against numpy's own, and as a codec."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flowley.codecs import load_codec
from flowley.codecs.log_mel import LogMelCodec, LogMelPCACodec
from flowley.weights import WEIGHTS


def waves(count: int) -> list[torch.Tensor]:
    rng, t = np.random.default_rng(0), np.arange(16_000) / 16_000
    pitches, levels = rng.uniform(100, 4000, count), rng.uniform(0.05, 0.8, count)
    return [
        torch.from_numpy(level * np.sin(2 * np.pi * hz * t) * np.exp(-t / 0.3)).float()
        for hz, level in zip(pitches, levels, strict=True)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("codec")
    LogMelPCACodec.fit(waves(40), 12).save(made)
    return made


def test_components_are_those_of_the_covariance(folder: Path) -> None:
    codec = LogMelPCACodec.from_folder(folder)
    frames = torch.cat([LogMelCodec().encode(wave[None])[0][0] for wave in waves(40)]).double().numpy()
    _, _, wanted = np.linalg.svd(frames - frames.mean(0), full_matrices=False)
    assert np.allclose(codec.mean, frames.mean(0), atol=1e-4)
    assert np.allclose(np.abs(codec.components.numpy() @ wanted[:12].T), np.eye(12), atol=1e-2)


def test_all_components_lose_nothing() -> None:
    codec, plain = LogMelPCACodec.fit(waves(10), 64), LogMelCodec()
    latent = codec.encode(waves(3)[2][None])[0]
    back = latent @ codec.components + codec.mean
    torch.testing.assert_close(back, plain.encode(waves(3)[2][None])[0], atol=1e-3, rtol=1e-3)


def test_it_loads_by_name_and_keeps_the_codecs_promises(folder: Path) -> None:
    codec = load_codec("log_mel_pca", path=str(folder))
    assert (codec.audio_hz, codec.latent_dim, float(codec.latent_hz)) == (16_000, 12, 31.25)
    mean, std = codec.encode(torch.stack(waves(2)))
    assert mean.shape == (2, 32, 12) and not std.any()
    decoded = codec.decode(mean)
    assert decoded.shape == (2, 32 * 512) and decoded.abs().max() <= 1
    assert (codec.encode(decoded)[0] - mean).square().mean() < 0.15 * mean.square().mean()


def test_bad_files_and_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"has no {WEIGHTS}"):
        load_codec("log_mel_pca", path=str(tmp_path))
    (tmp_path / WEIGHTS).write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_codec("log_mel_pca", path=str(tmp_path))
    LogMelPCACodec(torch.zeros(32), torch.zeros(4, 32)).save(tmp_path)
    with pytest.raises(ValueError, match=r"wanted mean \(64,\)"):
        load_codec("log_mel_pca", path=str(tmp_path))
    for dim in (0, 65):
        with pytest.raises(ValueError, match=r"wanted within \[1, 64\]"):
            LogMelPCACodec.fit(waves(4), dim)
    with pytest.raises(ValueError, match="32 frames of sound, wanted at least 64"):
        LogMelPCACodec.fit(waves(1), 4)
