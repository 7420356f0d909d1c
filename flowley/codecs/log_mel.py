"""Log-mel spectrogram of mel codecs, weight-free log-mel codec, and the principal components of its frames.

Shapes: B batch, N samples, T mel frames, L latent frames, C latent channels, M mel bands, F frequency bins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from flowley.codecs.audio_codec import AudioCodec, PretrainedCodec
from flowley.weights import WEIGHTS, find_file, read_tensors

FLOOR = 1e-5
"""Mel magnitudes below it are raised to it before the logarithm."""


class LogMel(nn.Module):
    """Log-mel spectrogram that mel codecs and their vocoders were trained on.

        log max(mel sqrt(|STFT|^2 + eps), 1e-5); mel filters of Slaney's scale and area from 0 Hz to half the rate

    The wave is reflected by (n_fft - hop) / 2 samples at both ends and the STFT does not centre, so N samples give
    N / hop frames and frame i is the sound around (i + 1/2) hop, for a vocoder that writes hop samples for each
    frame. `log` is `torch.log` or `torch.log10`.
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


class LogMelCodec(AudioCodec):
    """Weight-free codec: log-mel spectrogram at 16 kHz, hop 512 (31.25 Hz, 250 frames for 8 s).

        latent_i = log max(mel |STFT|_i, floor)

    Its std is 0. Decoding finds non-negative magnitudes with that mel spectrogram (multiplicative updates from the
    pseudo-inverse) and their phase by Griffin-Lim, started at zero phase so that equal latents sound equal.
    """

    audio_hz = 16_000
    frame_samples = 512
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

    def _encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        L, half = wave.shape[1] // self.frame_samples, self.n_fft // 2
        spectrum = torch.stft(
            pad(wave, (half, half)), self.n_fft, self.frame_samples, window=self.window, center=False,
            return_complex=True,
        )  # fmt: skip
        mean = torch.log((self.mel @ spectrum.abs()).clamp(min=self.floor))[..., :L].transpose(1, 2)
        return mean, torch.zeros_like(mean)

    def _decode(self, latent: Tensor) -> Tensor:
        from torchaudio.functional import griffinlim

        L = latent.shape[1]
        after = latent[:, -1:].expand(-1, max(1, 4 - L), -1)  # L hops have L + 1 centred frames; reflection: 4
        magnitude = self._magnitude(torch.cat([latent, after], dim=1).transpose(1, 2))
        wave: Tensor = griffinlim(
            magnitude, self.window, self.n_fft, self.frame_samples, self.n_fft, power=1.0,
            n_iter=self.griffin_lim_steps, momentum=0.9, length=None, rand_init=False,
        )  # fmt: skip
        return wave

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

    audio_hz, frame_samples = LogMelCodec.audio_hz, LogMelCodec.frame_samples
    mean: Tensor
    components: Tensor

    def __init__(self, mean: Tensor, components: Tensor) -> None:
        """Args: mean (M,); components (C, M), orthonormal rows, the one of most variance first."""
        super().__init__()
        self.log_mel = LogMelCodec()
        self.latent_dim = len(components)
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
