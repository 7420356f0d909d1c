"""Codecs with weights: rates, lengths, odd input, frozen weights, and damaged folders."""

from __future__ import annotations

import math
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from flowley.codecs import PRETRAINED, AudioCodec, load_codec

RATES = {
    "mmaudio_16k": (16_000, Fraction(125, 4), 20),
    "oobleck": (48_000, Fraction(25), 6),
    "audioldm2": (16_000, Fraction(25), 128),
    "log_mel_pca": (16_000, Fraction(125, 4), 12),
}
WEIGHTS = {
    "mmaudio_16k": ["v1-16.pth", "best_netG.pt"],
    "oobleck": ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"],
    "audioldm2": [
        "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
        "vocoder/config.json", "vocoder/model.safetensors",
    ],
    "log_mel_pca": ["model.safetensors"],
}  # fmt: skip
EACH_FILE = [(name, file) for name, files in WEIGHTS.items() for file in files]


@pytest.fixture(scope="module", params=list(PRETRAINED))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def codec(name: str, folders: dict[str, Path]) -> AudioCodec:
    return load_codec(name, path=str(folders[name]))


def test_rates(name: str, codec: AudioCodec) -> None:
    assert (codec.audio_hz, codec.latent_hz, codec.latent_dim) == RATES[name]


@pytest.mark.parametrize("frames", [Fraction(1, 10**6), Fraction(1), Fraction(7, 2), Fraction(5), Fraction(501, 100)])
def test_lengths_are_whole_frames(codec: AudioCodec, frames: Fraction) -> None:
    """One sample, whole frames, and lengths that fill a last frame only in part."""
    samples_per_frame = codec.audio_hz / codec.latent_hz
    N = math.ceil(frames * samples_per_frame)
    mean, std = codec.encode(torch.rand(2, N) - 0.5)
    L = math.ceil(N / samples_per_frame)
    assert mean.shape == std.shape == (2, L, codec.latent_dim)
    assert mean.dtype == torch.float32 and (std >= 0).all() and std.isfinite().all() and mean.isfinite().all()
    wave = codec.decode(mean)
    assert wave.shape == (2, L * samples_per_frame)
    assert wave.isfinite().all() and wave.abs().max() <= 1


def test_an_unfilled_frame_is_filled_with_silence(codec: AudioCodec) -> None:
    wave = torch.rand(1, 3001) - 0.5
    samples = int(codec.audio_hz / codec.latent_hz)
    longer = torch.cat([wave, torch.zeros(1, -3001 % samples)], dim=1)
    assert torch.equal(codec.encode(wave)[0], codec.encode(longer)[0])


def test_silence(codec: AudioCodec) -> None:
    mean, std = codec.encode(torch.zeros(1, 10_000))
    assert mean.isfinite().all() and std.isfinite().all() and codec.decode(mean).isfinite().all()


def test_a_clip_does_not_depend_on_its_batch(codec: AudioCodec) -> None:
    waves = torch.rand(3, 6000) - 0.5
    latents, _ = codec.encode(waves)
    decoded = codec.decode(latents)
    for i in range(3):
        torch.testing.assert_close(codec.encode(waves[i : i + 1])[0][0], latents[i], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(codec.decode(latents[i : i + 1])[0], decoded[i], atol=1e-5, rtol=1e-4)


def test_frame_i_is_the_sound_of_its_own_time(codec: AudioCodec) -> None:
    """Other sound in frame 8 alone changes the latent most at frame 8, and frame 8 alone the wave most there."""
    g = torch.Generator().manual_seed(0)
    samples = int(codec.audio_hz / codec.latent_hz)
    wave = 0.1 * torch.randn(1, 16 * samples, generator=g)
    other = wave.clone()
    other[:, 8 * samples : 9 * samples] = 0.5 * torch.randn(samples, generator=g)
    latent, changed = codec.encode(wave)[0], codec.encode(other)[0]
    assert abs(int((changed - latent).square().sum(-1).argmax()) - 8) <= 1
    latent[:, 8] += 3
    difference = (codec.decode(latent) - codec.decode(codec.encode(wave)[0])).square()
    assert abs(int(difference.reshape(16, samples).sum(-1).argmax()) - 8) <= 1


def test_frozen_and_reproducible(codec: AudioCodec) -> None:
    assert isinstance(codec, torch.nn.Module)
    assert not codec.training and not any(module.training for module in codec.modules())
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    wave = (torch.rand(1, 4000) - 0.5).requires_grad_()
    mean, std = codec.encode(wave)
    decoded = codec.decode(mean.requires_grad_())
    assert not std.requires_grad and not decoded.requires_grad
    assert torch.equal(mean, codec.encode(wave)[0]) and torch.equal(decoded, codec.decode(mean))


def test_half_precision_and_double_are_taken(codec: AudioCodec) -> None:
    wave = (torch.rand(1, 4000) - 0.5).half()
    wanted, _ = codec.encode(wave.float())
    for dtype in (torch.float16, torch.float64):
        assert torch.equal(codec.encode(wave.to(dtype))[0], wanted)
    assert torch.equal(codec.decode(wanted.double()), codec.decode(wanted))


def test_wrong_waves_and_latents(codec: AudioCodec) -> None:
    broken = torch.zeros(2, 100)
    broken[1, 3] = math.nan
    C = codec.latent_dim
    for wave, said in [
        (torch.zeros(100), "wanted mono"), (torch.zeros(1, 2, 100), "wanted mono"), (torch.zeros(1, 0), "wanted mono"),
        (torch.zeros(1, 100, dtype=torch.int16), "int16, wanted floating-point"), (broken, "1 of 200 samples NaN"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=said):
            codec.encode(wave)
    for latent, said in [
        (torch.zeros(1, 4, C + 1), f"wanted .B, L >= 1, {C}"), (torch.zeros(4, C), "wanted .B, L"),
        (torch.zeros(1, 0, C), "L >= 1"), (torch.full((1, 4, C), math.inf), "values NaN or infinite"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=said):
            codec.decode(latent)


@pytest.mark.parametrize(("name", "file"), EACH_FILE)
def test_a_missing_file_is_named(name: str, file: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders[name], tmp_path / "copy")
    (folder / file).unlink()
    with pytest.raises(ValueError, match=rf"has no .*{Path(file).name}: wanted a folder"):
        load_codec(name, path=str(folder))


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"not weights at all"])
@pytest.mark.parametrize(("name", "file"), EACH_FILE)
def test_an_unreadable_file_is_named(
    name: str, file: str, damage: object, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders[name], tmp_path / "copy")
    (folder / file).write_bytes(damage((folder / file).read_bytes()))  # type: ignore[operator]
    with pytest.raises(ValueError, match=rf"{Path(file).name} cannot be read") as caught:
        load_codec(name, path=str(folder))
    assert "\n" not in str(caught.value)


def test_a_folder_of_another_codec(name: str, folders: dict[str, Path]) -> None:
    for other, folder in folders.items():
        if other != name:
            with pytest.raises(ValueError, match="wanted a folder"):
                load_codec(name, path=str(folder))
