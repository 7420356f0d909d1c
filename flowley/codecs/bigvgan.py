"""BigVGAN (Lee et al., ICLR 2023), the vocoder from log-mel spectrograms to waves at 16 kHz.

Six transposed convolutions raise the rate 256-fold; after each, three residual blocks with periodic activations
(SnakeBeta) work at twice the rate between a low-pass interpolation and a low-pass decimation, so that the
harmonics which the activation makes do not alias. The published 16 kHz weights are Make-An-Audio 2's.

Shapes: B batch, T frames or samples, M mel bands, C channels.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv_transpose1d, pad

N_MELS = 80
RATES = (4, 4, 2, 2, 2, 2)
HOP = 256
"""Samples per mel frame: the product of the rates."""
_KERNELS = (3, 7, 11)
_DILATIONS = (1, 3, 5)
_TAPS = 12
"""Length of the low-pass filters."""

_NAMES = (
    (r"^ups\.(\d+)\.0\.", r"ups.\1."),
    (r"\.act\.(alpha|beta)$", r".\1"),
    (r"\.upsample\.filter$", ".up_filter"),
    (r"\.downsample\.lowpass\.filter$", ".down_filter"),
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
)
"""Published name -> name here. Both of torch's spellings of a normalised weight's norm g and direction v occur."""


def fold(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published weights -> those of `BigVGAN`: renamed, and each kernel's weight = g v / |v| over all but axis 0."""
    named = {}
    for name, value in state.items():
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        named[name] = value
    folded = {name: value for name, value in named.items() if not name.endswith(("weight_g", "weight_v"))}
    for name, v in named.items():
        kernel, _, kind = name.rpartition(".")
        if kind == "weight_v" and f"{kernel}.weight_g" in named:
            norm = torch.linalg.vector_norm(v.flatten(1), dim=1)[:, None, None]
            folded[f"{kernel}.weight"] = v * (named[f"{kernel}.weight_g"] / norm)
    return folded


class BigVGAN(nn.Module):
    """Log10-mel (B, M, T) -> wave (B, 256 T) in (-1, 1).

    `width` is the number of channels before the first transposed convolution, 1536 as published; each halves it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_pre = nn.Conv1d(N_MELS, width, 7, padding=3)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        C = width
        for rate in RATES:
            self.ups.append(nn.ConvTranspose1d(C, C // 2, 2 * rate, rate, padding=rate // 2))
            C //= 2
            self.resblocks.extend(ResidualBlock(C, kernel) for kernel in _KERNELS)
        self.activation_post = Activation(C)
        self.conv_post = nn.Conv1d(C, 1, 7, padding=3)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_pre(mel)
        n = len(_KERNELS)
        for i, up in enumerate(self.ups):
            x = up(x)
            x = sum(block(x) for block in self.resblocks[n * i : n * i + n]) / n
        return torch.tanh(self.conv_post(self.activation_post(x)))[:, 0]


class ResidualBlock(nn.Module):
    """Three times x + conv(act(dilated conv(act(x)))), with dilations 1, 3, 5."""

    def __init__(self, C: int, kernel: int) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(nn.Conv1d(C, C, kernel, padding="same", dilation=d) for d in _DILATIONS)
        self.convs2 = nn.ModuleList(nn.Conv1d(C, C, kernel, padding="same") for _ in _DILATIONS)
        self.activations = nn.ModuleList(Activation(C) for _ in range(2 * len(_DILATIONS)))

    def forward(self, x: Tensor) -> Tensor:
        before, between = self.activations[::2], self.activations[1::2]
        for act1, conv1, act2, conv2 in zip(before, self.convs1, between, self.convs2, strict=True):
            x = x + conv2(act2(conv1(act1(x))))
        return x


class Activation(nn.Module):
    """SnakeBeta, x + sin^2(e^alpha x) / e^beta for each channel, at twice the rate.

    Both filters are the published file's: a Kaiser-windowed sinc that passes half of the doubled band.
    """

    up_filter: Tensor
    down_filter: Tensor

    def __init__(self, C: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(C))
        self.beta = nn.Parameter(torch.zeros(C))
        self.register_buffer("up_filter", torch.zeros(1, 1, _TAPS))
        self.register_buffer("down_filter", torch.zeros(1, 1, _TAPS))

    def forward(self, x: Tensor) -> Tensor:
        C = x.shape[1]  # every channel by the same filter; as groups it is several times faster than as a batch
        x = pad(x, (5, 5), mode="replicate")
        x = 2 * conv_transpose1d(x, self.up_filter.expand(C, -1, -1), stride=2, groups=C)[..., 15:-15]
        x = x + torch.sin(x * self.alpha.exp()[:, None]).square() / (self.beta.exp()[:, None] + 1e-9)
        x = pad(x, (5, 6), mode="replicate")
        return conv1d(x, self.down_filter.expand(C, -1, -1), stride=2, groups=C)
