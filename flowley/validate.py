"""Validation loss on a fixed noise set: the same clips, noise and times whenever it is measured."""

from __future__ import annotations

import torch
import torch.distributed

from flowley.dataset import FeatureDataset, collate
from flowley.flow import flow_loss, interpolate, timesteps
from flowley.network import VelocityNetwork
from flowley.sample import noise
from flowley.settings import TrainSettings


@torch.no_grad()
def validation_loss(
    model: VelocityNetwork, dataset: FeatureDataset, settings: TrainSettings,
    *, rank: int = 0, world_size: int = 1, device: torch.device,
) -> float:  # fmt: skip
    """Mean flow-matching loss over the clips of `dataset`, conditions given, latents at their mean.

    Clip k has noise of seed k and t from u = (k + 1/2) / n, so that times cover the schedule evenly. Each rank
    takes every world_size-th clip; all get the same result.
    """
    n = len(dataset)
    L_aud, L_vis = model.config.lengths(settings.duration_s)
    L_sync = model.config.sync_length(settings.duration_s)
    share = max(1, settings.batch_size // world_size)
    total = torch.zeros((), dtype=torch.float64, device=device)
    mine = range(rank, n, world_size)
    for start in range(0, len(range(0, n, world_size)), share):
        weight = len(mine[start : start + share])
        picked = mine[start : start + share] or range(1)  # sharded weights are gathered by all or none
        batch = collate([dataset[k] for k in picked], L_aud=L_aud, L_vis=L_vis, L_txt=None, L_sync=L_sync).to(device)
        x_1 = model.standardise(batch.audio_mean)
        x_0 = noise(picked, L_aud, x_1.shape[-1]).to(device)
        t = timesteps(settings.timesteps, (torch.tensor(picked, device=device) + 0.5) / n)
        v = model(interpolate(x_0, x_1, t), t, batch.conditions)
        losses = flow_loss(v.float(), x_1 - x_0, cosine_weight=settings.cosine_weight)
        total += losses.total * weight
    if world_size > 1:
        torch.distributed.all_reduce(total)
    return float(total) / n
