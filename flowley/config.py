"""What a Flowley is: its rates, widths, depths and the choices the sources disagree on.

Every number the forward pass uses is a field here; none has a default, so a variant is one row of `PRESETS`
and `config.json` beside a checkpoint says all there is to say. Symbols are the paper's (section 2).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

Alignment = Literal["ceil", "round"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowleyConfig:
    """Shape and semantics of one Flowley network.

    Raises:
        ValueError: a field is out of range; the message says what was got, what is wanted and why.
    """

    r_a: Fraction
    """Audio latent frames per second (31.25 for hop 512 at 16 kHz)."""
    r_v: Fraction
    """Video frames per second. r_a > r_v in the paper; any two positive rates work."""
    latent_dim: int
    """Channels of an audio latent frame."""
    visual_dim: int
    """Channels of a visual feature."""
    text_dim: int
    """Channels of a text feature."""
    max_text_tokens: int
    """Longest caption, in tokens of the text encoder."""

    D: int
    """Model width."""
    N1: int
    """Multi-stream (joint) blocks."""
    N2: int
    """Single-stream blocks, at least 2: beta_l divides by N2 - 1."""
    heads: int
    """Attention heads of every block."""
    mlp_ratio: float
    """Nominal feed-forward expansion; a SwiGLU has 2/3 of it, rounded up to `mlp_multiple`."""
    mlp_multiple: int
    """Feed-forward widths are multiples of this."""
    dropout: float
    """Dropout inside the feed-forward layers while training."""
    rope_theta: float
    """Base of the rotary frequencies."""
    timestep_dim: int
    """Sinusoidal features of t before their MLP."""
    timestep_scale: float
    """t in [0, 1] is multiplied by this before the sinusoids."""
    tie_single_blocks: bool
    """One single-stream block applied N2 times (the released code) instead of N2 blocks (the paper)."""

    visual_attention: Literal["psca", "plain"]
    """PSCA, or plain visual cross-attention for comparison."""
    omega: int
    """Video frames at full weight to each side of the aligned frame."""
    delta: int
    """Video frames over which the weight fades to zero beyond omega; 0 means no fade."""
    progressive: bool
    """Whether beta_l = 1 - l / (N2 - 1) scales the fade; otherwise beta_l = 1."""
    epsilon: float
    """Added to the mask before its logarithm."""
    alignment: Alignment
    """j_c by `ceil` (the paper) or `round` (the released code)."""
    alpha: Literal["sigmoid", "raw"]
    """alpha_l kept in [0, 1] by a sigmoid (the paper's range), or a free scalar (the released code)."""

    mask_text: bool
    """Whether text cross-attention and text pooling leave out padding (the released code does not)."""
    null_text: Literal["zeros", "empty_caption"]
    """What a dropped caption becomes: zeros in its place, or the encoded empty caption."""
    text_normalisation: Literal["channels", "time", "none"]
    """L2 normalisation of the text features this network expects (`time` is the released code's)."""

    def __post_init__(self) -> None:
        wrong = [message for ok, message in self._conditions() if not ok]
        if wrong:
            raise ValueError("FlowleyConfig: " + "; ".join(wrong))

    def _conditions(self) -> list[tuple[bool, str]]:
        positive = ("r_a", "r_v", "latent_dim", "visual_dim", "text_dim", "max_text_tokens", "D", "heads")
        return [
            *((getattr(self, name) > 0, f"{name} = {getattr(self, name)}, wanted > 0") for name in positive),
            (self.heads > 0 and self.D % (2 * self.heads) == 0,
             f"D = {self.D} with {self.heads} heads, wanted D divisible by 2 * heads: RoPE turns pairs"),
            (self.N1 >= 1, f"N1 = {self.N1}, wanted at least one multi-stream block"),
            (self.N2 >= 2, f"N2 = {self.N2}, wanted at least 2: beta_l = 1 - l / (N2 - 1) divides by N2 - 1, "
                           "so a single layer has no place on the way from wide to exact"),
            (self.omega >= 0, f"omega = {self.omega}, wanted >= 0 video frames"),
            (self.delta >= 0, f"delta = {self.delta}, wanted >= 0 video frames (0: no fade)"),
            (0 < self.epsilon < 1, f"epsilon = {self.epsilon}, wanted within (0, 1): log(0) must not occur"),
            (0 <= self.dropout < 1, f"dropout = {self.dropout}, wanted within [0, 1)"),
            (self.timestep_dim % 2 == 0, f"timestep_dim = {self.timestep_dim}, wanted an even number"),
        ]  # fmt: skip

    @property
    def mlp_dim(self) -> int:
        """Hidden width of a SwiGLU: 2/3 of mlp_ratio * D, rounded up to a multiple of mlp_multiple."""
        return self.mlp_multiple * math.ceil(int(2 * int(self.mlp_ratio * self.D) / 3) / self.mlp_multiple)

    def lengths(self, duration_s: float) -> tuple[int, int]:
        """(L_aud, L_vis) of a clip of `duration_s` seconds: every started frame counts."""
        duration = Fraction(duration_s).limit_denominator(1_000_000)
        if duration <= 0:
            raise ValueError(f"a clip of {duration_s} s has no frames; wanted a duration > 0 s")
        return math.ceil(duration * self.r_a), math.ceil(duration * self.r_v)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; rates as exact fractions ("125/4")."""
        return asdict(self) | {"r_a": str(self.r_a), "r_v": str(self.r_v)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FlowleyConfig:
        """Inverse of `to_dict`. Rates may also be numbers: 31.25 is 125/4.

        Raises:
            ValueError: naming each unknown, missing or mistyped field.
        """
        rates = {name: Fraction(str(values[name])) for name in ("r_a", "r_v") if name in values}
        try:
            return _ADAPTER.validate_python({**values, **rates})
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ValueError(f"not a Flowley configuration: {wrong}") from error


FlowleyConfig.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
_ADAPTER = TypeAdapter(FlowleyConfig)

_PAPER_RATES: dict[str, Any] = {
    "r_a": Fraction(125, 4), "r_v": Fraction(8), "latent_dim": 20, "visual_dim": 768, "text_dim": 1024,
    "max_text_tokens": 77,
}  # fmt: skip
_PAPER_PSCA: dict[str, Any] = {
    "visual_attention": "psca", "omega": 0, "delta": 4, "progressive": True, "epsilon": 1e-6,
    "alignment": "ceil", "alpha": "sigmoid",
}  # fmt: skip
_COMMON: dict[str, Any] = {
    "mlp_ratio": 4.0, "dropout": 0.1, "rope_theta": 10_000.0, "tie_single_blocks": False,
    "mask_text": True, "null_text": "empty_caption", "text_normalisation": "channels",
}  # fmt: skip

PRESETS: dict[str, FlowleyConfig] = {
    # The paper's 169M with an alpha of its own in every layer: docs/decisions/flowley-size.md.
    "flowley_169m": FlowleyConfig(
        **_PAPER_RATES, **_PAPER_PSCA, **_COMMON,
        D=448, N1=4, N2=8, heads=7, mlp_multiple=256, timestep_dim=256, timestep_scale=1.0,
    ),
    # The authors' released code, quirks included.
    "flowley_release": FlowleyConfig(**_PAPER_RATES, **{
        **_PAPER_PSCA, "alignment": "round", "alpha": "raw",
        **_COMMON, "tie_single_blocks": True, "mask_text": False, "null_text": "zeros",
        "text_normalisation": "time",
    }, D=512, N1=5, N2=10, heads=8, mlp_multiple=256, timestep_dim=256, timestep_scale=1.0),
    # The demo's and the tests': the same network, small enough for a CPU, over the weight-free codec.
    "tiny": FlowleyConfig(**{
        **_PAPER_RATES, "latent_dim": 64, "visual_dim": 64, "text_dim": 64, "max_text_tokens": 128,
        **_PAPER_PSCA, **_COMMON, "dropout": 0.0,
    }, D=64, N1=2, N2=3, heads=2, mlp_multiple=32, timestep_dim=64, timestep_scale=1000.0),
}  # fmt: skip


def preset(name: str, **changes: Any) -> FlowleyConfig:
    """The preset of that name with some fields changed.

    Raises:
        ValueError: no such preset or field, or a value out of range.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r}: wanted one of {', '.join(PRESETS)}")
    return FlowleyConfig.from_dict(PRESETS[name].to_dict() | changes) if changes else PRESETS[name]
