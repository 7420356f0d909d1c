"""The weight-free codec.

Shapes: B batch, N samples, L latent frames, C latent channels, F frequency bins.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from flowley.codecs.waves import check_latent, check_wave


class LogMelCodec(nn.Module):
    """Weight-free codec: log-mel spectrogram at 16 kHz, hop 512 (31.25 Hz, 250 frames for 8 s).

        latent_i = log max(mel |STFT|_i, floor)

    Decoding finds non-negative magnitudes with that mel spectrogram (multiplicative updates from the
    pseudo-inverse) and their phase by Griffin-Lim, started at zero phase so that equal latents sound equal.
    """

    audio_hz = 16_000
    hop = 512
    latent_hz = Fraction(16_000, 512)
    latent_dim = 64
    n_fft = 1024
    floor = 1e-3
    """Magnitude below which everything is silence: 1e-3 of an STFT whose full-scale sine peaks at 256."""
    nnls_steps = 30
    griffin_lim_steps = 32

    window: Tensor
    mel: Tensor

    def __init__(self) -> None:
        super().__init__()
        from torchaudio.functional import melscale_fbanks

        bins, top_hz = self.n_fft // 2 + 1, self.audio_hz / 2
        mel = melscale_fbanks(bins, 0.0, top_hz, self.latent_dim, self.audio_hz, "slaney", "slaney")
        self.register_buffer("mel", mel.T, persistent=False)  # (C, F)
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)

    def encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """See `AudioCodec.encode`; std is 0.

        Raises:
            ValueError: not a batch of mono waves with at least one sample, or not finite.
        """
        check_wave(wave, self.audio_hz)
        L = -(-wave.shape[1] // self.hop)
        half = self.n_fft // 2
        wave = pad(wave.to(self.window), (half, half + L * self.hop - wave.shape[1]))
        spectrum = torch.stft(wave, self.n_fft, self.hop, window=self.window, center=False, return_complex=True)
        mean = torch.log((self.mel @ spectrum.abs()).clamp(min=self.floor))[..., :L].transpose(1, 2)
        return mean, torch.zeros_like(mean)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """See `AudioCodec.decode`.

        Raises:
            ValueError: not (B, L >= 1, C), or not finite.
        """
        from torchaudio.functional import griffinlim

        check_latent(latent, self.latent_dim)
        latent = latent.to(self.mel)
        L = latent.shape[1]
        after = latent[:, -1:].expand(-1, max(1, 4 - L), -1)  # L hops have L + 1 centred frames; reflection: 4
        magnitude = self._magnitude(torch.cat([latent, after], dim=1).transpose(1, 2))
        wave: Tensor = griffinlim(
            magnitude, self.window, self.n_fft, self.hop, self.n_fft, power=1.0,
            n_iter=self.griffin_lim_steps, momentum=0.9, length=None, rand_init=False,
        )  # fmt: skip
        wave = wave[:, : L * self.hop]
        return wave.clamp(-1, 1)

    def _magnitude(self, log_mel: Tensor) -> Tensor:
        """S >= 0 with mel S = exp(log_mel): (B, C, L) -> (B, F, L), by Lee and Seung's updates."""
        target = log_mel.clamp(max=10.0).exp()
        S: Tensor = (torch.linalg.pinv(self.mel) @ target).clamp(min=1e-6)
        numerator = self.mel.T @ target
        for _ in range(self.nnls_steps):
            S = S * numerator / (self.mel.T @ (self.mel @ S) + 1e-8)
        return S
