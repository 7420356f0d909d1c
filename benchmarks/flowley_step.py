"""A training step of Flowley against its peer's, and each against its own matrix products.

    step    forward, loss, backward, AdamW; float32, the same clips of 8 s with captions of up to 77 tokens;
            --compile: as `TrainExecution.compile` has it
    floor   every matrix product, convolution and attention call of that step, forward and backward, replayed in
            order with nothing between them: the same shapes, strides and types, operands fresh from memory as they
            are in a step. An attention call is replayed whole, so its softmax is in the floor; with --strict only
            its products are (2 forward, 4 backward). Not in the floor: norms, activations, rotations, gates,
            dropout, copies, sums over a batch, the optimiser.

Steps and floors of both networks take turns, and ratios are formed within a round, so that noise falls on all alike.
As in a training on a CPU, the process keeps the memory that it frees (`flowley.memory`); on two cores or more,
OMP_NUM_THREADS says how many threads both sides have.

`python -m benchmarks.flowley_step [--json] [--rounds N] [--strict] [--presets A B] [--seconds S] [--clips N]
[--compile]`
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from flowley.compilation import compile_parts
from flowley.config import NetworkConfig
from flowley.flow import flow_loss, interpolate
from flowley.memory import keep_freed_memory
from flowley.network import Conditions
from flowley.presets import preset
from flowley.registry import build_network

CAPTION_TOKENS = (77, 20, 40, 60)
"""Of the clips in turn."""
WARM_UP = 3
"""Steps of each network before anything is timed: code paths, the optimiser's state, memory."""

_aten = torch.ops.aten
PRODUCTS = {
    _aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _aten.convolution, _aten.convolution_backward,
}  # fmt: skip
ATTENTIONS = {
    _aten._scaled_dot_product_flash_attention_for_cpu: False,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: True,
    _aten._scaled_dot_product_flash_attention: False,
    _aten._scaled_dot_product_flash_attention_backward: True,
    _aten._scaled_dot_product_efficient_attention: False,
    _aten._scaled_dot_product_efficient_attention_backward: True,
}
"""Fused attention calls, and which are backward."""


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor as a product saw it, without its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Call:
    """One product of a step."""

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the products that run under it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in PRODUCTS or func.overloadpacket in ATTENTIONS:

            def operand(x: Any) -> Any:
                return Operand(tuple(x.shape), x.stride(), x.dtype) if isinstance(x, Tensor) else x

            self.calls.append(Call(func, tree_map(operand, tuple(args)), tree_map(operand, kwargs or {})))
        return out


class Memory:
    """Operands as views that wander through a pool larger than the caches, so that none is warm."""

    def __init__(self, device: torch.device, megabytes: int) -> None:
        self.pool = torch.empty(megabytes * 2**18, device=device).uniform_(-1, 1)
        self.used = 0

    def tensor(self, like: Operand) -> Tensor:
        """A view of that shape and stride; masks are all True."""
        extent = 1 + sum((n - 1) * step for n, step in zip(like.shape, like.stride, strict=True))
        floats = -(-extent * like.dtype.itemsize // 64) * 16  # whole cache lines
        if self.used + floats > len(self.pool):
            self.used = 0
        part = self.pool[self.used : self.used + floats]
        self.used += floats
        if like.dtype == torch.bool:
            return torch.ones(like.shape, dtype=torch.bool, device=part.device)
        flat = part.view(like.dtype) if like.dtype.is_floating_point else torch.zeros_like(part).view(like.dtype)
        return flat.as_strided(like.shape, like.stride)

    def filled(self, value: Any) -> Any:
        return tree_map(lambda x: self.tensor(x) if isinstance(x, Operand) else x, value)


def attention_products(call: Call) -> list[Call]:
    """The products of a fused attention call: QK^T and PV, or the four of its backward."""
    backward = ATTENTIONS[call.operator.overloadpacket]
    q, k = call.args[1:3] if backward else call.args[:2]
    (B, h, L, d), S = q.shape, k.shape[2]

    def bmm(m: int, inner: int, n: int) -> Call:
        a, b = ((B * h, m, inner), (m * inner, inner, 1)), ((B * h, inner, n), (inner * n, n, 1))
        return Call(_aten.bmm.default, (Operand(*a, q.dtype), Operand(*b, q.dtype)), {})

    if not backward:
        return [bmm(L, d, S), bmm(L, S, d)]
    return [bmm(S, L, d), bmm(L, d, S), bmm(L, S, d), bmm(S, L, d)]  # of V, P, Q and K


def floor_s(calls: list[Call], memory: Memory, *, strict: bool, wait: Callable[[], None]) -> float:
    """Seconds of the calls alone, one after another."""
    total = 0.0
    for call in _unfused(calls) if strict else calls:
        args, kwargs = memory.filled(call.args), memory.filled(call.kwargs)
        wait()
        started = time.perf_counter()
        call.operator(*args, **kwargs)
        wait()
        total += time.perf_counter() - started
    return total


def _unfused(calls: list[Call]) -> Iterator[Call]:
    for call in calls:
        yield from attention_products(call) if call.operator.overloadpacket in ATTENTIONS else [call]


class Step:
    """A network with its optimiser and its features of the common clips."""

    def __init__(self, config: NetworkConfig, *, seconds: float, clips: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.network = build_network(config).to(device).train()
        if config.null_text == "empty_caption":
            self.network.set_null_text(torch.randn(config.max_text_tokens, config.text_dim))
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
        caption_tokens = tuple(islice(cycle(CAPTION_TOKENS), clips))
        self.conditions = random_conditions(config, seconds, caption_tokens, device)
        B, L_aud = clips, config.lengths(seconds)[0]
        self.x_0, self.x_1 = torch.randn(2, B, L_aud, config.latent_dim, device=device)
        self.t = torch.rand(B, device=device)
        self.dropped = torch.arange(B, device=device) == 1, torch.arange(B, device=device) == 2

    def __call__(self) -> None:
        v = self.network(interpolate(self.x_0, self.x_1, self.t), self.t, self.conditions, *self.dropped)
        flow_loss(v, self.x_1 - self.x_0, cosine_weight=0.5).total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def recorded(self) -> list[Call]:
        recorder = Recorder()
        with recorder:
            self()
        return recorder.calls


def random_conditions(
    config: NetworkConfig, seconds: float, caption_tokens: tuple[int, ...], device: torch.device
) -> Conditions:
    """Features of one clip per caption length, padded to the longest caption."""
    B, L_txt, n_tokens = len(caption_tokens), max(caption_tokens), torch.tensor(caption_tokens, device=device)
    L_vis, L_sync = config.lengths(seconds)[1], config.sync_length(seconds)
    return Conditions(
        torch.randn(B, L_vis, config.visual_dim, device=device),
        torch.randn(B, L_txt, config.text_dim, device=device),
        torch.arange(L_txt, device=device) < n_tokens[:, None],
        torch.randn(B, L_sync, config.sync_dim, device=device) if L_sync else None,
    )


def measure(
    names: list[str], *, rounds: int, seconds: float, clips: int, strict: bool, compiled: bool,
    megabytes: int = 1024, device: str = "cpu",
) -> list[dict[str, Any]]:  # fmt: skip
    """A row per preset, and the ratio of the first to the second where there are two."""
    where = torch.device(device)
    wait = torch.cuda.synchronize if where.type == "cuda" else _nothing
    keep_freed_memory()
    steps = {name: Step(preset(name), seconds=seconds, clips=clips, device=where) for name in names}
    memory = Memory(where, megabytes)
    calls = {}
    for name, step in steps.items():
        calls[name] = step.recorded()
        if compiled:
            compile_parts(step.network)
        for _ in range(WARM_UP):
            step()
    step_s: dict[str, list[float]] = {name: [] for name in names}
    floors: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, step in steps.items():
            wait()
            started = time.perf_counter()
            step()
            wait()
            step_s[name].append(time.perf_counter() - started)
        for name in names:
            floors[name].append(floor_s(calls[name], memory, strict=strict, wait=wait))
    rows: list[dict[str, Any]] = [
        {
            "preset": name,
            "step_ms": round(1000 * statistics.median(step_s[name]), 1),
            "floor_ms": round(1000 * statistics.median(floors[name]), 1),
            "ratio_to_floor": round(_median_ratio(step_s[name], floors[name]), 3),
        }
        for name in names
    ]
    if len(names) == 2:
        key = "ratio_" + "_to_".join(name.split("_")[0] for name in names)
        rows.append({key: round(_median_ratio(step_s[names[0]], step_s[names[1]]), 3)})
    return rows


def _median_ratio(a: list[float], b: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def _nothing() -> None:
    """A CPU has finished when it returns."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--strict", action="store_true", help="leave attention's softmax out of the floor")
    parser.add_argument("--presets", nargs="+", default=["flowley_169m", "mmaudio_small_16k"])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--clips", type=int, default=16, help="per step")
    parser.add_argument("--compile", action="store_true", help="torch.compile both networks")
    given = parser.parse_args()
    if min(given.rounds, given.clips) < 1:
        parser.error(f"got --rounds {given.rounds} and --clips {given.clips}, wanted at least 1 of each")
    rows = measure(
        given.presets, rounds=given.rounds, seconds=given.seconds, clips=given.clips, strict=given.strict,
        compiled=given.compile,
    )  # fmt: skip
    if given.json:
        print(json.dumps(rows))
        return
    for row in rows:
        match row:
            case {"preset": name, "step_ms": step, "floor_ms": floor, "ratio_to_floor": ratio}:
                print(f"{name:18} step {step:>9} ms   floor {floor:>9} ms   {ratio:.3f} x floor")
            case _:
                ((key, ratio),) = row.items()
                print(f"{key}: {ratio:.3f}")


if __name__ == "__main__":
    main()
