"""Training-loop state of one rank: network, averages and optimiser, batches, the step, reports, validation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from flowley.features.dataset import Batch, FeatureDataset, collate, latent_statistics
from flowley.network.base import VelocityNetwork
from flowley.network.config import NetworkConfig
from flowley.network.registry import build_network
from flowley.training.checkpoint import TrainState
from flowley.training.ema import Averages
from flowley.training.flow import Losses, assign_noise, flow_loss, interpolate, timesteps, validation_loss
from flowley.training.parallel import gather, mean_over_processes, shard
from flowley.training.settings import StepReport, TrainExecution, TrainSettings, clips_per_rank


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the message names the step and its clips."""


class Trainer:
    """Training-loop state of one rank; the arguments are those of `flowley.training.loop.train_network`."""

    def __init__(
        self, network: VelocityNetwork, settings: TrainSettings, execution: TrainExecution,
        dataset: FeatureDataset, rank: int, world_size: int,
    ) -> None:  # fmt: skip
        self.settings, self.execution, self.dataset = settings, execution, dataset
        self.rank, self.world_size, self.device = rank, world_size, network.latent_mean.device
        sharded = execution.sharding == "fsdp"
        averages = Averages(network, sigma_rel=settings.ema_sigma_rel, sharded=sharded)
        if sharded:
            shard(network)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.learning_rate, betas=settings.betas, eps=settings.adam_epsilon,
            weight_decay=settings.weight_decay, fused=True,
        )  # fmt: skip
        self.state = TrainState(network.config, settings, network, averages, optimizer, 0, [], [])
        if execution.compile:
            network.compile_blocks()
        self.model: nn.Module = network
        if world_size > 1 and not sharded:  # gradients become means over the processes, as FSDP makes them too
            self.model = DistributedDataParallel(network, broadcast_buffers=False)
        self._in_flight: tuple[Batch, Tensor, Tensor] | None = None
        self._reported_at = time.monotonic()

    def batches(self) -> Iterator[Batch]:
        """Batches of this rank, one per remaining step."""
        config, settings = self.state.config, self.settings
        L_txt = config.max_text_tokens if self.execution.compile else None
        loader: DataLoader[Batch] = DataLoader(
            self.dataset,  # type: ignore[arg-type]
            batch_sampler=step_clips(
                len(self.dataset), batch_size=settings.batch_size, seed=settings.seed,
                start_step=self.state.step, end_step=settings.steps, rank=self.rank, world_size=self.world_size,
            ),
            num_workers=self.execution.workers,
            collate_fn=partial(collate, config=config, duration_s=settings.duration_s, L_txt=L_txt),
            pin_memory=self.device.type == "cuda",
        )  # fmt: skip
        return (batch.to(self.device) for batch in loader)

    def step(self, batch: Batch) -> None:
        """One optimiser step. A loss that is not finite raises one step later, when reading it waits for nothing."""
        state, settings = self.state, self.settings
        torch.manual_seed(step_seed(settings.seed, state.step, self.rank))
        state.network.train()
        for group in state.optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(state.step)
        losses = self.losses(batch)
        torch.autograd.backward(losses.total)
        grad_norm = nn.utils.clip_grad_norm_(state.network.parameters(), settings.clip_norm)
        if isinstance(grad_norm, DTensor):
            grad_norm = grad_norm.full_tensor()
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.averages.update()
        self.require_finite()
        values = torch.stack([*losses, grad_norm]).detach()
        self._in_flight = batch, losses.total.detach(), mean_over_processes(values, self.world_size)
        state.step += 1

    def losses(self, batch: Batch) -> Losses:
        """Losses of a batch; noise, times and dropped conditions from torch's generators."""
        network, settings = self.state.network, self.settings
        B, like = len(batch.clip_ids), batch.audio_mean
        x_1 = network.standardise(like + batch.audio_std * torch.randn_like(like))
        x_0 = torch.randn_like(x_1)
        if settings.assign_noise:
            x_0 = assign_noise(x_1, x_0)
        t = timesteps(settings.timesteps, torch.rand(B, device=self.device))
        u_visual, u_text = torch.rand(2, B, device=self.device)
        with self.autocast():
            v = self.model(
                interpolate(x_0, x_1, t), t, batch.conditions,
                u_visual < settings.drop_visual, u_text < settings.drop_text,
            )  # fmt: skip
        return flow_loss(v.float(), x_1 - x_0, cosine_weight=settings.cosine_weight)

    def autocast(self) -> torch.autocast:
        """Matrix products in bfloat16 if `execution.precision` is bf16."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.execution.precision == "bf16")

    def require_finite(self) -> None:
        """Waits for the last step's losses, averages them over the ranks and keeps them for the report.

        Raises:
            NonFiniteLossError: on every rank, naming the step and the clips at fault.
        """
        if self._in_flight is None:
            return
        (batch, own_loss, values), self._in_flight = self._in_flight, None
        kept = tuple(values.tolist())
        if not np.isfinite(kept).all():
            fault = (batch.clip_ids, broken_clips(batch), bool(own_loss.isfinite()))
            faults = gather(fault, self.world_size)
            at_fault = [f for f in faults if not f[2]] or faults
            clips = ", ".join(clip_id for clip_ids, _, _ in at_fault for clip_id in clip_ids)
            broken = ", ".join(clip_id for _, broken, _ in at_fault for clip_id in broken)
            remedy = (
                f"the features of {broken} are not finite: extract them again" if broken
                else f"their features are finite: lower learning_rate ({self.settings.learning_rate})"
            )  # fmt: skip
            raise NonFiniteLossError(
                f"loss {kept[0]} with gradient norm {kept[3]} in step {self.state.step} on clips {clips}; {remedy}"
            )
        self.state.unreported.append(kept)

    def report(self, validation: float | None) -> StepReport:
        """Report of the steps since the last one; appended to the history."""
        self.require_finite()
        state, now = self.state, time.monotonic()
        n, elapsed_s = len(state.unreported), max(now - self._reported_at, 1e-9)
        means = np.mean(state.unreported, axis=0).tolist()
        state.unreported, self._reported_at = [], now
        report = StepReport(
            step=state.step, steps=self.settings.steps, loss=means[0], mse=means[1], cosine=means[2],
            grad_norm=means[3], learning_rate=self.settings.learning_rate_at(state.step - 1),
            validation_loss=validation, clips_per_s=n * self.settings.batch_size / elapsed_s,
            seconds_left=(self.settings.steps - state.step) * elapsed_s / n,
        )  # fmt: skip
        state.history.append(report)
        return report

    def validate(self, validation: FeatureDataset) -> float:
        """Loss of the averaged weights on all validation clips, divided among the ranks.

        Raises:
            NonFiniteLossError: naming the step and, where it is its features, the clip.
        """
        with self.autocast():
            loss = validation_loss(
                self.state.averages.network, validation, self.settings,
                rank=self.rank, world_size=self.world_size, device=self.device,
            )  # fmt: skip
        if not np.isfinite(loss):
            raise NonFiniteLossError(
                f"validation loss {loss} after step {self.state.step}: look at the features of the validation clips, "
                f"or lower learning_rate ({self.settings.learning_rate})"
            )
        return loss


def initial_network(config: NetworkConfig, seed: int, dataset: FeatureDataset) -> VelocityNetwork:
    """Network before the first step: seeded weights, latent statistics and null text of the dataset.

    Raises:
        ValueError: the network's null is the encoded empty caption and the dataset has none, or latents are not finite.
    """
    torch.manual_seed(seed)
    network = build_network(config)
    mean, std = latent_statistics(dataset)
    network.latent_mean.copy_(mean)
    network.latent_std.copy_(std)
    if config.null_text == "empty_caption":
        if dataset.null_text is None:
            raise ValueError(
                "the network's null condition is the encoded empty caption, but the dataset has no null_text: "
                'encode "" with the text encoder of the features, or configure null_text = "zeros"'
            )
        network.set_null_text(torch.from_numpy(np.array(dataset.null_text, dtype=np.float32)))
    return network


def broken_clips(batch: Batch) -> list[str]:
    """Clips of a batch with a feature that is not finite."""
    features = [batch.audio_mean, batch.audio_std, *(x for x in batch.conditions if x is not None)]
    finite = torch.stack([x.flatten(1).isfinite().all(1) for x in features]).all(0)
    return [clip_id for clip_id, good in zip(batch.clip_ids, finite.tolist(), strict=True) if not good]


def step_clips(
    n_clips: int, *, batch_size: int, seed: int, start_step: int, end_step: int, rank: int = 0, world_size: int = 1
) -> Iterator[list[int]]:
    """Clips of every step on one rank: a function of (seed, step) alone, so that any step can be resumed.

    Epoch e is a permutation of the clips seeded by (seed, e). Epochs follow one another without a gap, steps cut
    them into batches, and each of `world_size` ranks takes its share of every batch.
    """
    share = clips_per_rank(batch_size, world_size)
    epoch, order = -1, np.empty(0, np.int64)
    for step in range(start_step, end_step):
        first = step * batch_size + rank * share
        clips = []
        for position in range(first, first + share):
            if position // n_clips != epoch:
                epoch = position // n_clips
                order = np.random.default_rng([seed, epoch]).permutation(n_clips)
            clips.append(int(order[position % n_clips]))
        yield clips


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of torch's generators in one step on one rank."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))
