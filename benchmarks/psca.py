"""PSCA against the floor: plain scaled-dot-product cross-attention on the same Q, K and V, forward and backward.

`python -m benchmarks.psca [--json] [--seconds 8 64 512] [--device cpu|cuda] [--dtype fp32|bf16]`

Setting: the paper's rates, 7 heads of 64 (`flowley_169m`), contiguous Q, K and V of shape (B, h, L, d_k), first layer,
log-weights precomputed as in the network. `dense` has the paper's epsilon, `local` epsilon = 0; `psca` is whichever
the network picks for epsilon = 0. Batches of 8 up to 10 s, of 1 beyond. A CPU runs one thread: on shared cores the
wait for a second one would be measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from flowley.network.config import FlowleyConfig
from flowley.network.presets import preset
from flowley.network.psca import LocalMask, dense_masks, local_masks, local_psca, visual_masks

MIN_ROUNDS, MIN_SECONDS = 5, 8.0
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.psca", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="a list of rows: seconds, ms by form, ratio of psca")
    parser.add_argument("--seconds", type=float, nargs="+", default=[8, 64, 512], help="durations of the clips")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = preset("flowley_169m", epsilon=0)
    assert isinstance(config, FlowleyConfig)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]

    rows = []
    for seconds in arguments.seconds:
        row, ratios = compare(config, seconds, torch.device(arguments.device), dtype)
        rows.append(row)
        if not arguments.json:
            for case, ratio in ratios.items():
                print(f"{seconds:>6g} s   {case:6} {row[case + '_ms']:>10.2f} ms   {ratio:>7.3f} x plain", flush=True)
    if arguments.json:
        print(json.dumps(rows))


def compare(
    config: FlowleyConfig, seconds: float, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, float], dict[str, float]]:
    """Median times (ms) as one row, and median ratios to plain attention of the same round."""
    Q, K, V, gradient = given(config, seconds, device, dtype)
    lengths, place = (Q.shape[2], K.shape[2]), {"device": device, "dtype": dtype}
    dense, local = (
        dense_masks(replace(config, epsilon=1e-6), *lengths, **place)[0],
        local_masks(config, *lengths, **place)[0],
    )
    cases: dict[str, Attention] = {
        "plain": scaled_dot_product_attention,
        "dense": partial(scaled_dot_product_attention, attn_mask=dense),
        "local": partial(local_psca, mask=local),
    }
    times = measure(cases, Q, K, V, gradient)
    ms = {case: statistics.median(t) for case, t in times.items()}
    ratio = {
        case: statistics.median(a / b for a, b in zip(t, times["plain"], strict=True)) for case, t in times.items()
    }
    chosen = "local" if isinstance(visual_masks(config, *lengths, device, dtype)[0], LocalMask) else "dense"
    row = {"seconds": int(seconds) if seconds == int(seconds) else seconds}
    row |= {f"{case}_ms": round(t, 3) for case, t in ms.items()}
    return row | {"psca_ms": round(ms[chosen], 3), "ratio": round(ratio[chosen], 4)}, ratio


def given(config: FlowleyConfig, seconds: float, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Random Q (B, h, L_aud, d_k), K and V (B, h, L_vis, d_k), and the gradient of the output."""
    B = 8 if seconds <= 10 else 1
    L_aud, L_vis = config.lengths(seconds)
    Q, K, V = (torch.randn(B, config.heads, L, config.D // config.heads, device=device, dtype=dtype, requires_grad=True)
               for L in (L_aud, L_vis, L_vis))  # fmt: skip
    return Q, K, V, torch.randn_like(Q)


def measure(cases: dict[str, Attention], Q: Tensor, K: Tensor, V: Tensor, gradient: Tensor) -> dict[str, list[float]]:
    """Forward-plus-backward times (ms) by case. Cases are interleaved, so noise hits all alike."""
    times: dict[str, list[float]] = {case: [] for case in cases}
    began = None
    while began is None or len(times["plain"]) < MIN_ROUNDS or time.perf_counter() - began < MIN_SECONDS:
        for case, attend in cases.items():
            _synchronise(Q)
            started = time.perf_counter()
            torch.autograd.grad(attend(Q, K, V), (Q, K, V), gradient)
            _synchronise(Q)
            if began is not None:  # the first round warms up
                times[case].append(1000 * (time.perf_counter() - started))
        began = began or time.perf_counter()
    return times


def _synchronise(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


if __name__ == "__main__":
    main()
