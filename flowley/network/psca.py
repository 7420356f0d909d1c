"""Progressive Soft-masked Cross-Attention (PSCA), section 2.2 of the paper.

Audio frame i looks at the video frame of its own time, j_c(i), and softly at that frame's neighbours. The
neighbourhood is wide in the first layer and shrinks to the aligned frame in the last:

    j_c(i)     = min(ceil(i r_v / r_a), L_vis - 1)                        d_ij = |j - j_c(i)|
    M_ij^(l)   = 1                               d_ij <= omega
                 beta_l F(d_ij - omega)          omega < d_ij <= omega + delta
                 0                               beyond
    F(m)       = (cos(pi m / delta) + 1) / 2     beta_l = 1 - l / (N2 - 1)
    PSCA_l(Q_aud, K_vis, V_vis) = softmax(Q_aud K_vis^T / sqrt(d_k) + log(M^(l) + epsilon)) V_vis

`visual_masks` makes the log-weights log(M^(l) + epsilon) of all layers once for each pair of lengths, and PSCA is one
scaled-dot-product attention with them added to the logits. With epsilon = 0 a frame with M = 0 is never seen; then
`local_psca` computes the same from chunks of audio frames against the video frames within their reach, in time and
memory linear in length. `visual_masks` chooses (docs/decisions/psca-local.md).

Shapes: B batch, L_aud audio latent frames, L_vis video frames, D width, h heads, d_k = D / h; in the local form
n chunks of c audio frames, and W video frames that a chunk looks at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from flowley.network.attention import CrossAttention, merge_heads
from flowley.network.config import Alignment, FlowleyConfig

LOCAL_FROM_FRAMES = 12_000
"""Audio frames from which the local form is the faster one on a GPU; on a CPU it always is."""


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


def soft_mask(d_ij: Tensor, *, omega: Fraction | int, delta: Fraction | int, beta_l: float | Tensor) -> Tensor:
    """M^(l) within [0, 1] at whole distances d_ij, float64; omega and delta in video frames, whole or not.

    Note F(delta) = 0: with omega = 0, delta = 4 the weights are 1, .854 beta_l, .5 beta_l, .146 beta_l, 0.
    """
    m = d_ij.double() - float(omega)
    F = (torch.cos(math.pi * m / float(delta)) + 1) / 2  # not a number where delta = 0, and then used nowhere
    fade = torch.where(d_ij <= (omega + delta) // 1, beta_l * F, 0.0)
    return torch.where(d_ij <= omega // 1, 1.0, fade)


def log_weights(config: FlowleyConfig, distances: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Log-weights log(M^(l) + epsilon) of all layers at d_ij = 0 ... distances - 1; (N2, distances)."""
    omega, delta = config.window_frames
    d_ij, layers = torch.arange(distances, device=device), torch.arange(config.N2, device=device, dtype=torch.float64)
    beta = 1.0 - layers / (config.N2 - 1) if config.progressive else torch.ones_like(layers)
    return (soft_mask(d_ij, omega=omega, delta=delta, beta_l=beta[:, None]) + config.epsilon).log().to(dtype)


def dense_masks(
    config: FlowleyConfig, L_aud: int, L_vis: int, *, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Log-weights log(M^(l) + epsilon) between all frames, one per single-stream block; (N2, L_aud, L_vis)."""
    j_c = aligned_frames(L_aud, L_vis, r_a=config.r_a, r_v=config.r_v, alignment=config.alignment, device=device)
    d_ij = (torch.arange(L_vis, device=device) - j_c[:, None]).abs()
    return log_weights(config, L_vis, device=device, dtype=dtype)[:, d_ij]


def reach(omega: Fraction | int, delta: Fraction | int) -> int:
    """The largest distance at which M is not 0 in the first layer, in video frames. F(delta) = 0 is not."""
    return int(max(omega // 1, -(-(omega + delta) // 1) - 1))


class LocalMask(NamedTuple):
    """M^(l) between each chunk of audio frames and the video frames it looks at; chunk 0 starts at frame 0."""

    keys: Tensor
    """(n, W) int64, consecutive video frames: all with M > 0 for any audio frame of the chunk."""
    log_weights: Tensor
    """(n, c, W): log M^(l), -inf where M = 0. The last chunk may go on past the last audio frame."""


def local_masks(
    config: FlowleyConfig, L_aud: int, L_vis: int, *, device: torch.device, dtype: torch.dtype = torch.float32
) -> list[LocalMask]:
    """Local log M^(l), one per single-stream block, as `local_psca` takes them; the chunks are the same in all layers.

    A chunk's c frames lie on at most ceil((c - 1) r_v / r_a) + 2 video frames, 2 because of the ties of `round`, and
    see as far as the reach on both sides: about half of the W frames, a multiple of 16, is such margin.
    """
    margin = reach(*config.window_frames)
    W = 16 * max(1, math.ceil(4 * margin / 16))
    c = min(L_aud, (W - 2 * margin - 2) // (config.r_v / config.r_a) + 1)
    W, n = min(W, L_vis), math.ceil(L_aud / c)
    j_c = aligned_frames(n * c, L_vis, r_a=config.r_a, r_v=config.r_v, alignment=config.alignment, device=device)
    j_c = j_c.view(n, c)
    keys = (j_c[:, :1] - margin).clamp(0, L_vis - W) + torch.arange(W, device=device)
    d_ij = (keys[:, None] - j_c[:, :, None]).abs()
    log_M = log_weights(config, L_vis, device=device, dtype=dtype)[:, d_ij]
    return [LocalMask(keys, layer) for layer in log_M.unbind()]


def local_psca(Q_aud: Tensor, K_vis: Tensor, V_vis: Tensor, mask: LocalMask) -> Tensor:
    """PSCA with epsilon = 0: softmax(Q K^T / sqrt(d_k) + log M) V, per head and chunk.

    Q_aud (B, h, L_aud, d_k), K_vis and V_vis (B, h, L_vis, d_k) and a mask of these lengths -> (B, h, L_aud, d_k).
    """
    (B, h, L_aud, d_k), (n, c, W) = Q_aud.shape, mask.log_weights.shape
    Q = pad(Q_aud, (0, 0, 0, n * c - L_aud)).reshape(B, h, n, c, d_k)
    K, V = (x.index_select(2, mask.keys.flatten()).view(B, h, n, W, d_k) for x in (K_vis, V_vis))
    # Products of small matrices: faster than the fused attention kernel, whose backward pays by the call.
    scores = torch.add(mask.log_weights, Q @ K.mT, alpha=d_k**-0.5)
    out: Tensor = scores.softmax(-1) @ V
    return out.flatten(2, 3)[:, :, :L_aud]


Mask = Tensor | LocalMask | None
"""Log-weights of a layer's visual attention: between all frames, local, or None for plain cross-attention."""


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # the first caller may be a sampler, the next a training step
def visual_masks(
    config: FlowleyConfig, L_aud: int, L_vis: int, device: torch.device, dtype: torch.dtype
) -> Sequence[Mask]:
    """Log-weights, one per single-stream block; made once. Local where that is the same and faster."""
    if config.visual_attention == "plain":
        return [None] * config.N2
    if config.epsilon == 0 and (device.type == "cpu" or L_aud >= LOCAL_FROM_FRAMES):
        return local_masks(config, L_aud, L_vis, device=device, dtype=dtype)
    return dense_masks(config, L_aud, L_vis, device=device, dtype=dtype).unbind()


class PSCA(CrossAttention):
    """Cross-attention from audio to video under progressive log-weights (plain where there are none)."""

    def forward(self, x_aud: Tensor, x_vis: Tensor, log_M: Mask) -> Tensor:
        """(B, L_aud, D), (B, L_vis, D), log_M of `visual_masks` -> (B, L_aud, D)."""
        if isinstance(log_M, LocalMask):
            return merge_heads(local_psca(*self.project(x_aud, x_vis), log_M))
        return super().forward(x_aud, x_vis, log_M)
