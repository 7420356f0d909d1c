"""Presets: the networks with a name. `tests/flowley/network/test_presets.py` asserts their sizes."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from flowley.network.config import FlowleyConfig, MMAudioConfig, NetworkConfig

_PAPER_RATES: dict[str, Any] = {
    "r_a": Fraction(125, 4), "r_v": Fraction(8), "latent_dim": 20, "visual_dim": 768, "text_dim": 1024,
    "max_text_tokens": 77,
}  # fmt: skip
_PAPER_PSCA: dict[str, Any] = {
    "visual_attention": "psca", "omega": Fraction(0), "delta": Fraction(4), "window_unit": "frames",
    "progressive": True, "epsilon": 1e-6, "alignment": "ceil", "alpha": "sigmoid",
}  # fmt: skip
_COMMON: dict[str, Any] = {
    "mlp_ratio": 4.0, "dropout": 0.1, "rope_theta": 10_000.0, "tie_single_blocks": False,
    "mask_text": True, "null_text": "empty_caption", "text_normalisation": "channels",
}  # fmt: skip

PRESETS: dict[str, NetworkConfig] = {
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
    # MMAudio's published small_16k: DFN5B CLIP at 8 fps, CLIP text with its padding, Synchformer features.
    "mmaudio_small_16k": MMAudioConfig(
        **{**_PAPER_RATES, "visual_dim": 1024}, synchformer_dim=768, synchformer_hz=Fraction(24), synchformer_segment=8,
        D=448, N1=4, N2=8, heads=7, mlp_ratio=4.0, mlp_multiple=256, dropout=0.0, rope_theta=10_000.0,
        timestep_dim=256, timestep_scale=1.0,
        mask_text=False, null_text="empty_caption", text_normalisation="none",
    ),
    # The demo's and the tests': the same network, small enough for a CPU, over the weight-free codec.
    "tiny": FlowleyConfig(**{
        **_PAPER_RATES, "latent_dim": 64, "visual_dim": 64, "text_dim": 64, "max_text_tokens": 128,
        **_PAPER_PSCA, **_COMMON, "dropout": 0.0,
    }, D=64, N1=2, N2=3, heads=2, mlp_multiple=32, timestep_dim=64, timestep_scale=1000.0),
}  # fmt: skip


def preset(name: str, **changes: Any) -> NetworkConfig:
    """The preset of that name with some fields changed: a `FlowleyConfig` or a `MMAudioConfig`.

    Raises:
        ValueError: no such preset or field, or a value out of range.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r}: wanted one of {', '.join(PRESETS)}")
    chosen = PRESETS[name]
    return type(chosen).from_dict(chosen.to_dict() | changes) if changes else chosen
