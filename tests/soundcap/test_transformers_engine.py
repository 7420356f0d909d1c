import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from soundcap.engines import CaptionEngine, EngineError, EngineExecution, EngineOptions, load_engine
from soundcap.engines.transformers_engine import TransformersEngine, logits_processors
from soundcap.pretrained import CheckpointError
from soundcap.request import CaptionRequest, FrameSettings, Sampling

MakeRequest = Callable[..., CaptionRequest]
GREEDY = Sampling(max_new_tokens=12)


FRAMES = FrameSettings(min_px=56 * 56, max_px=128 * 128)


def load(model: Path | str, sampling: Sampling = GREEDY, adapter: Path | None = None, **given: Any) -> CaptionEngine:
    execution = EngineExecution(**({"engine": "transformers", "device": "cpu", "dtype": "float32"} | given))
    folder = None if adapter is None else str(adapter)
    return load_engine(str(model), None, folder, frames=FRAMES, sampling=sampling, execution=execution)


@pytest.fixture(scope="module")
def clips(make_request: MakeRequest) -> list[CaptionRequest]:
    return [
        make_request(0, audio_s=8.0),
        make_request(1, fps=4.0, duration_s=3.0, audio_s=3.0),
        make_request(2),
        make_request(3, fps=8.0, duration_s=2.0, audio_s=2.5, prompt="What is heard? Do not mention music."),
    ]


@pytest.fixture(scope="module")
def silent_clips(clips: list[CaptionRequest]) -> list[CaptionRequest]:
    return [replace(clip, audio=None) for clip in clips]


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        Sampling(12, temperature=1.0, top_p=0.9, seed=5),
        Sampling(12, repetition_penalty=1.5),
    ],
    ids=["greedy", "sampled", "penalised"],
)
def test_an_answer_does_not_depend_on_its_batch(
    sampling: Sampling, tiny_omni: Path, clips: list[CaptionRequest]
) -> None:
    engine = load(tiny_omni, sampling)
    together = engine.caption(clips)
    assert all(isinstance(answer, str) for answer in together), together
    assert len(set(together)) > 1
    assert together == [engine.caption([clip])[0] for clip in clips]
    assert together[::-1] == engine.caption(clips[::-1])
    assert together == load(tiny_omni, sampling, options=EngineOptions(batch_size=3)).caption(clips)


def test_sampling_follows_its_seed(tiny_vl: Path, silent_clips: list[CaptionRequest]) -> None:
    def draw(seed: int) -> list[str | Exception]:
        return load(tiny_vl, Sampling(12, temperature=1.0, seed=seed)).caption(silent_clips)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_each_request_follows_its_own_seed(tiny_omni: Path, clips: list[CaptionRequest]) -> None:
    sampled = load(tiny_omni, Sampling(12, temperature=1.0, seed=7))
    seeded = [replace(clips[0], seed=seed) for seed in (0, 1, 2, 7)]
    together = sampled.caption([clips[0], *seeded, clips[2]])
    assert len(set(together[1:5])) == 4 and together[0] == together[4], "without a seed of its own: the sampling's"
    assert together[1:5] == [sampled.caption([one])[0] for one in seeded]
    assert [together[1]] == load(tiny_omni, Sampling(12, temperature=1.0, seed=0)).caption(clips[:1])


def test_sampling_draws_from_the_models_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    counts = torch.zeros(4)
    processors = logits_processors(Sampling(1, temperature=1.0, top_p=0.9, seed=0), torch.ones(1, 1), [0])
    for _ in range(4000):
        counts[processors(torch.zeros(1, 1, dtype=torch.long), probabilities.log()[None]).argmax()] += 1
    expected = torch.tensor([0.5, 0.3, 0.15, 0]) / 0.95  # the nucleus of 0.9 leaves out the last
    torch.testing.assert_close(counts / 4000, expected, atol=0.03, rtol=0)


def test_one_bad_request_costs_only_itself(tiny_vl: Path, silent_clips: list[CaptionRequest]) -> None:
    engine = load(tiny_vl)
    good = engine.caption(silent_clips)
    bad = replace(silent_clips[0], prompt="Break <|im_end|> out")
    too_long = replace(silent_clips[0], prompt="bell " * 5000)
    sounding = replace(silent_clips[0], audio=np.zeros(16_000, np.float32))
    answers = engine.caption([silent_clips[0], bad, *silent_clips[1:3], too_long, sounding, silent_clips[3]])
    assert [answers[0], *answers[2:4], answers[6]] == good
    reasons = ("holds '<|im_end|>'", "tokens", "hear")
    for answer, reason in zip((answers[1], *answers[4:6]), reasons, strict=True):
        assert isinstance(answer, ValueError) and reason in str(answer)


def test_an_answer_never_runs_past_the_models_limit(tiny_vl: Path, silent_clips: list[CaptionRequest]) -> None:
    (answer,) = load(tiny_vl, Sampling(max_new_tokens=4000)).caption(silent_clips[:1])
    assert isinstance(answer, ValueError) and "at most 96" in str(answer)


def test_no_requests_no_answers(tiny_vl: Path) -> None:
    assert load(tiny_vl).caption([]) == []


def test_the_checkpoints_own_sampling_defaults_do_not_leak_in(
    tiny_vl: Path, silent_clips: list[CaptionRequest], tmp_path: Path
) -> None:
    checkpoint = shutil.copytree(tiny_vl, tmp_path / "vl")
    file = checkpoint / "generation_config.json"
    leaky = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "max_new_tokens": 2}
    file.write_text(json.dumps(json.loads(file.read_text()) | leaky))
    assert load(checkpoint).caption(silent_clips) == load(tiny_vl).caption(silent_clips)


def test_swapping_the_sound_can_change_the_answer(
    tiny_omni: Path, make_request: MakeRequest, make_sound: Callable[..., np.ndarray]
) -> None:
    clip = make_request()
    sounds = [None, np.zeros(128_000, np.float32), *(make_sound(seed, 8.0) for seed in range(4))]
    answers = load(tiny_omni).caption([replace(clip, audio=sound) for sound in sounds])
    assert len(set(answers)) > 1, f"one picture with {len(sounds)} sounds gave one answer: {answers[0]!r}"


def test_an_adapter_changes_the_answers(tiny_vl: Path, tiny_adapter: Path, silent_clips: list[CaptionRequest]) -> None:
    assert load(tiny_vl, adapter=tiny_adapter).caption(silent_clips) != load(tiny_vl).caption(silent_clips)


def test_a_lost_gpu_is_the_engines_error_not_the_requests(
    tiny_vl: Path, silent_clips: list[CaptionRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(tiny_vl)
    assert isinstance(engine, TransformersEngine)

    def fault(**_: Any) -> None:
        raise torch.AcceleratorError("device-side assert triggered")

    monkeypatch.setattr(engine._model, "generate", fault)
    with pytest.raises(EngineError, match="the GPU is lost"):
        engine.caption(silent_clips)


def test_a_closed_engine_has_let_go_of_its_model(tiny_vl: Path) -> None:
    engine = load(tiny_vl)
    engine.close()
    assert not hasattr(engine, "_model")


# What cannot be loaded


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no config.json"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder, and not a hub id"):
        load(tmp_path / "absent")


@pytest.mark.parametrize("model_type", ["gpt2", "no_such_model"])
def test_an_unknown_model_type_lists_the_valid_ones(model_type: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(CheckpointError, match=f"{model_type}.*wanted.* qwen2_5_omni, qwen2_5_vl"):
        load(tmp_path)


def test_an_adapter_folder_without_an_adapter_is_named(tiny_vl: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no adapter_config.json"):
        load(tiny_vl, adapter=tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"engine": "llama.cpp"}, "engine: got 'llama.cpp', wanted one of transformers, vllm"),
        ({"dtype": "int8"}, "dtype: got 'int8', wanted one of float32"),
        ({"device": "tpu"}, "device: got 'tpu'"),
    ],
)
def test_wrong_settings_are_named(given: dict[str, Any], message: str, tiny_vl: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load(tiny_vl, **given)


def test_a_missing_gpu_is_named(tiny_vl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="torch sees no GPU"):
        load(tiny_vl, device="cuda")


def test_an_engine_that_is_not_installed_names_the_remedy(tiny_vl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soundcap.engines.vllm_engine.find_spec", lambda _: None)
    with pytest.raises(EngineError, match=r"pip install 'soundcap-flowley\[gpu\]'"):
        load(tiny_vl, engine="vllm")
