"""The step's floor: which products it holds, and the promised JSON."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import flowley_step
from benchmarks.flowley_step import Memory, Operand, Recorder, attention_products, main
from flowley.config import NetworkConfig
from flowley.presets import preset


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    def tiny(name: str) -> NetworkConfig:
        return preset(name, D=32, N1=1, N2=2, heads=2, mlp_multiple=32)

    monkeypatch.setattr(flowley_step, "preset", tiny)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("strict", [[], ["--strict"]])
def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], strict: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["flowley_step", "--json", "--rounds", "1", "--seconds", "1", *strict])
    main()
    flowley, mmaudio, ratio = json.loads(capsys.readouterr().out)
    assert [flowley["preset"], mmaudio["preset"]] == ["flowley_169m", "mmaudio_small_16k"]
    for row in (flowley, mmaudio):
        assert 0 < row["floor_ms"] < row["step_ms"] and row["ratio_to_floor"] > 1
    assert list(ratio) == ["ratio_flowley_to_mmaudio"]


def test_every_product_of_forward_and_backward_is_recorded() -> None:
    x, w = torch.randn(4, 3), torch.randn(5, 3, requires_grad=True)
    q = torch.randn(2, 3, 7, 8, requires_grad=True)
    with Recorder() as recorder:
        (x @ w.T).relu().sum().backward()
        scaled_dot_product_attention(q, q, q).sum().backward()
    names = [call.operator.overloadpacket.__name__ for call in recorder.calls]
    assert names[:2] == ["mm", "mm"]
    assert [name for name in names if "attention" in name] == [
        "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward",
    ]  # fmt: skip
    forward, backward = (attention_products(call) for call in recorder.calls[2:])
    assert (len(forward), len(backward)) == (2, 4)


def test_operands_have_the_recorded_layout_and_wander() -> None:
    memory = Memory(torch.device("cpu"), megabytes=1)
    like = Operand((3, 4), (1, 3), torch.float32)
    one, other = memory.tensor(like), memory.tensor(like)
    assert (one.shape, one.stride(), one.dtype) == ((3, 4), (1, 3), torch.float32)
    assert one.data_ptr() != other.data_ptr()
    assert memory.tensor(Operand((5,), (1,), torch.bool)).all()
