"""Sampler: the flow's ODE from noise to sound, with classifier-free guidance, at once or in windows.

Shapes: B clips, L_aud audio latent frames, C latent channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowley.network.base import Conditions, VelocityNetwork
from flowley.sampling.solvers import SampleSettings, Velocity, solve
from flowley.sampling.windows import Window, blending_weights, cut


@torch.inference_mode()
def sample(
    model: VelocityNetwork, conditions: Conditions, *, L_aud: int, seeds: Sequence[int], settings: SampleSettings,
    negative: Conditions | None = None,
) -> Tensor:  # fmt: skip
    """Audio latents of B silent clips on the codec's own scale; (B, L_aud, C).

    Args:
        model: in eval mode.
        conditions: of B clips, on the model's device.
        L_aud: from `NetworkConfig.lengths`.
        seeds: one per clip (`noise`).
        negative: conditions whose text (B or 1 rows) is the unwanted sound; it takes the place of the null caption.
            The null video stays.

    Raises:
        ValueError: seeds, conditions and latent do not fit together; a negative prompt without guidance;
            synchronisation features with windows.
    """
    B = len(conditions.visual)
    if len(seeds) != B:
        raise ValueError(f"{len(seeds)} seeds for {B} clips, wanted one per clip")
    if negative is not None and settings.guidance == 1:
        raise ValueError("guidance = 1 uses no negative prompt: wanted guidance > 1, or no negative prompt")
    x_0 = noise(seeds, L_aud, model.config.latent_dim).to(conditions.visual)
    velocity = _velocity(model, conditions, L_aud, settings, negative)
    return model.unstandardise(solve(velocity, x_0, steps=settings.steps, solver=settings.solver))


def noise(seeds: Sequence[int], L_aud: int, C: int) -> Tensor:
    """x_0 ~ N(0, I), (B, L_aud, C); each clip's own seed decides its noise, whatever it is batched with."""
    draws = (torch.randn(L_aud, C, generator=torch.Generator().manual_seed(seed)) for seed in seeds)
    return torch.stack(list(draws))


def guided_velocity(
    model: VelocityNetwork, conditions: Conditions, guidance: float, negative: Conditions | None = None,
    *, L_aud: int,
) -> Velocity:  # fmt: skip
    """Guided v = w v_theta(x_t, t | conditions) + (1 - w) v_theta(x_t, t | null), both in one batch of 2B.

    The null has no video, and the network's null caption or that of `negative` (B or 1 rows).
    """
    if guidance == 1:
        embedded = model.embed(conditions, L_aud)
        return lambda x, t: model.velocity(x, t, embedded)
    B = len(conditions.visual)
    dropped = torch.arange(2 * B, device=conditions.visual.device) >= B
    if negative is not None and len(negative.text) == B:
        negative = negative.map(lambda x: torch.cat([x, x]))
    twice = conditions.map(lambda x: torch.cat([x, x]))
    embedded = model.embed(model.without(twice, visual=dropped, text=dropped, null_text=negative), L_aud)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        v, v_null = model.velocity(x.repeat(2, 1, 1), t.repeat(2), embedded).chunk(2)
        return guidance * v + (1 - guidance) * v_null

    return velocity


def _velocity(
    model: VelocityNetwork, conditions: Conditions, L_aud: int, settings: SampleSettings, negative: Conditions | None
) -> Velocity:
    """The guided velocity of whole clips: at once, or blended from windows where they are longer than one."""
    B, L_vis, _ = conditions.visual.shape
    windows = [] if settings.window_s is None else cut(model.config, L_aud, L_vis, settings.window_s)
    if len(windows) <= 1:
        return guided_velocity(model, conditions, settings.guidance, negative, L_aud=L_aud)
    if conditions.sync is not None:
        raise ValueError(
            "synchronisation features cannot be cut into windows, their segments overlap in time: set window_s to "
            "None to make the clip at once, or leave sync out"
        )
    parts = []
    for rows in _batches(windows, B, settings.windows_per_batch):
        clips = [row.clip for row in rows]
        visual = torch.stack([conditions.visual[row.clip, row.window.vis] for row in rows])
        seen = conditions.captions_of(clips)._replace(visual=visual)
        unwanted = None if negative is None else negative.captions_of(clips)
        parts.append((rows, guided_velocity(model, seen, settings.guidance, unwanted, L_aud=rows[0].window.L_aud)))
    return blended(parts, blending_weights(windows, L_aud))


class WindowOfClip(NamedTuple):
    """Window k of a clip of the batch."""

    clip: int
    k: int
    window: Window


def blended(parts: Sequence[tuple[list[WindowOfClip], Velocity]], weights: Sequence[Tensor]) -> Velocity:
    """Velocity of whole clips: the weighted sum of the velocities of their windows.

    Args:
        parts: windows of one length each, with the velocity of such a batch of windows.
        weights: of each window k, (its L_aud,), summing to 1 over the windows at every frame.
    """

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        v = torch.zeros_like(x)
        for rows, part in parts:
            x_windows = torch.stack([x[row.clip, row.window.aud] for row in rows])
            v_windows = part(x_windows, t[[row.clip for row in rows]])
            for row, v_window in zip(rows, v_windows, strict=True):
                v[row.clip, row.window.aud] += weights[row.k].to(v)[:, None] * v_window
        return v

    return velocity


def _batches(windows: list[Window], B: int, most: int) -> Iterator[list[WindowOfClip]]:
    """All windows of B clips, in batches of at most `most` windows of the same lengths."""
    by_length: dict[tuple[int, int], list[WindowOfClip]] = {}
    for k, window in enumerate(windows):
        rows = by_length.setdefault((window.L_aud, window.L_vis), [])
        rows.extend(WindowOfClip(clip, k, window) for clip in range(B))
    for rows in by_length.values():
        yield from (rows[start : start + most] for start in range(0, len(rows), most))
