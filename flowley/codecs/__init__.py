"""Audio codecs by name: sound to the latent frames that a network generates, and back."""

from __future__ import annotations

from flowley.codecs.audio_codec import AudioCodec, PretrainedCodec
from flowley.codecs.diffusers_codecs import AudioLDM2Codec, OobleckCodec
from flowley.codecs.log_mel import LogMelCodec, LogMelPCACodec
from flowley.codecs.mmaudio_16k import MMAudioCodec
from flowley.hub import find_folder

__all__ = ["CODECS", "PRETRAINED", "AudioCodec", "load_codec"]

PRETRAINED: dict[str, type[PretrainedCodec]] = {
    "mmaudio_16k": MMAudioCodec,
    "oobleck": OobleckCodec,
    "audioldm2": AudioLDM2Codec,
    "log_mel_pca": LogMelPCACodec,
}
"""Codecs with weights, which are never part of this package."""
CODECS = ("log_mel", *PRETRAINED)


def load_codec(name: str, *, path: str | None = None, revision: str | None = None, device: str = "cpu") -> AudioCodec:
    """The codec of that name (one of `CODECS`), frozen, in float32. It takes tensors of any device.

    `path` is the local folder or hub id of its weights; every codec but the weight-free `log_mel` needs one.

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
