"""MMAudio's 16 kHz VAE and vocoder: upstream's own outputs for the same weights, its key names, damaged files."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowley.codecs import bigvgan, load_codec, mmaudio_16k
from flowley.codecs.bigvgan import BigVGAN
from flowley.codecs.mmaudio_16k import MMAudioCodec, MMAudioVAE
from flowley.weights import fill

Weights = Callable[[str, str], dict[str, Tensor]]
MIB = 2**20


def assert_outputs_are_upstreams(codec: MMAudioCodec, recorded: dict[str, Tensor], size: str) -> None:
    def close(found: Tensor, name: str) -> None:
        torch.testing.assert_close(found, recorded[f"{size}_{name}"], atol=1e-4, rtol=0, msg=name)

    mean, std = codec.encode(recorded["wave"])
    close(mean.transpose(1, 2), "mean")
    close(std.transpose(1, 2), "std")
    with torch.no_grad():
        close(codec.vae.decode(mean.transpose(1, 2)), "decoded_mel")
    close(codec.decode(mean), "decoded_wave")


@pytest.fixture
def codec(mmaudio_folder: Path) -> Any:
    return load_codec("mmaudio_16k", path=str(mmaudio_folder))


def test_outputs_are_upstreams(codec: MMAudioCodec, recorded: dict[str, Tensor]) -> None:
    assert_outputs_are_upstreams(codec, recorded, "reduced")


@pytest.mark.slow
def test_outputs_are_upstreams_at_full_size(ruled_weights: Weights, recorded: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        vae, vocoder = MMAudioVAE(384), BigVGAN(1536)
    fill(vae, mmaudio_16k.fold(ruled_weights("vae", "full")), source="", what="")
    fill(vocoder, bigvgan.fold(ruled_weights("bigvgan", "full")), source="", what="")
    assert_outputs_are_upstreams(MMAudioCodec(vae, vocoder), recorded, "full")


@pytest.mark.parametrize(
    ("part", "fold", "build", "published_mib"),
    [
        ("vae", mmaudio_16k.fold, lambda: MMAudioVAE(384), 655),
        ("bigvgan", bigvgan.fold, lambda: BigVGAN(1536), 428),
    ],
)
def test_the_published_keys_and_shapes_fit_exactly(
    upstream: dict[str, Any], part: str, fold: Any, build: Any, published_mib: int
) -> None:
    """Every key is used, none is missing; and fp32 weights of those shapes have the published files' sizes."""
    assert round(sum(prod(shape) for shape in upstream[part].values()) * 4 / MIB) == published_mib
    with torch.device("meta"):
        fill(build(), fold({name: torch.empty(shape) for name, shape in upstream[part].items()}), source="", what="")


def test_both_spellings_of_a_normalised_weight_load(
    codec: MMAudioCodec, mmaudio_folder: Path, tmp_path: Path, ruled_weights: Weights
) -> None:
    """Files of torch < 2.1 say weight_g and weight_v; ext_weights/ is upstream's own folder."""
    folder = tmp_path / "ext_weights"
    folder.mkdir()
    (folder / "v1-16.pth").symlink_to(mmaudio_folder / "v1-16.pth")
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in ruled_weights("bigvgan", "reduced").items()
    }
    assert old.keys() != ruled_weights("bigvgan", "reduced").keys()
    torch.save({"generator": old}, folder / "best_netG.pt")
    latent = torch.randn(1, 3, 20)
    assert torch.equal(load_codec("mmaudio_16k", path=str(tmp_path)).decode(latent), codec.decode(latent))


def test_eight_seconds_are_250_frames_of_20(codec: MMAudioCodec) -> None:
    assert (codec.audio_hz, codec.latent_hz * 8, codec.latent_dim) == (16_000, 250, 20)
    mean, _ = codec.encode(torch.zeros(1, 8 * 16_000))
    assert mean.shape == (1, 250, 20)


def test_loud_waves_are_clipped(codec: MMAudioCodec) -> None:
    wave = 3 * torch.randn(1, 4096)
    assert torch.equal(codec.encode(wave)[0], codec.encode(wave.clamp(-1, 1))[0])


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda vae, gan: (gan["generator"], gan), "v1-16.pth is not MMAudio's 16 kHz VAE: .* is missing"),
        (lambda vae, gan: (vae, vae), "holds no dictionary of tensors under 'generator'"),
        (lambda vae, gan: (vae, {"generator": vae}), "best_netG.pt is not the 16 kHz BigVGAN vocoder"),
        (lambda vae, gan: (vae | {"encoder.conv_in.weight": torch.ones(32, 128, 3)}, gan), r"\(32, 128, 3\), wanted"),
        (lambda vae, gan: (vae | {"extra": torch.ones(1)}, gan), "1 .* misfit: extra is not one of its weights"),
        (lambda vae, gan: ([1, 2], gan), "holds no dictionary of tensors"),
        (lambda vae, gan: ({"state": {}}, gan), "holds no dictionary of tensors"),
        (lambda vae, gan: (object(), gan), "cannot be read as weights"),
    ],
)  # fmt: skip
def test_weights_of_another_model(
    broken: Callable[[Any, Any], tuple[Any, Any]], said: str, tmp_path: Path, ruled_weights: Weights
) -> None:
    vae, gan = broken(ruled_weights("vae", "reduced"), {"generator": ruled_weights("bigvgan", "reduced")})
    torch.save(vae, tmp_path / "v1-16.pth")
    torch.save(gan, tmp_path / "best_netG.pt")
    with pytest.raises(ValueError, match=said):
        load_codec("mmaudio_16k", path=str(tmp_path))
