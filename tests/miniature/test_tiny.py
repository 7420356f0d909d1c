"""Tiny checkpoints: real layout, small, the same every time."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer

from miniature.models.tiny import build_tiny_clap, build_tiny_omni, build_tiny_vl
from soundcap.pretrained import load_model

BUILDERS = {"omni": build_tiny_omni, "vl": build_tiny_vl}


@pytest.fixture(scope="module")
def folders(tiny_omni: Path, tiny_vl: Path) -> dict[str, Path]:
    return {"omni": tiny_omni, "vl": tiny_vl}


@pytest.fixture(params=BUILDERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(name: str, folders: dict[str, Path]) -> Path:
    return folders[name]


def test_same_seed_same_bytes(name: str, folder: Path, tmp_path: Path) -> None:
    torch.rand(7)  # what was drawn before must not matter
    state = torch.get_rng_state()
    BUILDERS[name](tmp_path, seed=0)
    assert torch.equal(torch.get_rng_state(), state), "building must leave the caller's random state alone"
    files = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= files
    for file in files:
        assert (folder / file).read_bytes() == (tmp_path / file).read_bytes(), f"{file} differs between two builds"


def test_another_seed_gives_other_weights(name: str, folder: Path, tmp_path: Path) -> None:
    BUILDERS[name](tmp_path, seed=1)
    assert (folder / "model.safetensors").read_bytes() != (tmp_path / "model.safetensors").read_bytes()
    assert (folder / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_small_and_complete(folder: Path) -> None:
    model: Any = load_model(str(folder))
    assert sum(parameter.numel() for parameter in model.parameters()) < 2_000_000
    _, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_omni_has_the_layout_that_vllm_loads(folders: dict[str, Path]) -> None:
    from safetensors import safe_open

    config = json.loads((folders["omni"] / "config.json").read_text())
    assert config["architectures"] == ["Qwen2_5OmniForConditionalGeneration"]
    text = config["thinker_config"]["text_config"]
    assert text["hidden_size"] // text["num_attention_heads"] >= 32, "the smallest head that vLLM's CPU kernel takes"
    with safe_open(folders["omni"] / "model.safetensors", "pt") as weights:
        assert all(key.startswith("thinker.") for key in weights.keys())  # noqa: SIM118 - not a dict


def test_any_text_survives_the_tokenizer(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in ("A bell rings.", "Zürich — 鐘が鳴る 🔔\n\tdone", " leading and trailing ", "don't  stop..."):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_captions_need_few_tokens(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    caption = "A metal bell rings twice while water drips slowly in the background."
    assert len(tokenizer(caption)["input_ids"]) <= 1.5 * len(caption.split())


def test_the_processor_is_found_by_the_auto_class(folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ in ("Qwen2_5OmniProcessor", "Qwen2_5_VLProcessor")
    chat = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Hi"}]}],
        add_generation_prompt=True,
    )
    assert chat.startswith("<|im_start|>system\n") and chat.count(processor.video_token) == 1


def test_the_tiny_clap_is_the_same_every_time(tiny_clap: Path, tmp_path: Path) -> None:
    torch.rand(7)
    state = torch.get_rng_state()
    build_tiny_clap(tmp_path / "again", seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    for file in tiny_clap.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), f"{file.name} differs"
    build_tiny_clap(tmp_path / "other", seed=1)
    weights = "model.safetensors"
    assert (tiny_clap / weights).read_bytes() != (tmp_path / "other" / weights).read_bytes()
