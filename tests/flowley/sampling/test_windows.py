"""Windows: they cover the clip, meet on both clocks, keep the alignment, and their weights sum to one."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch

from flowley.network.presets import preset
from flowley.network.psca import aligned_frames
from flowley.sampling.windows import LEAST_OVERLAP, blending_weights, common_period_s, cut

PAPER = ("125/4", "8")
MEETING = [PAPER, ("25", "8"), ("50", "25"), ("8", "25"), ("32", "8"), ("16", "16")]
SELDOM = [("11025/512", "8"), ("11025/256", "8"), ("125/4", "30000/1001")]
DURATIONS_S = [8.0, 8.04, 9.5, 12.0, 13.3, 16.0, 21.37, 64.0]


@pytest.mark.parametrize("rates", MEETING + SELDOM)
def test_period_against_a_search(rates: tuple[str, str]) -> None:
    r_a, r_v = map(Fraction, rates)
    period = common_period_s(r_a, r_v)
    found = next(k * 2 / r_v for k in range(1, 100_000) if (k * 2 / r_v * r_a).denominator == 1)
    assert period == found


@pytest.mark.parametrize("rates", MEETING + SELDOM)
@pytest.mark.parametrize("duration_s", DURATIONS_S)
def test_windows_cover_the_clip_and_overlap(rates: tuple[str, str], duration_s: float) -> None:
    config = preset("tiny", r_a=rates[0], r_v=rates[1])
    L_aud, L_vis = config.lengths(duration_s)
    windows = cut(config, L_aud, L_vis, 8.0)
    longest = config.lengths(8.0)
    assert (windows[0].aud_start, windows[0].vis_start) == (0, 0)
    assert (windows[-1].aud.stop, windows[-1].vis.stop) == (L_aud, L_vis)
    for window in windows:
        assert 1 < window.L_aud <= longest[0] and 1 < window.L_vis <= longest[1]
        assert abs(window.aud_start / config.r_a - window.vis_start / config.r_v) <= 1 / (2 * config.r_a)
    for window, following in pairwise(windows):
        assert (window.L_aud, window.L_vis) == longest, "only the last one may be shorter"
        shared_s = (window.aud.stop - following.aud_start) / config.r_a
        assert shared_s >= 8 * LEAST_OVERLAP - 1 / config.r_a
    if duration_s <= 8:
        assert len(windows) == 1
    weights = blending_weights(windows, L_aud)
    total = torch.zeros(L_aud, dtype=torch.float64)
    for window, w in zip(windows, weights, strict=True):
        assert (w > 0).all() and (w <= 1).all()
        total[window.aud] += w
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("rates", MEETING)
@pytest.mark.parametrize("alignment", ["ceil", "round"])
def test_a_windows_own_alignment_is_the_whole_clips(rates: tuple[str, str], alignment: str) -> None:
    """But for its very last frames, whose video frame may lie beyond it; the next window weighs more there."""
    config = preset("tiny", r_a=rates[0], r_v=rates[1], alignment=alignment)
    L_aud, L_vis = config.lengths(37.4)
    whole = aligned_frames(L_aud, L_vis, r_a=config.r_a, r_v=config.r_v, alignment=alignment)  # type: ignore[arg-type]
    windows = cut(config, L_aud, L_vis, 8.0)
    assert len(windows) > 3
    for window in windows:
        own = aligned_frames(
            window.L_aud,
            10_000,
            r_a=config.r_a,
            r_v=config.r_v,
            alignment=alignment,  # type: ignore[arg-type]
        )
        unclamped = (own + window.vis_start).clamp(max=L_vis - 1)
        assert torch.equal(unclamped, whole[window.aud])


@pytest.mark.parametrize("rates", SELDOM)
def test_rates_that_seldom_meet_are_at_most_one_video_frame_off(rates: tuple[str, str]) -> None:
    config = preset("tiny", r_a=rates[0], r_v=rates[1])
    L_aud, L_vis = config.lengths(37.4)
    whole = aligned_frames(L_aud, L_vis, r_a=config.r_a, r_v=config.r_v)
    wrong = []
    for window in cut(config, L_aud, L_vis, 8.0):
        own = aligned_frames(window.L_aud, 10_000, r_a=config.r_a, r_v=config.r_v) + window.vis_start
        off = (own.clamp(max=L_vis - 1) - whole[window.aud]).abs()
        assert off.max() <= 1
        wrong.append((off > 0).double().mean())
    assert torch.stack(wrong).mean() <= 0.5


def test_weights_are_smooth() -> None:
    config = preset("tiny")
    L_aud, L_vis = config.lengths(16.0)
    for w in blending_weights(cut(config, L_aud, L_vis, 8.0), L_aud):
        assert w.diff().abs().max() < 2 / 125, "rising over 4 s, 125 frames"


def test_the_papers_rates_give_steps_of_four_seconds() -> None:
    config = preset("flowley_169m")
    windows = cut(config, *config.lengths(18.0), 8.0)
    assert [(w.aud_start, w.vis_start) for w in windows] == [(0, 0), (125, 32), (250, 64), (375, 96)]
    assert [(w.L_aud, w.L_vis) for w in windows] == [(250, 64), (250, 64), (250, 64), (188, 48)]


def test_windows_too_short_for_the_frame_rate() -> None:
    config = preset("tiny")
    with pytest.raises(ValueError, match="window_s = 0.1 holds 1 video frames"):
        cut(config, *config.lengths(1.0), 0.1)
