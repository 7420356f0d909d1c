"""The AudioLDM 2 codec against diffusers and transformers called directly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from flowley.codecs import load_codec
from flowley.codecs.log_mel import LogMel


def test_what_the_libraries_give(audioldm2_folder: Path) -> None:
    from diffusers import AutoencoderKL
    from transformers import SpeechT5HifiGan

    codec = load_codec("audioldm2", path=str(audioldm2_folder))
    vae = AutoencoderKL.from_pretrained(audioldm2_folder / "vae").eval()
    vocoder = SpeechT5HifiGan.from_pretrained(audioldm2_folder / "vocoder").eval()
    wave = torch.rand(2, 8 * 640) - 0.5
    mel = LogMel(audio_hz=16_000, n_fft=1024, hop=160, n_mels=64, log=torch.log, eps=0.0)(wave)  # see test_mel
    scale = vae.config.scaling_factor
    assert scale == 0.41
    with torch.no_grad():
        posterior = vae.encode(mel.mT[:, None]).latent_dist
        latent = scale * posterior.mean  # what AudioLDM 2's pipeline hands to its own network
        decoded = vocoder(vae.decode(latent / scale).sample.squeeze(1))
    mean, std = codec.encode(wave)
    assert mean.shape == (2, 8, 128)
    for c in range(8):
        for f in range(16):
            torch.testing.assert_close(mean[:, :, 16 * c + f], latent[:, c, :, f])
            torch.testing.assert_close(std[:, :, 16 * c + f], scale * posterior.std[:, c, :, f])
    assert decoded.std() > 1e-3 and decoded.shape[1] == 5120 + 32  # the kernel of 16 at rate 5 is one too long
    torch.testing.assert_close(codec.decode(mean), decoded[:, :5120], atol=1e-5, rtol=1e-4)


def edited(folder: Path, to: Path, part: str, **values: object) -> str:
    copy = shutil.copytree(folder, to)
    config = copy / part / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))
    return str(copy)


def test_the_published_vocoders_older_model_type(audioldm2_folder: Path, tmp_path: Path) -> None:
    latent = torch.randn(1, 4, 128)
    older = load_codec("audioldm2", path=edited(audioldm2_folder, tmp_path / "copy", "vocoder", model_type="hifigan"))
    assert torch.equal(older.decode(latent), load_codec("audioldm2", path=str(audioldm2_folder)).decode(latent))


def test_vae_and_vocoder_of_other_models(audioldm2_folder: Path, tmp_path: Path) -> None:
    path = edited(audioldm2_folder, tmp_path / "a", "vae", _class_name="VQModel")
    with pytest.raises(ValueError, match="vae/config.json is of a VQModel: wanted a folder of AudioLDM 2"):
        load_codec("audioldm2", path=path)
    path = edited(audioldm2_folder, tmp_path / "b", "vocoder", architectures=["UnivNetModel"])
    with pytest.raises(ValueError, match="vocoder/config.json is of a UnivNetModel: wanted"):
        load_codec("audioldm2", path=path)


def test_the_vae_of_an_image_model(audioldm2_folder: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    folder = shutil.copytree(audioldm2_folder, tmp_path / "copy")
    AutoencoderKL(norm_num_groups=4, block_out_channels=(8,)).save_pretrained(folder / "vae")
    with pytest.raises(ValueError, match="VAE of 3 channels that divides by 1.* wanted a folder of AudioLDM 2"):
        load_codec("audioldm2", path=str(folder))
