"""Codec of MMAudio (Cheng et al., CVPR 2025) and of the paper: 16 kHz mel VAE, and its BigVGAN vocoder.

The VAE turns a log-mel spectrogram into 20 channels at half its rate. It is one-dimensional and convolutional over
time, mel bands as channels, in the magnitude-preserving form of EDM2 (Karras et al., CVPR 2024): every kernel has
unit norm, activations are divided by their root mean square at the entry of each block, and sums and SiLUs are
rescaled so that they keep it. There are no biases.

In the published file a kernel's norm is left free and removed on use (EDM2, equation 66); here `fold` removes it
once, and what remains are ordinary convolutions under the published names.

Shapes: B batch, T mel frames, L = T / 2 latent frames, M mel bands, C channels.
"""

from __future__ import annotations

from math import hypot, sqrt
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, scaled_dot_product_attention, silu

from flowley.codecs import bigvgan
from flowley.codecs.audio_codec import PretrainedCodec
from flowley.codecs.bigvgan import BigVGAN
from flowley.codecs.log_mel import LogMel
from flowley.weights import fill, find_file, read_tensors

VAE_FILE, VOCODER_FILE = "v1-16.pth", "best_netG.pt"
_BELOW = ("ext_weights",)
N_MELS = 80
LATENT_DIM = 20
_EPS = 1e-4
_LIMIT = 256.0
"""Activations are kept within +-256 after each block."""
_MULTIPLES = (1, 2, 4)
"""Channels of the three levels, in units of the width; the rate halves after the first."""


class MMAudioCodec(PretrainedCodec):
    """Wave -> log10-mel (80 bands, 1024 / 256, 0 to 8 kHz) -> latent of 20 channels at 31.25 Hz, and back.

    8 s are 250 frames. Waves are clipped to [-1, 1], as in the VAE's training.
    """

    files: ClassVar = (f"*{VAE_FILE}", f"*{VOCODER_FILE}")
    contents: ClassVar = (
        f"a folder with MMAudio's {VAE_FILE} and {VOCODER_FILE} (also under ext_weights/), as published"
    )

    audio_hz = 16_000
    latent_dim = LATENT_DIM
    frame_samples = 2 * bigvgan.HOP

    def __init__(self, vae: MMAudioVAE, vocoder: BigVGAN) -> None:
        super().__init__()
        self.mel = LogMel(audio_hz=self.audio_hz, n_fft=1024, hop=bigvgan.HOP, n_mels=N_MELS, log=torch.log10, eps=1e-9)
        self.vae, self.vocoder = vae, vocoder

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Widths are the weights'; everything else is as published."""
        vae_file = find_file(folder, VAE_FILE, below=_BELOW, wanted=cls.contents)
        vocoder_file = find_file(folder, VOCODER_FILE, below=_BELOW, wanted=cls.contents)
        state = fold(read_tensors(vae_file))
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


def fold(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published weights -> those of `MMAudioVAE`: the same names, kernels of unit norm (EDM2, equations 47, 66)."""
    folded = dict(state)
    for name, weight in state.items():
        if name.endswith(".weight"):
            scale = 1 / sqrt(weight[0].numel())
            norm = torch.linalg.vector_norm(weight.flatten(1), dim=1)[:, None, None]
            folded[name] = weight / (_EPS + norm * scale) * scale
    return folded


class MMAudioVAE(nn.Module):
    """Log10-mel (B, M, T) to the mean and std of its latent (B, C, T / 2), and latents back to log10-mel.

    `width` is the number of channels of the first level, 384 as published.
    """

    data_mean: Tensor
    data_std: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("data_mean", torch.zeros(1, N_MELS, 1))  # per band, of the VAE's training corpus
        self.register_buffer("data_std", torch.ones(1, N_MELS, 1))
        self.encoder = Encoder(width)
        self.decoder = Decoder(width)

    def encode(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """(B, M, T), T even -> mean and std, each (B, C, T / 2)."""
        mean, log_variance = self.encoder((mel - self.data_mean) / self.data_std).chunk(2, dim=1)
        return mean, (0.5 * log_variance.clamp(-30, 20)).exp()

    def decode(self, latent: Tensor) -> Tensor:
        """(B, C, L) -> (B, M, 2 L)."""
        mel: Tensor = self.decoder(latent)
        return mel * self.data_std + self.data_mean


class Encoder(nn.Module):
    """(B, M, T) -> (B, 2 C, T / 2): levels from fast to slow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        c0, c1, c2 = (width * multiple for multiple in _MULTIPLES)
        self.conv_in = _conv(N_MELS, c0, 3)
        self.down = nn.ModuleList(
            [Level(c0, c0, blocks=2, downsample=True), Level(c0, c1, blocks=2), Level(c1, c2, blocks=2)]
        )
        self.mid = Middle(c2)
        self.conv_out = _conv(c2, 2 * LATENT_DIM, 3)
        self.learnable_gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        x = self.conv_out(_mp_silu(self.mid(x)))
        return x * (1 + self.learnable_gain)


class Decoder(nn.Module):
    """(B, C, L) -> (B, M, 2 L): levels from slow to fast, which the published names count down."""

    def __init__(self, width: int) -> None:
        super().__init__()
        c0, c1, c2 = (width * multiple for multiple in _MULTIPLES)
        self.conv_in = _conv(LATENT_DIM, c2, 3)
        self.mid = Middle(c2)
        self.up = nn.ModuleList(
            [Level(c1, c0, blocks=3), Level(c2, c1, blocks=3, upsample=True), Level(c2, c2, blocks=3)]
        )
        self.conv_out = _conv(c0, N_MELS, 3)
        self.learnable_gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        x = self.conv_out(_mp_silu(x))
        return x * (1 + self.learnable_gain)


class Level(nn.Module):
    """Residual blocks, then half or twice the rate where asked."""

    def __init__(self, C_in: int, C: int, *, blocks: int, downsample: bool = False, upsample: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(C_in if i == 0 else C, C) for i in range(blocks))
        self.downsample = Downsample(C) if downsample else nn.Identity()
        self.upsample = Upsample(C) if upsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x).clamp(-_LIMIT, _LIMIT)
        x = self.upsample(self.downsample(x))
        return x


class Middle(nn.Module):
    """Residual block, attention over time, residual block."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(C, C)
        self.attn_1 = Attention(C)
        self.block_2 = ResidualBlock(C, C)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_2(self.attn_1(self.block_1(x)))
        return x.clamp(-_LIMIT, _LIMIT)


class ResidualBlock(nn.Module):
    """x^ = x / rms(x); 0.7 x^ + 0.3 conv(silu(conv(silu(x^)))), rescaled."""

    def __init__(self, C_in: int, C: int) -> None:
        super().__init__()
        self.conv1 = _conv(C_in, C, 3)
        self.conv2 = _conv(C, C, 3)
        self.nin_shortcut = _conv(C_in, C, 1) if C_in != C else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = _normalise(x, dim=1)
        h = self.conv2(_mp_silu(self.conv1(_mp_silu(x))))
        return _mp_sum(self.nin_shortcut(x), h)


class Attention(nn.Module):
    """Self-attention of one head over time, with normalised queries, keys and values."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.qkv = _conv(C, 3 * C, 1)
        self.proj_out = _conv(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        # Queries, keys and values are interleaved: channel 3 c is query c, 3 c + 1 key c, 3 c + 2 value c.
        qkv = self.qkv(x).reshape(x.shape[0], -1, 3, x.shape[2])  # (B, C, 3, L)
        q, k, v = _normalise(qkv, dim=1).permute(2, 0, 3, 1)[:, :, None]  # each (B, 1, L, C)
        h = scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return _mp_sum(x, self.proj_out(h))


class Downsample(nn.Module):
    """Mean of two frames, between two convolutions of one frame."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.conv1 = _conv(C, C, 1)
        self.conv2 = _conv(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        half: Tensor = self.conv2(avg_pool1d(self.conv1(x), 2))
        return half


class Upsample(nn.Module):
    """Every frame twice, then a convolution."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.conv = _conv(C, C, 3)

    def forward(self, x: Tensor) -> Tensor:
        double: Tensor = self.conv(x.repeat_interleave(2, dim=-1))
        return double


def _conv(C_in: int, C_out: int, kernel: int) -> nn.Conv1d:
    return nn.Conv1d(C_in, C_out, kernel, padding=kernel // 2, bias=False)


def _normalise(x: Tensor, *, dim: int) -> Tensor:
    """Divides x by eps + its root mean square over dim."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / (_EPS + norm / sqrt(x.shape[dim]))


def _mp_silu(x: Tensor) -> Tensor:
    """SiLU that keeps the magnitude of unit Gaussians (EDM2, equation 81)."""
    return silu(x) / 0.596


def _mp_sum(a: Tensor, b: Tensor, t: float = 0.3) -> Tensor:
    """(1 - t) a + t b at the magnitude of independent a and b of magnitude 1 (EDM2, equation 88)."""
    return a.lerp(b, t) / hypot(1 - t, t)
