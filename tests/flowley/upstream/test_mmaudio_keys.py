"""MMAudio against its upstream: key names and shapes, and the outputs of seeded weights in float32.

`fixtures/mmaudio_small_16k.json` lists upstream's state dict at the commit it names; `.safetensors` holds what
upstream answers with the weights and inputs of `conftest.py`: `conditional` to given features, `null` to its own
empty conditions, for 8 s (one clip) and 1 s (two clips).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowley.network.base import Conditions
from flowley.network.mmaudio import MMAudio
from flowley.network.presets import preset
from flowley.upstream import load_upstream
from flowley.upstream.mmaudio_keys import config_of, convert

Rule = Callable[[str, tuple[int, ...]], Tensor]


@pytest.fixture(scope="module")
def shapes(published: Callable[[str], dict[str, Any]]) -> dict[str, tuple[int, ...]]:
    wanted: dict[str, tuple[int, ...]] = published("mmaudio_small_16k")["shapes"]
    return wanted


@pytest.fixture(scope="module")
def network(shapes: dict[str, tuple[int, ...]], weight: Rule, tmp_path_factory: pytest.TempPathFactory) -> MMAudio:
    """Through the file that a user has, with the tables that old ones hold."""
    tables = {"t_embed.freqs": torch.zeros(128), "latent_rot": torch.zeros(1), "clip_rot": torch.zeros(1)}
    path = tmp_path_factory.mktemp("upstream") / "mmaudio_small_16k.safetensors"
    state = {key: weight(key, shape) for key, shape in shapes.items()}
    save_file(state | tables, path)
    network = load_upstream(path)
    path.unlink()
    assert isinstance(network, MMAudio)
    return network


def test_upstreams_keys_make_the_preset(network: MMAudio, published: Callable[[str], dict[str, Any]]) -> None:
    """157.28 M is upstream's count, with the frozen empty caption and statistics; 157.20 M learn."""
    facts = published("mmaudio_small_16k")
    assert network.config == preset("mmaudio_small_16k")
    assert not network.training
    assert network.n_parameters == facts["n_parameters"] == 157_283_644
    assert sum(p.numel() for p in network.parameters()) == facts["n_trainable"] == 157_204_756
    assert network.null_text.shape == (77, 1024)


@pytest.mark.parametrize(("case", "B", "L_aud", "L_vis", "L_sync"), [("1s", 2, 32, 8, 24), ("8s", 1, 250, 64, 192)])
def test_outputs_agree_with_upstream(
    case: str, B: int, L_aud: int, L_vis: int, L_sync: int, network: MMAudio, uniform: Rule
) -> None:
    """Conditional and null in one batch, as a guided sampler asks."""
    expected = load_file(Path(__file__).parent / "fixtures" / "mmaudio_small_16k.safetensors")
    shapes = {"latent": (L_aud, 20), "clip": (L_vis, 1024), "sync": (L_sync, 768), "text": (77, 1024)}
    x_t, visual, sync, text = (uniform(f"{case}.{name}", (B, *shape)) * 3**0.5 for name, shape in shapes.items())
    t = (uniform(f"{case}.t", (B,)) + 1) / 2
    given = Conditions(visual, text, torch.ones(B, 77, dtype=torch.bool), sync)
    twice = given.map(lambda x: torch.cat([x, x]))
    dropped = torch.arange(2 * B) >= B
    with torch.inference_mode():
        v = network(x_t.repeat(2, 1, 1), t.repeat(2), twice, dropped, dropped)
        v_without_sync = network(x_t, t, given._replace(sync=None), torch.ones(B).bool(), torch.ones(B).bool())
    for got, name in [(v[:B], "conditional"), (v[B:], "null"), (v_without_sync, "null")]:
        torch.testing.assert_close(got, expected[f"{case}.{name}"], atol=1e-4, rtol=0)
    assert not torch.allclose(v[:B], v[B:], atol=0.1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"joint_blocks.1.text_block.ffn.w3.weight": None}, r"joint_blocks\.1\.text_block\.ffn\.w3\.weight is missing"),
        ({"joint_blocks.3.text_block.linear1.bias": torch.zeros(448)}, "text_block.linear1.bias is not one of its"),
        ({"t_embed.mlp.0.weight": torch.zeros(448, 448)}, r"t_embed\.mlp\.0\.weight is \(448, 448\), wanted \(448, "),
        ({"latent_std": torch.full((1, 1, 20), torch.nan)}, "latent_std holds values that are not finite"),
        ({"clip_input_proj.2.w1.weight": torch.zeros(1)}, "MMAudio large_44k_v2"),
        ({"fused_blocks.8.linear1.bias": torch.zeros(448)}, "20 latent channels, width 448, 4 joint and 9 fused"),
        ({"audio_input_proj.0.weight": None}, "audio_input_proj.0.weight is missing"),
    ],
)  # fmt: skip
def test_a_misfit_is_one_line_that_names_it(
    changes: dict[str, Tensor | None], words: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    """None takes a key away."""
    state = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items() if key not in changes}
    with pytest.raises(ValueError, match=words) as raised:
        convert(state | {key: x for key, x in changes.items() if x is not None})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("latent_dim", "D", "N1", "N2", "n_parameters"),
    [(40, 448, 4, 8, 157_409_144), (40, 896, 4, 8, 621_805_944), (40, 896, 7, 14, 1_030_002_168)],
)
def test_the_first_versions_other_sizes(latent_dim: int, D: int, N1: int, N2: int, n_parameters: int) -> None:
    """small_44k, medium_44k and large_44k, with what upstream counts for them at the fixture's commit."""
    state = {"audio_input_proj.0.weight": torch.empty(D, latent_dim, 7, device="meta")}
    state |= {f"joint_blocks.{i}.x": torch.empty(0) for i in range(N1)}
    state |= {f"fused_blocks.{i}.x": torch.empty(0) for i in range(N2)}
    config = config_of(state)
    assert config.lengths(8.0) == (345, 64)
    with torch.device("meta"):
        assert MMAudio(config).n_parameters == n_parameters
