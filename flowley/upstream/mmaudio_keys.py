"""MMAudio's published weights (github.com/hkchengrex/MMAudio at 974010a, MIT; the weights are CC-BY-NC 4.0).

The last joint block has nothing after the attention for CLIP and text. QK-norm divides by sqrt(mean q^2 + 1e-6) here
and by sqrt(mean q^2 + 1.2e-7) there: 4e-7 of a query of unit size.
"""

from __future__ import annotations

from fractions import Fraction
from typing import cast

from torch import Tensor

from flowley.network.config import MMAudioConfig
from flowley.network.presets import preset
from flowley.upstream.keymap import convert_weights, shapes_of

RECOGNISED_BY = "joint_blocks.0.latent_block.attn.qkv.weight"
"""A key that only MMAudio has."""

_NAMES = (
    (r"^embed_visual\.", "clip_input_proj."),
    (r"^embed_(audio|sync|text)\.", r"\1_input_proj."),
    (r"^pooled_visual\.", "clip_cond_proj."),
    (r"^pooled_text\.", "text_cond_proj."),
    (r"^global_condition\.", "global_cond_mlp."),
    (r"^embed_time\.first\.", "t_embed.mlp.0."),
    (r"^embed_time\.second\.", "t_embed.mlp.2."),
    (r"^sync_position$", "sync_pos_emb"),
    (r"^empty_visual$", "empty_clip_feat"),
    (r"^empty_sync$", "empty_sync_feat"),
    (r"^null_text$", "empty_string_feat"),
    (r"^multi_stream\.(\d+)\.audio\.", r"joint_blocks.\1.latent_block."),
    (r"^multi_stream\.(\d+)\.visual\.", r"joint_blocks.\1.clip_block."),
    (r"^multi_stream\.(\d+)\.text\.", r"joint_blocks.\1.text_block."),
    (r"^single_stream\.", "fused_blocks."),
    (r"^output\.", "final_layer."),
    (r"\.attention\.", ".attn."),
    (r"\.out\.", ".linear1."),
    (r"\.mlp\.(up|down)\.", r".ffn.\1."),
    (r"\.adaln\.linear\.", ".adaLN_modulation.1."),
)
_AXES = {"sync_position": 2, "empty_visual": 1, "empty_sync": 1, "latent_mean": 2, "latent_std": 2}
_FORMULAS = ("t_embed.freqs", "latent_rot", "clip_rot")
"""Tables that old files hold; they are formulas and not read."""
_SIZES = {
    (20, 448, 4, 8): "small_16k",
    (40, 448, 4, 8): "small_44k",
    (40, 896, 4, 8): "medium_44k",
    (40, 896, 7, 14): "large_44k",
}  # fmt: skip
"""By latent channels, width, joint and fused blocks."""
_R_A = {20: Fraction(125, 4), 40: Fraction(44100, 1024)}
"""Latent frames per second of the 16 kHz and the 44.1 kHz codec."""


def convert(state: dict[str, Tensor]) -> tuple[MMAudioConfig, dict[str, Tensor]]:
    """Configuration and weights of an MMAudio from upstream's state dict.

    Raises:
        ValueError: another member of the family than its first four sizes, or keys that do not fit.
    """
    state = {name: x for name, x in state.items() if name not in _FORMULAS}
    config = config_of(state)
    whose = f"MMAudio {_SIZES[config.latent_dim, config.D, config.N1, config.N2]}"
    return config, convert_weights(state, shapes_of(config), names=_NAMES, axes=_AXES, whose=whose)


def config_of(state: dict[str, Tensor]) -> MMAudioConfig:
    """Configuration by the shapes; every size of the first version shares the rest with `mmaudio_small_16k`.

    Raises:
        ValueError: a size that was not published, or the second version.
    """
    if "clip_input_proj.2.w1.weight" in state:
        raise ValueError(
            "MMAudio large_44k_v2: its input layers and time embedding are other functions under the same names; "
            f"wanted the first version: {', '.join(_SIZES.values())}"
        )
    first = state.get("audio_input_proj.0.weight")
    if first is None or first.ndim != 3:
        raise ValueError("not the weights of an MMAudio: audio_input_proj.0.weight is missing or no convolution")
    D, latent_dim, _ = first.shape
    N1, N2 = (
        len({name.split(".")[1] for name in state if name.startswith(f"{stack}.")})
        for stack in ("joint_blocks", "fused_blocks")
    )
    if (latent_dim, D, N1, N2) not in _SIZES:
        raise ValueError(
            f"an MMAudio of {latent_dim} latent channels, width {D}, {N1} joint and {N2} fused blocks; "
            f"wanted one of {', '.join(_SIZES.values())}"
        )
    shape = {"latent_dim": latent_dim, "D": D, "heads": D // 64, "N1": N1, "N2": N2}
    return cast(MMAudioConfig, preset("mmaudio_small_16k", r_a=str(_R_A[latent_dim]), **shape))
