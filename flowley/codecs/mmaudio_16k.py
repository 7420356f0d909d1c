"""The codec of MMAudio and of the paper: mel VAE at 16 kHz and its BigVGAN vocoder."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from flowley.codecs import bigvgan, mmaudio_vae
from flowley.codecs.bigvgan import BigVGAN
from flowley.codecs.mel import LogMel
from flowley.codecs.mmaudio_vae import MMAudioVAE
from flowley.codecs.pretrained_codec import PretrainedCodec
from flowley.weights import fill, find_file, read_tensors

VAE_FILE, VOCODER_FILE = "v1-16.pth", "best_netG.pt"
_BELOW = ("ext_weights",)


class MMAudioCodec(PretrainedCodec):
    """Wave -> log10-mel (80 bands, 1024 / 256, 0 to 8 kHz) -> latent of 20 channels at 31.25 Hz, and back.

    8 s are 250 frames. Waves are clipped to [-1, 1], as in the VAE's training.
    """

    files: ClassVar = (f"*{VAE_FILE}", f"*{VOCODER_FILE}")
    contents: ClassVar = (
        f"a folder with MMAudio's {VAE_FILE} and {VOCODER_FILE} (also under ext_weights/), as published"
    )

    audio_hz = 16_000
    latent_dim = mmaudio_vae.LATENT_DIM
    frame_samples = 2 * bigvgan.HOP

    def __init__(self, vae: MMAudioVAE, vocoder: BigVGAN) -> None:
        super().__init__()
        self.mel = LogMel(
            audio_hz=self.audio_hz, n_fft=1024, hop=bigvgan.HOP, n_mels=mmaudio_vae.N_MELS, log=torch.log10, eps=1e-9
        )
        self.vae, self.vocoder = vae, vocoder

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """See `PretrainedCodec.from_folder`. Widths are the weights'; everything else is as published."""
        vae_file = find_file(folder, VAE_FILE, below=_BELOW, wanted=cls.contents)
        vocoder_file = find_file(folder, VOCODER_FILE, below=_BELOW, wanted=cls.contents)
        state = mmaudio_vae.fold(read_tensors(vae_file))
        with torch.device("meta"):  # `fill` puts every weight
            vae = MMAudioVAE(_width(state, "encoder.conv_in.weight", 384))
        fill(vae, state, source=str(vae_file), what="MMAudio's 16 kHz VAE")
        state = bigvgan.fold(read_tensors(vocoder_file, within="generator"))
        with torch.device("meta"):
            vocoder = BigVGAN(_width(state, "conv_pre.weight", 1536))
        fill(vocoder, state, source=str(vocoder_file), what="the 16 kHz BigVGAN vocoder")
        return cls(vae, vocoder)

    def _encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.vae.encode(self.mel(wave.clamp(-1, 1)))
        return mean.transpose(1, 2), std.transpose(1, 2)

    def _decode(self, latent: Tensor) -> Tensor:
        wave: Tensor = self.vocoder(self.vae.decode(latent.transpose(1, 2)))
        return wave


def _width(state: dict[str, Tensor], name: str, published: int) -> int:
    """Output channels of the first convolution; the published number where there is none, for `fill` to complain."""
    return state[name].shape[0] if name in state and state[name].ndim == 3 else published
