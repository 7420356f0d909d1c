"""Flowley (Figure 1a): audio latent, video and text in; flow field v_theta(x_t, t | video, text) out.

Shapes: B batch, L_aud audio latent frames, L_vis video frames, L_txt text tokens, C channels, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from flowley.network.attention import CrossAttention, SelfAttention, log_mask, rope
from flowley.network.base import Conditions, VelocityNetwork
from flowley.network.blocks import (
    AdaLN,
    ConvMLP,
    MultiStreamBlock,
    OutputLayer,
    SingleStreamBlock,
    TimestepEmbedding,
    TokenConv1d,
    initialise,
    normal,
    xavier_parts,
)
from flowley.network.config import FlowleyConfig
from flowley.network.psca import Mask, visual_masks


class Embedded(NamedTuple):
    """Conditions inside the network, masks and rotations; the same at every step of a sampler, so computed once."""

    x_vis: Tensor
    """(B, L_vis, D)."""
    x_txt: Tensor
    """(B, L_txt, D)."""
    c: Tensor
    """(B, D): global condition without the time."""
    joint_log_mask: Tensor
    """(B, 1, 1, L_aud + L_vis + L_txt): log-weights of the joint attention's keys."""
    text_log_mask: Tensor | None
    """(B, 1, 1, L_txt): log-weights of the text attention's keys; None where padding counts too."""
    masks: Sequence[Mask]
    """log(M^(l) + epsilon), one per single-stream block."""
    rope_aud: Tensor
    """(2, L_aud, d)."""
    rope_vis: Tensor
    """(2, L_vis, d)."""


class Flowley(VelocityNetwork):
    """The network of one `FlowleyConfig`."""

    config_type = FlowleyConfig
    config: FlowleyConfig

    def __init__(self, config: FlowleyConfig) -> None:
        super().__init__(config)
        D = config.D
        self.embed_audio = nn.Sequential(
            TokenConv1d(config.latent_dim, D, 7), nn.SiLU(), ConvMLP(D, config.mlp_dim, kernel=7)
        )
        self.embed_visual = nn.Sequential(
            nn.Linear(config.visual_dim, D), nn.SiLU(), ConvMLP(D, config.mlp_dim, kernel=3)
        )
        self.embed_text = nn.Sequential(nn.Linear(config.text_dim, D), nn.SiLU(), ConvMLP(D, config.mlp_dim, kernel=1))
        self.pooled_visual = nn.Linear(D, D)
        self.pooled_text = nn.Linear(D, D)
        self.global_condition = ConvMLP(D, config.mlp_dim, kernel=1, dropout=config.dropout)
        self.embed_time = TimestepEmbedding(D, config.timestep_dim, config.timestep_scale)

        self.multi_stream = nn.ModuleList(MultiStreamBlock(config) for _ in range(config.N1))
        self.to_single_visual = _projector(D, config.dropout)
        self.to_single_text = _projector(D, config.dropout)
        distinct = 1 if config.tie_single_blocks else config.N2
        self.single_stream = nn.ModuleList(SingleStreamBlock(config) for _ in range(distinct))
        self.output = OutputLayer(D, config.latent_dim)

        self.apply(_initialise)

    def embed(self, conditions: Conditions, L_aud: int) -> Embedded:
        """Projected conditions, their pooled sum, masks and rotations. See `VelocityNetwork.embed`."""
        self.check_conditions(conditions)
        visual, text, text_mask, _ = conditions
        config, L_vis, device = self.config, visual.shape[1], visual.device
        x_vis, x_txt = self.embed_visual(visual), self.embed_text(text)
        pool_mask = text_mask if config.mask_text else torch.ones_like(text_mask)
        c = self.pooled_visual(x_vis.mean(1)) + self.pooled_text(_masked_mean(x_txt, pool_mask))
        dtype, d, r = x_vis.dtype, config.D // config.heads, float(config.r_a / config.r_v)
        return Embedded(
            x_vis, x_txt, self.global_condition(c),
            joint_log_mask=log_mask(pad(text_mask, (L_aud + L_vis, 0), value=True), dtype),
            text_log_mask=log_mask(text_mask, dtype) if config.mask_text else None,
            masks=visual_masks(config, L_aud, L_vis, device, dtype),
            rope_aud=rope(L_aud, d, config.rope_theta, 1.0, device),
            rope_vis=rope(L_vis, d, config.rope_theta, r, device),
        )  # fmt: skip

    def velocity(self, x_t: Tensor, t: Tensor, embedded: Embedded) -> Tensor:
        """See `VelocityNetwork.velocity`."""
        x_vis, x_txt, c, joint_log_mask, text_log_mask, masks, rope_aud, rope_vis = embedded
        self.check_latent(x_t, x_vis.shape[1])
        c = (c + self.embed_time(t.to(c.dtype)))[:, None]

        x = self.embed_audio(x_t)
        for block in self.multi_stream:
            x, x_vis, x_txt = block(
                x, x_vis, x_txt, c, c_aud=c, rope_aud=rope_aud, rope_vis=rope_vis, log_mask=joint_log_mask
            )
        x_vis, x_txt = self.to_single_visual(x_vis), self.to_single_text(x_txt)
        for layer, log_M in enumerate(masks):
            block = self.single_stream[layer % len(self.single_stream)]
            x = block(x, x_vis, x_txt, c, rope_aud=rope_aud, log_M=log_M, text_log_mask=text_log_mask)
        out: Tensor = self.output(x, c)
        return out

    def null_visual(self, conditions: Conditions) -> tuple[Tensor, None]:
        """Zeros, as in the released recipe."""
        return torch.zeros(1, 1, self.config.visual_dim, device=conditions.visual.device), None


def _projector(D: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.Linear(D, D), nn.SiLU(), nn.Dropout(dropout), nn.Linear(D, D))


def _masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens where mask (B, L) is True: (B, L, D) -> (B, D)."""
    weight = mask.to(x.dtype)[..., None]
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)


def _initialise(module: nn.Module) -> None:
    """Also each part of a fused projection by itself; adaLN N(0, 1e-3); convolutions as torch does."""
    initialise(module)
    match module:
        case SelfAttention():
            xavier_parts(module.qkv.weight, 3)
        case CrossAttention():
            xavier_parts(module.kv.weight, 2)
        case AdaLN():
            normal(module.linear.weight, 1e-3)
