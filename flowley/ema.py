"""Average of past weights with the power-function profile of Karras et al. (EDM2, section 3.1).

    theta_bar(t) = beta(t) theta_bar(t - 1) + (1 - beta(t)) theta(t),    beta(t) = (1 - 1 / t)^(gamma + 1)

Its width is a fraction sigma_rel of the training so far, so a run of 100 steps and one of 300,000 need no
decay of their own, and the initial weights are forgotten.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from flowley.model import Flowley


def gamma_of(sigma_rel: float) -> float:
    """gamma with sigma_rel = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))): 6.94 for 0.1, 16.97 for 0.05."""
    roots = np.roots([1, 7, 16 - sigma_rel**-2, 12 - sigma_rel**-2])
    return float(roots.real.max())


def power_ema(model: Flowley, sigma_rel: float) -> AveragedModel:
    """`update_parameters(model)` after every step; the averaged network is `.module`."""
    gamma = gamma_of(sigma_rel)

    def average(averaged: Tensor, current: Tensor, n_averaged: Tensor | int) -> Tensor:
        beta = (1 - 1 / (int(n_averaged) + 1)) ** (gamma + 1)
        return averaged.lerp(current, 1 - beta)

    return AveragedModel(model, avg_fn=average)
