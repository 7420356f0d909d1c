"""The network's promises: shapes, masking, initial state, ties, saving, errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowley.attention import rope
from flowley.config import FlowleyConfig
from flowley.derivatives import rotate
from flowley.model import Flowley
from flowley.network import Conditions
from flowley.presets import preset

Build = Callable[..., Conditions]


def awake(config: FlowleyConfig, seed: int = 0) -> Flowley:
    """A network whose output layer and adaLN are not near zero, so that every path can be seen."""
    torch.manual_seed(seed)
    model = Flowley(config).eval()
    for name, parameter in model.named_parameters():
        if "adaln" in name or "output" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.double()


def run(model: Flowley, conditions: Conditions, x_t: Tensor, t: float = 0.3) -> Tensor:
    doubled = conditions._replace(visual=conditions.visual.double(), text=conditions.text.double())
    with torch.no_grad():
        return model(x_t, torch.full((len(x_t),), t).double(), doubled)


@pytest.mark.parametrize(("r_a", "r_v"), [("125/4", 8), (25, 8), (8, 8), (4, 8)])
def test_any_rates_and_ragged_lengths(r_a: str, r_v: int, random_conditions: Build) -> None:
    config = preset("tiny", r_a=r_a, r_v=r_v)
    L_aud, L_vis = config.lengths(1.3)
    v = run(awake(config), random_conditions(config, L_vis=L_vis, text_lengths=[3, 5]),
            torch.randn(2, L_aud, 64).double())  # fmt: skip
    assert v.shape == (2, L_aud, 64)
    assert v.isfinite().all()


def test_the_first_flow_is_zero(random_conditions: Build) -> None:
    config = preset("tiny")
    model = Flowley(config).double()
    conditions = random_conditions(config, L_vis=8, text_lengths=[2])
    assert not run(model, conditions, torch.randn(1, 32, 64).double()).any()


def test_padding_changes_nothing(random_conditions: Build) -> None:
    """A caption's sound does not depend on how long the other captions of its batch are."""
    config = preset("tiny")
    model, x_t = awake(config), torch.randn(2, 32, 64).double()
    both = random_conditions(config, L_vis=8, text_lengths=[2, 6])
    garbage = both._replace(text=torch.where(both.text_mask[..., None], both.text, torch.tensor(1e3)))
    alone = Conditions(both.visual[:1], both.text[:1, :2], both.text_mask[:1, :2])
    torch.testing.assert_close(run(model, both, x_t)[:1], run(model, alone, x_t[:1]))
    torch.testing.assert_close(run(model, both, x_t), run(model, garbage, x_t))


def test_unmasked_text_is_the_releases_quirk(random_conditions: Build) -> None:
    config = preset("tiny", mask_text=False)
    model, x_t = awake(config), torch.randn(2, 32, 64).double()
    both = random_conditions(config, L_vis=8, text_lengths=[2, 6])
    garbage = both._replace(text=torch.where(both.text_mask[..., None], both.text, torch.tensor(1e3)))
    assert not torch.allclose(run(model, both, x_t)[0], run(model, garbage, x_t)[0])


@pytest.mark.parametrize("part", ["visual", "text", "t"])
def test_every_condition_reaches_the_flow(part: str, random_conditions: Build) -> None:
    config = preset("tiny")
    model, x_t = awake(config), torch.randn(1, 32, 64).double()
    conditions = random_conditions(config, L_vis=8, text_lengths=[4])
    changed = conditions if part == "t" else conditions._replace(**{part: getattr(conditions, part) + 1})
    other = run(model, changed, x_t, t=0.9 if part == "t" else 0.3)
    assert not torch.allclose(run(model, conditions, x_t), other)


@pytest.mark.parametrize(("change", "value"), [
    ("visual_attention", "plain"), ("progressive", False), ("omega", 2), ("delta", 0), ("alignment", "round"),
])  # fmt: skip
def test_ablations_change_the_flow_and_not_the_weights(change: str, value: object, random_conditions: Build) -> None:
    config = preset("tiny")
    model = awake(config)
    other = Flowley(replace(config, **{change: value})).double().eval()  # type: ignore[arg-type]
    other.load_state_dict(model.state_dict())
    conditions, x_t = random_conditions(config, L_vis=8, text_lengths=[4]), torch.randn(1, 32, 64).double()
    assert not torch.allclose(run(model, conditions, x_t), run(other, conditions, x_t))


def test_tied_blocks_share_all_but_their_mask() -> None:
    tied, untied = Flowley(preset("tiny", tie_single_blocks=True)), Flowley(preset("tiny"))
    assert len(tied.single_stream) == 1
    one = sum(p.numel() for p in tied.single_stream.parameters())
    assert untied.n_parameters - tied.n_parameters == (preset("tiny").N2 - 1) * one


def test_alpha_stays_between_zero_and_one_unless_raw() -> None:
    for alpha, stays in (("sigmoid", True), ("raw", False)):
        block = Flowley(preset("tiny", alpha=alpha)).single_stream[0]
        assert float(block.alpha) == 0.5
        torch.nn.init.constant_(block.alpha_parameter, 3.0)
        assert (float(block.alpha) <= 1) == stays


def test_frames_of_the_same_time_turn_by_the_same_angle() -> None:
    """With the visual stretch r_a / r_v, q . k depends only on the difference in time between streams."""
    d, cpu = 8, torch.device("cpu")
    audio = rope(251, d, theta=1e4, device=cpu)
    video = rope(65, d, theta=1e4, stretch=31.25 / 8, device=cpu)
    torch.testing.assert_close(audio[125], video[32], atol=1e-4, rtol=0)
    torch.testing.assert_close(audio[250], video[64], atol=1e-4, rtol=0)


def test_rotation_keeps_inner_products_of_equal_shifts() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8).double()
    R = rope(30, 8, theta=1e4, device=torch.device("cpu"))
    products = [float((rotate(q, R[p : p + 1]) * rotate(k, R[p + 3 : p + 4])).sum()) for p in (0, 7, 20)]
    assert products == pytest.approx([products[0]] * 3, abs=1e-5)


@pytest.mark.parametrize("alpha", ["sigmoid", "raw"])
def test_save_and_load(tmp_path: Path, alpha: str, random_conditions: Build) -> None:
    config = preset("tiny", alpha=alpha, tie_single_blocks=True)
    model = awake(config).float()
    model.set_null_text(torch.randn(3, config.text_dim))
    model.latent_mean += 2
    model.save_pretrained(tmp_path)
    loaded = Flowley.from_pretrained(tmp_path)
    assert loaded.config == config
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert {"config.json", "model.safetensors", "README.md"} == {f.name for f in tmp_path.iterdir()}


def test_weights_of_another_preset_are_refused_by_name(tmp_path: Path) -> None:
    Flowley(preset("tiny", N2=4)).save_pretrained(tmp_path)
    Flowley(preset("tiny")).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"single_stream\.3\..* is not in this network"):
        Flowley.from_pretrained(tmp_path)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        Flowley.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("visual", "text", "L_aud", "words"),
    [
        ((1, 8, 63), (1, 4, 64), 32, "visual features of shape"),
        ((1, 8, 64), (1, 4, 65), 32, "text features of shape"),
        ((1, 8, 64), (2, 4, 64), 32, "text features of shape"),
        ((1, 8, 64), (1, 0, 64), 32, "text features of shape"),
        ((1, 8, 64), (1, 4, 64), 60, "last 1.920 s but 8 video frames at r_v = 8 Hz last 1.000 s"),
    ],
)
def test_wrong_features_say_got_wanted_remedy(
    visual: tuple[int, ...], text: tuple[int, ...], L_aud: int, words: str
) -> None:
    model = Flowley(preset("tiny"))
    conditions = Conditions(torch.zeros(visual), torch.zeros(text), torch.ones(text[:2], dtype=torch.bool))
    with pytest.raises(ValueError, match=words):
        model(torch.zeros(visual[0], L_aud, 64), torch.zeros(visual[0]), conditions)
