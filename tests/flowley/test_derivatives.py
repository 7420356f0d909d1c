"""Written-out derivatives against autograd's of the formulas, in float64, and the formulas against torch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d, rms_norm, silu

from flowley import derivatives
from flowley.attention import rope
from flowley.derivatives import dropout_mask, normalised_heads, rotate, swiglu, token_conv


@pytest.fixture(autouse=True)
def float64() -> None:
    torch.manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def both_ways(
    monkeypatch: pytest.MonkeyPatch, f: Callable[..., Tensor], *inputs: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Value and gradients by the written-out derivative and by autograd of the formula."""
    results = []
    weight = torch.randn_like(f(*inputs))
    for formula in (False, True):
        monkeypatch.setattr(derivatives, "by_formula", lambda x, formula=formula: formula)
        y = f(*inputs)
        results.append([y, *torch.autograd.grad((y * weight).sum(), inputs)])
    return results[0], results[1]


@pytest.mark.parametrize(("parts", "normalised"), [(3, 2), (2, 1), (1, 1)])
@pytest.mark.parametrize("positions", [True, False])
def test_normalised_heads(monkeypatch: pytest.MonkeyPatch, parts: int, normalised: int, positions: bool) -> None:
    x, weights = randn(2, 5, parts, 3, 8), randn(normalised, 8)
    R = rope(5, 8, theta=100.0, device=torch.device("cpu")) if positions else None
    ours, autograd = both_ways(monkeypatch, lambda x, w: torch.stack(normalised_heads(x, w, R)), x, weights)
    torch.testing.assert_close(ours, autograd)
    expected = rms_norm(x[:, :, 0].transpose(1, 2), (8,), weights[0], eps=1e-6)
    torch.testing.assert_close(ours[0][0], expected if R is None else rotate(expected, R))


def test_rotation_is_multiplication_by_a_complex_number() -> None:
    x, R = randn(2, 3, 5, 8), rope(5, 8, theta=100.0, device=torch.device("cpu")).double()
    turned = torch.view_as_complex(x.view(2, 3, 5, 4, 2)) * torch.view_as_complex(R)
    torch.testing.assert_close(rotate(x, R), torch.view_as_real(turned).flatten(-2))


def test_swiglu(monkeypatch: pytest.MonkeyPatch) -> None:
    x = randn(2, 5, 12)
    ours, autograd = both_ways(monkeypatch, swiglu, x)
    torch.testing.assert_close(ours, autograd)
    torch.testing.assert_close(ours[0], silu(x[..., :6]) * x[..., 6:])


def test_dropout_drops_values_and_gradients_alike_and_keeps_the_mean() -> None:
    x = randn(4, 100, 2 * 50)
    whole, some = swiglu(x), swiglu(x, dropout=0.25)
    kept = some != 0
    assert abs(kept.double().mean() - 0.75) < 0.02
    torch.testing.assert_close(some[kept], whole[kept] / 0.75)
    (g,) = torch.autograd.grad(some.sum(), x)
    (g_whole,) = torch.autograd.grad(whole.sum(), x)
    both = torch.cat([kept, kept], dim=-1)
    torch.testing.assert_close(g, g_whole * both / 0.75)


def test_dropout_masks_follow_the_seed_and_their_lanes_are_independent() -> None:
    like = torch.empty(401, 1001)
    torch.manual_seed(3)
    one = dropout_mask(like, 0.1)
    torch.manual_seed(3)
    assert torch.equal(one, dropout_mask(like, 0.1))
    dropped = (one == 0).double().flatten()[: 4 * 100_000].view(-1, 4)
    assert (dropped.mean(0) - 0.1).abs().max() < 0.005
    assert (torch.corrcoef(dropped.T) - torch.eye(4)).abs().max() < 0.015


@pytest.mark.parametrize("L", [1, 2, 3, 9])
@pytest.mark.parametrize(("C_in", "C_out", "kernel"), [(3, 5, 3), (5, 3, 3), (4, 4, 7), (6, 2, 7)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_token_conv(
    monkeypatch: pytest.MonkeyPatch, L: int, C_in: int, C_out: int, kernel: int, with_bias: bool
) -> None:
    inputs = [randn(2, L, C_in), randn(C_out, C_in, kernel), *([randn(C_out)] if with_bias else [])]
    ours, autograd = both_ways(monkeypatch, lambda x, w, b=None: token_conv(x, w, b), *inputs)
    torch.testing.assert_close(ours, autograd)
    expected = conv1d(inputs[0].transpose(1, 2), inputs[1], *inputs[2:], padding=kernel // 2).transpose(1, 2)
    torch.testing.assert_close(ours[0], expected)


def test_a_frozen_input_gets_no_gradient() -> None:
    x, w = torch.randn(2, 5, 3), torch.randn(4, 3, 3, requires_grad=True)
    token_conv(x, w, None).sum().backward()
    assert w.grad is not None and x.grad is None
