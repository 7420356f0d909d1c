"""Tiny checkpoints, and clips made of noise: every one is unlike the others."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from soundcap.request import CaptionRequest


@pytest.fixture(scope="session")
def tiny_adapter(tiny_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a LoRA adapter for `tiny_vl` that changes its answers; saved by peft."""
    import torch
    from peft import LoraConfig, get_peft_model

    from soundcap.lora_trainer import LORA_TARGETS
    from soundcap.pretrained import load_model

    folder = tmp_path_factory.mktemp("adapters") / "lora"
    torch.manual_seed(0)
    # Ordinary initial weights would leave the model unchanged: B starts at zero
    config = LoraConfig(r=4, lora_alpha=8, target_modules=LORA_TARGETS, init_lora_weights=False)
    get_peft_model(load_model(str(tiny_vl)), config).save_pretrained(folder)
    return folder


AUDIO_HZ = 16_000


def _make_request(
    seed: int = 0,
    *,
    fps: float = 2.0,
    duration_s: float = 8.0,
    audio_s: float | None = None,
    prompt: str = "Describe the sounds of this video.",
    height_px: int = 84,
    width_px: int = 112,
) -> CaptionRequest:
    """A clip of `duration_s`, with `audio_s` seconds of sound or none."""
    random = np.random.default_rng(seed)
    frames = random.integers(0, 256, (round(duration_s * fps), height_px, width_px, 3), dtype=np.uint8)
    return CaptionRequest(prompt, frames, fps, None if audio_s is None else _make_sound(seed, audio_s))


def _make_sound(seed: int, duration_s: float) -> np.ndarray:
    """A sweep whose rate depends on the seed, (N,) float32 at `AUDIO_HZ`."""
    time_s = np.arange(round(duration_s * AUDIO_HZ)) / AUDIO_HZ
    rate = np.random.default_rng(seed).uniform(200, 800)
    return (0.5 * np.sin(2 * np.pi * rate * time_s**1.5)).astype(np.float32)


@pytest.fixture(scope="session")
def make_request() -> Callable[..., CaptionRequest]:
    return _make_request


@pytest.fixture(scope="session")
def make_sound() -> Callable[[int, float], np.ndarray]:
    return _make_sound
