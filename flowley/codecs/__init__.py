"""Audio codecs: sound to the latent frames that a network generates, and back.

A codec gives its latents on their own scale; the network standardises them per channel with the statistics of
its training corpus (`Flowley.latent_mean`, `latent_std`), so no codec needs constants of its own.

Shapes: B batch, N samples, L latent frames, C latent channels.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Protocol

from torch import Tensor

from flowley.codecs.audioldm2 import AudioLDM2Codec
from flowley.codecs.log_mel import LogMelCodec, LogMelPCACodec
from flowley.codecs.mmaudio_16k import MMAudioCodec
from flowley.codecs.oobleck import OobleckCodec
from flowley.codecs.pretrained_codec import PretrainedCodec
from flowley.weights import find_folder


class AudioCodec(Protocol):
    """Sound to latent frames and back. Frame i describes the sound around i / latent_hz seconds."""

    @property
    def audio_hz(self) -> int:
        """Samples per second in and out, mono."""
        ...

    @property
    def latent_hz(self) -> Fraction:
        """Latent frames per second: r_a of a Flowley that uses this codec."""
        ...

    @property
    def latent_dim(self) -> int:
        """Channels of a latent frame."""
        ...

    def encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) in [-1, 1] -> mean and std of the latent, each (B, ceil(N latent_hz / audio_hz), C)."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """(B, L, C) -> (B, L audio_hz / latent_hz) in [-1, 1]."""
        ...


PRETRAINED: dict[str, type[PretrainedCodec]] = {
    "mmaudio_16k": MMAudioCodec,
    "oobleck": OobleckCodec,
    "audioldm2": AudioLDM2Codec,
    "log_mel_pca": LogMelPCACodec,
}
"""Codecs with weights, which are never part of this package."""
CODECS = ("log_mel", *PRETRAINED)


def load_codec(name: str, *, path: str | None = None, revision: str | None = None, device: str = "cpu") -> AudioCodec:
    """The codec of that name, frozen, in float32. It takes tensors of any device and answers on `device`.

    Args:
        name: one of `CODECS`.
        path: local folder or hub id of its weights; for every codec but the weight-free `log_mel`.
        revision: of a hub id.
        device: of the codec and of what it answers.

    Raises:
        ValueError: no such codec, a path missing or superfluous, or weights that are missing, unreadable or of
            another model; the message lists the choices or what the folder must contain.
    """
    if name not in CODECS:
        raise ValueError(f"codec {name!r}: wanted one of {', '.join(CODECS)}")
    if name == "log_mel":
        if path is not None or revision is not None:
            raise ValueError("codec 'log_mel' has no weights: leave out path and revision")
        return LogMelCodec().eval().to(device)
    kind = PRETRAINED[name]
    if path is None:
        raise ValueError(f"codec {name!r} needs path: {kind.contents}, or the hub id of one")
    codec = kind.from_folder(find_folder(path, kind.files, revision=revision, wanted=kind.contents))
    return codec.eval().requires_grad_(False).to(device)
