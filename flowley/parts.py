"""The encoders and the codec that a `FeatureSpec` names, loaded and checked against the network they serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from flowley.codecs import AudioCodec, load_codec
from flowley.config import NetworkConfig
from flowley.encoders import TextEncoder, VisualEncoder
from flowley.feature_spec import FeatureSpec

Part = TypeVar("Part")


def open_visual(spec: FeatureSpec, config: NetworkConfig, *, device: str) -> VisualEncoder:
    """Raises ValueError where it does not load or has other channels than the network takes."""
    encoder = _load(
        "visual encoder", spec.visual, lambda: VisualEncoder(spec.visual, revision=spec.visual_revision, device=device)
    )
    _require_dim("visual encoder", spec.visual, encoder.dim, config.visual_dim)
    return encoder


def open_text(spec: FeatureSpec, config: NetworkConfig, *, device: str) -> TextEncoder:
    """With the normalisation and the padding that the network was trained on.

    Raises ValueError where it does not load or has other channels than the network takes.
    """
    encoder = _load("text encoder", spec.text, lambda: TextEncoder(
        spec.text, max_tokens=config.max_text_tokens, normalisation=config.text_normalisation,
        keep_padding=not config.mask_text, revision=spec.text_revision, device=device,
    ))  # fmt: skip
    _require_dim("text encoder", spec.text, encoder.dim, config.text_dim)
    return encoder


def open_codec(spec: FeatureSpec, config: NetworkConfig, *, device: str) -> AudioCodec:
    """Raises ValueError where it does not load or has another rate or other channels than the network makes."""
    codec = load_codec(spec.codec, path=spec.codec_path, revision=spec.codec_revision, device=device)
    if codec.latent_hz != config.r_a:
        raise ValueError(
            f"codec {spec.codec!r} has {float(codec.latent_hz):g} latent frames a second, this network "
            f"r_a = {float(config.r_a):g}: give the codec it was trained on"
        )
    _require_dim("codec", spec.codec, codec.latent_dim, config.latent_dim)
    return codec


def _load(what: str, location: str, load: Callable[[], Part]) -> Part:
    try:
        return load()
    except OSError as error:  # transformers' word for a folder or hub id that is not there
        why = " ".join(str(error).split())[:160]
        raise ValueError(f"{what} {location!r} does not load ({why}): give a checkpoint folder or a hub id") from error


def _require_dim(what: str, location: str, dim: int, wanted: int) -> None:
    if dim != wanted:
        raise ValueError(
            f"{what} {location!r} gives {dim} channels, this network takes {wanted}: give the one it was trained on"
        )
