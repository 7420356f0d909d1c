"""Attention with RMS-normalised queries and keys (QK-norm) and rotary positions (RoPE).

Shapes: B batch, L tokens, D width, h heads, d = D / h channels of a head. Masks are log-weights: they are added to
the logits, 0 where a token counts in full and -inf where it is not seen.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

EPSILON = 1e-6
"""Added to the mean square in QK-norm."""


class QKV(NamedTuple):
    """Queries, keys and values, each (B, h, L, d)."""

    q: Tensor
    k: Tensor
    v: Tensor


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # the first caller may be a sampler, the next a training step
def rope(length: int, d: int, theta: float, stretch: float, device: torch.device) -> Tensor:
    """Rotations e^{i p stretch theta^{-2k/d}} of positions p; (2, length, d) as cos and sin, float32.

    Args:
        length: positions 0 ... length - 1.
        d: channels of a head; neighbours 2k and 2k + 1 turn as one pair.
        theta: base of the frequencies.
        stretch: puts a slower stream on a faster one's clock: r_a / r_v for video beside audio, so that frames of the
            same time turn by the same angle (L_aud / L_vis where both cover exactly the same time).
        device: of the table, which is made once.
    """
    k = torch.arange(0, d, 2, dtype=torch.float32, device=device) / d
    p = torch.arange(length, dtype=torch.float32, device=device)
    angle = (p[:, None] * (stretch * theta**-k)).repeat_interleave(2, dim=1)
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turns each pair of neighbouring channels of x (..., L, d) by its rotation (2, L, d)."""
    cos, sin = rotation.unbind()
    a, b = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    quarter_turn = torch.stack([-b, a], dim=-1).flatten(-2)
    return x * cos + quarter_turn * sin


def log_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Log-weights (B, 1, 1, L) of keys from mask (B, L), False on padding."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)[:, None, None, :]


def qk_norm(x: Tensor, norm: nn.RMSNorm, rotation: Tensor | None) -> Tensor:
    """Queries or keys (B, h, L, d), normalised and rotated in the precision of the weights."""
    normalised = norm(x.to(norm.weight.dtype))
    return (normalised if rotation is None else rotate(normalised, rotation)).to(x.dtype)


class SelfAttention(nn.Module):
    """Projections of self-attention; joint blocks attend over several streams' QKV at once."""

    def __init__(self, D: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(D, 3 * D)
        self.q_norm = nn.RMSNorm(D // heads, eps=EPSILON)
        self.k_norm = nn.RMSNorm(D // heads, eps=EPSILON)

    def project(self, x: Tensor, rotation: Tensor | None) -> QKV:
        """QKV of x (B, L, D), queries and keys normalised and, where the stream has positions, rotated."""
        q, k, v = rearrange(self.qkv(x), "b l (three h d) -> three b h l d", three=3, h=self.heads)
        return QKV(qk_norm(q, self.q_norm, rotation), qk_norm(k, self.k_norm, rotation), v)

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
        """Queries of x (B, L_x, D), keys and values of y (B, L_y, D)."""
        q = rearrange(self.q(x), "b l (h d) -> b h l d", h=self.heads)
        k, v = rearrange(self.kv(y), "b l (two h d) -> two b h l d", two=2, h=self.heads)
        return QKV(qk_norm(q, self.q_norm, None), qk_norm(k, self.k_norm, None), v)

    def forward(self, x: Tensor, y: Tensor, log_M: Tensor | None) -> Tensor:
        """Attention of x (B, L_x, D) to y (B, L_y, D) under log-weights that broadcast to (B, h, L_x, L_y)."""
        return merge_heads(scaled_dot_product_attention(*self.project(x, y), attn_mask=log_M))


def merge_heads(x: Tensor) -> Tensor:
    """(B, h, L, d) -> (B, L, D)."""
    return rearrange(x, "b h l d -> b l (h d)")


def joint_attention(streams: list[QKV], log_mask: Tensor | None) -> list[Tensor]:
    """Joint attention, each stream to all streams: one (B, L_stream, D) per stream.

    log_mask (B, 1, 1, sum of lengths) are log-weights of the keys; None where all count.
    """
    q, k, v = (torch.cat(tensors, dim=2) for tensors in zip(*streams, strict=True))
    out = merge_heads(scaled_dot_product_attention(q, k, v, attn_mask=log_mask))
    return list(torch.split(out, [stream.q.shape[2] for stream in streams], dim=1))
