"""Silent video in, sound out: against its parts called by hand, batched, and for every wrong input."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowley.features.dataset import Clip
from flowley.features.encoders import TextEncoder, VisualEncoder
from flowley.network.base import Conditions
from flowley.network.feature_spec import FeatureSpec
from flowley.network.presets import preset
from flowley.network.registry import build_network, load_network
from flowley.sampling.generator import Generator, SilentVideo, clip_seed, make_sounds, open_network, sample_clips
from flowley.sampling.sample import sample
from flowley.sampling.solvers import SampleSettings

SETTINGS = SampleSettings(steps=2, guidance=3.0)
Build = Callable[..., Generator]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_builders: dict) -> FeatureSpec:
    folder = tmp_path_factory.mktemp("encoders")
    for name, build in tiny_encoder_builders.items():
        (folder / name).mkdir()
        build(folder / name, 0)
    return FeatureSpec(visual=f"{folder}/clip", text=f"{folder}/t5", codec="log_mel", duration_s=2.0)


@pytest.fixture(scope="module")
def build(spec: FeatureSpec) -> Build:
    def build_generator(**changes: Any) -> Generator:
        torch.manual_seed(0)
        network = build_network(preset("tiny", D=32, N1=1, N2=2, mlp_multiple=32, **changes))
        for parameter in network.parameters():
            if parameter.abs().max() == 0:
                torch.nn.init.normal_(parameter, std=0.1)
        return Generator(network, spec)

    return build_generator


@pytest.fixture(scope="module")
def generator(build: Build) -> Generator:
    return build()


def frames(T: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (T, 32, 48, 3), np.uint8)


def test_against_its_parts_called_by_hand(generator: Generator, spec: FeatureSpec) -> None:
    """Encoders, sampler and codec one after the other, the negative prompt's text among them."""
    [wave] = generator.generate(
        [SilentVideo(frames(8), "a dog barks", seed=7)], SETTINGS, video_hz=8, negative="loud rain"
    )
    visual = torch.from_numpy(VisualEncoder(spec.visual).encode(frames(8)))[None]
    texts = TextEncoder(spec.text, max_tokens=128).encode(["a dog barks", "loud rain"])
    caption, rain = (torch.from_numpy(x.features).float()[None] for x in texts)
    conditions, negative = (Conditions(visual, x, torch.ones(x.shape[:2], dtype=torch.bool)) for x in (caption, rain))
    latent = sample(generator.network, conditions, L_aud=32, seeds=[7], settings=SETTINGS, negative=negative)
    torch.testing.assert_close(wave, generator.encoders.codec.decode(latent)[0, :16_000], atol=1e-4, rtol=1e-3)


class Transparent:
    """A codec whose sound is the latent, flattened: no Griffin-Lim to blow up the rounding of a batch."""

    audio_hz, latent_hz, latent_dim = 2_000, Fraction(125, 4), 64

    def encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("a generator only decodes")

    def decode(self, latent: Tensor) -> Tensor:
        return latent.flatten(1) / 100


def test_a_batch_is_its_videos_one_by_one(build: Build) -> None:
    """Videos of different lengths and captions in one batch; one is longer than the training's and so in windows."""
    generator = build()
    generator.encoders.codec = Transparent()
    settings = replace(SETTINGS, window_s=2.0)
    videos = [
        SilentVideo(frames(8, 1), "a dog barks in the loud rain", 1),
        SilentVideo(frames(40, 2), "", 2),
        SilentVideo(frames(8, 3), "bell", 3),
    ]
    together = generator.generate(videos, settings, video_hz=8)
    assert [len(wave) for wave in together] == [2_000, 10_000, 2_000]
    for video, wave in zip(videos, together, strict=True):
        [alone] = generator.generate([video], settings, video_hz=8)
        torch.testing.assert_close(wave, alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[0], together[2], atol=1e-3)


def test_a_missing_last_frame_is_held(generator: Generator) -> None:
    """1.05 s at 8 Hz begin a 9th frame; a reader that rounds down gives 8."""
    held = np.concatenate([frames(8), frames(8)[-1:]])
    waves = generator.generate(
        [SilentVideo(f, "bell", 1, duration_s=1.05) for f in (frames(8), held)], SETTINGS, video_hz=8
    )
    assert len(waves[0]) == round(1.05 * 16_000)
    torch.testing.assert_close(waves[0], waves[1], atol=1e-4, rtol=1e-3)


def test_a_network_without_its_empty_caption_encodes_it(build: Build, spec: FeatureSpec) -> None:
    generator = build()
    assert len(generator.network.null_text) == 0
    generator.generate([SilentVideo(frames(8), "bell", 1)], SETTINGS, video_hz=8)
    [empty] = TextEncoder(spec.text, max_tokens=128).encode([""])
    np.testing.assert_allclose(generator.network.null_text, empty.features, atol=1e-3)


def test_a_network_that_attends_to_padding_gets_it(build: Build) -> None:
    unmasked = build(mask_text=False, max_text_tokens=20)
    text = unmasked.encode_text(["bell", "a dog barks"])
    assert text.text.shape == (2, 20, 64) and text.text[0, -1].abs().max() > 0
    assert text.text_mask.sum(1).tolist() == [2, 4]
    assert build().encode_text(["bell", "a dog barks"]).text.shape == (2, 4, 64)


def test_a_checkpoint_alone_says_how_to_use_it(generator: Generator, spec: FeatureSpec, tmp_path: Path) -> None:
    generator.network.features = spec
    generator.network.save_pretrained(tmp_path)
    loaded = Generator.load(tmp_path)
    assert loaded.encoders.spec == spec == load_network(tmp_path).features
    video = SilentVideo(frames(8), "bell", 1)
    [want], [got] = (g.generate([video], SETTINGS, video_hz=8) for g in (generator, loaded))
    torch.testing.assert_close(got, want)
    other = replace(spec, duration_s=4.0)
    assert Generator.load(tmp_path, features=other).encoders.spec == other


def test_a_checkpoint_that_does_not_say(generator: Generator, tmp_path: Path) -> None:
    network = build_network(generator.network.config)
    network.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not say which encoders and codec"):
        Generator.load(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"about"', '"features": {"visual": 3}, "about"'))
    with pytest.raises(ValueError, match=r"visual = 3, wanted text; text: missing"):
        load_network(tmp_path)
    config.write_text("{")
    with pytest.raises(ValueError, match=r"config.json cannot be read as JSON"):
        load_network(tmp_path)


def test_a_damaged_or_foreign_checkpoint(generator: Generator, tmp_path: Path) -> None:
    generator.network.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read as weights"):
        open_network(tmp_path)
    (tmp_path / "theirs.pth").write_bytes(b"not a state dict")
    with pytest.raises(ValueError, match="theirs.pth"):
        open_network(tmp_path / "theirs.pth")
    with pytest.raises(ValueError, match="absent.pth"):
        open_network(tmp_path / "absent.pth")


@pytest.mark.parametrize(
    ("video", "video_hz", "words"),
    [
        (SilentVideo(frames(8), "", 0), 25.0, r"frames at 25 Hz, this network sees r_v = 8 Hz"),
        (SilentVideo(frames(0), "", 0), 8.0, r"0 video frames at r_v = 8 Hz, wanted at least 2"),
        (SilentVideo(frames(1), "", 0), 8.0, r"1 video frames .*one picture shows no motion.*longer than 0.25 s"),
        (SilentVideo(frames(8), "", 0, duration_s=8.0), 8.0, r"8 video frames for 8 s at r_v = 8 Hz, wanted 64"),
        (SilentVideo(frames(8), "rain " * 200, 0), 8.0, r"caption 'rain rain .*' has \d+ tokens.*shorten it by \d+"),
        (SilentVideo(frames(8).astype(np.float32), "", 0), 8.0, r"frames float32 .*wanted uint8"),
    ],
)
def test_wrong_videos(generator: Generator, video: SilentVideo, video_hz: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        generator.generate([video], SETTINGS, video_hz=video_hz)


def test_the_longest_caption_fits_and_one_more_token_does_not(generator: Generator) -> None:
    words = "rain " * 126
    video = SilentVideo(frames(8), words, 0)
    generator.check(video)
    with pytest.raises(ValueError, match="has 129 tokens, this network takes 128: shorten it by 1"):
        generator.check(replace(video, caption=words + "rain rain"))


def test_features_that_are_not_finite(generator: Generator) -> None:
    conditions = generator.encode_text(["bell"])._replace(visual=torch.full((1, 8, 64), torch.nan))
    with pytest.raises(ValueError, match="visual features are not finite"):
        make_sounds(generator.network, generator.encoders.codec, conditions, L_aud=32, seeds=[0], settings=SETTINGS)


@pytest.mark.parametrize(
    ("changes", "fields", "words"),
    [
        ({"visual_dim": 48}, {}, "visual encoder .* gives 64 channels, this network takes 48"),
        ({"text_dim": 48}, {}, "text encoder .* gives 64 channels, this network takes 48"),
        ({"latent_dim": 20}, {}, "codec 'log_mel' gives 64 channels, this network takes 20"),
        ({"r_a": 25}, {}, r"codec 'log_mel' has 31.25 latent frames a second, this network r_a = 25"),
        ({}, {"codec": "encodec"}, "codec 'encodec': wanted one of log_mel"),
        ({}, {"visual": "/nowhere/clip"}, "visual encoder '/nowhere/clip' does not load"),
        ({}, {"text": "/nowhere/t5"}, "text encoder '/nowhere/t5' does not load"),
    ],
)
def test_parts_that_are_not_the_networks(
    build: Build, spec: FeatureSpec, changes: dict[str, Any], fields: dict[str, Any], words: str
) -> None:
    network = build(**changes).network
    with pytest.raises(ValueError, match=words):
        Generator(network, replace(spec, **fields)).encoders.load()


def test_specifications_out_of_range() -> None:
    with pytest.raises(ValueError, match="text is empty"):
        FeatureSpec(visual="a", text="", codec="log_mel", duration_s=8.0)
    with pytest.raises(ValueError, match="duration_s = 0"):
        FeatureSpec(visual="a", text="b", codec="log_mel", duration_s=0)


def test_clips_of_a_dataset(build: Build) -> None:
    """Cut to the duration, each with its own seed, whatever the batch."""
    rng = np.random.default_rng(0)
    clips = [
        Clip(f"c{k}", rng.normal(size=(9, 64)), np.zeros((40, 64)), np.zeros((40, 64)),
             text=rng.normal(size=(2 + k, 64)), n_tokens=2 + k)
        for k in range(2)
    ]  # fmt: skip
    seeds = [clip_seed(clip.clip_id, 7) for clip in clips]
    network, codec = build(null_text="zeros").network, Transparent()
    together = sample_clips(network, codec, clips, duration_s=1.01, seeds=seeds, settings=SETTINGS)
    assert together.shape == (2, 2_020)
    for clip, seed, wave in zip(clips, seeds, together, strict=True):
        visual, text = (torch.from_numpy(x.astype(np.float16)).float()[None] for x in (clip.visual[:9], clip.text))
        conditions = Conditions(visual, text, torch.ones(text.shape[:2], dtype=torch.bool))
        latent = sample(network, conditions, L_aud=32, seeds=[seed], settings=SETTINGS)
        torch.testing.assert_close(wave, codec.decode(latent)[0, :2_020].clamp(-1, 1), atol=1e-3, rtol=1e-2)
    assert clip_seed("c0", 7) == int.from_bytes(hashlib.sha256(b"7/c0").digest()[:7], "big") != clip_seed("c1", 7)
