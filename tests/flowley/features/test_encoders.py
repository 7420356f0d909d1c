"""Encoders through real transformers classes, on checkpoints built here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flowley.features.encoders import TextEncoder, VisualEncoder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_builders: dict) -> str:
    folder = tmp_path_factory.mktemp("clip")
    tiny_encoder_builders["clip"](folder, seed=0)
    return str(folder)


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_builders: dict) -> str:
    folder = tmp_path_factory.mktemp("t5")
    tiny_encoder_builders["t5"](folder, seed=0)
    return str(folder)


def moving_square(T: int = 6, px: int = 80) -> np.ndarray:
    frames = np.full((T, px, px, 3), 30, dtype=np.uint8)
    for k in range(T):
        frames[k, 20:40, 10 * k : 10 * k + 20] = (220, 120, 40)
    return frames


def test_one_unit_vector_per_frame(clip_folder: str) -> None:
    encoder = VisualEncoder(clip_folder)
    features = encoder.encode(moving_square())
    assert features.shape == (6, encoder.dim) == (6, 64)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(encoder.encode(moving_square(), batch_size=4), features, atol=1e-5)


def test_tiny_clip_tells_frames_apart(clip_folder: str) -> None:
    features = VisualEncoder(clip_folder).encode(moving_square())
    similar = features @ features.T
    assert similar[~np.eye(6, dtype=bool)].max() < 0.98


def test_a_full_clip_gives_its_own_image_features(tmp_path: Path) -> None:
    """The projected embedding, with the checkpoint's preprocessing, as transformers computes it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config=tower,
            vision_config={**tower, "image_size": 32, "patch_size": 16, "projection_dim": 48},
            projection_dim=48,
        )
    ).eval()
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    frames = moving_square()
    with torch.no_grad():
        pixels = processor(images=list(frames), return_tensors="pt")["pixel_values"]
        want = torch.nn.functional.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    encoder = VisualEncoder(str(tmp_path))
    assert encoder.dim == 48
    np.testing.assert_allclose(encoder.encode(frames), want.numpy(), atol=1e-5)


def test_siglip_gives_its_pooled_output(tmp_path: Path) -> None:
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    SiglipVisionModel(config).save_pretrained(tmp_path)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    assert VisualEncoder(str(tmp_path)).encode(moving_square()).shape == (6, 32)


def test_bfloat16_is_close(clip_folder: str) -> None:
    exact = VisualEncoder(clip_folder).encode(moving_square())
    rough = VisualEncoder(clip_folder, dtype="bfloat16").encode(moving_square())
    assert rough.dtype == np.float32
    assert (exact * rough).sum(1).min() > 0.99


def test_frames_must_be_rgb_bytes(clip_folder: str) -> None:
    encoder = VisualEncoder(clip_folder)
    for frames in (
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match="wanted uint8"):
            encoder.encode(frames)


def test_captions_keep_their_own_tokens(t5_folder: str) -> None:
    """Features do not depend on the padding that a longer neighbour brings."""
    encoder = TextEncoder(t5_folder, max_tokens=128)
    short, long, empty = encoder.encode(["a dog barks", "a dog barks while the rain falls on the door", ""])
    alone = encoder.encode(["a dog barks"])[0]
    assert short.features.dtype == np.float16
    assert short.features.shape == (4, 64), "three words and </s>"
    np.testing.assert_allclose(short.features.astype(float), alone.features.astype(float), atol=2e-3)
    assert len(long.features) > len(short.features)
    assert empty.features.shape == (1, 64), "the empty caption is </s>"


def test_normalised_over_channels_by_default(t5_folder: str) -> None:
    features = TextEncoder(t5_folder, max_tokens=128).encode(["a loud bell rings"])[0].features
    np.testing.assert_allclose(np.linalg.norm(features.astype(float), axis=1), 1, atol=1e-2)


def test_the_releases_normalisation_over_time(t5_folder: str) -> None:
    """Norm of each channel over the padded 77 positions: at most 1."""
    encoder = TextEncoder(t5_folder, max_tokens=77, normalisation="time")
    features = encoder.encode(["a loud bell rings", "rain"])[0].features.astype(float)
    assert features.shape == (5, 64)
    assert (np.linalg.norm(features, axis=0) <= 1.01).all()
    assert not np.allclose(np.linalg.norm(features, axis=1), 1, atol=0.1)


def test_long_captions_are_cut_and_say_so(t5_folder: str) -> None:
    encoded = TextEncoder(t5_folder, max_tokens=10).encode(["rain " * 30, "rain"])
    assert encoded[0].features.shape[0] == 10
    assert encoded[0].tokens_cut > 0 and encoded[1].tokens_cut == 0


def test_any_text_has_tokens(t5_folder: str) -> None:
    assert len(TextEncoder(t5_folder, max_tokens=128).encode(["Ünïcode 🎵\n\t"])[0].features) > 3


def test_another_kind_of_checkpoint_is_named(t5_folder: str, clip_folder: str) -> None:
    with pytest.raises(ValueError, match="'t5' checkpoint, wanted one of clip"):
        VisualEncoder(t5_folder)
    with pytest.raises(ValueError, match="wanted one of t5"):
        TextEncoder(clip_folder, max_tokens=77)


@pytest.mark.parametrize("name", ["clip", "t5"])
def test_tiny_checkpoints_are_deterministic(name: str, tmp_path: Path, tiny_encoder_builders: dict) -> None:
    for copy, seed in (("a", 0), ("b", 0), ("c", 1)):
        tiny_encoder_builders[name](tmp_path / copy, seed=seed)
    same = {f.name: f.read_bytes() for f in (tmp_path / "a").iterdir()}
    assert same == {f.name: f.read_bytes() for f in (tmp_path / "b").iterdir()}
    assert same["model.safetensors"] != (tmp_path / "c" / "model.safetensors").read_bytes()
