"""From noise to sound: the flow's ODE by Euler steps, with classifier-free guidance.

Shapes: B clips, L_aud audio latent frames, C latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowley.flow import without
from flowley.model import Conditions, Flowley

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, L_aud, C), t (B,)) -> v (B, L_aud, C)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSettings:
    """How a sound is drawn."""

    steps: int = 25
    """Euler steps from t = 0 to t = 1."""
    guidance: float = 7.5
    """w in v = w v(conditions) + (1 - w) v(null); 1 is no guidance."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps = {self.steps}, wanted at least 1")
        if self.guidance < 0:
            raise ValueError(f"guidance = {self.guidance}, wanted >= 0 (1: none)")


def euler(velocity: Velocity, x_0: Tensor, steps: int) -> Tensor:
    """x_1 of dx/dt = v(x, t), x(0) = x_0, by `steps` equal Euler steps."""
    x, dt = x_0, 1 / steps
    for n in range(steps):
        x = x + dt * velocity(x, torch.full((len(x),), n / steps, dtype=x.dtype, device=x.device))
    return x


def guided_velocity(model: Flowley, conditions: Conditions, guidance: float) -> Velocity:
    """v = w v_theta(x_t, t | conditions) + (1 - w) v_theta(x_t, t | null), both in one batch of 2B."""
    if guidance == 1:
        embedded = model.embed(conditions)
        return lambda x, t: model.velocity(x, t, embedded)
    embedded = model.embed(_guided_pair(model, conditions))

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        v, v_null = model.velocity(x.repeat(2, 1, 1), t.repeat(2), embedded).chunk(2)
        return guidance * v + (1 - guidance) * v_null

    return velocity


def _guided_pair(model: Flowley, conditions: Conditions) -> Conditions:
    """The conditions twice, the second time with both modalities null."""
    B = len(conditions.visual)
    twice = Conditions(*(torch.cat([x, x]) for x in conditions))
    dropped = torch.arange(2 * B, device=conditions.visual.device) >= B
    return without(twice, visual=dropped, text=dropped, null_text=null_text_of(model))


def null_text_of(model: Flowley) -> Tensor | None:
    """What `without` takes as null text for this network.

    Raises:
        ValueError: the network wants the encoded empty caption and has none.
    """
    if model.config.null_text == "zeros":
        return None
    if len(model.null_text) == 0:
        raise ValueError(
            "this network's null condition is the encoded empty caption, which it does not have: "
            'give it with Flowley.set_null_text, or configure null_text = "zeros"'
        )
    return model.null_text


def noise(seeds: Sequence[int], L_aud: int, C: int) -> Tensor:
    """x_0 ~ N(0, I), (B, L_aud, C); each clip's own seed decides its noise, whatever it is batched with."""
    draws = (torch.randn(L_aud, C, generator=torch.Generator().manual_seed(seed)) for seed in seeds)
    return torch.stack(list(draws))


@torch.inference_mode()
def sample(
    model: Flowley, conditions: Conditions, *, L_aud: int, seeds: Sequence[int], settings: SampleSettings
) -> Tensor:
    """Audio latents of B silent clips on the codec's own scale; (B, L_aud, C).

    Args:
        model: in eval mode.
        conditions: of B clips, on the model's device.
        L_aud: from `FlowleyConfig.lengths`.
        seeds: one per clip.
        settings: steps and guidance.
    """
    if len(seeds) != len(conditions.visual):
        raise ValueError(f"{len(seeds)} seeds for {len(conditions.visual)} clips, wanted one per clip")
    x_0 = noise(seeds, L_aud, model.config.latent_dim).to(conditions.visual)
    velocity = guided_velocity(model, conditions, settings.guidance)
    return model.unstandardise(euler(velocity, x_0, settings.steps))
