"""The weight-free codec: rates, lengths, time alignment, and how much of a sound survives it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowley.codecs.log_mel import LogMelCodec

HZ = 16_000


@pytest.fixture(scope="module")
def codec() -> LogMelCodec:
    return LogMelCodec()


def sounds() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    t = torch.arange(4 * HZ) / HZ
    clicks = torch.zeros(4 * HZ)
    for n in range(HZ // 2, 4 * HZ, HZ):
        clicks[n : n + 800] = torch.randn(800, generator=g) * torch.exp(-torch.arange(800) / 200) * 0.5
    return {
        "chopped tone": 0.3 * torch.sin(2 * math.pi * 440 * t) * (torch.sin(2 * math.pi * t) > 0),
        "clicks": clicks,
        "noise": 0.1 * torch.randn(4 * HZ, generator=g),
        "sweep": 0.3 * torch.sin(2 * math.pi * (200 + 400 * t) * t),
    }


def test_the_papers_latent_length(codec: LogMelCodec) -> None:
    mean, std = codec.encode(torch.zeros(2, 8 * HZ))
    assert mean.shape == std.shape == (2, 250, codec.latent_dim)
    assert codec.latent_hz * 8 == 250
    assert not std.any()


@pytest.mark.parametrize("n", [1, 511, 512, 513, 5000, HZ])
def test_lengths_round_trip(codec: LogMelCodec, n: int) -> None:
    mean, _ = codec.encode(torch.zeros(1, n))
    assert mean.shape[1] == math.ceil(n / codec.frame_samples)
    assert codec.decode(mean).shape == (1, mean.shape[1] * codec.frame_samples)


@pytest.mark.parametrize("name", sounds())
def test_what_comes_back_has_the_same_log_mel(codec: LogMelCodec, name: str) -> None:
    before, _ = codec.encode(sounds()[name][None])
    after, _ = codec.encode(codec.decode(before))
    correlation = torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1]
    assert correlation > 0.95, "inversion lost the spectrogram: look at the mel filters, then at the phase"


def test_loudness_comes_back(codec: LogMelCodec) -> None:
    wave = sounds()["noise"][None]
    decoded = codec.decode(codec.encode(wave)[0])
    assert float(decoded.square().mean().sqrt() / wave.square().mean().sqrt()) == pytest.approx(1, abs=0.25)


def test_frame_i_is_the_sound_around_its_own_time(codec: LogMelCodec) -> None:
    """A click at 1 s is loudest in frame 31.25 * 1, and comes back at 1 s."""
    wave = torch.zeros(1, 2 * HZ)
    wave[0, HZ : HZ + 64] = 0.5
    mean, _ = codec.encode(wave)
    assert abs(int(mean.sum(-1).argmax()) - 31.25) < 1
    assert abs(int(codec.decode(mean).abs().argmax()) / HZ - 1) < 1 / 31.25


def test_decoding_is_deterministic_and_bounded(codec: LogMelCodec) -> None:
    latent = torch.randn(1, 20, codec.latent_dim) * 5
    torch.manual_seed(1)
    first = codec.decode(latent)
    torch.manual_seed(2)
    assert torch.equal(first, codec.decode(latent))
    assert first.abs().max() <= 1


def test_wrong_waves_and_latents(codec: LogMelCodec) -> None:
    with pytest.raises(ValueError, match="wanted mono"):
        codec.encode(torch.zeros(1, 2, 100))
    with pytest.raises(ValueError, match="wanted mono"):
        codec.encode(torch.zeros(1, 0))
    with pytest.raises(ValueError, match="L >= 1, 64"):
        codec.decode(torch.zeros(1, 10, 20))
    with pytest.raises(ValueError, match="1 of 100 samples NaN or infinite"):
        codec.encode(torch.zeros(1, 100).index_fill(1, torch.tensor([3]), math.inf))
