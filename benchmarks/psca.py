"""PSCA against the floor: plain scaled-dot-product cross-attention on the same Q, K and V, forward and backward.

`python -m benchmarks.psca [--json] [--seconds 8 64 512] [--device cpu|cuda] [--dtype fp32|bf16]`

The paper's rates, 7 heads of 64 (`flowley_169m`), Q, K and V contiguous as (B, h, L, d_k). PSCA is the local form
(epsilon = 0), first layer, and pays in every call for the masks of all 8 layers, which in the network are made once.
Batches of 8 up to 10 s, of 1 beyond. On a CPU one thread: on cores that others use too, waiting for a second thread
would be measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from flowley.config import FlowleyConfig
from flowley.presets import preset
from flowley.psca import aligned_frames, local_masks, local_psca, psca, soft_mask

MIN_ROUNDS, MIN_SECONDS = 5, 8.0
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    """Prints medians in ms, and the medians of the ratios to plain attention in the same round."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.psca", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one list of rows: seconds, plain_ms, psca_ms, ratio")
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
        cases = {"plain": scaled_dot_product_attention, "psca": local_form(config)}
        if not arguments.json:
            cases["dense"] = dense_form(config)
        times = measure(cases, *given(config, seconds, torch.device(arguments.device), dtype))
        ms = {case: statistics.median(t) for case, t in times.items()}
        ratio = {
            case: statistics.median(a / b for a, b in zip(t, times["plain"], strict=True)) for case, t in times.items()
        }
        rows.append({
            "seconds": int(seconds) if seconds == int(seconds) else seconds, "plain_ms": round(ms["plain"], 3),
            "psca_ms": round(ms["psca"], 3), "ratio": round(ratio["psca"], 4),
        })  # fmt: skip
        if not arguments.json:
            for case in cases:
                print(f"{seconds:>6g} s   {case:6} {ms[case]:>10.2f} ms   {ratio[case]:>7.3f} x plain", flush=True)
    if arguments.json:
        print(json.dumps(rows))


def given(config: FlowleyConfig, seconds: float, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Q (B, h, L_aud, d_k), K and V (B, h, L_vis, d_k), and the gradient of the output."""
    B = 8 if seconds <= 10 else 1
    L_aud, L_vis = config.lengths(seconds)
    Q, K, V = (torch.randn(B, config.heads, L, config.D // config.heads, device=device, dtype=dtype, requires_grad=True)
               for L in (L_aud, L_vis, L_vis))  # fmt: skip
    return Q, K, V, torch.randn_like(Q)


def local_form(config: FlowleyConfig) -> Attention:
    """PSCA with epsilon = 0, masks included."""

    def attend(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
        mask = local_masks(config, Q.shape[2], K.shape[2], device=Q.device)[0]
        return local_psca(Q, K, V, mask)

    return attend


def dense_form(config: FlowleyConfig) -> Attention:
    """PSCA with the paper's epsilon, one layer's mask included."""
    omega, delta = config.window_frames

    def attend(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
        j_c = aligned_frames(Q.shape[2], K.shape[2], r_a=config.r_a, r_v=config.r_v, device=Q.device)
        M = soft_mask(j_c, K.shape[2], omega=omega, delta=delta, beta_l=1.0)
        return psca(Q, K, V, M, epsilon=1e-6)

    return attend


def measure(cases: dict[str, Attention], Q: Tensor, K: Tensor, V: Tensor, gradient: Tensor) -> dict[str, list[float]]:
    """Times in ms of forward and backward, in turn, so that noise falls on all alike."""
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
