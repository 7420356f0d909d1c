"""The authors' released Flowley (github.com/Fsoft-AIC/Flowley at 0fa2118, `ema_final_0-60000_step=5000.pth`).

    theirs, after `model.`                        ours
    {audio, visual, text}_projector.{0, 2}        embed_{audio, visual, text}.{0, 2}
    {visual, text}_cond_projector                 pooled_{visual, text}
    global_cond_projector                         global_condition
    timestep_embedder.mlp.{0, 2}                  embed_time.{first, second}
    latent_{mean, std} (1, 1, C)                  latent_{mean, std} (C)
    empty_{visual, text}_feature (1, C)           null condition "zeros": they must be zeros
    multimodal_stream.i.{audio, visual, text}_block   multi_stream.i.{audio, visual, text}
    cross_{visual, textual}_proj.proj.{0, 3}      to_single_{visual, text}.{0, 3}
    single_modal_stream.{0 ... 9}                 single_stream.0: one block, ten times, so they must be equal
    final_layer                                   output

    in a block: attn.qkv_prj, rows (h d 3)        attention.qkv, rows (3 h d)
                attn.qk_norm.{query, key}_norm.scale   attention.{q, k}_norm.weight
                linear1                           out
                ffn.{w1, w3}, ffn.w2              mlp.up (gate, value), mlp.down
                adaLN_modulation.adaLN_modulation.1    adaln.linear
    in a single block also:
                self_attn                         attention
                tex_aud_cross_atn, vis_aud_cross_atn   text_attention, psca
                   .q_prj, .kv_prj, rows (h d 2)     .q, .kv, rows (2 h d)
                   .{q, k}_norm.scale                .{q, k}_norm.weight
                cross_weight                      alpha_parameter

Written from names, shapes and the arithmetic that code publishes. QK-norm is q / (rms(q) + 1e-6) there and
q / sqrt(mean q^2 + 1e-6) here: 5e-7 of a query of unit size. Captions reach it padded to 77 tokens with the
encoder's own outputs at padding, which joint attention masks and pooling and cross-attention do not.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from flowley.network.config import FlowleyConfig
from flowley.network.presets import preset
from flowley.upstream.keymap import KeyMap, shapes_of

RECOGNISED_BY = "multimodal_stream.0.audio_block.attn.qkv_prj.weight"
"""A key that only the release has."""
PREFIXES = ("", "model.", "module.model.")
"""Of its keys: the network, the network in its flow-matching module (the released file), that under DDP."""

_WHOSE = "the released Flowley"
_FORMULAS = ("multi_audio_rot", "single_audio_rot", "multi_visual_rot")


def convert(state: dict[str, Tensor], config: FlowleyConfig | None = None) -> tuple[FlowleyConfig, dict[str, Tensor]]:
    """Configuration and weights of a Flowley from the release's state dict.

    Args:
        state: keys with one of `PREFIXES`.
        config: another width or depth of the same network; the preset `flowley_release` if None.

    Raises:
        ValueError: keys that do not fit, single-stream blocks that differ, null conditions that are not zeros.
    """
    config = config or cast(FlowleyConfig, preset("flowley_release"))
    prefix = next((p for p in PREFIXES if p + RECOGNISED_BY in state), "")
    state = {name.removeprefix(prefix): x for name, x in state.items()}
    state = {name: x for name, x in state.items() if name not in _FORMULAS}
    for name, channels in [("empty_visual_feature", config.visual_dim), ("empty_text_feature", config.text_dim)]:
        null = state.pop(name, None)
        if null is None or tuple(null.shape) != (1, channels) or bool(null.any()):
            got = "it is missing" if null is None else f"got {tuple(null.shape)}, largest {float(null.abs().max()):g}"
            raise ValueError(f"not the weights of {_WHOSE}: wanted {name} (1, {channels}) of zeros, {got}")
    weights = key_map(config).convert(_untie(state, config.N2), shapes_of(config), _WHOSE)
    return config, {**weights, "null_text": torch.zeros(0, config.text_dim)}


def _untie(state: dict[str, Tensor], N2: int) -> dict[str, Tensor]:
    """The state with one single-stream block, after making sure that all N2 are the same."""
    state = dict(state)
    for name in [name for name in state if name.startswith("single_modal_stream.0.")]:
        for layer in range(1, N2):
            twin = name.replace(".0.", f".{layer}.", 1)
            if twin not in state:
                raise ValueError(f"not the weights of {_WHOSE}: {twin} is missing, wanted {N2} blocks, all the same")
            if not torch.equal(state[name], state.pop(twin)):
                raise ValueError(f"not the weights of {_WHOSE}: {twin} differs from {name}, wanted one tied block")
    return state


def key_map(config: FlowleyConfig) -> KeyMap:
    """The table above for that many blocks."""
    keys = KeyMap()
    for stream in ("audio", "visual", "text"):
        keys.layer(f"embed_{stream}.0", f"{stream}_projector.0")
        keys.swiglu(f"embed_{stream}.2", f"{stream}_projector.2")
    for ours, theirs in [("visual", "visual"), ("text", "textual")]:
        keys.layer(f"pooled_{ours}", f"{ours}_cond_projector")
        for part in (0, 3):
            keys.layer(f"to_single_{ours}.{part}", f"cross_{theirs}_proj.proj.{part}")
    keys.swiglu("global_condition", "global_cond_projector")
    keys.layer("embed_time.first", "timestep_embedder.mlp.0")
    keys.layer("embed_time.second", "timestep_embedder.mlp.2")
    keys.unbatched("latent_mean", "latent_mean", 2)
    keys.unbatched("latent_std", "latent_std", 2)

    for i in range(config.N1):
        for stream in ("audio", "visual", "text"):
            _block(keys, f"multi_stream.{i}.{stream}", f"multimodal_stream.{i}.{stream}_block", "attn")
    single, theirs = "single_stream.0", "single_modal_stream.0"
    _block(keys, single, theirs, "self_attn")
    for ours, cross in [("text_attention", "tex_aud_cross_atn"), ("psca", "vis_aud_cross_atn")]:
        keys.layer(f"{single}.{ours}.q", f"{theirs}.{cross}.q_prj")
        keys.fused(f"{single}.{ours}.kv", f"{theirs}.{cross}.kv_prj", 2)
        for norm in ("q_norm", "k_norm"):
            keys.same(f"{single}.{ours}.{norm}.weight", f"{theirs}.{cross}.{norm}.scale")
    keys.scalar(f"{single}.alpha_parameter", f"{theirs}.cross_weight")
    keys.layer("output.adaln.linear", "final_layer.adaLN_modulation.adaLN_modulation.1")
    keys.layer("output.conv", "final_layer.conv")
    return keys


def _block(keys: KeyMap, ours: str, theirs: str, attention: str) -> None:
    keys.layer(f"{ours}.adaln.linear", f"{theirs}.adaLN_modulation.adaLN_modulation.1")
    keys.fused(f"{ours}.attention.qkv", f"{theirs}.{attention}.qkv_prj", 3)
    keys.same(f"{ours}.attention.q_norm.weight", f"{theirs}.{attention}.qk_norm.query_norm.scale")
    keys.same(f"{ours}.attention.k_norm.weight", f"{theirs}.{attention}.qk_norm.key_norm.scale")
    keys.layer(f"{ours}.out", f"{theirs}.linear1")
    keys.swiglu(f"{ours}.mlp", f"{theirs}.ffn")
