"""Log-mel codecs: the weight-free one, and its principal components over a corpus.

Shapes: B batch, N samples, L latent frames, C latent channels, M mel bands, F frequency bins.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import ClassVar, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from flowley.codecs.pretrained_codec import PretrainedCodec, check_latent, check_wave
from flowley.weights import WEIGHTS, find_file, read_tensors


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


class LogMelPCACodec(PretrainedCodec):
    """Log-mel codec in fewer channels: latent = components (log_mel - mean), log_mel = mean + components^T latent.

    The components are the principal ones of a corpus: orthonormal, found in closed form.

    For small networks: a flow over 64 correlated mel bands needs a width well beyond 64, one over a dozen of their
    components does not (docs/log.md, 2026-11-25).
    """

    files: ClassVar = (WEIGHTS,)
    contents: ClassVar = f"a folder with {WEIGHTS} as `LogMelPCACodec.save` writes it"

    mean: Tensor
    components: Tensor

    def __init__(self, mean: Tensor, components: Tensor) -> None:
        """Args: mean (M,); components (C, M), orthonormal rows, the one of most variance first."""
        super().__init__()
        self.log_mel = LogMelCodec()
        self.audio_hz, self.frame_samples, self.latent_dim = LogMelCodec.audio_hz, LogMelCodec.hop, len(components)
        self.register_buffer("mean", mean.float())
        self.register_buffer("components", components.float())

    @classmethod
    def fit(cls, waves: Iterable[Tensor], latent_dim: int) -> Self:
        """The components of the log-mel frames of some mono waves (N_i,) at 16 kHz.

        Raises:
            ValueError: latent_dim is not within 1 and the number of mel bands, or there are fewer frames than bands.
        """
        codec, bands = LogMelCodec(), LogMelCodec.latent_dim
        if not 1 <= latent_dim <= bands:
            raise ValueError(f"latent_dim = {latent_dim}, wanted within [1, {bands}]")
        frames = torch.cat([codec.encode(wave[None])[0][0] for wave in waves]).double()
        if len(frames) < bands:
            raise ValueError(f"{len(frames)} frames of sound, wanted at least {bands} to find components of")
        mean = frames.mean(0)
        _, directions = torch.linalg.eigh((frames - mean).T @ (frames - mean))
        components = directions.T.flip(0)[:latent_dim]
        signs = components.gather(1, components.abs().argmax(1, keepdim=True)).sign()  # eigenvectors have none
        return cls(mean, components * signs)

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """See `PretrainedCodec.from_folder`."""
        file = find_file(folder, WEIGHTS, wanted=cls.contents)
        weights = read_tensors(file)
        mean, components = weights.get("mean"), weights.get("components")
        bands = LogMelCodec.latent_dim
        if mean is None or components is None or mean.shape != (bands,) or components.shape[1:] != (bands,):
            found = {name: tuple(value.shape) for name, value in weights.items()}
            raise ValueError(f"{file} holds {found}: wanted mean ({bands},) and components (C, {bands})")
        return cls(mean, components)

    def save(self, folder: Path) -> None:
        """Writes the mean and the components, in float32, into a folder."""
        save_file({"mean": self.mean, "components": self.components}, folder / WEIGHTS)

    def _encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        latent = (self.log_mel.encode(wave)[0] - self.mean) @ self.components.T
        return latent, torch.zeros_like(latent)

    def _decode(self, latent: Tensor) -> Tensor:
        # One by one: Griffin-Lim makes other phases of what differs by rounding, as products of batches do.
        return torch.cat([self.log_mel.decode(one[None] @ self.components + self.mean) for one in latent])
