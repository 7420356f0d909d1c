"""Flow matching on straight paths: what is interpolated, when, against which noise, and the loss.

    x_t = t x_1 + (1 - t) x_0        v* = dx_t / dt = x_1 - x_0        x_0 ~ N(0, I) noise, x_1 sound

Shapes: B batch, L_aud audio latent frames, C latent channels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss, pad

from flowley.model import Conditions


class Losses(NamedTuple):
    """Terms of the training loss, each a scalar."""

    total: Tensor
    mse: Tensor
    cosine: Tensor


def interpolate(x_0: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
    """x_t = t x_1 + (1 - t) x_0; x_0 and x_1 (B, L_aud, C), t (B,)."""
    t = t[:, None, None]
    return t * x_1 + (1 - t) * x_0


def tangent_timesteps(u: Tensor) -> Tensor:
    """t = 1 - 1 / (tan(pi u / 2) + 1): u uniform in [0, 1) -> t in [0, 1), denser at both ends."""
    return 1 - 1 / (torch.tan(math.pi / 2 * u) + 1)


def assign_noise(x_1: Tensor, x_0: Tensor) -> Tensor:
    """Noise reordered within the batch so that sum_b |x_1[b] - x_0[b]| is least ("immiscible" flows).

    Shorter, less tangled paths; the noise of the batch as a set stays what was drawn.
    """
    cost = torch.cdist(x_1.flatten(1).float(), x_0.flatten(1).float())
    _, order = linear_sum_assignment(cost.cpu().numpy())
    return x_0[torch.from_numpy(order).to(x_0.device)]


def flow_loss(v: Tensor, v_target: Tensor, *, cosine_weight: float) -> Losses:
    """mean (v - v*)^2 + cosine_weight * mean (1 - cos(v, v*)), the cosine over channels of each frame."""
    mse = mse_loss(v, v_target)
    cosine = (1 - cosine_similarity(v, v_target, dim=-1)).mean()
    return Losses(mse + cosine_weight * cosine, mse, cosine)


def without(conditions: Conditions, *, visual: Tensor, text: Tensor, null_text: Tensor | None) -> Conditions:
    """Conditions with the marked modalities replaced by their null: zeros for video, the null text for text.

    Args:
        conditions: of B clips.
        visual, text: (B,) bool, True where that modality is dropped.
        null_text: (L, C_txt), the encoded empty caption; None for zeros in place of the caption's tokens.
    """
    x_vis = conditions.visual.masked_fill(visual[:, None, None], 0)
    if null_text is None:
        return Conditions(x_vis, conditions.text.masked_fill(text[:, None, None], 0), conditions.text_mask)
    L = max(conditions.text.shape[1], null_text.shape[0])
    null_x = pad(null_text, (0, 0, 0, L - null_text.shape[0])).to(conditions.text.dtype)
    null_mask = torch.arange(L, device=text.device) < null_text.shape[0]
    own_x = pad(conditions.text, (0, 0, 0, L - conditions.text.shape[1]))
    own_mask = pad(conditions.text_mask, (0, L - conditions.text_mask.shape[1]))
    return Conditions(
        x_vis,
        torch.where(text[:, None, None], null_x, own_x),
        torch.where(text[:, None], null_mask, own_mask),
    )
