"""Three pieces of a block whose derivatives are written out, for a third of the passes over memory.

Each function here is a short formula. Under torch.compile, which fuses such formulas by itself, and under autocast
the formula is what runs; otherwise the same values come from an `autograd.Function` that works in place, keeps less
and writes gradients where they are wanted. `tests/flowley/test_derivatives.py` compares the two in float64.

Shapes: B batch, L tokens, C channels, h heads, d channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import dropout as torch_dropout
from torch.nn.functional import linear, pad, silu

EPSILON = 1e-6
"""Of the mean square in QK-norm."""


def by_formula(x: Tensor) -> bool:
    """Whether a formula is to be left to torch."""
    whole = x.dtype in (torch.float32, torch.float64) and not x.is_meta
    return not whole or torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type)


# QK-norm and RoPE -----------------------------------------------------------------------------------------------


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turns each pair of neighbouring channels of x (..., L, d) by its rotation (L, d / 2, 2), cos and sin."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    cos, sin = rotation.to(dtype).repeat_interleave(2, dim=1).unbind(-1)
    a, b = x.to(dtype).reshape(*x.shape[:-1], -1, 2).unbind(-1)
    quarter_turn = torch.stack([-b, a], dim=-1).flatten(-2)
    return (x.to(dtype) * cos + quarter_turn * sin).to(x.dtype)


def normalised_heads(x: Tensor, weights: Tensor, rotation: Tensor | None) -> tuple[Tensor, ...]:
    """The first n of the N parts of x RMS-normalised per head and rotated, the others as they are.

    Args:
        x: (B, L, N, h, d): queries, keys and values, or some of them.
        weights: (n, d), scales after the normalisation.
        rotation: (L, d / 2, 2), or None for tokens without positions.

    Returns:
        N tensors (B, h, L, d).
    """
    if not by_formula(x):
        return _NormalisedHeads.apply(x, weights, rotation)  # type: ignore[no-any-return,no-untyped-call]
    parts = list(x.transpose(1, 3).unbind(2))
    for n, weight in enumerate(weights):
        part = parts[n].to(torch.promote_types(x.dtype, torch.float32))
        part = part * torch.rsqrt(part.square().mean(-1, keepdim=True) + EPSILON) * weight
        parts[n] = (part if rotation is None else rotate(part, rotation)).to(x.dtype)
    return tuple(parts)


class _NormalisedHeads(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, rotation: Tensor | None) -> tuple[Tensor, ...]:
        n, d = weights.shape
        r = torch.rsqrt(torch.linalg.vector_norm(x[:, :, :n], dim=-1, keepdim=True).square() / d + EPSILON)
        turn = None if rotation is None else torch.view_as_complex(rotation.to(x.dtype))[:, None, None]
        y = (x[:, :, :n] * r).mul_(weights[:, None])
        if turn is not None:
            _complex(y).mul_(turn)
        ctx.save_for_backward(x, weights, r, turn)
        return tuple(part.transpose(1, 2) for part in (*y.unbind(2), *x[:, :, n:].unbind(2)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weights, r, turn = ctx.saved_tensors
        g_x, g_weights, d = torch.empty_like(x), torch.empty_like(weights), x.shape[-1]
        for part, grad in enumerate(grads):
            g, into = grad.transpose(1, 2), g_x[:, :, part]
            if part >= len(weights):
                into.copy_(g)
                continue
            if turn is not None:
                g = torch.view_as_real(_complex(g) * turn[:, 0].conj()).flatten(-2)
            x_part, r_part, weight = x[:, :, part], r[:, :, part], weights[part]
            share = torch.mul(g, x_part, out=x.new_empty(x_part.shape))
            torch.mv(share.view(-1, d).T, r_part.reshape(-1), out=g_weights[part])
            along = (share @ weight)[..., None]  # the part of the gradient that only changes the length
            torch.mul(g * weight, r_part, out=into)
            into.addcmul_(x_part, along * r_part**3, value=-1 / d)
        return g_x, g_weights, None


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))


# SwiGLU ---------------------------------------------------------------------------------------------------------


def swiglu(x: Tensor, *, dropout: float = 0.0) -> Tensor:
    """silu(gate) * value, gate and value the halves of x (B, L, 2 C), some entries dropped: (B, L, C)."""
    if not by_formula(x):
        return _SwiGLU.apply(x, dropout)  # type: ignore[no-any-return,no-untyped-call]
    gate, value = x.chunk(2, dim=-1)
    return torch_dropout(silu(gate) * value, dropout)


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropout: float) -> Tensor:
        gate, value = x.chunk(2, dim=-1)
        activated = silu(gate)
        out = activated * value
        kept = dropout_mask(out, dropout) if dropout > 0 else None
        ctx.save_for_backward(x, activated, kept)
        return out if kept is None else out.mul_(kept)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        x, activated, kept = ctx.saved_tensors
        (gate, value), g_x = x.chunk(2, dim=-1), torch.empty_like(x)
        g_gate, g_value = g_x.chunk(2, dim=-1)
        g = g if kept is None else g * kept
        torch.mul(g, activated, out=g_value)
        torch.ops.aten.silu_backward.grad_input(g * value, gate, grad_input=g_gate)
        return g_x, None


def dropout_mask(like: Tensor, p: float) -> Tensor:
    """0 with probability p, else what keeps the mean, exactly; shaped like `like`.

    p is rounded to 1 / 65,536: a 64-bit draw decides four entries, where torch's draw for each takes three times
    as long as the rest of the activation.
    """
    dropped = round(p * 65_536)
    draws = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device).random_(-(2**63), None)  # type: ignore[arg-type]
    kept = draws.view(torch.int16)[: like.numel()].view(like.shape) >= dropped - 32_768
    return kept.to(like.dtype).mul_(65_536 / (65_536 - dropped))


# Convolution over tokens ----------------------------------------------------------------------------------------


def token_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution over L with zeros beyond the ends; x (B, L, C_in), weight (C_out, C_in, odd kernel).

    One matrix product without a transposition: over each token's neighbours side by side, or, where C_out is the
    smaller, to the outputs of all taps, which are then shifted and added.
    """
    if not by_formula(x):
        return _TokenConv.apply(x, weight, bias)  # type: ignore[no-any-return,no-untyped-call]
    L, (C_out, C_in, kernel) = x.shape[1], weight.shape
    reach = kernel // 2
    if C_in <= C_out:
        x = pad(x, (0, 0, reach, reach))
        windows = torch.stack([x[:, tap : tap + L] for tap in range(kernel)], dim=-1)
        return linear(windows.flatten(-2), weight.flatten(1), bias)
    taps = linear(x, weight.permute(2, 0, 1).flatten(0, 1)).chunk(kernel, dim=-1)
    ahead = {tap - reach: y for tap, y in enumerate(taps) if 0 < abs(tap - reach) < L}
    out = sum((pad(y, (0, 0, -n, n)) for n, y in ahead.items()), start=taps[reach])
    return out if bias is None else out + bias


class _TokenConv(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        C_out, C_in, kernel = ctx.shape = weight.shape
        ctx.has_bias = bias is not None
        if C_in <= C_out:
            windows = _spread(x, kernel, sign=1, tap_last=True).flatten(-2)
            ctx.save_for_backward(windows, weight.flatten(1))
            return linear(windows, weight.flatten(1), bias)
        taps = weight.permute(2, 0, 1).flatten(0, 1)
        ctx.save_for_backward(x, taps)
        out = _gather(linear(x, taps).view(*x.shape[:2], kernel, C_out).movedim(2, -1), sign=1)
        return out if bias is None else out.add_(bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        (kept, matrix), (C_out, C_in, kernel) = ctx.saved_tensors, ctx.shape
        g_bias = g.sum((0, 1)) if ctx.has_bias else None
        g_x: Tensor | None = None
        if C_in <= C_out:
            g_weight = g.flatten(0, 1).T @ kept.flatten(0, 1)
            if ctx.needs_input_grad[0]:
                g_x = _gather((g @ matrix).view(*g.shape[:2], C_in, kernel), sign=-1)
            return g_x, g_weight.view(C_out, C_in, kernel), g_bias
        g_taps = _spread(g, kernel, sign=-1, tap_last=False).flatten(-2)
        g_weight = g_taps.flatten(0, 1).T @ kept.flatten(0, 1)
        if ctx.needs_input_grad[0]:
            g_x = g_taps @ matrix
        return g_x, g_weight.view(kernel, C_out, C_in).permute(1, 2, 0), g_bias


def _places(L: int, n: int) -> tuple[slice, slice]:
    """Tokens t that have a token t + n, and those tokens."""
    return slice(max(0, -n), max(0, L - max(0, n))), slice(max(0, n), max(0, L + min(0, n)))


def _spread(x: Tensor, kernel: int, *, sign: int, tap_last: bool) -> Tensor:
    """x (B, L, C) at t + sign * (tap - reach) for every t and tap, zeros beyond; (B, L, C, taps) or (B, L, taps, C)."""
    B, L, C = x.shape
    out = x.new_empty((B, L, C, kernel) if tap_last else (B, L, kernel, C))
    for tap in range(kernel):
        into = out[..., tap] if tap_last else out[:, :, tap]
        t, there = _places(L, sign * (tap - kernel // 2))
        into[:, : t.start], into[:, t.stop :] = 0, 0
        into[:, t] = x[:, there]
    return out


def _gather(y: Tensor, *, sign: int) -> Tensor:
    """Sum over taps of y (B, L, C, taps) at t + sign * (tap - reach): what `_spread` with -sign is the adjoint of."""
    L, kernel = y.shape[1], y.shape[-1]
    reach = kernel // 2
    out, middle = y.new_empty(y.shape[:3]), y[..., reach]
    t, there = _places(L, -sign)
    out[:, : t.start], out[:, t.stop :] = middle[:, : t.start], middle[:, t.stop :]
    torch.add(middle[:, t], y[:, there, :, reach - 1], out=out[:, t])
    for tap in range(kernel):
        if tap not in (reach - 1, reach):
            t, there = _places(L, sign * (tap - reach))
            out[:, t] += y[:, there, :, tap]
    return out
