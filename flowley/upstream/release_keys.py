"""The authors' released Flowley (github.com/Fsoft-AIC/Flowley at 0fa2118, `ema_final_0-60000_step=5000.pth`).

Written from names, shapes and the arithmetic that code publishes. Its single-stream blocks are one block, ten times,
so they must be equal; its null conditions are zeros. QK-norm is q / (rms(q) + 1e-6) there and
q / sqrt(mean q^2 + 1e-6) here: 5e-7 of a query of unit size. Captions reach it padded to 77 tokens with the
encoder's own outputs at padding, which joint attention masks and pooling and cross-attention do not.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from flowley.network.config import FlowleyConfig
from flowley.network.presets import preset
from flowley.upstream.keymap import convert_weights, shapes_of

RECOGNISED_BY = "multimodal_stream.0.audio_block.attn.qkv_prj.weight"
"""A key that only the release has."""
PREFIXES = ("", "model.", "module.model.")
"""Prefixes of its keys: the network, the network in its flow-matching module (the released file), that under DDP."""

_NAMES = (
    (r"^embed_(audio|visual|text)\.", r"\1_projector."),
    (r"^pooled_(visual|text)\.", r"\1_cond_projector."),
    (r"^global_condition\.", "global_cond_projector."),
    (r"^embed_time\.first\.", "timestep_embedder.mlp.0."),
    (r"^embed_time\.second\.", "timestep_embedder.mlp.2."),
    (r"^to_single_visual\.", "cross_visual_proj.proj."),
    (r"^to_single_text\.", "cross_textual_proj.proj."),
    (r"^multi_stream\.(\d+)\.(audio|visual|text)\.attention\.", r"multimodal_stream.\1.\2_block.attn."),
    (r"^multi_stream\.(\d+)\.(audio|visual|text)\.", r"multimodal_stream.\1.\2_block."),
    (r"^single_stream\.0\.attention\.", "single_modal_stream.0.self_attn."),
    (r"^single_stream\.", "single_modal_stream."),
    (r"^output\.", "final_layer."),
    (r"attn\.q_norm\.weight$", "attn.qk_norm.query_norm.scale"),
    (r"attn\.k_norm\.weight$", "attn.qk_norm.key_norm.scale"),
    (r"\.text_attention\.", ".tex_aud_cross_atn."),
    (r"\.psca\.", ".vis_aud_cross_atn."),
    (r"_norm\.weight$", "_norm.scale"),
    (r"\.(q|kv|qkv)\.", r".\1_prj."),
    (r"\.alpha_parameter$", ".cross_weight"),
    (r"\.out\.", ".linear1."),
    (r"\.mlp\.(up|down)\.", r".ffn.\1."),
    (r"\.adaln\.linear\.", ".adaLN_modulation.adaLN_modulation.1."),
)
_AXES = {"latent_mean": 2, "latent_std": 2, "single_stream.0.alpha_parameter": -1}
_FORMULAS = ("multi_audio_rot", "single_audio_rot", "multi_visual_rot")
_WHOSE = "the released Flowley"


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
    ours = shapes_of(config)
    del ours["null_text"]
    weights = convert_weights(_untie(state, config.N2), ours, names=_NAMES, axes=_AXES, whose=_WHOSE)
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
