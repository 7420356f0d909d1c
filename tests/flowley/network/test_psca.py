"""PSCA against plain loops over the paper's formulas in exact or float64 arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from flowley.network.base import Conditions
from flowley.network.flowley import Flowley
from flowley.network.presets import preset
from flowley.network.psca import (
    LOCAL_FROM_FRAMES,
    PSCA,
    LocalMask,
    aligned_frames,
    dense_masks,
    local_masks,
    local_psca,
    reach,
    soft_mask,
    visual_masks,
)

CPU = torch.device("cpu")

RATES = [("125/4", "8"), ("25", "8"), ("4307/100", "8"), ("43", "25"), ("8", "8"), ("4", "8")]


def naive_aligned_frame(i: int, L_vis: int, r_a: Fraction, r_v: Fraction, rule: str) -> int:
    position = r_v / r_a * i
    return min(math.ceil(position) if rule == "ceil" else round(position), L_vis - 1)


def naive_mask(d: int, omega: float | Fraction, delta: float | Fraction, beta_l: float) -> float:
    if d <= omega:
        return 1.0
    if d <= omega + delta:
        return beta_l * 0.5 * (math.cos(math.pi * (d - omega) / delta) + 1)
    return 0.0


def dense_from_local(mask: LocalMask, L_aud: int, L_vis: int) -> torch.Tensor:
    """log M (L_aud, L_vis) that a local mask stands for."""
    dense = torch.full((L_aud, L_vis), -math.inf)
    rows = mask.log_weights.flatten(0, 1)[:L_aud]
    c = mask.log_weights.shape[1]
    for i, row in enumerate(rows):
        dense[i, mask.keys[i // c]] = row
    return dense


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
    got = dense_masks(config, L_aud, L_vis, device=CPU, dtype=torch.float64).exp() - config.epsilon
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
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


def test_reach_at_the_papers_settings() -> None:
    """delta = 4 reaches 3 frames, because F(delta) = 0; the last layer sees the aligned frame only."""
    first, last = (soft_mask((torch.arange(21) - 10).abs(), omega=0, delta=4, beta_l=1 - layer / 7) for layer in (0, 7))
    want = torch.tensor([1, 0.8535534, 0.5, 0.1464466, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(first[10:16], want, atol=1e-7, rtol=0)
    torch.testing.assert_close(first[5:11].flip(0), want, atol=1e-7, rtol=0)
    assert last.nonzero().flatten().tolist() == [10]


def test_beta_off_keeps_the_fade_in_every_layer() -> None:
    masks = dense_masks(preset("tiny", progressive=False), 250, 64, device=CPU)
    assert torch.equal(masks[0], masks[-1])
    assert masks[-1, 0, 2] == pytest.approx(math.log(0.5 + 1e-6))


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize(("r_a", "r_v"), [("125/4", "8"), ("4", "8")])
def test_attention_is_the_papers_formula(r_a: str, r_v: str, layer: int) -> None:
    config = preset("tiny", r_a=r_a, r_v=r_v)
    L_aud, L_vis = config.lengths(1.5)
    d_k, epsilon = 4, config.epsilon
    g = torch.Generator().manual_seed(layer)
    Q, K, V = (torch.randn(1, 2, L, d_k, generator=g, dtype=torch.float64) for L in (L_aud, L_vis, L_vis))
    log_M = visual_masks(config, L_aud, L_vis, CPU, torch.float64)[layer]
    got = scaled_dot_product_attention(Q, K, V, attn_mask=log_M)
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
    attention = PSCA(32, 2).double()
    x, y = torch.randn(2, 9, 32, dtype=torch.float64), torch.randn(2, 5, 32, dtype=torch.float64)
    everything = torch.zeros(9, 5, dtype=torch.float64)
    torch.testing.assert_close(attention(x, y, None), attention(x, y, everything))


def test_only_the_aligned_frame_moves_the_last_layer() -> None:
    """Frames off the aligned one leak by about epsilon."""
    config = preset("tiny")
    log_M = dense_masks(config, 250, 64, device=CPU, dtype=torch.float64)[-1]
    attention = PSCA(32, 2).double()
    x, y = torch.randn(1, 250, 32, dtype=torch.float64), torch.randn(1, 64, 32, dtype=torch.float64)
    moved = y.clone()
    moved[:, 40] += 1
    change = (attention(x, moved, log_M) - attention(x, y, log_M)).abs().amax(dim=(0, 2))
    j_c = aligned_frames(250, 64, r_a=config.r_a, r_v=config.r_v)
    assert (change[j_c == 40] > 1e-2).all()
    assert (change[j_c != 40] < 1e-3).all()


@pytest.mark.parametrize("L_vis", [64, 512])
def test_leakage_of_epsilon_for_equal_logits(L_vis: int) -> None:
    """docs/decisions/psca-local.md: the last layer gives (L_vis - 1) epsilon / (1 + L_vis epsilon) to other frames."""
    M = soft_mask((torch.arange(L_vis) - 7).abs(), omega=0, delta=4, beta_l=0.0)[None]
    Q, K = torch.zeros(1, 1, 1, 2, dtype=torch.float64), torch.ones(1, 1, L_vis, 2, dtype=torch.float64)
    elsewhere = (torch.arange(L_vis) != 7).double()[None, None, :, None].expand_as(K)
    got = scaled_dot_product_attention(Q, K, elsewhere, attn_mask=(M + 1e-6).log())
    assert float(got.amax()) == pytest.approx((L_vis - 1) * 1e-6 / (1 + L_vis * 1e-6), rel=1e-9)


def test_window_in_seconds_is_the_papers_at_the_papers_rate() -> None:
    frames, seconds = preset("tiny"), preset("tiny", delta=0.5, window_unit="seconds")
    a, b = (dense_masks(config, 250, 64, device=CPU) for config in (frames, seconds))
    assert torch.equal(a, b)
    assert [m.keys.tolist() for m in local_masks(frames, 250, 64, device=CPU)] == [
        m.keys.tolist() for m in local_masks(seconds, 250, 64, device=CPU)
    ]


@pytest.mark.parametrize(("omega", "delta", "want"), [("0", "1/2", (0, 12.5)), ("0.1", "0.5", (2.5, 12.5))])
def test_window_in_seconds_at_25_fps(omega: str, delta: str, want: tuple[float, float]) -> None:
    config = preset("tiny", r_v=25, omega=omega, delta=delta, window_unit="seconds")
    assert config.window_frames == want
    masks = dense_masks(config, 63, 50, device=CPU, dtype=torch.float64).exp() - config.epsilon
    for layer, M in enumerate(masks):
        for i, row in enumerate(M.tolist()):
            j_c = naive_aligned_frame(i, 50, config.r_a, config.r_v, "ceil")
            assert row == pytest.approx([naive_mask(abs(j - j_c), *want, 1 - layer / 2) for j in range(50)], abs=1e-6)


@pytest.mark.parametrize(
    ("omega", "delta"), [(0, 4), (2, 0), (0, 0), (1, 3), (Fraction(5, 2), Fraction(1, 2)), (Fraction(1, 3), 12)]
)
def test_reach_is_the_last_distance_with_weight(omega: Fraction, delta: Fraction) -> None:
    assert reach(omega, delta) == max(d for d in range(100) if naive_mask(d, omega, delta, 1.0) > 1e-15)


WINDOWS = [{}, {"omega": 2, "delta": 0}, {"omega": 1, "delta": "7/2"}, {"delta": "0.5", "window_unit": "seconds"}]


@pytest.mark.parametrize("alignment", ["ceil", "round"])
@pytest.mark.parametrize(("r_a", "r_v"), [*RATES, ("25", "50"), ("1", "100")])
def test_local_masks_say_what_the_dense_ones_say(r_a: str, r_v: str, alignment: str) -> None:
    """Every frame with M > 0 lies in its chunk's keys, with the same M: all layers, ragged ends, short video."""
    for window in WINDOWS:
        config = preset("tiny", r_a=r_a, r_v=r_v, alignment=alignment, epsilon=0, **window)
        for duration_s, missing in [(0.3, 0), (8.0, 0), (8.0, 5), (11.3, 1)]:
            L_aud, L_vis = config.lengths(duration_s)
            L_vis = max(1, L_vis - missing)
            dense = dense_masks(config, L_aud, L_vis, device=CPU)
            for mask, log_M in zip(local_masks(config, L_aud, L_vis, device=CPU), dense, strict=True):
                assert torch.equal(dense_from_local(mask, L_aud, L_vis), log_M)


@pytest.mark.parametrize("alignment", ["ceil", "round"])
@pytest.mark.parametrize(("r_a", "r_v"), RATES)
def test_local_is_dense_at_epsilon_0(r_a: str, r_v: str, alignment: str) -> None:
    """Outputs and gradients of all layers, fp32, also where the video is short and chunks do not divide L_aud."""
    g = torch.Generator().manual_seed(0)
    config = preset("tiny", r_a=r_a, r_v=r_v, alignment=alignment, epsilon=0)
    for duration_s, missing in [(0.2, 0), (8.0, 3), (11.3, 0)]:
        L_aud, L_vis = config.lengths(duration_s)
        L_vis = max(1, L_vis - missing)
        Q, K, V = (torch.randn(2, 3, L, 8, generator=g).requires_grad_() for L in (L_aud, L_vis, L_vis))
        gradient = torch.randn(2, 3, L_aud, 8, generator=g)
        dense = dense_masks(config, L_aud, L_vis, device=CPU)
        for mask, log_M in zip(local_masks(config, L_aud, L_vis, device=CPU), dense, strict=True):
            got, want = local_psca(Q, K, V, mask), scaled_dot_product_attention(Q, K, V, attn_mask=log_M)
            torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
            for a, b in zip(*(torch.autograd.grad(x, (Q, K, V), gradient) for x in (got, want)), strict=True):
                torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize(("r_a", "r_v", "rule"), [("125/4", "8", "ceil"), ("25", "8", "round"), ("4", "8", "round")])
def test_local_attention_is_a_softmax_over_the_frames_within_reach(r_a: str, r_v: str, rule: str, layer: int) -> None:
    config = preset("tiny", r_a=r_a, r_v=r_v, alignment=rule, epsilon=0)
    L_aud, L_vis, d_k = *config.lengths(3.1), 4
    g = torch.Generator().manual_seed(layer)
    Q, K, V = (torch.randn(1, 1, L, d_k, generator=g, dtype=torch.float64) for L in (L_aud, L_vis, L_vis))
    mask = local_masks(config, L_aud, L_vis, device=CPU, dtype=torch.float64)[layer]
    got = local_psca(Q, K, V, mask)
    for i in range(L_aud):
        j_c = naive_aligned_frame(i, L_vis, config.r_a, config.r_v, rule)
        weights = {}
        for j in range(L_vis):
            M_ij = naive_mask(abs(j - j_c), 0, 4, 1 - layer / 2)
            if M_ij > 0:
                dot = sum(float(Q[0, 0, i, c] * K[0, 0, j, c]) for c in range(d_k))
                weights[j] = M_ij * math.exp(dot / math.sqrt(d_k))
        total = sum(weights.values())
        want = [sum(w / total * float(V[0, 0, j, c]) for j, w in weights.items()) for c in range(d_k)]
        assert got[0, 0, i].tolist() == pytest.approx(want, abs=1e-12)


def test_gradients_of_the_local_form() -> None:
    """Numerically, with a padded last chunk."""
    config = preset("tiny", epsilon=0)
    mask = local_masks(config, 37, 10, device=CPU, dtype=torch.float64)[0]
    assert mask.log_weights.shape[0] * mask.log_weights.shape[1] > 37
    g = torch.Generator().manual_seed(0)
    Q, K, V = (torch.randn(1, 2, L, 2, generator=g, dtype=torch.float64).requires_grad_() for L in (37, 10, 10))
    assert torch.autograd.gradcheck(lambda *x: local_psca(*x, mask), (Q, K, V))


def test_local_form_in_bfloat16() -> None:
    config = preset("tiny", epsilon=0)
    g = torch.Generator().manual_seed(0)
    Q, K, V = (torch.randn(1, 2, L, 32, generator=g, dtype=torch.float64) for L in (250, 64, 64))
    exact = dense_masks(config, 250, 64, device=CPU, dtype=torch.float64)
    for dtype, atol in ((torch.bfloat16, 5e-2), (torch.float32, 1e-5)):
        for mask, log_M in zip(local_masks(config, 250, 64, device=CPU, dtype=dtype), exact, strict=True):
            got = local_psca(Q.to(dtype), K.to(dtype), V.to(dtype), mask)
            assert got.dtype == dtype
            want = scaled_dot_product_attention(Q, K, V, attn_mask=log_M)
            torch.testing.assert_close(got.double(), want, atol=atol, rtol=0)


def test_on_a_gpu_the_local_form_is_for_long_audio() -> None:
    meta = torch.device("meta")  # stands for any device that is no CPU
    for L_aud, kind in ((LOCAL_FROM_FRAMES - 1, torch.Tensor), (LOCAL_FROM_FRAMES, LocalMask)):
        masks = visual_masks(preset("tiny", epsilon=0), L_aud, L_aud // 4, meta, torch.float32)
        assert isinstance(masks[0], kind)


def test_masks_are_made_once_also_where_a_sampler_comes_first() -> None:
    visual_masks.cache_clear()
    config = preset("tiny")
    with torch.inference_mode():
        first = visual_masks(config, 250, 64, CPU, torch.float32)
    assert visual_masks(config, 250, 64, CPU, torch.float32) is first
    Q, K, V = (torch.randn(1, 2, L, 8, requires_grad=True) for L in (250, 64, 64))
    scaled_dot_product_attention(Q, K, V, attn_mask=first[0]).sum().backward()


def test_epsilon_0_selects_the_local_form_in_the_network() -> None:
    """Same weights, same flow as the dense form with an epsilon of no weight; each kind of mask where it belongs."""
    local, dense, plain = (
        preset("tiny", **changes) for changes in ({"epsilon": 0}, {"epsilon": 1e-12}, {"visual_attention": "plain"})
    )
    kinds = [[type(M) for M in visual_masks(c, 250, 64, CPU, torch.float32)] for c in (local, dense, plain)]
    assert kinds == [[LocalMask] * 3, [torch.Tensor] * 3, [type(None)] * 3]

    torch.manual_seed(0)
    networks = [Flowley(local), Flowley(dense)]
    for parameter in networks[0].output.parameters():  # zero at the start, and then every flow is
        torch.nn.init.normal_(parameter)
    networks[1].load_state_dict(networks[0].state_dict())
    conditions = Conditions(torch.randn(2, 64, 64), torch.randn(2, 5, 64), torch.ones(2, 5, dtype=torch.bool))
    x_t, t = torch.randn(2, 250, 64), torch.rand(2)
    got, want = (network(x_t, t, conditions) for network in networks)
    assert want.abs().mean() > 0.1
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        given = out if isinstance(out, tuple | list) else [out]
        sizes = [x.untyped_storage().nbytes() // x.element_size() for x in given if isinstance(x, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


def test_memory_is_linear_in_length() -> None:
    """Largest tensor and all tensors kept for backward, masks of all layers included, from 32 to 128 s."""
    config = preset("tiny", epsilon=0)

    def memory(duration_s: float, *, local: bool) -> tuple[int, int]:
        L_aud, L_vis = config.lengths(duration_s)
        Q, K, V = (torch.randn(1, 2, L, 8).requires_grad_() for L in (L_aud, L_vis, L_vis))
        kept: list[int] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x)
        with LargestTensor() as largest, hooks:
            if local:
                mask = local_masks(config, L_aud, L_vis, device=CPU)[0]
                local_psca(Q, K, V, mask).sum().backward()
            else:
                log_M = dense_masks(config, L_aud, L_vis, device=CPU)[0]
                scaled_dot_product_attention(Q, K, V, attn_mask=log_M).sum().backward()
        return largest.elements, sum(kept)

    for short, long in zip(memory(32, local=True), memory(128, local=True), strict=True):
        assert long < 4.2 * short
    assert memory(128, local=False)[0] / memory(32, local=False)[0] > 15, "the dense form became linear?"


def test_local_form_compiles_without_graph_breaks() -> None:
    """Also for a second length; masks are made before, once."""
    config = preset("tiny", epsilon=0)
    compiled = torch.compile(local_psca, fullgraph=True, backend="eager")
    for duration_s in (8.0, 11.3):
        L_aud, L_vis = config.lengths(duration_s)
        Q, K, V = (torch.randn(1, 2, L, 8) for L in (L_aud, L_vis, L_vis))
        mask = local_masks(config, L_aud, L_vis, device=CPU)[0]
        torch.testing.assert_close(compiled(Q, K, V, mask), local_psca(Q, K, V, mask))
