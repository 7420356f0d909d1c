"""Throughput, latency and memory of the two networks and of the captioner's LoRA on a GPU: one table and a JSON.

Takes 10 minutes at most.

    training    training steps of `flowley_169m` and `mmaudio_small_16k`: float32 weights, bf16 autocast,
                torch.compile block by block, gradient clipping, fused AdamW, noise assignment for Flowley; no EMA.
                MFU = FLOPs of `benchmarks.flops` (3 forwards, no recomputation) / time / the GPU's dense bf16
                peak
    sampling    25 Euler steps with guidance, bf16 weights: latency of one 8-s clip and throughput of a batch, against
                a roofline: per evaluation the longer of its FLOPs at peak and one read of the weights
    psca        `benchmarks.psca` at 8, 64 and 512 s
    lora        a Qwen2.5-3B-shaped language model with random weights, LoRA on every linear layer; frozen weights
                have no gradient, so a step counts 2 forwards of them

Each check runs in its own process under a deadline; a failed one is reported and the others go on. Needs torch,
numpy, scipy, einops, safetensors, huggingface-hub, transformers and peft, nothing else of this project's packages.

`python -m benchmarks.gpu_check [--json] [--out FILE] [--only CHECK...] [--device cuda|cpu] [--small] [--no-compile]`
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_checks import Found, Setting, device_name, has_gpu, psca, sampling, training
from benchmarks.gpu_lora import lora

DEADLINES_S = {"flowley": 150, "mmaudio": 140, "sampling": 130, "psca": 50, "lora": 120}
"""Deadline (s) of each check; together 9 min 50 s."""
CHECKS: dict[str, Callable[[Setting, Found], None]] = {
    "flowley": lambda setting, found: training(setting, found, "flowley_169m"),
    "mmaudio": lambda setting, found: training(setting, found, "mmaudio_small_16k"),
    "sampling": sampling,
    "psca": psca,
    "lora": lora,
}
MARK = "gpu-check: "
Rows = list[dict[str, Any]]


def in_process(name: str, flags: list[str], deadline_s: float) -> Rows:
    """Result rows of one check, run in its own process; a failure adds a row with its reason."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--inside", name, *flags]
    started = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=deadline_s, check=False)
    except subprocess.TimeoutExpired as error:
        text = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        return [*_rows(text), {"check": name, "failed": f"not done in {deadline_s:.0f} s"}]
    rows = _rows(done.stdout)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        rows.append({"check": name, "failed": f"exit {done.returncode}: {last[:300]}"})
    rows.append({"check": name, "took_s": round(time.monotonic() - started, 1)})
    return rows


def _rows(text: str) -> Rows:
    """Result rows in a process's output, printed one by one so that a timeout loses only the rest."""
    return [json.loads(line.removeprefix(MARK)) for line in text.splitlines() if line.startswith(MARK)]


def table(rows: Rows) -> str:
    lines = []
    for row in rows:
        values = "  ".join(f"{name}={value}" for name, value in row.items() if name != "check")
        lines.append(f"{row['check']:10} {values}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="only the JSON")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--only", nargs="+", choices=DEADLINES_S, default=list(DEADLINES_S))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that the checks run")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--inside", choices=DEADLINES_S, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:

        def found(**row: Any) -> None:
            print(MARK + json.dumps({"check": given.inside, **row}), flush=True)

        CHECKS[given.inside](Setting(given.device, small=given.small, compile=not given.no_compile), found)
        return 0
    if given.device == "cuda" and not has_gpu():
        print("no CUDA device here: run this on a machine with a GPU, or see --device cpu --small", file=sys.stderr)
        return 2
    flags = ["--device", given.device, *["--small"] * given.small, *["--no-compile"] * given.no_compile]
    rows: Rows = []
    for name in given.only:
        rows += in_process(name, flags, DEADLINES_S[name])
        if not given.json:
            print(table([row for row in rows if row["check"] == name]), flush=True)
    result = {"device": device_name(given.device), "rows": rows}
    if given.out:
        given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
