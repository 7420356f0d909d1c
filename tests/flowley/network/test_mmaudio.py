"""The peer network's promises at a width that a test can afford; its numbers are `upstream/test_mmaudio.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from flowley.network.base import Conditions
from flowley.network.config import MMAudioConfig
from flowley.network.flowley import Flowley
from flowley.network.mmaudio import MMAudio
from flowley.network.presets import preset
from flowley.network.registry import load_network
from flowley.sampling.sample import sample
from flowley.sampling.solvers import SampleSettings

Build = Callable[..., Conditions]

SMALL = cast(MMAudioConfig, preset(
    "mmaudio_small_16k", D=32, heads=2, N1=2, N2=2, mlp_multiple=16, timestep_dim=16,
    latent_dim=6, visual_dim=10, text_dim=12, synchformer_dim=8,
))  # fmt: skip


def awake(config: MMAudioConfig = SMALL, seed: int = 0) -> MMAudio:
    """A network in which nothing is zero, so that every path can be seen."""
    torch.manual_seed(seed)
    model = MMAudio(config).eval()
    for name, parameter in model.named_parameters():
        if "adaln" in name or "output" in name or "empty" in name or name == "sync_position":
            torch.nn.init.normal_(parameter, std=0.3)
    model.set_null_text(torch.randn(4, config.text_dim))
    return model


def run(model: MMAudio, conditions: Conditions, x_t: Tensor, t: float = 0.3) -> Tensor:
    with torch.no_grad():
        return cast(Tensor, model(x_t, torch.full((len(x_t),), t, dtype=x_t.dtype), conditions))


@pytest.mark.parametrize(("r_a", "r_v"), [("125/4", 8), ("44100/1024", 8), (8, 8), (4, 25)])
@pytest.mark.parametrize("duration_s", [0.2, 1.3, 8.0])
def test_any_rates_and_durations(r_a: str, r_v: int, duration_s: float, random_conditions: Build) -> None:
    config = cast(MMAudioConfig, preset("mmaudio_small_16k", **SMALL.to_dict() | {"r_a": r_a, "r_v": r_v}))
    L_aud, L_vis = config.lengths(duration_s)
    v = run(awake(config), random_conditions(config, L_vis=L_vis, text_lengths=[4, 4]), torch.randn(2, L_aud, 6))
    assert v.shape == (2, L_aud, 6)
    assert v.isfinite().all()


def test_the_first_flow_is_zero(random_conditions: Build) -> None:
    conditions = random_conditions(SMALL, L_vis=8, text_lengths=[4])
    assert not run(MMAudio(SMALL), conditions, torch.randn(1, 32, 6)).any()


@pytest.mark.parametrize("part", ["visual", "text", "sync", "t"])
def test_every_condition_reaches_the_flow(part: str, random_conditions: Build) -> None:
    model, x_t = awake(), torch.randn(1, 32, 6)
    conditions = random_conditions(SMALL, L_vis=8, text_lengths=[4])
    changed = conditions if part == "t" else conditions._replace(**{part: getattr(conditions, part) + 1})
    other = run(model, changed, x_t, t=0.9 if part == "t" else 0.3)
    assert not torch.allclose(run(model, conditions, x_t), other)


def test_captions_keep_their_padding(random_conditions: Build) -> None:
    """CLIP's text features have meaning at padding, so the mask of a caption changes nothing."""
    model, x_t = awake(), torch.randn(2, 32, 6)
    conditions = random_conditions(SMALL, L_vis=8, text_lengths=[2, 4])
    unmasked = conditions._replace(text_mask=torch.ones_like(conditions.text_mask))
    assert torch.equal(run(model, conditions, x_t), run(model, unmasked, x_t))


def test_synchrony_is_added_where_it_happens(random_conditions: Build) -> None:
    """A change in sync feature j moves the condition of the latent frames i with floor((i + 1/2) L_sync / L_aud)
    within the reach of the two convolutions around it (7 // 2 + 2 * (3 // 2) features), and of no other frame."""
    model, L_aud, L_sync, j = awake(), 32, 24, 11
    conditions = random_conditions(SMALL, L_vis=8, text_lengths=[4])
    assert conditions.sync is not None
    changed = conditions.sync.clone()
    changed[0, j] += 1
    seen: list[Tensor] = []
    hook = model.single_stream[0].adaln.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for sync in (conditions.sync, changed):
        run(model, conditions._replace(sync=sync), torch.zeros(1, L_aud, 6))
    hook.remove()
    moved = (seen[0] != seen[1]).any(-1)[0].tolist()
    assert moved == [abs(int((i + 0.5) * L_sync / L_aud) - j) <= 5 for i in range(L_aud)]


def test_null_video_is_learned(random_conditions: Build) -> None:
    """Dropped video is the empty frame and the empty sync feature everywhere; no sync at all means the same."""
    model, x_t = awake(), torch.randn(2, 32, 6)
    conditions = random_conditions(SMALL, L_vis=8, text_lengths=[4, 4])
    yes, no = torch.tensor([True, True]), torch.tensor([False, False])
    dropped = model.without(conditions, visual=yes, text=no)
    assert dropped.sync is not None
    assert torch.equal(dropped.visual, model.empty_visual.detach().expand(2, 8, -1))
    assert torch.equal(dropped.sync, model.empty_sync.detach().expand(2, 24, -1))
    assert torch.equal(run(model, dropped, x_t), run(model, dropped._replace(sync=None), x_t))
    torch.testing.assert_close(model.without(conditions, visual=no, text=yes).text, model.null_text.expand(2, -1, -1))


def test_all_parameters_learn(random_conditions: Build) -> None:
    """Also the null vectors, from the clips whose video is dropped; but in the last joint block nothing asks for
    what video and text would see, as in upstream."""
    model = awake().train()
    conditions = random_conditions(SMALL, L_vis=8, text_lengths=[4, 4])
    dropped = torch.tensor([True, False])
    v = model(torch.randn(2, 32, 6), torch.tensor([0.2, 0.7]), conditions, dropped, dropped)
    torch.autograd.backward(v.square().sum())
    unasked = [f"multi_stream.1.{stream}.attention.q_norm.weight" for stream in ("visual", "text")]
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == unasked


def test_precisions_agree(random_conditions: Build) -> None:
    model, x_t = awake(), torch.randn(1, 32, 6)
    conditions = random_conditions(SMALL, L_vis=8, text_lengths=[4])
    v = run(model, conditions, x_t)
    with torch.autocast("cpu", torch.bfloat16):
        v_bf16 = run(model, conditions, x_t)
    assert (v_bf16.float() - v).abs().max() < 0.1 * v.abs().max()
    doubled = conditions.map(lambda x: x.double() if x.is_floating_point() else x)
    v_64 = run(model.double(), doubled, x_t.double())
    assert v_64.dtype == torch.float64
    torch.testing.assert_close(v_64.float(), v, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_one_graph_for_torch_compile(random_conditions: Build) -> None:
    model, x_t, t = awake(), torch.randn(1, 32, 6), torch.tensor([0.3])
    conditions = random_conditions(SMALL, L_vis=8, text_lengths=[4])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for given in (conditions, conditions._replace(sync=None)):
        torch.testing.assert_close(compiled(x_t, t, given), model(x_t, t, given))


def test_sampling_and_the_files(tmp_path: Path, random_conditions: Build) -> None:
    model = awake()
    conditions = random_conditions(SMALL, L_vis=8, text_lengths=[4])
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'mmaudio' checkpoint, wanted one of Flowley"):
        Flowley.from_pretrained(tmp_path)
    loaded = load_network(tmp_path)
    assert loaded.config == SMALL
    one, other = (sample(m, conditions, L_aud=32, seeds=[1], settings=SampleSettings(steps=2)) for m in (model, loaded))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("sync", "words"),
    [
        ((1, 24, 7), "sync features of shape"),
        ((2, 24, 8), "sync features of shape"),
        ((1, 20, 8), "20 sync features beside 8 video frames at r_v = 8 Hz, wanted 24: segments of 8 at 24 Hz"),
        ((1, 64, 8), "64 sync features beside 8 video frames"),
    ],
)
def test_wrong_synchronisation_features(sync: tuple[int, ...], words: str, random_conditions: Build) -> None:
    conditions = random_conditions(SMALL, L_vis=8, text_lengths=[4])._replace(sync=torch.zeros(sync))
    with pytest.raises(ValueError, match=words):
        run(awake(), conditions, torch.zeros(1, 32, 6))


def test_a_latent_of_another_duration(random_conditions: Build) -> None:
    with pytest.raises(ValueError, match=r"60 audio frames .* last 1\.920 s but 8 video frames"):
        run(awake(), random_conditions(SMALL, L_vis=8, text_lengths=[4]), torch.zeros(1, 60, 6))
