"""MMAudio's published weights (github.com/hkchengrex/MMAudio at 974010a, MIT; the weights are CC-BY-NC 4.0).

    theirs                                        ours
    audio_input_proj.{0, 2}                       embed_audio.{0, 2}
    clip_input_proj.{0, 1}                        embed_visual.{0, 1}
    sync_input_proj.{0, 2}                        embed_sync.{0, 2}
    text_input_proj.{0, 1}                        embed_text.{0, 1}
    clip_cond_proj, text_cond_proj                pooled_visual, pooled_text
    global_cond_mlp                               global_condition
    t_embed.mlp.{0, 2}                            embed_time.{first, second}
    sync_pos_emb (1, 1, 8, C)                     sync_position (8, C)
    empty_{clip, sync}_feat (1, C)                empty_{visual, sync} (C)
    empty_string_feat (77, C)                     null_text
    latent_{mean, std} (1, 1, C)                  latent_{mean, std} (C)
    joint_blocks.i.{latent, clip, text}_block     multi_stream.i.{audio, visual, text}
    fused_blocks.i                                single_stream.i
    final_layer                                   output

    in a block: attn.qkv, rows (h d 3)            attention.qkv, rows (3 h d)
                attn.{q, k}_norm                  attention.{q, k}_norm
                linear1                           out
                ffn.{w1, w3}, ffn.w2              mlp.up (gate, value), mlp.down
                adaLN_modulation.1                adaln.linear

The last joint block has nothing after the attention for CLIP and text. `t_embed.freqs`, `latent_rot` and
`clip_rot`, which old files hold, are formulas and not read. QK-norm divides by sqrt(mean q^2 + 1e-6) here and by
sqrt(mean q^2 + 1.2e-7) there: 4e-7 of a query of unit size.
"""

from __future__ import annotations

from fractions import Fraction
from typing import cast

from torch import Tensor

from flowley.network.config import MMAudioConfig
from flowley.network.presets import preset
from flowley.upstream.keymap import KeyMap, shapes_of

RECOGNISED_BY = "joint_blocks.0.latent_block.attn.qkv.weight"
"""A key that only MMAudio has."""

_SIZES = {
    (20, 448, 4, 8): "small_16k",
    (40, 448, 4, 8): "small_44k",
    (40, 896, 4, 8): "medium_44k",
    (40, 896, 7, 14): "large_44k",
}  # fmt: skip
"""By latent channels, width, joint and fused blocks."""
_R_A = {20: Fraction(125, 4), 40: Fraction(44100, 1024)}
"""Latent frames per second of the 16 kHz and the 44.1 kHz codec."""
_FORMULAS = ("t_embed.freqs", "latent_rot", "clip_rot")


def convert(state: dict[str, Tensor]) -> tuple[MMAudioConfig, dict[str, Tensor]]:
    """Configuration and weights of an MMAudio from upstream's state dict.

    Raises:
        ValueError: another member of the family than its first four sizes, or keys that do not fit.
    """
    state = {name: x for name, x in state.items() if name not in _FORMULAS}
    config = config_of(state)
    weights = key_map(config).convert(state, shapes_of(config), f"MMAudio {_SIZES[_size(state)]}")
    return config, weights


def config_of(state: dict[str, Tensor]) -> MMAudioConfig:
    """What the shapes say; every size of the first version shares the rest with `mmaudio_small_16k`.

    Raises:
        ValueError: a size that was not published, or the second version.
    """
    if "clip_input_proj.2.w1.weight" in state:
        raise ValueError(
            "MMAudio large_44k_v2: its input layers and time embedding are other functions under the same names; "
            f"wanted the first version: {', '.join(_SIZES.values())}"
        )
    latent_dim, D, N1, N2 = size = _size(state)
    if size not in _SIZES:
        raise ValueError(
            f"an MMAudio of {latent_dim} latent channels, width {D}, {N1} joint and {N2} fused blocks; "
            f"wanted one of {', '.join(_SIZES.values())}"
        )
    shape = {"latent_dim": latent_dim, "D": D, "heads": D // 64, "N1": N1, "N2": N2}
    return cast(MMAudioConfig, preset("mmaudio_small_16k", r_a=str(_R_A[latent_dim]), **shape))


def _size(state: dict[str, Tensor]) -> tuple[int, int, int, int]:
    first = state.get("audio_input_proj.0.weight")
    if first is None or first.ndim != 3:
        raise ValueError("not the weights of an MMAudio: audio_input_proj.0.weight is missing or no convolution")

    def blocks(stack: str) -> int:
        return len({name.split(".")[1] for name in state if name.startswith(f"{stack}.")})

    return first.shape[1], first.shape[0], blocks("joint_blocks"), blocks("fused_blocks")


def key_map(config: MMAudioConfig) -> KeyMap:
    """The table above for that many blocks."""
    keys = KeyMap()
    for ours, theirs, last in [("audio", "audio", 2), ("visual", "clip", 1), ("sync", "sync", 2), ("text", "text", 1)]:
        keys.layer(f"embed_{ours}.0", f"{theirs}_input_proj.0")
        keys.swiglu(f"embed_{ours}.{last}", f"{theirs}_input_proj.{last}")
    for ours, theirs in [("visual", "clip"), ("text", "text")]:
        keys.layer(f"pooled_{ours}", f"{theirs}_cond_proj")
    keys.swiglu("global_condition", "global_cond_mlp")
    keys.layer("embed_time.first", "t_embed.mlp.0")
    keys.layer("embed_time.second", "t_embed.mlp.2")
    keys.unbatched("sync_position", "sync_pos_emb", 2)
    keys.unbatched("empty_visual", "empty_clip_feat", 1)
    keys.unbatched("empty_sync", "empty_sync_feat", 1)
    keys.same("null_text", "empty_string_feat")
    keys.unbatched("latent_mean", "latent_mean", 2)
    keys.unbatched("latent_std", "latent_std", 2)

    for i in range(config.N1):
        for ours, theirs in [("audio", "latent"), ("visual", "clip"), ("text", "text")]:
            ends_here = i == config.N1 - 1 and ours != "audio"
            _block(keys, f"multi_stream.{i}.{ours}", f"joint_blocks.{i}.{theirs}_block", pre_only=ends_here)
    for i in range(config.N2):
        _block(keys, f"single_stream.{i}", f"fused_blocks.{i}")
    keys.layer("output.adaln.linear", "final_layer.adaLN_modulation.1")
    keys.layer("output.conv", "final_layer.conv")
    return keys


def _block(keys: KeyMap, ours: str, theirs: str, *, pre_only: bool = False) -> None:
    keys.layer(f"{ours}.adaln.linear", f"{theirs}.adaLN_modulation.1")
    keys.fused(f"{ours}.attention.qkv", f"{theirs}.attn.qkv", 3)
    keys.same(f"{ours}.attention.q_norm.weight", f"{theirs}.attn.q_norm.weight")
    keys.same(f"{ours}.attention.k_norm.weight", f"{theirs}.attn.k_norm.weight")
    if not pre_only:
        keys.layer(f"{ours}.out", f"{theirs}.linear1")
        keys.swiglu(f"{ours}.mlp", f"{theirs}.ffn")
