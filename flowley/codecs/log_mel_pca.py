"""The log-mel codec in fewer channels: its principal components over a corpus.

Shapes: B batch, N samples, L latent frames, C latent channels, M mel bands.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from flowley.codecs.folder import UNREADABLE, find_file
from flowley.codecs.log_mel import LogMelCodec
from flowley.codecs.pretrained import PretrainedCodec

WEIGHTS = "model.safetensors"


class LogMelPCACodec(PretrainedCodec):
    """latent = components (log_mel - mean), log_mel = mean + components^T latent: linear, orthonormal, learnt at once.

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
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = find_file(folder, WEIGHTS, contents=cls.contents)
        try:
            weights = load_file(file)
        except (SafetensorError, *UNREADABLE) as error:
            raise ValueError(f"{file} cannot be read as weights ({type(error).__name__}): fetch it again") from error
        mean, components = weights.get("mean"), weights.get("components")
        bands = LogMelCodec.latent_dim
        if mean is None or components is None or mean.shape != (bands,) or components.shape[1:] != (bands,):
            found = {name: tuple(value.shape) for name, value in weights.items()}
            raise ValueError(f"{file} holds {found}: wanted mean ({bands},) and components (C, {bands})")
        return cls(mean, components)

    def save(self, folder: Path) -> None:
        """Write the mean and the components, in float32, into a folder."""
        from safetensors.torch import save_file

        save_file({"mean": self.mean, "components": self.components}, folder / WEIGHTS)

    def _encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        latent = (self.log_mel.encode(wave)[0] - self.mean) @ self.components.T
        return latent, torch.zeros_like(latent)

    def _decode(self, latent: Tensor) -> Tensor:
        # One by one: Griffin-Lim makes other phases of what differs by rounding, as products of batches do.
        return torch.cat([self.log_mel.decode(one[None] @ self.components + self.mean) for one in latent])
