"""Small checkpoints of the real architectures, in the folders that the codecs load."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowley.codecs.log_mel import LogMelPCACodec

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def upstream() -> dict[str, Any]:
    """Key names, shapes, rule of the weights (read its `about`)."""
    return json.loads((FIXTURES / "mmaudio_16k.json").read_text())


@pytest.fixture(scope="session")
def recorded() -> dict[str, Tensor]:
    """Upstream's outputs for the weights of that rule."""
    with np.load(FIXTURES / "mmaudio_16k.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture(scope="session")
def ruled_weights(upstream: dict[str, Any]) -> Callable[[str, str], dict[str, Tensor]]:
    """The weights of a part (`vae` or `bigvgan`) and size (`full` or `reduced`), by the fixture's rule."""

    def one(name: str, shape: list[int], rules: list[list[Any]]) -> Tensor:
        center, scale = next((center, scale) for ending, center, scale in rules if name.endswith(ending))
        if isinstance(center, list):
            return torch.tensor(center).reshape(shape)
        generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
        n = generator.standard_normal(shape, dtype=np.float32)
        return torch.from_numpy(np.asarray(np.float32(center) + np.float32(scale) * n))

    def weights(part: str, size: str) -> dict[str, Tensor]:
        shapes = dict(upstream[part])
        if size == "reduced":
            shapes = {name: [d // 12 if d % 24 == 0 else d for d in shape] for name, shape in shapes.items()}
        return {name: one(name, shape, upstream["rules"][part]) for name, shape in shapes.items()}

    return weights


@pytest.fixture(scope="session")
def mmaudio_folder(tmp_path_factory: pytest.TempPathFactory, ruled_weights: Callable[..., dict[str, Tensor]]) -> Path:
    folder = tmp_path_factory.mktemp("mmaudio")
    torch.save(ruled_weights("vae", "reduced"), folder / "v1-16.pth")
    torch.save({"generator": ruled_weights("bigvgan", "reduced")}, folder / "best_netG.pt")
    return folder


@pytest.fixture(scope="session")
def build_oobleck() -> Callable[..., Path]:
    def build(folder: Path, ratios: list[int], audio_hz: int, channels: int) -> Path:
        from diffusers import AutoencoderOobleck

        torch.manual_seed(0)
        model = AutoencoderOobleck(
            encoder_hidden_size=12, downsampling_ratios=ratios, channel_multiples=[1] * len(ratios),
            decoder_channels=8, decoder_input_channels=6, audio_channels=channels, sampling_rate=audio_hz,
        )  # fmt: skip
        model.save_pretrained(folder)
        return folder

    return build


@pytest.fixture(scope="session")
def oobleck_folder(tmp_path_factory: pytest.TempPathFactory, build_oobleck: Callable[..., Path]) -> Path:
    """Rates and channels of ACE-Step 1.5's, in vae/ as there."""
    folder = tmp_path_factory.mktemp("oobleck")
    build_oobleck(folder / "vae", [2, 4, 4, 6, 10], 48_000, 2)
    return folder


@pytest.fixture(scope="session")
def audioldm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AudioLDM 2's rates, mel and latent; fewer channels inside."""
    from diffusers import AutoencoderKL
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    folder = tmp_path_factory.mktemp("audioldm2")
    torch.manual_seed(0)
    AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=8, scaling_factor=0.41, norm_num_groups=4,
        block_out_channels=(8, 8, 16), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    ).save_pretrained(folder / "vae")  # fmt: skip
    config = SpeechT5HifiGanConfig(
        model_in_dim=64, sampling_rate=16_000, upsample_initial_channel=64, upsample_rates=[5, 4, 2, 2, 2],
        upsample_kernel_sizes=[16, 16, 8, 4, 4], normalize_before=False, initializer_range=0.1,
    )  # fmt: skip
    SpeechT5HifiGan(config).save_pretrained(folder / "vocoder")
    return folder


@pytest.fixture(scope="session")
def log_mel_pca_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log_mel_pca")
    t = torch.arange(16_000) / 16_000
    generator = torch.Generator().manual_seed(0)
    tones = [torch.sin(2 * torch.pi * hz * t) * torch.exp(-t / 0.3) for hz in torch.linspace(100, 6000, 30)]
    LogMelPCACodec.fit([*tones, torch.zeros(16_000), torch.randn(16_000, generator=generator) / 4], 12).save(folder)
    return folder


@pytest.fixture(scope="session")
def folders(
    mmaudio_folder: Path, oobleck_folder: Path, audioldm2_folder: Path, log_mel_pca_folder: Path
) -> dict[str, Path]:
    return {
        "mmaudio_16k": mmaudio_folder,
        "oobleck": oobleck_folder,
        "audioldm2": audioldm2_folder,
        "log_mel_pca": log_mel_pca_folder,
    }
