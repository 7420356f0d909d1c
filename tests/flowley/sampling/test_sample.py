"""The sampler: guidance, negative prompts, seeds, scale, and clips longer than the training's in windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowley.network.base import Conditions
from flowley.network.config import MMAudioConfig
from flowley.network.flowley import Flowley
from flowley.network.presets import preset
from flowley.network.registry import build_network
from flowley.sampling.sample import WindowOfClip, blended, guided_velocity, noise, sample
from flowley.sampling.solvers import SOLVER_NAMES, SampleSettings, Velocity, solve
from flowley.sampling.windows import blending_weights, cut

Random = Callable[..., Conditions]
SMALL = {"D": 32, "N1": 1, "N2": 2, "heads": 2, "latent_dim": 6, "visual_dim": 8, "text_dim": 10}


def awake(network: torch.nn.Module, std: float = 0.1) -> None:
    """Every weight random: fresh networks answer 0 everywhere."""
    for parameter in network.parameters():
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=std)


@pytest.fixture(scope="module")
def model() -> Flowley:
    torch.manual_seed(0)
    model = Flowley(preset("tiny", **SMALL)).eval()  # type: ignore[arg-type]
    awake(model)
    model.set_null_text(torch.randn(1, 10))
    return model


def test_guidance_is_w_cond_plus_one_minus_w_null(model: Flowley, random_conditions: Random) -> None:
    c = random_conditions(model.config, L_vis=8, text_lengths=[2, 4])
    everything = torch.ones(2, dtype=torch.bool)
    x, t = torch.randn(2, 32, 6), torch.tensor([0.1, 0.6])
    with torch.no_grad():
        v, v_null = model(x, t, c), model(x, t, model.without(c, visual=everything, text=everything))
        for w in (1.0, 0.0, 7.5):
            got = guided_velocity(model, c, w, L_aud=32)(x, t)
            torch.testing.assert_close(got, w * v + (1 - w) * v_null, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("L_txt", [1, 3, 9])
def test_a_negative_prompt_takes_the_null_captions_place(
    model: Flowley, random_conditions: Random, rows: int, L_txt: int
) -> None:
    """v = w v(video, caption) + (1 - w) v(no video, negative), each clip or all with their own negative."""
    c = random_conditions(model.config, L_vis=8, text_lengths=[2, 4])
    text_mask = torch.ones(rows, L_txt, dtype=torch.bool)
    text_mask[:, 2:] = False
    negative = Conditions(torch.zeros(rows, 1, 8), torch.randn(rows, L_txt, 10), text_mask)
    x, t = torch.randn(2, 32, 6), torch.tensor([0.1, 0.6])
    with torch.no_grad():
        kept = [negative.text[k % rows][text_mask[k % rows]][None] for k in range(2)]
        v = model(x, t, c)
        v_negative = torch.cat([
            model(x[k : k + 1], t[k : k + 1],
                  Conditions(torch.zeros(1, 8, 8), kept[k], torch.ones(kept[k].shape[:2], dtype=torch.bool)))
            for k in range(2)
        ])  # fmt: skip
        got = guided_velocity(model, c, 7.5, negative, L_aud=32)(x, t)
    torch.testing.assert_close(got, 7.5 * v - 6.5 * v_negative, atol=1e-4, rtol=1e-4)


def test_the_peers_null_video_stays_beside_a_negative_prompt(random_conditions: Random) -> None:
    """MMAudio's convention: learned empty frames, and the negative prompt's text."""
    config = preset("mmaudio_small_16k", **SMALL, mlp_multiple=32, synchformer_dim=5)
    assert isinstance(config, MMAudioConfig)
    torch.manual_seed(0)
    network = build_network(config).eval()
    awake(network)
    network.set_null_text(torch.randn(4, 10))
    c = random_conditions(config, L_vis=8, text_lengths=[4, 4])
    c = c._replace(sync=torch.randn(2, 24, 5))
    negative = Conditions(torch.zeros(1, 1, 8), torch.randn(1, 4, 10), torch.ones(1, 4, dtype=torch.bool))
    x, t = torch.randn(2, 32, 6), torch.tensor([0.1, 0.6])
    with torch.no_grad():
        empty_visual, empty_sync = network.null_visual(c)
        unconditional = Conditions(
            empty_visual.expand(2, 8, -1), negative.text.expand(2, -1, -1), negative.text_mask.expand(2, -1),
            empty_sync.expand(2, 24, -1),
        )  # fmt: skip
        want = 4.5 * network(x, t, c) - 3.5 * network(x, t, unconditional)
        got = guided_velocity(network, c, 4.5, negative, L_aud=32)(x, t)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_a_negative_prompt_needs_guidance(model: Flowley, random_conditions: Random) -> None:
    c = random_conditions(model.config, L_vis=8, text_lengths=[4])
    with pytest.raises(ValueError, match="guidance = 1 uses no negative prompt"):
        sample(model, c, L_aud=32, seeds=[1], settings=SampleSettings(guidance=1), negative=c)


def test_zeros_as_null_keep_the_captions_mask(random_conditions: Random) -> None:
    config = preset("tiny", null_text="zeros")
    c = random_conditions(config, L_vis=8, text_lengths=[2, 4])
    network = build_network(config).eval()
    assert guided_velocity(network, c, 7.5, L_aud=32)(torch.randn(2, 32, 64), torch.zeros(2)).shape == (2, 32, 64)


def test_without_the_empty_caption_sampling_says_so(random_conditions: Random) -> None:
    config = preset("tiny")
    with pytest.raises(ValueError, match="encoded empty caption, which it does not have"):
        guided_velocity(build_network(config), random_conditions(config, L_vis=8, text_lengths=[2]), 7.5, L_aud=32)


@pytest.mark.parametrize("solver", SOLVER_NAMES)
def test_a_clips_sound_depends_on_its_seed_not_on_its_batch(
    model: Flowley, random_conditions: Random, solver: str
) -> None:
    settings = SampleSettings(steps=3, solver=solver)  # type: ignore[arg-type]
    c = random_conditions(model.config, L_vis=8, text_lengths=[2, 4])
    alone = c.map(lambda x: x[1:])
    both = sample(model, c, L_aud=32, seeds=[5, 6], settings=settings)
    again = sample(model, alone, L_aud=32, seeds=[6], settings=settings)
    torch.testing.assert_close(again, both[1:], atol=1e-4, rtol=1e-4)
    other = sample(model, alone, L_aud=32, seeds=[7], settings=settings)
    assert not torch.allclose(other, both[1:], atol=0.1)


def test_samples_are_on_the_codecs_scale(random_conditions: Random) -> None:
    """A network whose flow is 0 returns its noise, unstandardised."""
    config = preset("tiny", null_text="zeros")
    network = build_network(config).eval()
    network.latent_mean += 3
    network.latent_std *= 2
    c = random_conditions(config, L_vis=8, text_lengths=[4])
    got = sample(network, c, L_aud=32, seeds=[1], settings=SampleSettings(steps=2))
    torch.testing.assert_close(got, noise([1], 32, 64) * 2 + 3)
    torch.testing.assert_close(network.standardise(got), noise([1], 32, 64))


def local(x: Tensor, t: Tensor, position: Tensor) -> Tensor:
    """A velocity that sees each frame alone: its value, its time and its place in the clip."""
    return torch.tanh(2 * x) * (1 + t[:, None, None]) + torch.sin(position / 10)


@pytest.mark.parametrize("solver", SOLVER_NAMES)
@pytest.mark.parametrize("duration_s", [12.0, 21.4])
def test_a_time_local_velocity_in_windows_is_the_whole_exactly(solver: str, duration_s: float) -> None:
    config = preset("tiny")
    L_aud, L_vis = config.lengths(duration_s)
    windows = cut(config, L_aud, L_vis, 8.0)
    assert len(windows) > 1
    position = torch.arange(L_aud).double()[:, None]
    parts: list[tuple[list[WindowOfClip], Velocity]] = []
    for k, window in enumerate(windows):
        rows = [WindowOfClip(clip, k, window) for clip in (0, 1)]
        parts.append((rows, lambda x, t, p=position[window.aud]: local(x, t, p)))  # type: ignore[misc]
    x_0 = torch.randn(2, L_aud, 3).double()
    in_windows = blended(parts, blending_weights(windows, L_aud))
    got = solve(in_windows, x_0, steps=8, solver=solver)  # type: ignore[arg-type]
    want = solve(lambda x, t: local(x, t, position), x_0, steps=8, solver=solver)  # type: ignore[arg-type]
    torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)


def test_windows_against_a_loop_over_clips_and_windows(model: Flowley, random_conditions: Random) -> None:
    """Batched as they are, with captions, a negative prompt and a ragged last window."""
    L_aud, L_vis = model.config.lengths(21.4)
    settings = SampleSettings(steps=2, guidance=3.0, window_s=8.0, windows_per_batch=3)
    c = random_conditions(model.config, L_vis=L_vis, text_lengths=[2, 4])
    negative = Conditions(torch.zeros(2, 1, 8), torch.randn(2, 3, 10), torch.ones(2, 3, dtype=torch.bool))
    windows = cut(model.config, L_aud, L_vis, 8.0)
    assert windows[-1].L_aud < windows[0].L_aud
    weights = blending_weights(windows, L_aud)
    x = noise([3, 4], L_aud, 6)
    with torch.no_grad():
        for n in range(2):
            v = torch.zeros_like(x)
            for clip in range(2):
                for window, w in zip(windows, weights, strict=True):
                    own = Conditions(c.visual[clip : clip + 1, window.vis], *(y[clip : clip + 1] for y in c[1:3]))
                    against = negative.map(lambda y, clip=clip: y[clip : clip + 1])  # type: ignore[misc]
                    part = guided_velocity(model, own, 3.0, against, L_aud=window.L_aud)(
                        x[clip : clip + 1, window.aud], torch.tensor([n / 2])
                    )
                    v[clip, window.aud] += w[:, None].float() * part[0]
            x = x + v / 2
    got = sample(model, c, L_aud=L_aud, seeds=[3, 4], settings=settings, negative=negative)
    torch.testing.assert_close(got, x, atol=1e-4, rtol=1e-4)


def test_one_window_is_the_direct_mode(model: Flowley, random_conditions: Random) -> None:
    c = random_conditions(model.config, L_vis=64, text_lengths=[3])
    direct = SampleSettings(steps=2)
    for window_s in (8.0, 20.0):
        got = sample(model, c, L_aud=250, seeds=[1], settings=replace(direct, window_s=window_s))
        assert torch.equal(got, sample(model, c, L_aud=250, seeds=[1], settings=direct))


def test_no_seam_where_windows_begin_and_end(model: Flowley, random_conditions: Random) -> None:
    """Frame to frame, the latent jumps no more there than elsewhere; glued windows jump 4.7 times as much."""
    L_aud, L_vis = model.config.lengths(24.0)
    settings = SampleSettings(steps=8, guidance=3.0, window_s=8.0)
    c = random_conditions(model.config, L_vis=L_vis, text_lengths=[3])
    seam_sizes, usual = [], []
    for seed in range(4):
        x = sample(model, c, L_aud=L_aud, seeds=[seed], settings=settings)[0]
        noisy = noise([seed], L_aud, 6)[0]
        jumps = (x - noisy).diff(dim=0).norm(dim=1)  # what the network added, without the noise's own jumps
        at = torch.zeros(L_aud - 1, dtype=torch.bool)
        for window in cut(model.config, L_aud, L_vis, 8.0):
            for edge in (window.aud_start, window.aud.stop):
                if 0 < edge < L_aud:
                    at[edge - 1] = True
        seam_sizes.append(jumps[at])
        usual.append(jumps[~at])
    assert torch.cat(seam_sizes).max() <= torch.cat(usual).max()
    assert torch.cat(seam_sizes).mean() < 1.3 * torch.cat(usual).mean()


def test_synchronisation_features_are_not_cut(random_conditions: Random) -> None:
    config = preset("mmaudio_small_16k", **SMALL, mlp_multiple=32, synchformer_dim=5)
    network = build_network(config).eval()
    network.set_null_text(torch.randn(4, 10))
    c = random_conditions(config, L_vis=96, text_lengths=[4])
    settings = SampleSettings(steps=1, window_s=8.0)
    assert sample(network, c._replace(sync=None), L_aud=375, seeds=[0], settings=settings).shape == (1, 375, 6)
    with pytest.raises(ValueError, match="cannot be cut into windows"):
        sample(network, c, L_aud=375, seeds=[0], settings=settings)


def test_one_seed_per_clip(model: Flowley, random_conditions: Random) -> None:
    c = random_conditions(model.config, L_vis=8, text_lengths=[4])
    with pytest.raises(ValueError, match="2 seeds for 1 clips"):
        sample(model, c, L_aud=32, seeds=[1, 2], settings=SampleSettings())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"steps": 0}, "steps: got 0"),
        ({"guidance": -1.0}, "guidance: got -1.0"),
        ({"guidance": float("nan")}, "guidance: got nan"),
        ({"solver": "heun"}, "solver: got 'heun', wanted one of euler, midpoint"),
        ({"window_s": 0.0}, "window_s: got 0.0"),
        ({"windows_per_batch": 0}, "windows_per_batch: got 0"),
    ],
)
def test_settings_out_of_range(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SampleSettings(**wrong)  # type: ignore[arg-type]
