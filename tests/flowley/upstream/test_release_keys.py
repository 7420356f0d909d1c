"""The released Flowley: its file's names, shapes and size, and the arithmetic its authors publish.

`fixtures/flowley_release.json` is the list of names and shapes. The arithmetic is written down here a second time,
tensor by tensor under the release's own names, and compared in float64 at a width that needs no large weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d, layer_norm, silu, softmax

from flowley import upstream
from flowley.network.base import Conditions
from flowley.network.config import FlowleyConfig
from flowley.network.flowley import Flowley
from flowley.network.presets import preset
from flowley.upstream.release_keys import convert

Rule = Callable[[str, tuple[int, ...]], Tensor]
State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

NARROW = cast(FlowleyConfig, preset(
    "flowley_release", D=32, heads=2, N1=2, N2=3, latent_dim=5, visual_dim=12, text_dim=10, max_text_tokens=7
))  # fmt: skip


@pytest.fixture(scope="module")
def shapes(published: Callable[[str], dict[str, Any]]) -> Shapes:
    wanted: Shapes = published("flowley_release")["shapes"]
    return wanted


@pytest.fixture
def narrow(shapes: Shapes, weight: Rule) -> State:
    """Seeded weights of the narrow network: the published names, with the narrow network's sizes put in."""
    sizes = {512: 32, 1024: 64, 1536: 96, 3072: 192, 64: 16, 20: 5, 768: 12}
    state = {}
    for name, shape in shapes.items():
        _, stack, index = name.split(".")[:3] if name.count(".") > 1 else ("", "", "")
        if (stack, index) in [("multimodal_stream", str(i)) for i in range(2, 5)]:
            continue
        if stack == "single_modal_stream" and int(index) > 2:
            continue
        shape = tuple(sizes.get(n, n) for n in shape)
        if ".w1." in name or ".w3." in name:
            shape = (256, *shape[1:])
        if ".w2." in name:
            shape = (shape[0], 256, *shape[2:])
        if name.endswith(("text_projector.0.weight", "empty_text_feature")):
            shape = (shape[0], 10)
        same = name.replace(f".{index}.", ".0.", 1) if stack == "single_modal_stream" else name
        state[name] = torch.zeros(shape) if "empty_" in name else weight(same, shape)
    return state


def rms(q: Tensor) -> Tensor:
    return q.square().mean(-1, keepdim=True).sqrt()


def published_flow(
    w: State, x_t: Tensor, t: float, visual: Tensor, text: Tensor, text_len: int, qk_norm: Callable[[Tensor], Tensor]
) -> Tensor:
    """The release's forward pass of one clip."""
    heads, d, N1, N2 = NARROW.heads, NARROW.D // NARROW.heads, NARROW.N1, NARROW.N2
    L_aud, L_vis, L_txt = len(x_t), len(visual), len(text)

    def affine(name: str, x: Tensor) -> Tensor:
        """A linear map (out, in), or a convolution (out, in, k) over time that keeps the length."""
        W, b = w[f"{name}.weight"], w.get(f"{name}.bias")
        if W.ndim == 2:
            return x @ W.T + (0 if b is None else b)
        return conv1d(x.T[None], W, b, padding=W.shape[2] // 2)[0].T

    def gated(name: str, x: Tensor) -> Tensor:
        return affine(f"{name}.w2", silu(affine(f"{name}.w1", x)) * affine(f"{name}.w3", x))

    def normed(name: str, q: Tensor) -> Tensor:
        return w[f"{name}.scale"] * qk_norm(q)

    def turned(q: Tensor, speed: float) -> Tensor:
        """Channels 2k, 2k + 1 at place p turned by p speed 10000^(-2k / d), as complex numbers."""
        k = torch.arange(0, d, 2) / d
        angle = torch.arange(q.shape[1])[:, None] * (speed / 10_000**k)
        turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex128)
        return torch.view_as_real(torch.view_as_complex(q.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)

    def split(x: Tensor, parts: int) -> list[Tensor]:
        """(L, h d parts) -> parts of (h, L, d): the part is the innermost index of a channel."""
        return list(x.unflatten(-1, (heads, d, parts)).permute(3, 1, 0, 2))

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
        return (softmax(q @ k.transpose(1, 2) / math.sqrt(d) + bias, -1) @ v).transpose(0, 1).flatten(1)

    def own_qkv(name: str, x: Tensor, speed: float | None) -> list[Tensor]:
        q, k, v = split(affine(f"{name}.qkv_prj", x), 3)
        q, k = normed(f"{name}.qk_norm.query_norm", q), normed(f"{name}.qk_norm.key_norm", k)
        return [q, k, v] if speed is None else [turned(q, speed), turned(k, speed), v]

    def modulations(name: str, n: int) -> list[Tensor]:
        return list(affine(f"{name}.adaLN_modulation.adaLN_modulation.1", silu(c)).chunk(n))

    def normalised(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return layer_norm(x, (NARROW.D,)) * (1 + scale) + shift

    def finished(name: str, x: Tensor, attended: Tensor, m: list[Tensor]) -> Tensor:
        x = x + affine(f"{name}.linear1", attended) * m[2]
        return x + gated(f"{name}.ffn", normalised(x, m[3], m[4])) * m[5]

    streams = {"audio": x_t, "visual": visual, "text": text}
    streams = {s: gated(f"{s}_projector.2", silu(affine(f"{s}_projector.0", x))) for s, x in streams.items()}
    pooled = affine("text_cond_projector", streams["text"].mean(0))  # over padding too
    pooled = pooled + affine("visual_cond_projector", streams["visual"].mean(0))
    angle = t * 10_000 ** (-torch.arange(128).double() / 128)
    time = torch.cat([angle.cos(), angle.sin()])
    c = gated("global_cond_projector", pooled)
    c = c + affine("timestep_embedder.mlp.2", silu(affine("timestep_embedder.mlp.0", time)))

    padding = torch.zeros(L_aud + L_vis + L_txt).double()
    padding[L_aud + L_vis + text_len :] = -math.inf
    speeds = {"audio": 1.0, "visual": L_aud / L_vis, "text": None}
    for i in range(N1):
        names = {s: f"multimodal_stream.{i}.{s}_block" for s in streams}
        m = {s: modulations(names[s], 6) for s in streams}
        parts = [own_qkv(f"{names[s]}.attn", normalised(x, m[s][0], m[s][1]), speeds[s]) for s, x in streams.items()]
        q, k, v = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        attended = attend(q, k, v, padding).split([L_aud, L_vis, L_txt])
        streams = {s: finished(names[s], x, a, m[s]) for (s, x), a in zip(streams.items(), attended, strict=True)}

    x = streams["audio"]
    others = {"vis": ("visual", "cross_visual_proj.proj"), "tex": ("text", "cross_textual_proj.proj")}
    y = {s: affine(f"{p}.3", silu(affine(f"{p}.0", streams[stream]))) for s, (stream, p) in others.items()}
    aligned = [round(i * 8 / (8 * L_aud / L_vis)) for i in range(L_aud)]
    for layer in range(N2):
        name, M = f"single_modal_stream.{layer}", torch.zeros(L_aud, L_vis).double()
        for i, j in ((i, j) for i in range(L_aud) for j in range(L_vis)):
            distance = abs(j - min(aligned[i], L_vis - 1))
            if distance == 0:
                M[i, j] = 1
            elif distance <= 4:
                M[i, j] = (1 - layer / (N2 - 1)) * (1 + math.cos(math.pi * distance / 4)) / 2
        m6 = modulations(name, 6)
        x = x + affine(f"{name}.linear1", attend(*own_qkv(f"{name}.self_attn", normalised(x, *m6[:2]), 1.0))) * m6[2]
        crossed = {}
        for s, bias in [("vis", (M + 1e-6).log()), ("tex", 0.0)]:
            cross = f"{name}.{s}_aud_cross_atn"
            (q,), (k, v) = split(affine(f"{cross}.q_prj", x), 1), split(affine(f"{cross}.kv_prj", y[s]), 2)
            crossed[s] = attend(normed(f"{cross}.q_norm", q), normed(f"{cross}.k_norm", k), v, bias)
        x = x + w[f"{name}.cross_weight"] * crossed["tex"] + (1 - w[f"{name}.cross_weight"]) * crossed["vis"]
        x = x + gated(f"{name}.ffn", normalised(x, m6[3], m6[4])) * m6[5]
    return affine("final_layer.conv", normalised(x, *modulations("final_layer", 2)))


@pytest.mark.parametrize(
    ("qk_norm", "atol"),
    [
        pytest.param(lambda q: q / (rms(q) + 1e-6), 5e-6, id="the published norm"),
        pytest.param(lambda q: q / (rms(q).square() + 1e-6).sqrt(), 1e-6, id="torch's norm, all else published"),
    ],
)
def test_the_published_arithmetic(
    qk_norm: Callable[[Tensor], Tensor], atol: float, narrow: State, uniform: Rule
) -> None:
    """One second: 25 latent frames at 25 Hz, 8 video frames; text at padding is what the encoder gave."""
    config = cast(FlowleyConfig, preset("flowley_release", **NARROW.to_dict() | {"r_a": 25}))
    network = Flowley(config).double().eval()
    network.load_weights(convert(narrow, config)[1])
    x_t, visual, text = (uniform(f"input.{i}", s).double() for i, s in enumerate([(2, 25, 5), (2, 8, 12), (2, 7, 10)]))
    t, lengths = torch.tensor([0.25, 0.8]).double(), [3, 7]
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        got = network(x_t, t, Conditions(visual, text, mask))
    w = {name.removeprefix("model."): x.double() for name, x in narrow.items()}
    for b in range(2):
        expected = published_flow(w, x_t[b], float(t[b]), visual[b], text[b], lengths[b], qk_norm)
        assert expected.abs().max() > 0.5
        torch.testing.assert_close(got[b], expected, atol=atol, rtol=0)


def test_the_whole_releases_names_shapes_and_size(shapes: Shapes) -> None:
    """170.9 M; 683.6 MB as fp32, the published file, which holds the tied block once."""
    state = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    config, weights = upstream.convert(state)
    assert config == preset("flowley_release")
    with torch.device("meta"):
        network = Flowley(config)
    network.to_empty(device="cpu").load_weights(weights)
    assert round(network.n_parameters / 1e6, 1) == 170.9
    single = "model.single_modal_stream."
    once = [shape for name, shape in shapes.items() if not name.startswith(single) or name.startswith(f"{single}0.")]
    assert round(4 * sum(math.prod(shape) for shape in once) / 1e6, 1) == 683.6


@pytest.mark.parametrize("prefix", ["", "module.model."])
def test_other_prefixes_and_the_tables_of_old_files(prefix: str, narrow: State) -> None:
    state = {prefix + name.removeprefix("model."): x for name, x in narrow.items()}
    state[f"{prefix}multi_audio_rot"] = torch.zeros(1)
    _, weights = convert(state, NARROW)
    for name, x in convert(narrow, NARROW)[1].items():
        assert torch.equal(x, weights[name]), name


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("single_modal_stream.2.cross_weight", lambda x: x + 1, "single_modal_stream.2.cross_weight differs from"),
        ("single_modal_stream.1.linear1.bias", None, r"single_modal_stream\.1\.linear1\.bias is missing, wanted 3"),
        ("empty_visual_feature", lambda x: x + 1, r"empty_visual_feature \(1, 12\) of zeros, got \(1, 12\), larg"),
        ("empty_text_feature", None, r"wanted empty_text_feature \(1, 10\) of zeros, it is missing"),
        ("latent_mean", lambda x: x * torch.nan, "latent_mean holds values that are not finite"),
        ("final_layer.conv.bias", lambda x: x[:3], r"final_layer\.conv\.bias is \(3,\), wanted \(5,\)"),
        ("multimodal_stream.1.text_block.ffn.w1.weight", None, r"text_block\.ffn\.w1\.weight is missing"),
        ("text_projector.3.weight", lambda _: torch.zeros(1), r"text_projector\.3\.weight is not one of its weights"),
        ("single_modal_stream.3.linear1.bias", lambda _: torch.zeros(1), r"stream\.3\.linear1\.bias is not one of"),
    ],
)
def test_a_misfit_is_one_line_that_names_it(
    name: str, change: Callable[[Tensor | None], Tensor] | None, words: str, narrow: State
) -> None:
    """None takes the key away."""
    key = f"model.{name}"
    state = {other: x for other, x in narrow.items() if other != key}
    if change is not None:
        state[key] = change(narrow.get(key))
    with pytest.raises(ValueError, match=words) as raised:
        convert(state, NARROW)
    assert "\n" not in str(raised.value)
