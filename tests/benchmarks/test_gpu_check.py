"""`make gpu-check` without a GPU: the checks run on a CPU, without what a bare GPU machine lacks."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_check import DEADLINES_S, MARK, in_process, table
from benchmarks.gpu_checks import Setting
from benchmarks.gpu_lora import lora_flops, lora_model

ABSENT = (
    "pydantic", "ray", "vllm", "decord", "s3fs", "ema_pytorch", "deepspeed", "datasets", "diffusers", "torchaudio",
    "soundfile", "ffmpeg", "pipelines", "soundcap",
)  # fmt: skip


def run_bare(check: str, *flags: str) -> list[dict[str, object]]:
    """The rows of a check in a process in which ABSENT cannot be imported."""
    program = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT!r}))
sys.argv = ["gpu_check", "--inside", {check!r}, "--device", "cpu", "--small", *{flags!r}]
runpy.run_module("benchmarks.gpu_check", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line.removeprefix(MARK)) for line in done.stdout.splitlines() if line.startswith(MARK)]


def test_training_without_absent_packages() -> None:
    first = run_bare("flowley", "--no-compile")[0]
    assert first["check"] == "flowley" and first["clips_per_s"] > 0 and first["mfu"] > 0  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "keys"),
    [
        ("flowley", {"mfu", "clips_per_s", "batch", "ok"}),
        ("mmaudio", {"mfu", "clips_per_s", "batch", "ok"}),
        ("sampling", {"ms", "clips_per_s", "floor_ms", "ratio_to_floor"}),
        ("psca", {"seconds", "plain_ms", "psca_ms", "ratio"}),
        ("lora", {"mfu", "tokens_per_s", "checkpointing"}),
    ],
)
def test_each_check_compiled_as_far_as_a_cpu_allows(check: str, keys: set[str]) -> None:
    assert keys <= set(run_bare(check)[0])


def test_a_check_that_takes_too_long_is_reported() -> None:
    rows = in_process("psca", ["--device", "cpu", "--small"], 0.5)
    assert rows == [{"check": "psca", "failed": "not done in 0 s"}]
    assert table(rows) == "psca       failed=not done in 0 s"


def test_a_check_that_fails_is_reported_with_its_last_line() -> None:
    rows = in_process("psca", ["--device", "cpu", "--wrong"], 60)
    assert "unrecognized arguments: --wrong" in rows[0]["failed"]


def test_all_checks_fit_into_ten_minutes() -> None:
    assert sum(DEADLINES_S.values()) <= 590


def test_lora_counts_are_torchs() -> None:
    """But for two things: torch's counter does not see a CPU's attention kernel, and the first layer's projections
    of the embeddings, which learn nothing, need no gradient of their inputs."""
    model, config = lora_model(Setting("cpu", small=True, compile=False))
    B, L = 2, 32
    tokens = torch.randint(0, config.vocab_size, (B, L))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    attention = 3 * config.num_hidden_layers * 2 * L * config.hidden_size
    first = model.base_model.model.model.layers[0].self_attn
    spared = sum(
        2 * (x.base_layer.weight.numel() + x.lora_A["default"].weight.numel())
        for x in (first.q_proj, first.k_proj, first.v_proj)
    )
    assert counter.get_total_flops() == lora_flops(model, config, B, L) - B * L * (attention + spared)
