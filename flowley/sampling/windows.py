"""Windows over a clip longer than the training's, whose velocities are blended at every step of the sampler.

As MultiDiffusion (Bar-Tal et al., 2023) does for pictures: there is one x_t for the whole clip, each window's
network sees its part of it, and overlapping velocities are averaged with weights that fade in and out. So no
sound is ever glued to another, and there is no seam.

    v(x_t, t)[i] = sum_k w_k[i] v_theta(x_t[window k], t | video[window k])[i],    sum_k w_k[i] = 1

Windows start at multiples of the time after which audio and video frames fall together again (4 s for 31.25 and
8 Hz), so a window's own PSCA alignment is the whole clip's. Rates that meet too seldom for that (21.53 and 8 Hz:
every 512 s) start at a video frame and the audio frame nearest to it, at most half an audio frame away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from flowley.network.config import NetworkConfig

LEAST_OVERLAP = Fraction(1, 4)
"""Least share of a window that each neighbour covers too."""


@dataclass(frozen=True, slots=True)
class Window:
    """Frames [aud_start, aud_start + L_aud) and [vis_start, vis_start + L_vis) of a clip."""

    aud_start: int
    L_aud: int
    vis_start: int
    L_vis: int

    @property
    def aud(self) -> slice:
        return slice(self.aud_start, self.aud_start + self.L_aud)

    @property
    def vis(self) -> slice:
        return slice(self.vis_start, self.vis_start + self.L_vis)


def common_period_s(r_a: Fraction, r_v: Fraction) -> Fraction:
    """Least time > 0 that is a whole number of audio frames and an even number of video frames.

    Even, because the alignment `round` sends ties to the even frame.
    """
    audio, video = 1 / r_a, 2 / r_v
    return Fraction(math.lcm(audio.numerator, video.numerator), math.gcd(audio.denominator, video.denominator))


def cut(config: NetworkConfig, L_aud: int, L_vis: int, window_s: float) -> list[Window]:
    """Windows of `window_s` seconds that cover a clip; one, the whole, where it is not longer than that.

    They start at even distances, so far as legal starts allow, and share at least a quarter with the next. The
    last one ends with the clip and may be shorter, by less than the distance of legal starts.

    Raises:
        ValueError: window_s is too short to hold two video frames beside its overlap.
    """
    W_aud, W_vis = config.lengths(window_s)
    if L_aud <= W_aud and L_vis <= W_vis:
        return [Window(0, L_aud, 0, L_vis)]
    window = Fraction(window_s).limit_denominator(1_000_000)
    longest_hop = window * (1 - LEAST_OVERLAP)
    unit = common_period_s(config.r_a, config.r_v)
    if unit > longest_hop:
        unit = 1 / config.r_v
    most = longest_hop // unit
    if most < 1 or W_vis < 2:
        raise ValueError(
            f"window_s = {window_s} holds {W_vis} video frames at r_v = {float(config.r_v):g} Hz: too few to overlap; "
            f"wanted the duration of the training's clips"
        )
    duration = max(L_aud / config.r_a, L_vis / config.r_v)
    last = math.ceil((duration - window) / unit)  # in units, as are all starts
    n_hops = math.ceil(Fraction(last, most))
    starts = [unit * (k * last // n_hops) for k in range(n_hops + 1)]
    windows = []
    for start in starts:
        i, j = round(start * config.r_a), round(start * config.r_v)
        windows.append(Window(i, min(W_aud, L_aud - i), j, min(W_vis, L_vis - j)))
    return windows


def blending_weights(windows: list[Window], L_aud: int) -> list[Tensor]:
    """w_k (L_aud of the window,) float64 in (0, 1]: rise and fall as sin^2 over the overlaps; each frame's sum is 1."""
    raw = []
    for k, window in enumerate(windows):
        w = torch.ones(window.L_aud, dtype=torch.float64)
        if k > 0:
            w *= _rise(windows[k - 1].aud.stop - window.aud_start, window.L_aud)
        if k + 1 < len(windows):
            w *= _rise(window.aud.stop - windows[k + 1].aud_start, window.L_aud).flip(0)
        raw.append(w)
    total = torch.zeros(L_aud, dtype=torch.float64)
    for window, w in zip(windows, raw, strict=True):
        total[window.aud] += w
    return [w / total[window.aud] for window, w in zip(windows, raw, strict=True)]


def _rise(overlap: int, length: int) -> Tensor:
    """sin^2 from 0 to 1 over the first `overlap` of `length` frames, at frame centres; 1 beyond."""
    phase = (torch.arange(length, dtype=torch.float64) + 0.5) / overlap
    return torch.sin(math.pi / 2 * phase.clamp(max=1)) ** 2
