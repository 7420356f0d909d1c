"""Configurations of the networks: rates, widths, depths and the choices the sources disagree on.

Every number a forward pass uses is a field here; none has a default, so a variant is one row of
`flowley.network.presets.PRESETS`, and `config.json` beside a checkpoint says all there is to say. Symbols are the
paper's (section 2).
"""

from __future__ import annotations

import ast
import inspect
import math
from dataclasses import MISSING, asdict, dataclass, fields
from fractions import Fraction
from types import UnionType
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

Alignment = Literal["ceil", "round"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Configuration of any network: the shapes of its inputs, its width, and how captions reach it.

    Raises:
        ValueError: a field is out of range; the message says what was got, what is wanted and why.
    """

    model_type: ClassVar[str]
    """Name of the class in config.json."""
    positive: ClassVar[tuple[str, ...]] = (
        "r_a", "r_v", "latent_dim", "visual_dim", "text_dim", "max_text_tokens", "D", "heads"
    )  # fmt: skip
    """Fields that must be above 0."""

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
    """Single-stream blocks."""
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

    mask_text: bool
    """Pooling and cross-attention leave out a caption's padding; otherwise features keep it."""
    null_text: Literal["zeros", "empty_caption"]
    """Null of a dropped caption: zeros in its place, or the encoded empty caption."""
    text_normalisation: Literal["channels", "time", "none"]
    """L2 normalisation of the text features this network expects (`time` is the released Flowley's)."""

    def __post_init__(self) -> None:
        wrong = [message for ok, message in self._conditions() if not ok]
        if wrong:
            raise ValueError(f"{type(self).__name__}: " + "; ".join(wrong))

    def _conditions(self) -> list[tuple[bool, str]]:
        return [
            *((getattr(self, name) > 0, f"{name} = {getattr(self, name)}, wanted > 0") for name in self.positive),
            (self.heads > 0 and self.D % (2 * self.heads) == 0,
             f"D = {self.D} with {self.heads} heads, wanted D divisible by 2 * heads: RoPE turns pairs"),
            (self.N1 >= 1, f"N1 = {self.N1}, wanted at least one multi-stream block"),
            (0 <= self.dropout < 1, f"dropout = {self.dropout}, wanted within [0, 1)"),
            (self.timestep_dim % 2 == 0, f"timestep_dim = {self.timestep_dim}, wanted an even number"),
        ]  # fmt: skip

    @property
    def mlp_dim(self) -> int:
        """Hidden width of a SwiGLU: 2/3 of mlp_ratio * D, rounded up to a multiple of mlp_multiple."""
        return self.mlp_multiple * math.ceil(int(2 * int(self.mlp_ratio * self.D) / 3) / self.mlp_multiple)

    @property
    def sync_dim(self) -> int:
        """Channels of the synchronisation features this network takes; 0 if it takes none."""
        return 0

    def lengths(self, duration_s: float) -> tuple[int, int]:
        """(L_aud, L_vis) of a clip of `duration_s` seconds: every started frame counts."""
        duration = Fraction(duration_s).limit_denominator(1_000_000)
        if duration <= 0:
            raise ValueError(f"a clip of {duration_s} s has no frames; wanted a duration > 0 s")
        return math.ceil(duration * self.r_a), math.ceil(duration * self.r_v)

    def sync_length(self, duration_s: float | Fraction) -> int:
        """L_sync of a clip of `duration_s` seconds; 0 for a network without synchronisation features."""
        return 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; rates and windows as exact fractions ("125/4")."""
        return {name: str(value) if isinstance(value, Fraction) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_dict`. Fractions may also be numbers: 31.25 is 125/4.

        Raises:
            ValueError: naming each unknown, missing or mistyped field.
        """
        return decode(cls, values, what=f"a {cls.model_type} configuration")

    @classmethod
    def field_docs(cls) -> dict[str, str]:
        """Docstrings of the fields in this file, for config.json."""
        docs: dict[str, str] = {}
        for owner in reversed(cls.__mro__[:-1]):
            (definition,) = ast.parse(inspect.getsource(owner)).body
            assert isinstance(definition, ast.ClassDef)
            for statement, below in zip(definition.body, definition.body[1:], strict=False):
                match statement, below:
                    case (ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text)))):
                        docs[name] = inspect.cleandoc(text)
        return {field.name: docs[field.name] for field in fields(cls)}


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowleyConfig(NetworkConfig):
    """Shape and semantics of one Flowley (section 2.1, 2.2)."""

    model_type: ClassVar[str] = "flowley"

    tie_single_blocks: bool
    """One single-stream block applied N2 times (the released code) instead of N2 blocks (the paper)."""
    visual_attention: Literal["psca", "plain"]
    """PSCA, or plain visual cross-attention for comparison."""
    omega: Fraction
    """Distance from the aligned frame, to each side, within which the weight is full; in `window_unit`."""
    delta: Fraction
    """Distance beyond omega over which the weight fades to zero; in `window_unit`, 0 means no fade."""
    window_unit: Literal["frames", "seconds"]
    """Unit of omega and delta: video frames (the paper), or seconds, for the same window at any r_v."""
    progressive: bool
    """The fade is scaled by beta_l = 1 - l / (N2 - 1); otherwise beta_l = 1."""
    epsilon: float
    """Added to the mask before its logarithm; 0 selects the local form, linear in length."""
    alignment: Alignment
    """j_c by `ceil` (the paper) or `round` (the released code)."""
    alpha: Literal["sigmoid", "raw"]
    """alpha_l kept in [0, 1] by a sigmoid (the paper's range), or a free scalar (the released code)."""

    def _conditions(self) -> list[tuple[bool, str]]:
        return [
            *NetworkConfig._conditions(self),
            (self.N2 >= 2, f"N2 = {self.N2}, wanted at least 2: beta_l = 1 - l / (N2 - 1) divides by N2 - 1, "
                           "so a single layer has no place on the way from wide to exact"),
            (self.omega >= 0, f"omega = {self.omega}, wanted >= 0 {self.window_unit}"),
            (self.delta >= 0, f"delta = {self.delta}, wanted >= 0 {self.window_unit} (0: no fade)"),
            (0 <= self.epsilon < 1, f"epsilon = {self.epsilon}, wanted within [0, 1) (0: the local form)"),
        ]  # fmt: skip

    @property
    def window_frames(self) -> tuple[Fraction, Fraction]:
        """(omega, delta) in video frames, exact: half a second at 25 fps is 25/2."""
        scale = self.r_v if self.window_unit == "seconds" else Fraction(1)
        return self.omega * scale, self.delta * scale


@dataclass(frozen=True, slots=True, kw_only=True)
class MMAudioConfig(NetworkConfig):
    """Shape of one MMAudio (Cheng et al., CVPR 2025): the peer that sees synchrony through features."""

    model_type: ClassVar[str] = "mmaudio"
    positive = (*NetworkConfig.positive, "synchformer_dim", "synchformer_hz", "synchformer_segment", "N2")

    synchformer_dim: int
    """Channels of a synchronisation feature."""
    synchformer_hz: Fraction
    """Synchronisation features per second (24: segments of 16 video frames, 8 features each, every 8 frames)."""
    synchformer_segment: int
    """Features of a segment; each place in a segment has an embedding of its own."""

    @property
    def sync_dim(self) -> int:
        return self.synchformer_dim

    def sync_length(self, duration_s: float | Fraction) -> int:
        """L_sync: whole segments, at least one."""
        frames = Fraction(duration_s).limit_denominator(1_000_000) * self.synchformer_hz
        return max(1, frames // self.synchformer_segment) * self.synchformer_segment


CONFIGS: dict[str, type[NetworkConfig]] = {c.model_type: c for c in (FlowleyConfig, MMAudioConfig)}


def decode(cls: type[T], values: Any, *, what: str) -> T:
    """An instance of the dataclass `cls` from plain JSON values by field; `what` names it in the error.

    Fields may be numbers, text, true or false, fractions, literals, or one of these or None.

    Raises:
        ValueError: naming each unknown, missing or mistyped field; or what `cls` itself finds wrong.
    """
    if not isinstance(values, dict):
        raise ValueError(f"not {what}: {values!r}, wanted its fields by name")
    hints, known = get_type_hints(cls), fields(cls)  # type: ignore[arg-type]
    names = {field.name for field in known}
    wrong = [f"{name}: no such field" for name in values if name not in names]
    decoded: dict[str, Any] = {}
    for field in known:
        if field.name in values:
            try:
                decoded[field.name] = _converted(values[field.name], hints[field.name])
            except ValueError as error:
                wrong.append(f"{field.name} = {values[field.name]!r}, wanted {error}")
        elif field.default is MISSING and field.default_factory is MISSING:
            wrong.append(f"{field.name}: missing")
    if wrong:
        raise ValueError(f"not {what}: {'; '.join(wrong)}")
    return cls(**decoded)


def _converted(value: Any, kind: Any) -> Any:
    """`value` as a field of type `kind`. Raises ValueError with what was wanted."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"one of {', '.join(get_args(kind))}")
    elif isinstance(kind, UnionType):
        (only,) = (choice for choice in get_args(kind) if choice is not type(None))
        return None if value is None else _converted(value, only)
    elif kind is Fraction:
        try:
            return Fraction(str(value))  # through its decimal digits: 31.25 is 125/4, 43.07 is 4307/100
        except (ValueError, ZeroDivisionError):
            raise ValueError('a number, or a fraction like "125/4"') from None
    elif kind is float and type(value) in (int, float, str):
        try:
            return float(value)  # YAML reads 1e-6 as text
        except ValueError:
            raise ValueError("a number") from None
    elif type(value) is not kind:  # True is no number of layers
        raise ValueError({int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind])
    return value
