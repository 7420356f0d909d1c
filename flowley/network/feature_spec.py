"""Feature specification: encoders and codec of a network's features, recorded in its checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from flowley.network.config import decode


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """Encoders and codec of a network's features, and the duration that it was trained at.

    Kept in a checkpoint's config.json under `features`. A model is a local folder or a hub id.

    Raises:
        ValueError: a field is out of range.
    """

    visual: str
    """CLIP or SigLIP checkpoint of the visual encoder."""
    visual_revision: str | None = None
    """Revision of a hub id."""
    text: str
    """T5 or CLIP checkpoint of the text encoder."""
    text_revision: str | None = None
    """Revision of a hub id."""
    codec: str
    """Name of the audio codec: one of `flowley.codecs.CODECS`."""
    codec_path: str | None = None
    """Weights of the codec; None for a codec without weights."""
    codec_revision: str | None = None
    """Revision of a hub id."""
    duration_s: float
    """Duration of the training clips, in seconds. Longer clips are sampled in windows of this."""

    def __post_init__(self) -> None:
        empty = [name for name in ("visual", "text", "codec") if not getattr(self, name)]
        if empty:
            raise ValueError(f"FeatureSpec: {', '.join(empty)} is empty, wanted a folder, a hub id or a codec's name")
        if not self.duration_s > 0:
            raise ValueError(f"FeatureSpec: duration_s = {self.duration_s}, wanted > 0 s")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Inverse of `to_dict`.

        Raises:
            ValueError: naming each unknown, missing or mistyped field.
        """
        return decode(cls, values, what="the features of a checkpoint")
