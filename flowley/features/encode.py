"""Encoding step: a clip's frames, sound and caption to the features that networks train on and sample from.

Shapes: T video frames, H W pixels, N samples, L frames of a feature, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import torch

from flowley.codecs import AudioCodec, load_codec
from flowley.features.encoders import Dtype, TextEncoder, VisualEncoder
from flowley.features.files import AVFeatures, TextFeatures
from flowley.network.config import NetworkConfig
from flowley.network.feature_spec import FeatureSpec

CAPTIONS_PER_BATCH = 256


class Encoders:
    """The frozen encoders and the codec that a `FeatureSpec` names, for one network; each loads on first use.

    Every property raises ValueError where its checkpoint does not load, or has other channels or rates than the
    network.

    Args:
        spec: names and revisions of the checkpoints.
        config: the network that the features are for.
        device: of the encoders and the codec.
        dtype: of the visual and the text encoder's weights; the codec computes in float32.
    """

    def __init__(
        self, spec: FeatureSpec, config: NetworkConfig, *, device: str = "cpu", dtype: Dtype = "float32"
    ) -> None:
        self.spec, self.config, self.device, self.dtype = spec, config, device, dtype

    def load(self) -> None:
        """Loads all three now, the smallest first. Raises ValueError as the properties do."""
        _ = self.codec, self.visual, self.text

    @cached_property
    def visual(self) -> VisualEncoder:
        """Frames to `config.visual_dim` channels."""
        spec = self.spec
        encoder = VisualEncoder(spec.visual, revision=spec.visual_revision, dtype=self.dtype, device=self.device)
        _require_dim("visual encoder", spec.visual, encoder.dim, self.config.visual_dim)
        return encoder

    @cached_property
    def text(self) -> TextEncoder:
        """Captions to `config.text_dim` channels, normalised and padded as the network expects."""
        spec, config = self.spec, self.config
        encoder = TextEncoder(
            spec.text, max_tokens=config.max_text_tokens, normalisation=config.text_normalisation,
            keep_padding=not config.mask_text, revision=spec.text_revision, dtype=self.dtype, device=self.device,
        )  # fmt: skip
        _require_dim("text encoder", spec.text, encoder.dim, config.text_dim)
        return encoder

    @cached_property
    def codec(self) -> AudioCodec:
        """Sound to latents of `config.latent_dim` channels at `config.r_a`, and back."""
        spec, config = self.spec, self.config
        codec = load_codec(spec.codec, path=spec.codec_path, revision=spec.codec_revision, device=self.device)
        if codec.latent_hz != config.r_a:
            raise ValueError(
                f"codec {spec.codec!r} has {float(codec.latent_hz):g} latent frames a second, this network "
                f"r_a = {float(config.r_a):g}: give the codec it was trained on"
            )
        _require_dim("codec", spec.codec, codec.latent_dim, config.latent_dim)
        return codec


def encode_clip(
    encoders: Encoders, clip_id: str, frames: np.ndarray, wave: np.ndarray, *, sync: np.ndarray | None = None
) -> AVFeatures:
    """Features of one clip's frames and sound. Loads the visual encoder and the codec, not the text encoder.

    Args:
        frames: (T, H, W, 3) uint8 RGB at the network's r_v.
        wave: (N,) in [-1, 1], mono, at the codec's audio_hz.
        sync: synchronisation features that `checked_sync` returned, for networks that take them.

    Raises:
        ValueError: frames of another type or shape, or none.
    """
    with torch.inference_mode():
        mean, std = encoders.codec.encode(torch.as_tensor(wave, dtype=torch.float32, device=encoders.device)[None])
    return AVFeatures(clip_id, encoders.visual.encode(frames), mean[0].cpu().numpy(), std[0].cpu().numpy(), sync)


def encode_captions(encoders: Encoders, captions: Mapping[str, str]) -> list[TextFeatures]:
    """Features of captions by clip id, in their order. Loads the text encoder only.

    A caption longer than the network takes is cut by `tokens_cut` tokens.
    """
    clips, encoded = list(captions.items()), []
    for start in range(0, len(clips), CAPTIONS_PER_BATCH):
        encoded += encoders.text.encode([caption for _, caption in clips[start : start + CAPTIONS_PER_BATCH]])
    return [
        TextFeatures(clip_id, one.features, one.n_tokens, one.tokens_cut)
        for (clip_id, _), one in zip(clips, encoded, strict=True)
    ]


def checked_sync(sync: np.ndarray, config: NetworkConfig, duration_s: float, *, name: str) -> np.ndarray:
    """The synchronisation features of one clip that another program extracted, (L_sync or more, C_sync).

    Raises:
        ValueError: another shape, not floats, or not finite; the message calls them `name`.
    """
    least, channels = config.sync_length(duration_s), config.sync_dim
    fits = sync.ndim == 2 and len(sync) >= least and sync.shape[1] == channels
    if not fits or not np.issubdtype(sync.dtype, np.floating) or not np.isfinite(sync).all():
        raise ValueError(
            f"{name}: {sync.dtype} of shape {sync.shape}, wanted finite floats ({least} or more, {channels}): "
            "extract its synchronisation features again"
        )
    return sync


def _require_dim(kind: str, location: str, dim: int, wanted: int) -> None:
    if dim != wanted:
        raise ValueError(
            f"{kind} {location!r} gives {dim} channels, this network takes {wanted}: give the one it was trained on"
        )
