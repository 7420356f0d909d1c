"""Checks of `benchmarks.gpu_check`. Each takes a setting and a callback for its result rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.flops import flops_of, sampling_flops
from benchmarks.psca import compare
from flowley.network.base import Conditions, VelocityNetwork
from flowley.network.config import FlowleyConfig, NetworkConfig
from flowley.network.presets import preset
from flowley.network.registry import build_network
from flowley.sampling.sample import guided_velocity, noise
from flowley.sampling.solvers import solve
from flowley.training.flow import assign_noise, flow_loss, interpolate

Found = Callable[..., None]

PEAKS = {
    "GH200": (989e12, 4.0e12), "H200": (989e12, 4.8e12),
    "H100 NVL": (835e12, 3.9e12), "H100 PCIe": (756e12, 2.0e12), "H100": (989e12, 3.35e12),
    "B200": (2250e12, 8.0e12), "A100": (312e12, 2.0e12), "L40S": (362e12, 0.864e12),
}  # fmt: skip
"""Dense bf16 FLOP/s and memory bandwidth (bytes/s) by a part of the device's name, from the data sheets."""

MFU_WANTED = 0.45
L_TXT = 77
"""Tokens per caption, the text encoder's maximum."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Device and size of a check."""

    device_name: str
    small: bool
    compile: bool

    @property
    def device(self) -> torch.device:
        return torch.device(self.device_name)

    @property
    def backend(self) -> str:
        """Backend of torch.compile; on a CPU one without code generation, which would take minutes there."""
        return "inductor" if self.device.type == "cuda" else "aot_eager"

    @property
    def seconds(self) -> float:
        return 1.6 if self.small else 8.0

    def config(self, name: str) -> NetworkConfig:
        small = {"D": 64, "N1": 2, "N2": 2, "heads": 2, "mlp_multiple": 32} if self.small else {}
        return preset(name, **small)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds_of(self, work: Callable[[], object], *, least: int = 3, least_s: float = 4.0) -> float:
        """Median wall time (s) of `work`, which must be warm."""
        least_s = 0.0 if self.small else least_s
        times: list[float] = []
        while len(times) < least or sum(times) < least_s:
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - started)
        return statistics.median(times)


def has_gpu() -> bool:
    return torch.cuda.is_available()


def device_name(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return f"{name}, torch {torch.__version__}"


def peaks(setting: Setting) -> tuple[float, float]:
    """Peak FLOP/s and bytes/s: the data sheet's for a known device, else measured."""
    if setting.device.type == "cuda":
        name = torch.cuda.get_device_name()
        for part, peak in PEAKS.items():
            if part in name:
                return peak
    return measured_peaks(setting)


def measured_peaks(setting: Setting) -> tuple[float, float]:
    """Measured FLOP/s of a large bf16 matrix product and bytes/s of a copy."""
    n = 128 if setting.small else 8192
    a, b = torch.randn(2, n, n, device=setting.device).to(torch.bfloat16)
    x = torch.empty(n * n, device=setting.device)
    for _ in range(3):
        a @ b, x.clone()
    product_s = setting.seconds_of(lambda: a @ b, least=10, least_s=0.5)
    copy_s = setting.seconds_of(x.clone, least=10, least_s=0.2)
    return 2 * n**3 / product_s, 2 * x.nbytes / copy_s


def conditions_of(setting: Setting, config: NetworkConfig, B: int) -> Conditions:
    """Random conditions of a batch of B clips."""
    L_vis, L_sync = config.lengths(setting.seconds)[1], config.sync_length(setting.seconds)
    d = setting.device
    n_tokens = torch.arange(B, device=d) % L_TXT + 1
    return Conditions(
        torch.randn(B, L_vis, config.visual_dim, device=d), torch.randn(B, L_TXT, config.text_dim, device=d),
        torch.arange(L_TXT, device=d) < n_tokens[:, None],
        torch.randn(B, L_sync, config.sync_dim, device=d) if L_sync else None,
    )  # fmt: skip


def network_of(setting: Setting, config: NetworkConfig) -> VelocityNetwork:
    torch.manual_seed(0)
    with setting.device:
        network = build_network(config)
        if config.null_text == "empty_caption":
            network.set_null_text(torch.randn(L_TXT if config.sync_dim else 1, config.text_dim))
    return network


# Training -------------------------------------------------------------------------------------------------------


class TrainingStep:
    """Training step on random clips: forward, backward and optimiser update."""

    def __init__(self, setting: Setting, config: NetworkConfig, *, compile: bool) -> None:
        self.setting, self.config = setting, config
        self.network = network_of(setting, config).train()
        if compile:
            self.network.compile_blocks(backend=setting.backend)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-5, betas=(0.9, 0.95), fused=True)
        self.assign, self.cosine_weight = (False, 0.0) if config.sync_dim else (True, 0.5)

    def of(self, B: int) -> Callable[[], None]:
        """Step function for a batch of B clips."""
        d, L_aud = self.setting.device, self.config.lengths(self.setting.seconds)[0]
        conditions = conditions_of(self.setting, self.config, B)
        x_1 = torch.randn(B, L_aud, self.config.latent_dim, device=d)

        def step() -> None:
            x_0, t, (u_visual, u_text) = torch.randn_like(x_1), torch.rand(B, device=d), torch.rand(2, B, device=d)
            x_0 = assign_noise(x_1, x_0) if self.assign else x_0
            with torch.autocast(d.type, torch.bfloat16):
                v = self.network(interpolate(x_0, x_1, t), t, conditions, u_visual < 0.1, u_text < 0.1)
            flow_loss(v.float(), x_1 - x_0, cosine_weight=self.cosine_weight).total.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

        return step


def training(setting: Setting, found: Found, name: str) -> None:
    """MFU and throughput of training at the largest batch that fits into memory, at most the paper's 256."""
    config = setting.config(name)
    torch.set_float32_matmul_precision("high")
    peak, _ = peaks(setting)
    step = TrainingStep(setting, config, compile=setting.compile)
    B = 4 if setting.small else largest_batch(setting, config)
    run = step.of(B)
    started = time.perf_counter()
    for _ in range(3):
        run()
    setting.wait()
    compile_s = time.perf_counter() - started
    if setting.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = setting.seconds_of(run, least_s=10.0)
    flops = flops_of(config, duration_s=setting.seconds, L_txt=L_TXT).training * B
    mfu = flops / seconds / peak
    found(
        preset=name, batch=B, step_ms=round(1000 * seconds, 2), clips_per_s=round(B / seconds, 1), mfu=round(mfu, 4),
        wanted=MFU_WANTED, ok=mfu >= MFU_WANTED, tflops_per_s=round(flops / seconds / 1e12, 2),
        peak_tflops=round(peak / 1e12), memory_gb=memory_gb(setting), first_steps_s=round(compile_s, 1),
    )  # fmt: skip
    measured, bandwidth = measured_peaks(setting)
    found(product_tflops=round(measured / 1e12, 2), copy_gb_per_s=round(bandwidth / 1e9))


def largest_batch(setting: Setting, config: NetworkConfig, most: int = 256) -> int:
    """Largest batch, a multiple of 8, that fits into memory uncompiled; compiled steps only need less."""
    if setting.device.type != "cuda":
        return 4
    step = TrainingStep(setting, config, compile=False)
    used = []
    for B in (8, 16):
        run = step.of(B)
        run()
        torch.cuda.reset_peak_memory_stats()
        run()
        used.append(torch.cuda.max_memory_allocated())
    per_clip = (used[1] - used[0]) / 8
    # The measured step has its own weights, gradients and moments; those of this probe are freed below.
    room = 0.85 * torch.cuda.get_device_properties(0).total_memory - used[0]
    del step, run
    torch.cuda.empty_cache()
    return max(8, min(most, int(room / per_clip)) // 8 * 8)


def memory_gb(setting: Setting) -> float | None:
    return round(torch.cuda.max_memory_allocated() / 1e9, 1) if setting.device.type == "cuda" else None


# Sampling -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sampling(setting: Setting, found: Found) -> None:
    """Sampling latency of one clip and throughput of a batch, eager and compiled."""
    config, evaluations = setting.config("flowley_169m"), 3 if setting.small else 25
    peak, bandwidth = peaks(setting)
    eager = network_of(setting, config).eval().bfloat16()
    weights = sum(p.nbytes for p in eager.parameters())
    L_aud = config.lengths(setting.seconds)[0]
    for B in (1, 2 if setting.small else 64):
        conditions = conditions_of(setting, config, B).map(lambda x: x.bfloat16() if x.is_floating_point() else x)
        x_0 = noise(range(B), L_aud, config.latent_dim).to(setting.device)

        def make() -> Tensor:
            v = guided_velocity(network, conditions, 7.5, L_aud=L_aud)  # noqa: B023 (run within the loop)
            return solve(lambda x, t: v(x.bfloat16(), t.bfloat16()).float(), x_0, steps=evaluations, solver="euler")  # noqa: B023

        flops = sampling_flops(config, duration_s=setting.seconds, L_txt=L_TXT, evaluations=evaluations, guided=True)
        floor_s = max(B * flops / peak, evaluations * weights / bandwidth)
        for how in ("eager", *(["compiled"] if setting.compile else [])):
            network = eager if how == "eager" else compiled_for(setting, eager, latency=B == 1)
            for _ in range(3):
                made = make()
            if not torch.isfinite(made).all():
                raise RuntimeError(f"{how} sampling of {B} clips gave values that are not finite")
            seconds = setting.seconds_of(make)
            found(
                batch=B, how=how, ms=round(1000 * seconds, 2), clips_per_s=round(B / seconds, 2),
                floor_ms=round(1000 * floor_s, 2), ratio_to_floor=round(seconds / floor_s, 2),
                times_real_time=round(B * setting.seconds / seconds, 1),
            )  # fmt: skip


def compiled_for(setting: Setting, network: VelocityNetwork, *, latency: bool) -> VelocityNetwork:
    """Compiled copy of a network. For latency: one graph of all of it, replayed as a CUDA graph on a GPU."""
    network = deepcopy(network)
    if not latency:
        network.compile_blocks(backend=setting.backend)
    elif setting.device.type == "cuda":
        network.velocity = torch.compile(network.velocity, mode="reduce-overhead", dynamic=False)  # type: ignore[method-assign]
    else:
        network.velocity = torch.compile(network.velocity, backend=setting.backend, dynamic=False)  # type: ignore[method-assign]
    return network


# PSCA -----------------------------------------------------------------------------------------------------------


def psca(setting: Setting, found: Found) -> None:
    """Timings of each PSCA implementation against plain cross-attention, in bf16."""
    config = preset("flowley_169m", epsilon=0)
    assert isinstance(config, FlowleyConfig)
    for seconds in (1.6, 8) if setting.small else (8, 64, 512):
        row, _ = compare(config, seconds, setting.device, torch.bfloat16)
        found(**row)
