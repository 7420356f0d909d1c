"""The log-mel spectrogram that mel codecs and their vocoders were trained on (HiFi-GAN's).

Shapes: B batch, N samples, T mel frames, M mel bands, F frequency bins.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

FLOOR = 1e-5
"""Mel magnitudes below it are raised to it before the logarithm."""


class LogMel(nn.Module):
    """log max(mel sqrt(|STFT|^2 + eps), 1e-5); mel filters of Slaney's scale and area from 0 Hz to half the rate.

    The wave is reflected by (n_fft - hop) / 2 samples at both ends and the STFT does not centre, so N samples give
    N / hop frames and frame i is the sound around (i + 1/2) hop: what a vocoder that writes hop samples for each
    frame needs.

    Args:
        log: logarithm, `torch.log` or `torch.log10`.
        eps: added to the squared magnitude.
    """

    window: Tensor
    filters: Tensor

    def __init__(
        self, *, audio_hz: int, n_fft: int, hop: int, n_mels: int, log: Callable[[Tensor], Tensor], eps: float
    ) -> None:
        from torchaudio.functional import melscale_fbanks

        super().__init__()
        self.n_fft, self.hop, self.log, self.eps = n_fft, hop, log, eps
        filters = melscale_fbanks(n_fft // 2 + 1, 0.0, audio_hz / 2, n_mels, audio_hz, "slaney", "slaney")
        self.register_buffer("filters", filters.T.contiguous(), persistent=False)  # (M, F)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """(B, N) with N > (n_fft - hop) / 2 -> (B, M, N // hop)."""
        margin = (self.n_fft - self.hop) // 2
        wave = pad(wave[:, None], (margin, margin), mode="reflect")[:, 0]
        spectrum = torch.stft(wave, self.n_fft, self.hop, window=self.window, center=False, return_complex=True)
        magnitude = (torch.view_as_real(spectrum).square().sum(-1) + self.eps).sqrt()
        return self.log((self.filters @ magnitude).clamp(min=FLOOR))
