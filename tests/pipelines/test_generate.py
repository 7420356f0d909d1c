"""`soundcap generate`: the captioner's words and Flowley's sound on a silent film, with weights that are given."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flowley.network.presets import preset
from flowley.network.registry import build_network
from miniature.models.tiny import build_tiny_vl
from miniature.world.corpus import generate_corpus
from miniature.world.film import World
from pipelines.commands.generate import generate_from_run as generate
from pipelines.config_file import load_config
from pipelines.engine.runner import run_stages
from pipelines.errors import RunError, UserError
from pipelines.media.probe import probe
from pipelines.media.process import Deadline
from pipelines.run_config import Config
from pipelines.stages.captioner import CaptionerStage
from pipelines.stages.flowley import FlowleyStage

ROOT = Path(__file__).parents[2]
Load = Callable[..., Config]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_builders: dict) -> Path:
    from peft import LoraConfig, get_peft_model

    from soundcap.lora_trainer import LORA_TARGETS
    from soundcap.pretrained import load_model

    folder = tmp_path_factory.mktemp("generate")
    generate_corpus(folder / "corpus", clips=2, seed=5, workers=1, world=World(duration_s=3.0))
    for number, film in enumerate(sorted((folder / "corpus" / "videos").iterdir())):
        shutil.copyfile(film, folder / f"film{number}.mp4")
    for name, build in (tiny_encoder_builders | {"vl": build_tiny_vl}).items():
        (folder / name).mkdir()
        build(folder / name, 0)
    torch.manual_seed(0)
    get_peft_model(
        load_model(str(folder / "vl")), LoraConfig(r=2, lora_alpha=4, target_modules=LORA_TARGETS)
    ).save_pretrained(folder / "adapter")
    network = build_network(preset("tiny", D=32, N1=1, N2=2)).eval()
    network.set_null_text(torch.randn(1, 64))
    network.save_pretrained(folder / "flowley")
    return folder


@pytest.fixture(scope="module")
def load(folder: Path) -> Load:
    def load_run(*overrides: str) -> Config:
        return load_config(
            ROOT / "configs" / "demo.yaml",
            [
                f"root={folder}/store", "clips.duration_s=2.0", f"captioner.model.path={folder}/vl",
                f"captioner.adapter={folder}/adapter", f"features.visual.path={folder}/clip",
                f"features.text.path={folder}/t5", "features.codec={name: log_mel}", "flowley.overrides={}",
                f"flowley.checkpoint={folder}/flowley", "samples.steps=2",
                "silent_captions.sampling.max_new_tokens=4", *overrides,
            ],
        )  # fmt: skip

    return load_run


def test_before_anything_is_trained(load: Load, folder: Path, tmp_path: Path) -> None:
    config = load(f"root={tmp_path}")
    for stage, caption in (("captioner", None), ("flowley", "a bell")):
        with pytest.raises(UserError, match=f"stage {stage} has not run in"):
            generate(config, [folder / "film0.mp4"], tmp_path / "o.mp4", caption=caption, say=print)


def test_two_silent_films_get_captions_and_sound(load: Load, folder: Path, tmp_path: Path) -> None:
    config = load()
    run_stages([CaptionerStage(), FlowleyStage()], config, say=lambda message: None)
    films, said = [folder / "film0.mp4", folder / "film1.mp4"], []
    written = generate(config, films, tmp_path, caption=None, say=said.append)
    assert written == [tmp_path / "film0.mp4", tmp_path / "film1.mp4"]
    for film in written:
        info = probe(film, Deadline(30))
        assert info.audio is not None and info.audio.duration_s == pytest.approx(2.0, abs=0.05)
    assert [line.split(": ")[0] for line in said] == list(map(str, written))
    assert all(len(line.split(": ", 1)[1]) > len("(2 s)") for line in said), said


def test_a_given_caption_needs_no_captioner(load: Load, folder: Path, tmp_path: Path) -> None:
    config = load(f"root={tmp_path}/store")
    run_stages([FlowleyStage()], config, say=lambda message: None)
    said: list[str] = []
    [film] = generate(config, [folder / "film0.mp4"], tmp_path / "o.mp4", caption="a bell", say=said.append)
    assert said == [f"{film}: a bell (2 s)"]
    with pytest.raises(UserError, match="has 301 tokens, this network takes 128: shorten it by 173"):
        generate(config, [folder / "film0.mp4"], tmp_path / "o.mp4", caption=("rain " * 300).strip(), say=print)
    short = load(f"root={tmp_path}/store", "clips.duration_s=5.0")
    with pytest.raises(RunError, match="1 of 1 videos failed: film0.mp4"):
        generate(short, [folder / "film0.mp4"], tmp_path / "o.mp4", caption="a bell", say=said.append)
    assert "TooShort" in said[-1]


def test_videos_and_targets_that_cannot_be(load: Load, folder: Path, tmp_path: Path) -> None:
    config = load()
    for videos, out, words in (
        ([tmp_path / "no.mp4"], tmp_path, "no such video file"),
        ([folder / "film0.mp4", folder / "film1.mp4"], tmp_path / "o.mp4", "one file for 2 videos"),
        ([folder / "film0.mp4"] * 2, tmp_path, "film0.mp4 and .*/film0.mp4: all would become one file in"),
    ):
        with pytest.raises(UserError, match=words):
            generate(config, videos, out, caption="a bell", say=print)
