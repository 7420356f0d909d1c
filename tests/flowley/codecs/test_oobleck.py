"""The Oobleck codec against diffusers called directly."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowley.codecs import load_codec


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("ratios", "audio_hz", "latent_hz"),
    [
        ([2, 4, 4, 6, 10], 48_000, Fraction(25)),  # ACE-Step 1.5
        ([2, 4, 4, 8, 8], 44_100, Fraction(44_100, 2048)),  # Stable Audio Open
        ([3, 5, 2], 24_000, Fraction(800)),  # odd ratios: the decoder gives fewer samples than L frames last
    ],
)
def test_what_diffusers_gives(
    ratios: list[int], audio_hz: int, latent_hz: Fraction, channels: int, build_oobleck: Callable[..., Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    from diffusers import AutoencoderOobleck

    codec = load_codec("oobleck", path=str(build_oobleck(tmp_path, ratios, audio_hz, channels)))
    assert (codec.audio_hz, codec.latent_hz, codec.latent_dim) == (audio_hz, latent_hz, 6)
    model = AutoencoderOobleck.from_pretrained(tmp_path).eval()
    hop = int(audio_hz / latent_hz)
    wave = torch.rand(2, 5 * hop) - 0.5
    with torch.no_grad():
        posterior = model.encode(torch.stack([wave] * channels, dim=1)).latent_dist
        decoded = model.decode(posterior.mean).sample.mean(1).clamp(-1, 1)
    mean, std = codec.encode(wave)
    torch.testing.assert_close(mean, posterior.mean.transpose(1, 2))
    torch.testing.assert_close(std, posterior.std.transpose(1, 2))
    found = codec.decode(mean)
    n = decoded.shape[1]
    assert found.shape == (2, 5 * hop) and n <= 5 * hop
    torch.testing.assert_close(found[:, :n], decoded)
    assert not found[:, n:].any()


def test_weights_that_do_not_cover_the_model(build_oobleck: Callable[..., Path], tmp_path: Path) -> None:
    build_oobleck(tmp_path, [2, 4], 16_000, 1)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({name: value for name, value in weights.items() if "decoder.conv1" not in name}, file)
    with pytest.raises(ValueError, match="lacks 3 weights of AutoencoderOobleck .decoder.conv1"):
        load_codec("oobleck", path=str(tmp_path))
    save_file(weights | {"encoder.conv1.bias": torch.zeros(99)}, file)
    with pytest.raises(ValueError, match="cannot be read as AutoencoderOobleck"):
        load_codec("oobleck", path=str(tmp_path))


def test_another_autoencoder(audioldm2_folder: Path) -> None:
    with pytest.raises(ValueError, match="config.json is of a AutoencoderKL: wanted a folder with an Auto"):
        load_codec("oobleck", path=str(audioldm2_folder / "vae"))
