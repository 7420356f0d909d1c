"""Training: feature files in, a Flowley checkpoint out.

Every random draw is a function of (seed, step, rank), so a resumed run repeats the uninterrupted one exactly.

Shapes: B batch, L_aud audio latent frames, C latent channels.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from flowley.checkpoint import TrainState
from flowley.config import FlowleyConfig
from flowley.dataset import Batch, FeatureDataset, StepSampler, collate, latent_statistics
from flowley.ema import power_ema
from flowley.flow import Losses, assign_noise, flow_loss, interpolate, tangent_timesteps, without
from flowley.model import Flowley
from flowley.sample import null_text_of
from flowley.settings import StepReport, TrainExecution, TrainResult, TrainSettings
from flowley.validate import validation_loss


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the message names the step and its clips."""


def train(
    config: FlowleyConfig,
    settings: TrainSettings,
    execution: TrainExecution,
    dataset: FeatureDataset,
    *,
    validation: FeatureDataset | None = None,
    checkpoint_in: Path | None = None,
    on_step: Callable[[StepReport], None],
    on_checkpoint: Callable[[Path | None, int], None],
    rank: int = 0,
    world_size: int = 1,
    device: str | torch.device = "cpu",
) -> TrainResult:
    """Trains, or goes on from `checkpoint_in`, to `settings.steps`.

    Args:
        config: the network.
        settings: the recipe.
        execution: how to carry it out.
        dataset: training clips; with `null_text` where the network's null condition is the empty caption.
        validation: clips whose loss is measured on fixed noise.
        checkpoint_in: folder of an earlier checkpoint of the same network and settings.
        on_step: called on every rank with each report.
        on_checkpoint: called on every rank with the steps done; rank 0 gets the checkpoint's folder, which is
            removed when the call returns, the others None.
        rank, world_size: of this process; with more than one, torch's process group is ready.
        device: of this process.

    Raises:
        ValueError: features, settings and checkpoint do not fit together.
        NonFiniteLossError: see there.
    """
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        trainer = Trainer(config, settings, execution, dataset, rank, world_size, device)
        if checkpoint_in is not None:
            trainer.state.restore(checkpoint_in)
        state = trainer.state
        for batch in trainer.batches():
            trainer.step(batch)
            last = state.step == settings.steps
            loss = None
            if validation is not None and (last or state.step % execution.validate_every_steps == 0):
                loss = trainer.validate(validation)
            if last or loss is not None or state.step % execution.log_every_steps == 0:
                on_step(trainer.report(loss))
            if last or state.step % execution.checkpoint_every_steps == 0:
                trainer.require_finite()
                with tempfile.TemporaryDirectory() as folder:
                    if rank == 0:
                        state.save(Path(folder))
                    on_checkpoint(Path(folder) if rank == 0 else None, state.step)
        return TrainResult(step=state.step, history=state.history)


class Trainer:
    """One process's part of a training."""

    def __init__(
        self, config: FlowleyConfig, settings: TrainSettings, execution: TrainExecution,
        dataset: FeatureDataset, rank: int, world_size: int, device: torch.device,
    ) -> None:  # fmt: skip
        self.settings, self.execution, self.dataset, self.device = settings, execution, dataset, device
        self.rank, self.world_size = rank, world_size
        model = initial_model(config, settings.seed, dataset).to(device)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, betas=settings.betas,
            weight_decay=settings.weight_decay, fused=True,
        )  # fmt: skip
        ema = power_ema(model, settings.ema_sigma_rel)
        ema.eval()
        self.state = TrainState(config, settings, model, ema, optimizer, 0, [], [])
        self.network: nn.Module = model
        if world_size > 1:
            self.network = DistributedDataParallel(model, broadcast_buffers=False)
        if execution.compile:
            self.network = torch.compile(self.network)  # type: ignore[assignment]
        self._in_flight: tuple[list[str], Tensor] | None = None
        self._reported_at = time.monotonic()

    def batches(self) -> Iterator[Batch]:
        """This rank's clips of every step still to be done."""
        config, settings = self.state.config, self.settings
        L_aud, L_vis = config.lengths(settings.duration_s)
        sampler = StepSampler(
            len(self.dataset), batch_size=settings.batch_size, seed=settings.seed,
            start_step=self.state.step, end_step=settings.steps, rank=self.rank, world_size=self.world_size,
        )  # fmt: skip
        L_txt = None if config.mask_text else config.max_text_tokens
        loader: DataLoader[Batch] = DataLoader(
            self.dataset,  # type: ignore[arg-type]
            batch_sampler=sampler, num_workers=self.execution.workers,
            collate_fn=partial(collate, L_aud=L_aud, L_vis=L_vis, L_txt=L_txt),
            pin_memory=self.device.type == "cuda",
        )  # fmt: skip
        return (batch.to(self.device) for batch in loader)

    def step(self, batch: Batch) -> None:
        """One optimiser step. A loss that is not finite is raised one step later, when it costs no wait."""
        state, settings = self.state, self.settings
        torch.manual_seed(seed_of(settings.seed, state.step, self.rank))
        state.model.train()
        for group in state.optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(state.step)
        losses = self._losses(batch)
        torch.autograd.backward(losses.total)
        grad_norm = nn.utils.clip_grad_norm_(state.model.parameters(), settings.clip_norm)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.ema.update_parameters(state.model)
        self.require_finite()
        self._in_flight = batch.clip_ids, torch.stack([*losses, grad_norm]).detach()
        state.step += 1

    def _losses(self, batch: Batch) -> Losses:
        model, settings = self.state.model, self.settings
        B, like = len(batch.clip_ids), batch.audio_mean
        x_1 = model.standardise(like + batch.audio_std * torch.randn_like(like))
        x_0 = torch.randn_like(x_1)
        if settings.assign_noise:
            x_0 = assign_noise(x_1, x_0)
        t = tangent_timesteps(torch.rand(B, device=self.device))
        u_visual, u_text = torch.rand(2, B, device=self.device)
        conditions = without(
            batch.conditions, visual=u_visual < settings.drop_visual, text=u_text < settings.drop_text,
            null_text=null_text_of(model),
        )  # fmt: skip
        with autocast(self.device, self.execution):
            v = self.network(interpolate(x_0, x_1, t), t, *conditions)
        return flow_loss(v.float(), x_1 - x_0, cosine_weight=settings.cosine_weight)

    def require_finite(self) -> None:
        """Waits for the last step's losses and keeps them for the report.

        Raises:
            NonFiniteLossError: naming the step and its clips.
        """
        if self._in_flight is None:
            return
        (clip_ids, values), self._in_flight = self._in_flight, None
        kept = tuple(values.tolist())
        if not np.isfinite(kept).all():
            raise NonFiniteLossError(
                f"loss {kept[0]} with gradient norm {kept[3]} in step {self.state.step} on clips "
                f"{', '.join(clip_ids)}: look at their features, or lower learning_rate ({self.settings.learning_rate})"
            )
        self.state.unreported.append(kept)

    def report(self, validation: float | None) -> StepReport:
        """Report of the steps since the last one; it joins the history."""
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
        """Loss of the averaged weights on all validation clips, shared among the ranks."""
        averaged = self.state.ema.module
        assert isinstance(averaged, Flowley)
        with autocast(self.device, self.execution):
            return validation_loss(
                averaged, validation, self.settings, rank=self.rank, world_size=self.world_size, device=self.device
            )


def initial_model(config: FlowleyConfig, seed: int, dataset: FeatureDataset) -> Flowley:
    """The network before the first step: seeded weights, latent statistics and null text of the dataset."""
    torch.manual_seed(seed)
    model = Flowley(config)
    mean, std = latent_statistics(dataset)
    if mean.shape != model.latent_mean.shape:
        raise ValueError(
            f"the features' audio latents have {len(mean)} channels, the network's latent_dim is "
            f"{config.latent_dim}: configure the network for the codec of the features"
        )
    model.latent_mean.copy_(mean)
    model.latent_std.copy_(std)
    if config.null_text == "empty_caption":
        if dataset.null_text is None:
            raise ValueError(
                "the network's null condition is the encoded empty caption, but the dataset has no null_text: "
                'encode "" with the text encoder of the features, or configure null_text = "zeros"'
            )
        model.set_null_text(torch.from_numpy(np.array(dataset.null_text, dtype=np.float32)))
    return model


def seed_of(seed: int, step: int, rank: int) -> int:
    """Seed of all draws of one step on one rank."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def autocast(device: torch.device, execution: TrainExecution) -> Iterator[None]:
    """Matrix products in bfloat16 where asked for."""
    with torch.autocast(device.type, torch.bfloat16, enabled=execution.precision == "bf16"):
        yield
