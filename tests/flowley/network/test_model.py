"""The network's promises: shapes, masking, initial state, ties, saving, errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowley.network.attention import qk_norm, rope, rotate
from flowley.network.base import Conditions
from flowley.network.blocks import ConvMLP, TokenConv1d
from flowley.network.config import FlowleyConfig
from flowley.network.flowley import Flowley
from flowley.network.presets import preset
from flowley.network.registry import load_network

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
    audio = rope(251, d, 1e4, 1.0, cpu)
    video = rope(65, d, 1e4, 31.25 / 8, cpu)
    torch.testing.assert_close(audio[:, 125], video[:, 32], atol=1e-4, rtol=0)
    torch.testing.assert_close(audio[:, 250], video[:, 64], atol=1e-4, rtol=0)


def test_rotation_keeps_inner_products_of_equal_shifts() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8).double()
    R = rope(30, 8, 1e4, 1.0, torch.device("cpu"))
    products = [float((rotate(q, R[:, p : p + 1]) * rotate(k, R[:, p + 3 : p + 4])).sum()) for p in (0, 7, 20)]
    assert products == pytest.approx([products[0]] * 3, abs=1e-5)


def test_rotation_is_multiplication_by_a_complex_number() -> None:
    x, p = torch.randn(2, 3, 5, 8).double(), torch.arange(5.0).double()
    angle = p[:, None] * 100.0 ** -(torch.arange(0, 8, 2).double() / 8)
    turned = torch.view_as_complex(x.view(2, 3, 5, 4, 2)) * torch.polar(torch.ones_like(angle), angle)
    R = rope(5, 8, 100.0, 1.0, torch.device("cpu"))
    torch.testing.assert_close(rotate(x, R), torch.view_as_real(turned).flatten(-2), atol=1e-6, rtol=0)


def test_queries_are_normalised_per_head_in_the_weights_precision() -> None:
    norm = torch.nn.RMSNorm(8, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 3, 5, 8)
    want = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm.weight
    torch.testing.assert_close(qk_norm(x, norm, None), want)
    half = qk_norm(x.bfloat16(), norm, None)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), want, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("L", [1, 2, 3, 9])
@pytest.mark.parametrize(("C_in", "C_out", "kernel"), [(3, 5, 3), (5, 3, 3), (4, 4, 7), (6, 2, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_convolution_over_tokens_is_torchs(L: int, C_in: int, C_out: int, kernel: int, bias: bool) -> None:
    """Values and gradients, by matrix products and by conv1d between transpositions."""
    layer = TokenConv1d(C_in, C_out, kernel, bias=bias).double()
    x = torch.randn(2, L, C_in, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    want = torch.nn.Conv1d.forward(layer, x.transpose(1, 2)).transpose(1, 2)
    got, gradient = layer(x), torch.randn_like(want)
    torch.testing.assert_close(got, want)
    for a, b in zip(*(torch.autograd.grad(y, inputs, gradient) for y in (got, want)), strict=True):
        torch.testing.assert_close(a, b)


def test_swiglu_with_dropout() -> None:
    """W_down(silu(W_gate x) * W_value x); dropout keeps the mean of what it keeps."""
    mlp = ConvMLP(6, 50, kernel=1, dropout=0.25).double()
    torch.nn.init.ones_(mlp.down.weight)
    x = torch.randn(2, 300, 6).double()
    gate, value = (x @ w.T for w in mlp.up.weight.chunk(2))
    want = (gate * gate.sigmoid() * value).sum(-1, keepdim=True).expand(-1, -1, 6)
    torch.testing.assert_close(mlp.eval()(x), want)
    torch.manual_seed(0)
    assert float((mlp.train()(x) - want).mean()) == pytest.approx(0, abs=0.1 * float(want.abs().mean()))


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


def edit_config(folder: Path, **changes: object) -> None:
    """Fields changed in config.json; None takes one away."""
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({name: x for name, x in values.items() if x is not None}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": 3}, "depth: no such field"),
        ({"omega": None}, "omega: missing"),
        ({"heads": "two"}, "heads = 'two', wanted a whole number"),
        ({"model_type": "diffuser"}, "model_type 'diffuser', wanted one of flowley, mmaudio"),
        ({"features": {"visual": 3}}, "visual = 3, wanted text; text: missing"),
    ],
)
def test_unknown_and_missing_fields_are_refused(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    """The hub's own mixin would ignore them."""
    Flowley(preset("tiny")).save_pretrained(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=words):
        load_network(tmp_path)


def test_unknown_and_missing_weights_are_refused(tmp_path: Path) -> None:
    """The hub's own mixin would leave missing weights as they were drawn."""
    Flowley(preset("tiny")).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    bias = weights.pop("output.conv.bias")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 of its weights misfit: output\.conv\.bias is missing"):
        load_network(tmp_path)
    save_file({**weights, "output.conv.bias": bias[:3].clone(), "output.extra": bias}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"extra is not one of .*; output.conv.bias is \(3,\), wanted \(64,\)"):
        Flowley.from_pretrained(tmp_path)


def test_what_is_pushed_to_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The three files, of which a network can be loaded again; the card says what the library is."""
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(
        HfApi, "upload_folder", lambda self, *, folder_path, **_: str(shutil.copytree(folder_path, tmp_path / "hub"))
    )
    model = Flowley(preset("tiny"))
    assert model.push_to_hub("someone/flowley") == str(tmp_path / "hub")
    assert load_network(tmp_path / "hub").config == model.config
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "library_name: flowley" in card and "# flowley, 1.9 M parameters" in card and "| `D` | `64` |" in card


def test_weights_of_another_preset_are_refused_by_name(tmp_path: Path) -> None:
    Flowley(preset("tiny", N2=4)).save_pretrained(tmp_path)
    Flowley(preset("tiny")).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"single_stream\.3\..* is not one of its weights"):
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
