"""The sampler against flows whose solution is known, and the arithmetic of guidance."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowley.config import preset
from flowley.flow import without
from flowley.model import Conditions, Flowley
from flowley.sample import SampleSettings, euler, guided_velocity, noise, sample


def test_straight_flow_is_solved_exactly_in_any_number_of_steps() -> None:
    x_0, x_1 = torch.randn(2, 2, 5, 3).double()
    for steps in (1, 2, 25):
        torch.testing.assert_close(euler(lambda x, t: x_1 - x_0, x_0, steps), x_1)


def test_flow_towards_a_known_point_is_exact() -> None:
    """v = (x_1 - x) / (1 - t), the flow of a single training example."""
    x_0, x_1 = torch.randn(2, 2, 5, 3).double()

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return (x_1 - x) / (1 - t)[:, None, None]

    for steps in (1, 7, 25):
        torch.testing.assert_close(euler(velocity, x_0, steps), x_1)


def test_euler_is_first_order() -> None:
    """dx/dt = x ends at e x_0; Euler gives (1 + 1/n)^n x_0, and time goes from 0 to 1 - 1/n."""
    x_0 = torch.ones(1, 1, 1).double()
    times: list[float] = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        times.append(float(t))
        return x

    assert float(euler(velocity, x_0, 10)) == pytest.approx(1.1**10)
    assert times == pytest.approx([n / 10 for n in range(10)])


@pytest.fixture(scope="module")
def model() -> Flowley:
    torch.manual_seed(0)
    model = Flowley(preset("tiny")).eval()
    for parameter in model.output.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.set_null_text(torch.randn(1, 64))
    return model


def test_guidance_is_w_cond_plus_one_minus_w_null(model: Flowley, random_conditions: Callable[..., Conditions]) -> None:
    c = random_conditions(model.config, L_vis=8, text_lengths=[2, 4])
    all_dropped = torch.ones(2, dtype=torch.bool)
    null = without(c, visual=all_dropped, text=all_dropped, null_text=model.null_text)
    x, t = torch.randn(2, 32, 64), torch.tensor([0.1, 0.6])
    with torch.no_grad():
        v, v_null = model(x, t, *c), model(x, t, *null)
        for w in (1.0, 0.0, 7.5):
            got = guided_velocity(model, c, w)(x, t)
            torch.testing.assert_close(got, w * v + (1 - w) * v_null, atol=1e-4, rtol=1e-4)


def test_zeros_as_null_keep_the_captions_mask(random_conditions: Callable[..., Conditions]) -> None:
    config = preset("tiny", null_text="zeros")
    zeros = Flowley(config).eval()
    c = random_conditions(config, L_vis=8, text_lengths=[2, 4])
    assert guided_velocity(zeros, c, 7.5)(torch.randn(2, 32, 64), torch.zeros(2)).shape == (2, 32, 64)


def test_without_the_empty_caption_sampling_says_so(random_conditions: Callable[..., Conditions]) -> None:
    config = preset("tiny")
    with pytest.raises(ValueError, match="encoded empty caption, which it does not have"):
        guided_velocity(Flowley(config), random_conditions(config, L_vis=8, text_lengths=[2]), 7.5)


def test_a_clips_sound_depends_on_its_seed_not_on_its_batch(
    model: Flowley, random_conditions: Callable[..., Conditions]
) -> None:
    settings = SampleSettings(steps=3)
    c = random_conditions(model.config, L_vis=8, text_lengths=[4, 4])
    alone = Conditions(*(x[1:] for x in c))
    both = sample(model, c, L_aud=32, seeds=[5, 6], settings=settings)
    torch.testing.assert_close(
        sample(model, alone, L_aud=32, seeds=[6], settings=settings), both[1:], atol=1e-4, rtol=1e-4
    )
    other = sample(model, alone, L_aud=32, seeds=[7], settings=settings)
    assert not torch.allclose(other, both[1:], atol=0.1)


def test_samples_are_on_the_codecs_scale(random_conditions: Callable[..., Conditions]) -> None:
    """A network whose flow is 0 returns its noise, unstandardised."""
    config = preset("tiny", null_text="zeros")
    model = Flowley(config).eval()
    model.latent_mean += 3
    model.latent_std *= 2
    c = random_conditions(config, L_vis=8, text_lengths=[4])
    got = sample(model, c, L_aud=32, seeds=[1], settings=SampleSettings(steps=2))
    torch.testing.assert_close(got, noise([1], 32, 64) * 2 + 3)
    torch.testing.assert_close(model.standardise(got), noise([1], 32, 64))


def test_one_seed_per_clip(model: Flowley, random_conditions: Callable[..., Conditions]) -> None:
    c = random_conditions(model.config, L_vis=8, text_lengths=[4])
    with pytest.raises(ValueError, match="2 seeds for 1 clips"):
        sample(model, c, L_aud=32, seeds=[1, 2], settings=SampleSettings())


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="steps = 0"):
        SampleSettings(steps=0)
