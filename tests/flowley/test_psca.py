"""PSCA against plain loops over the paper's formulas in exact or float64 arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from flowley.config import preset
from flowley.psca import PSCA, aligned_frames, beta, progressive_masks, psca, soft_mask

RATES = [("125/4", "8"), ("25", "8"), ("4307/100", "8"), ("43", "25"), ("8", "8"), ("4", "8")]


def naive_aligned_frame(i: int, L_vis: int, r_a: Fraction, r_v: Fraction, rule: str) -> int:
    position = r_v / r_a * i
    return min(math.ceil(position) if rule == "ceil" else round(position), L_vis - 1)


def naive_mask(d: int, omega: int, delta: int, beta_l: float) -> float:
    if d <= omega:
        return 1.0
    if d <= omega + delta:
        return beta_l * 0.5 * (math.cos(math.pi * (d - omega) / delta) + 1)
    return 0.0


@pytest.mark.parametrize("rule", ["ceil", "round"])
@pytest.mark.parametrize(("r_a", "r_v"), RATES)
@pytest.mark.parametrize("missing", [0, 1, 5])
def test_aligned_frames(r_a: str, r_v: str, rule: str, missing: int) -> None:
    """Exact for every frame of 16 s, also where the video is some frames short (ragged end)."""
    a, v = Fraction(r_a), Fraction(r_v)
    L_aud, L_vis = math.ceil(16 * a), math.ceil(16 * v) - missing
    got = aligned_frames(L_aud, L_vis, r_a=a, r_v=v, alignment=rule).tolist()  # type: ignore[arg-type]
    assert got == [naive_aligned_frame(i, L_vis, a, v, rule) for i in range(L_aud)]


def test_alignment_does_not_use_floats() -> None:
    """In floating point ceil(25 / 43 * 215) is 126."""
    j_c = aligned_frames(300, 200, r_a=Fraction(43), r_v=Fraction(25))
    assert j_c[215] == 125
    assert math.ceil(25 / 43 * 215) == 126, "the trap this test stands for is gone"


@pytest.mark.parametrize("alignment", ["ceil", "round"])
@pytest.mark.parametrize(("omega", "delta"), [(0, 4), (2, 0), (1, 3), (0, 0)])
@pytest.mark.parametrize(("r_a", "r_v"), RATES)
def test_masks_of_all_layers(r_a: str, r_v: str, omega: int, delta: int, alignment: str) -> None:
    config = preset("tiny", r_a=r_a, r_v=r_v, omega=omega, delta=delta, alignment=alignment, N2=4)
    L_aud, L_vis = config.lengths(2.0)
    got = progressive_masks(config, L_aud, L_vis, device=torch.device("cpu"))
    want = torch.tensor(
        [
            [
                [
                    naive_mask(
                        abs(j - naive_aligned_frame(i, L_vis, config.r_a, config.r_v, alignment)),
                        omega, delta, 1 - layer / 3,
                    )
                    for j in range(L_vis)
                ]
                for i in range(L_aud)
            ]
            for layer in range(4)
        ],
        dtype=torch.float64,
    )  # fmt: skip
    torch.testing.assert_close(got.double(), want, atol=1e-6, rtol=0)


def test_reach_at_the_papers_settings() -> None:
    """delta = 4 reaches 3 frames, because F(delta) = 0; the last layer sees the aligned frame only."""
    first, last = (
        soft_mask(torch.tensor([10]), 21, omega=0, delta=4, beta_l=beta(layer, 8), dtype=torch.float64)[0]
        for layer in (0, 7)
    )
    want = torch.tensor([1, 0.8535534, 0.5, 0.1464466, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(first[10:16], want, atol=1e-7, rtol=0)
    torch.testing.assert_close(first[5:11].flip(0), want, atol=1e-7, rtol=0)
    assert last.nonzero().flatten().tolist() == [10]


def test_beta_off_keeps_the_fade_in_every_layer() -> None:
    masks = progressive_masks(preset("tiny", progressive=False), 250, 64, device=torch.device("cpu"))
    assert torch.equal(masks[0], masks[-1])
    assert masks[-1, 0, 2] == pytest.approx(0.5)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize(("r_a", "r_v"), [("125/4", "8"), ("4", "8")])
def test_attention_is_the_papers_formula(r_a: str, r_v: str, layer: int) -> None:
    config = preset("tiny", r_a=r_a, r_v=r_v)
    L_aud, L_vis = config.lengths(1.5)
    d_k, epsilon = 4, 1e-6
    g = torch.Generator().manual_seed(layer)
    Q, K, V = (torch.randn(1, 2, L, d_k, generator=g, dtype=torch.float64) for L in (L_aud, L_vis, L_vis))
    j_c = aligned_frames(L_aud, L_vis, r_a=config.r_a, r_v=config.r_v)
    M = soft_mask(j_c, L_vis, omega=0, delta=4, beta_l=beta(layer, 3), dtype=torch.float64)
    got = psca(Q, K, V, M, epsilon=epsilon)
    for head in range(2):
        for i in range(L_aud):
            scores = []
            for j in range(L_vis):
                dot = sum(float(Q[0, head, i, c] * K[0, head, j, c]) for c in range(d_k))
                d_ij = abs(j - naive_aligned_frame(i, L_vis, config.r_a, config.r_v, "ceil"))
                M_ij = naive_mask(d_ij, 0, 4, 1 - layer / 2)
                scores.append(dot / math.sqrt(d_k) + math.log(M_ij + epsilon))
            weights = [math.exp(s) / sum(map(math.exp, scores)) for s in scores]
            want = [sum(w * float(V[0, head, j, c]) for j, w in enumerate(weights)) for c in range(d_k)]
            assert got[0, head, i].tolist() == pytest.approx(want, abs=1e-12)


def test_without_a_mask_it_is_plain_cross_attention() -> None:
    attention = PSCA(32, 2, epsilon=1e-6).double()
    x, y = torch.randn(2, 9, 32, dtype=torch.float64), torch.randn(2, 5, 32, dtype=torch.float64)
    everything = torch.ones(9, 5, dtype=torch.float64)
    torch.testing.assert_close(attention(x, y, None), attention(x, y, everything))


def test_only_the_aligned_frame_moves_the_last_layer() -> None:
    """Frames off the aligned one leak by about epsilon."""
    config = preset("tiny")
    M = progressive_masks(config, 250, 64, device=torch.device("cpu"))[-1].double()
    attention = PSCA(32, 2, epsilon=1e-6).double()
    x, y = torch.randn(1, 250, 32, dtype=torch.float64), torch.randn(1, 64, 32, dtype=torch.float64)
    moved = y.clone()
    moved[:, 40] += 1
    change = (attention(x, moved, M) - attention(x, y, M)).abs().amax(dim=(0, 2))
    j_c = aligned_frames(250, 64, r_a=config.r_a, r_v=config.r_v)
    assert (change[j_c == 40] > 1e-2).all()
    assert (change[j_c != 40] < 1e-3).all()
