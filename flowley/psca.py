"""Progressive Soft-masked Cross-Attention (PSCA), section 2.2 of the paper.

Audio frame i looks at the video frame of its own time, j_c(i), and softly at that frame's neighbours. The
neighbourhood is wide in the first layer and shrinks to the aligned frame in the last:

    j_c(i)     = min(ceil(i r_v / r_a), L_vis - 1)                        d_ij = |j - j_c(i)|
    M_ij^(l)   = 1                               d_ij <= omega
                 beta_l F(d_ij - omega)          omega < d_ij <= omega + delta
                 0                               beyond
    F(m)       = (cos(pi m / delta) + 1) / 2     beta_l = 1 - l / (N2 - 1)
    PSCA_l(Q_aud, K_vis, V_vis) = softmax(Q_aud K_vis^T / sqrt(d_k) + log(M^(l) + epsilon)) V_vis

Shapes: B batch, L_aud audio latent frames, L_vis video frames, D width, h heads, d_k = D / h.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from flowley.attention import CrossAttention
from flowley.config import Alignment, FlowleyConfig


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


def beta(layer: int, N2: int) -> float:
    """beta_l = 1 - l / (N2 - 1): 1 in the first layer, 0 in the last."""
    return 1.0 - layer / (N2 - 1)


def soft_mask(
    j_c: Tensor, L_vis: int, *, omega: int, delta: int, beta_l: float, dtype: torch.dtype = torch.float32
) -> Tensor:
    """M^(l) with entries in [0, 1]; (L_aud, L_vis).

    Note F(delta) = 0: with delta = 4 the weights are 1, .854 beta_l, .5 beta_l, .146 beta_l, 0.
    """
    d_ij = (torch.arange(L_vis, device=j_c.device) - j_c[:, None]).abs()
    m = d_ij - omega
    M = (m <= 0).to(dtype)
    if delta > 0:
        fade = beta_l * (torch.cos(math.pi * m.to(dtype) / delta) + 1) / 2
        M = torch.where((m > 0) & (m <= delta), fade, M)
    return M


def progressive_masks(config: FlowleyConfig, L_aud: int, L_vis: int, *, device: torch.device) -> Tensor:
    """M^(0) ... M^(N2 - 1), one per single-stream block; (N2, L_aud, L_vis) float32."""
    j_c = aligned_frames(L_aud, L_vis, r_a=config.r_a, r_v=config.r_v, alignment=config.alignment, device=device)
    betas = [beta(layer, config.N2) if config.progressive else 1.0 for layer in range(config.N2)]
    return torch.stack(
        [soft_mask(j_c, L_vis, omega=config.omega, delta=config.delta, beta_l=beta_l) for beta_l in betas]
    )


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


class PSCA(CrossAttention):
    """Cross-attention from audio to video under a progressive soft mask (plain where M is None)."""

    def __init__(self, D: int, heads: int, *, epsilon: float) -> None:
        super().__init__(D, heads)
        self.epsilon = epsilon

    def forward(self, x_aud: Tensor, x_vis: Tensor, M: Tensor | None) -> Tensor:
        """(B, L_aud, D), (B, L_vis, D), (L_aud, L_vis) or None -> (B, L_aud, D)."""
        Q_aud, K_vis, V_vis = self.project(x_aud, x_vis)
        if M is None:
            return self.merge(scaled_dot_product_attention(Q_aud, K_vis, V_vis))
        return self.merge(psca(Q_aud, K_vis, V_vis, M, epsilon=self.epsilon))
