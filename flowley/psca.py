"""Progressive Soft-masked Cross-Attention (PSCA), section 2.2 of the paper.

Audio frame i looks at the video frame of its own time, j_c(i), and softly at that frame's neighbours. The
neighbourhood is wide in the first layer and shrinks to the aligned frame in the last:

    j_c(i)     = min(ceil(i r_v / r_a), L_vis - 1)                        d_ij = |j - j_c(i)|
    M_ij^(l)   = 1                               d_ij <= omega
                 beta_l F(d_ij - omega)          omega < d_ij <= omega + delta
                 0                               beyond
    F(m)       = (cos(pi m / delta) + 1) / 2     beta_l = 1 - l / (N2 - 1)
    PSCA_l(Q_aud, K_vis, V_vis) = softmax(Q_aud K_vis^T / sqrt(d_k) + log(M^(l) + epsilon)) V_vis

`psca` is that formula over all video frames. `local_psca` is the same for epsilon = 0, where a frame with M = 0 is
never seen: chunks of audio frames against the video frames within their reach, so that time and memory are linear
in length. The configuration's epsilon chooses (docs/decisions/psca-local.md).

Shapes: B batch, L_aud audio latent frames, L_vis video frames, D width, h heads, d_k = D / h; in the local form
n chunks of c audio frames, and W video frames that a chunk looks at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from flowley.attention import CrossAttention
from flowley.config import Alignment, FlowleyConfig

_Number = TypeVar("_Number", float, Tensor)


def aligned_frames(
    L_aud: int, L_vis: int, *, r_a: Fraction, r_v: Fraction, alignment: Alignment = "ceil",
    device: torch.device | str | None = None,
) -> Tensor:  # fmt: skip
    """j_c(i), the video frame aligned to each audio frame; (L_aud,) int64 within [0, L_vis - 1].

    Integer arithmetic throughout: in floating point ceil(25 / 43 * 215) is 126, one frame late.
    `ceil` is the paper's rule and looks up to one video frame ahead; `round` is the released code's, ties to
    the even frame.
    """
    n, d = (r_v / r_a).as_integer_ratio()  # frames of video per frame of audio: n / d, in lowest terms
    i = torch.arange(L_aud, device=device)
    if alignment == "ceil":
        j = -((-n * i) // d)
    else:
        j = (2 * n * i + d) // (2 * d)
        tie = (2 * n * i + d) % (2 * d) == 0
        j = j - (tie & (j % 2 == 1)).long()
    return j.clamp(max=L_vis - 1)


def beta(layer: _Number, N2: int) -> _Number:
    """beta_l = 1 - l / (N2 - 1): 1 in the first layer, 0 in the last."""
    return 1.0 - layer / (N2 - 1)


def betas(config: FlowleyConfig, *, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """beta_0 ... beta_(N2 - 1), or ones where the configuration is not progressive; (N2,)."""
    layers = torch.arange(config.N2, device=device, dtype=dtype)
    return beta(layers, config.N2) if config.progressive else torch.ones_like(layers)


def weight(
    d_ij: Tensor, *, omega: Fraction | int, delta: Fraction | int, beta_l: float | Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """M^(l) within [0, 1] at whole distances d_ij; omega and delta in video frames, whole or not.

    Note F(delta) = 0: with omega = 0, delta = 4 the weights are 1, .854 beta_l, .5 beta_l, .146 beta_l, 0.
    """
    m = d_ij.to(dtype) - float(omega)
    F = (torch.cos(math.pi * m / float(delta)) + 1) / 2  # not a number where delta = 0, and then used nowhere
    fade = torch.where(d_ij <= (omega + delta) // 1, beta_l * F, 0.0)
    return torch.where(d_ij <= omega // 1, 1.0, fade)


def soft_mask(
    j_c: Tensor, L_vis: int, *, omega: Fraction | int, delta: Fraction | int, beta_l: float | Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """M^(l) between all frames; (L_aud, L_vis), or (N2, L_aud, L_vis) for beta_l (N2, 1, 1)."""
    d_ij = (torch.arange(L_vis, device=j_c.device) - j_c[:, None]).abs()
    return weight(d_ij, omega=omega, delta=delta, beta_l=beta_l, dtype=dtype)


def progressive_masks(config: FlowleyConfig, L_aud: int, L_vis: int, *, device: torch.device) -> Tensor:
    """M^(0) ... M^(N2 - 1), one per single-stream block; (N2, L_aud, L_vis) float32."""
    j_c = aligned_frames(L_aud, L_vis, r_a=config.r_a, r_v=config.r_v, alignment=config.alignment, device=device)
    omega, delta = config.window_frames
    return soft_mask(j_c, L_vis, omega=omega, delta=delta, beta_l=betas(config, device=device)[:, None, None])


def reach(omega: Fraction | int, delta: Fraction | int) -> int:
    """The largest distance at which M is not 0 in the first layer, in video frames. F(delta) = 0 is not."""
    return int(max(omega // 1, -(-(omega + delta) // 1) - 1))


def psca(Q_aud: Tensor, K_vis: Tensor, V_vis: Tensor, M: Tensor, *, epsilon: float) -> Tensor:
    """softmax(Q K^T / sqrt(d_k) + log(M + epsilon)) V, per head.

    Args:
        Q_aud: (B, h, L_aud, d_k).
        K_vis, V_vis: (B, h, L_vis, d_k).
        M: (L_aud, L_vis) in [0, 1].

    Returns:
        (B, h, L_aud, d_k).
    """
    log_M = torch.log(M + epsilon).to(Q_aud.dtype)
    return scaled_dot_product_attention(Q_aud, K_vis, V_vis, attn_mask=log_M)


class LocalMask(NamedTuple):
    """M^(l) between each chunk of audio frames and the video frames it looks at. Chunk 0 starts at audio frame 0."""

    keys: Tensor
    """(n, W) int64, consecutive video frames: all with M > 0 for any audio frame of the chunk."""
    bias: Tensor
    """(n, c, W): log M^(l), -inf where M = 0. The last chunk may go on past the last audio frame."""


def local_masks(
    config: FlowleyConfig, L_aud: int, L_vis: int, *, device: torch.device, dtype: torch.dtype = torch.float32
) -> list[LocalMask]:
    """M^(0) ... M^(N2 - 1) as `local_psca` takes them; the chunks are the same in all layers."""
    omega, delta = config.window_frames
    margin = reach(omega, delta)
    W, c = _chunk_shape(L_aud, margin, config.r_v / config.r_a)
    W, n = min(W, L_vis), -(-L_aud // c)

    j_c = aligned_frames(n * c, L_vis, r_a=config.r_a, r_v=config.r_v, alignment=config.alignment, device=device)
    j_c = j_c.view(n, c)
    keys = (j_c[:, :1] - margin).clamp(0, L_vis - W) + torch.arange(W, device=device)
    d_ij = (keys[:, None] - j_c[:, :, None]).abs().clamp(max=margin + 1)

    # M depends on the distance alone, so its logarithms are looked up.
    distances, beta_l = torch.arange(margin + 2, device=device), betas(config, device=device, dtype=dtype)[:, None]
    log_M = weight(distances, omega=omega, delta=delta, beta_l=beta_l, dtype=dtype).log()
    bias = log_M.index_select(1, d_ij.flatten()).view(config.N2, n, c, W)
    return [LocalMask(keys, layer) for layer in bias.unbind()]


def _chunk_shape(L_aud: int, margin: int, r: Fraction) -> tuple[int, int]:
    """(W, c): video frames that a chunk looks at, audio frames of a chunk; r video frames per audio frame.

    c audio frames lie on at most ceil((c - 1) r) + 2 video frames (2 because of the ties of `round`), which must fit
    into W with a margin, the reach, on both sides. As measured on CPUs: whole vectors of 16 keys, about half of them
    margin, but room for 16 audio frames; of the longer half of the lengths that fit, one that divides L_aud, if there
    is one, spares a copy of Q.
    """
    W = 16 * -(-max(4 * margin, 2 * margin + 2 - (-15 * r // 1)) // 16)
    longest = min(L_aud, (W - 2 * margin - 2) // r + 1)
    return W, next((c for c in range(longest, longest // 2, -1) if L_aud % c == 0), longest)


def local_psca(Q_aud: Tensor, K_vis: Tensor, V_vis: Tensor, mask: LocalMask) -> Tensor:
    """softmax(Q K^T / sqrt(d_k) + log M) V, per head and chunk: what `psca` is with epsilon = 0.

    Args:
        Q_aud: (B, h, L_aud, d_k).
        K_vis, V_vis: (B, h, L_vis, d_k).
        mask: of these lengths.

    Returns:
        (B, h, L_aud, d_k).
    """
    B, h, L_aud, d_k = Q_aud.shape
    n, c, W = mask.bias.shape
    if n * c > L_aud:
        Q_aud = pad(Q_aud, (0, 0, 0, n * c - L_aud))
    Q = Q_aud.reshape(B, h, n, c, d_k)
    K, V = (x.index_select(2, mask.keys.flatten()).view(B, h, n, W, d_k) for x in (K_vis, V_vis))
    # Products of small matrices: for these, on a CPU, faster than the fused attention kernel.
    scores = torch.add(mask.bias, Q @ K.mT, alpha=d_k**-0.5)
    out: Tensor = scores.softmax(-1).to(V.dtype) @ V
    return out.flatten(2, 3)[:, :, :L_aud]


Mask = Tensor | LocalMask | None
"""What a layer's visual attention is told: dense or local M, or None for plain cross-attention."""


def visual_masks(config: FlowleyConfig, L_aud: int, L_vis: int, *, device: torch.device) -> Sequence[Mask]:
    """One mask per single-stream block: local where epsilon = 0, dense otherwise, None without PSCA."""
    if config.visual_attention == "plain":
        return [None] * config.N2
    if config.epsilon == 0:
        return local_masks(config, L_aud, L_vis, device=device)
    return progressive_masks(config, L_aud, L_vis, device=device).unbind()


class PSCA(CrossAttention):
    """Cross-attention from audio to video under a progressive soft mask (plain where M is None)."""

    def __init__(self, D: int, heads: int, *, epsilon: float) -> None:
        super().__init__(D, heads)
        self.epsilon = epsilon

    def forward(self, x_aud: Tensor, x_vis: Tensor, M: Mask) -> Tensor:
        """(B, L_aud, D), (B, L_vis, D), M (L_aud, L_vis) or local or None -> (B, L_aud, D)."""
        Q_aud, K_vis, V_vis = self.project(x_aud, x_vis)
        if M is None:
            return self.merge(scaled_dot_product_attention(Q_aud, K_vis, V_vis))
        if isinstance(M, LocalMask):
            return self.merge(local_psca(Q_aud, K_vis, V_vis, M))
        return self.merge(psca(Q_aud, K_vis, V_vis, M, epsilon=self.epsilon))
