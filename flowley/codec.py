"""Between sound and the latent frames Flowley generates.

A codec gives its latents on their own scale; the network standardises them per channel with the statistics of
its training corpus (`Flowley.latent_mean`, `latent_std`), so no codec needs constants of its own.

Shapes: B batch, N samples, L latent frames, C latent channels, F frequency bins.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class AudioCodec(Protocol):
    """Sound to latent frames and back. Frame i describes the sound around i / latent_hz seconds."""

    audio_hz: int
    """Samples per second in and out, mono."""
    latent_hz: Fraction
    """Latent frames per second: r_a of a Flowley that uses this codec."""
    latent_dim: int
    """Channels of a latent frame."""

    def encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) in [-1, 1] -> mean and std of the latent, each (B, ceil(N latent_hz / audio_hz), C)."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """(B, L, C) -> (B, L audio_hz / latent_hz)."""
        ...


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
            ValueError: not a batch of mono waves with at least one sample.
        """
        if wave.ndim != 2 or wave.shape[1] < 1:
            raise ValueError(f"wave of shape {tuple(wave.shape)}, wanted mono (B, N >= 1) at {self.audio_hz} Hz")
        L = -(-wave.shape[1] // self.hop)
        half = self.n_fft // 2
        wave = pad(wave, (half, half + L * self.hop - wave.shape[1]))
        spectrum = torch.stft(wave, self.n_fft, self.hop, window=self.window, center=False, return_complex=True)
        mean = torch.log((self.mel @ spectrum.abs()).clamp(min=self.floor))[..., :L].transpose(1, 2)
        return mean, torch.zeros_like(mean)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """See `AudioCodec.decode`.

        Raises:
            ValueError: not (B, L >= 1, C).
        """
        from torchaudio.functional import griffinlim

        if latent.ndim != 3 or latent.shape[1] < 1 or latent.shape[2] != self.latent_dim:
            raise ValueError(f"latent of shape {tuple(latent.shape)}, wanted (B, L >= 1, {self.latent_dim})")
        L = latent.shape[1]
        after = latent[:, -1:].expand(-1, max(1, 4 - L), -1)  # L hops have L + 1 centred frames; reflection: 4
        magnitude = self._magnitude(torch.cat([latent, after], dim=1).transpose(1, 2).float())
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


CODECS = {"log_mel": LogMelCodec}


def load_codec(name: str) -> AudioCodec:
    """The codec of that name.

    Raises:
        ValueError: no such codec; the message lists the choices.
    """
    if name not in CODECS:
        raise ValueError(f"codec {name!r}: wanted one of {', '.join(CODECS)}")
    return CODECS[name]().eval()
