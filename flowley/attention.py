"""Attention with RMS-normalised queries and keys (QK-norm) and rotary positions (RoPE).

Shapes: B batch, L tokens, D width, h heads, d = D / h channels of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from flowley.derivatives import EPSILON, normalised_heads


class QKV(NamedTuple):
    """Queries, keys and values, each (B, h, L, d)."""

    q: Tensor
    k: Tensor
    v: Tensor


def rope(length: int, d: int, *, theta: float, stretch: float = 1.0, device: torch.device) -> Tensor:
    """Rotations e^{i p stretch theta^{-2k/d}} of positions p; (length, d / 2, 2) as (cos, sin), float32.

    `stretch` puts a slower stream on a faster one's clock: r_a / r_v for video beside audio, so that frames
    of the same time turn by the same angle (L_aud / L_vis where both cover exactly the same time).
    """
    k = torch.arange(0, d, 2, dtype=torch.float32, device=device) / d
    p = torch.arange(length, dtype=torch.float32, device=device)
    angle = p[:, None] * (stretch * theta**-k)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


class SelfAttention(nn.Module):
    """Projections of self-attention; joint blocks attend over several streams' QKV at once."""

    def __init__(self, D: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(D, 3 * D)
        self.q_norm = nn.RMSNorm(D // heads, eps=EPSILON)
        self.k_norm = nn.RMSNorm(D // heads, eps=EPSILON)

    def project(self, x: Tensor, rotation: Tensor | None) -> QKV:
        """x (B, L, D) -> QKV, queries and keys normalised and, where the stream has positions, rotated."""
        qkv = rearrange(self.qkv(x), "b l (three h d) -> b l three h d", three=3, h=self.heads)
        return QKV(*normalised_heads(qkv, torch.stack([self.q_norm.weight, self.k_norm.weight]), rotation))

    def forward(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        """(B, L, D) -> (B, L, D), before the block's output projection."""
        return merge_heads(scaled_dot_product_attention(*self.project(x, rotation)))


class CrossAttention(nn.Module):
    """CA(Q_x, K_y, V_y); keys and values come from another stream. No positions, no output projection."""

    def __init__(self, D: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(D, D)
        self.kv = nn.Linear(D, 2 * D)
        self.q_norm = nn.RMSNorm(D // heads, eps=EPSILON)
        self.k_norm = nn.RMSNorm(D // heads, eps=EPSILON)

    def project(self, x: Tensor, y: Tensor) -> QKV:
        """x (B, L_x, D), y (B, L_y, D) -> queries of x, keys and values of y."""
        q = rearrange(self.q(x), "b l (one h d) -> b l one h d", one=1, h=self.heads)
        kv = rearrange(self.kv(y), "b l (two h d) -> b l two h d", two=2, h=self.heads)
        return QKV(
            *normalised_heads(q, self.q_norm.weight[None], None), *normalised_heads(kv, self.k_norm.weight[None], None)
        )

    def merge(self, x: Tensor) -> Tensor:
        """(B, h, L, d) -> (B, L, D)."""
        return merge_heads(x)

    def forward(self, x: Tensor, y: Tensor, y_mask: Tensor | None) -> Tensor:
        """x (B, L_x, D) attends to y (B, L_y, D) where y_mask (B, L_y) is True -> (B, L_x, D)."""
        mask = None if y_mask is None else y_mask[:, None, None, :]
        return self.merge(scaled_dot_product_attention(*self.project(x, y), attn_mask=mask))


def merge_heads(x: Tensor) -> Tensor:
    """(B, h, L, d) -> (B, L, D)."""
    return rearrange(x, "b h l d -> b l (h d)")


def joint_attention(streams: list[QKV], key_mask: Tensor | None) -> list[Tensor]:
    """Each stream attends to all streams.

    Args:
        streams: QKV of each stream.
        key_mask: (B, sum of lengths) bool, False on padding; None where there is none.

    Returns:
        One (B, L_stream, D) per stream.
    """
    q, k, v = (torch.cat(parts, dim=2) for parts in zip(*streams, strict=True))
    mask = None if key_mask is None else key_mask[:, None, None, :]
    out = merge_heads(scaled_dot_product_attention(q, k, v, attn_mask=mask))
    return list(torch.split(out, [stream.q.shape[2] for stream in streams], dim=1))
