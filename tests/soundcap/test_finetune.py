"""Fine-tuning on a tiny Qwen2.5-VL with real DeepSpeed, in this process: learnt, dropped, saved, resumed."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from soundcap.finetune import ExampleLoader, FinetuneError, FinetuneResult, TrainExample, finetune, load_result
from soundcap.finetune_settings import FinetuneExecution, FinetuneSettings
from soundcap.lora_trainer import LORA_TARGETS
from soundcap.pretrained import load_model, load_processor
from soundcap.request import FrameSettings

finetune_on_cpu = partial(finetune, use_gpu=False)

CAPTIONS = (
    "A dog barks twice, close and sharp.",
    "A bell rings slowly.",
    "Rain falls.",
    "A car engine idles.",
)
EXAMPLES = [TrainExample(f"clip{i}", "Describe the sound.", caption, f"{i}.mp4") for i, caption in enumerate(CAPTIONS)]
SETTINGS = FinetuneSettings(
    rank=8,
    alpha=16,
    dropout=0.0,
    learning_rate=1e-2,
    warmup_share=0.0,
    batch_size=4,
    max_steps=6,
    precision="float32",
    frames=FrameSettings(2.0, 28 * 28, 56 * 56),
)
EXECUTION = FinetuneExecution(
    per_device_batch=4,
    gradient_checkpointing=False,
    save_steps=3,
    log_steps=1,
    loader_processes=0,
    check_threads=1,
)


def read_frames(video: str) -> np.ndarray:
    """Four frames in a colour of the clip's own."""
    frames = np.full((4, 56, 56, 3), 40, np.uint8)
    frames[..., int(video[0]) % 3] = 200
    return frames


@pytest.fixture(scope="module")
def model(tiny_vl: Path) -> str:
    return str(tiny_vl)


@pytest.fixture(scope="module")
def trained(model: str, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    output = tmp_path_factory.mktemp("trained")
    return finetune_on_cpu(model, None, EXAMPLES, read_frames, SETTINGS, EXECUTION, output)


def losses(result: FinetuneResult) -> list[float]:
    return [point.loss for point in result.loss_curve]


def test_loss_falls_and_starts_at_the_papers_nll_of_the_base_model(model: str, trained: FinetuneResult) -> None:
    processor = load_processor(model)
    loader = ExampleLoader(EXAMPLES, read_frames, processor, SETTINGS)
    total, n_tokens = 0.0, 0
    base = load_model(model)
    for index in range(len(EXAMPLES)):  # one at a time, so that padding plays no part
        batch = loader.collate([loader[index]])
        labels = batch.pop("labels")[0]
        with torch.no_grad():
            logits = base(**batch).logits[0]
        captioned = labels[1:] != -100
        log_p = logits[:-1].log_softmax(-1).gather(1, labels[1:].clamp(min=0)[:, None])[:, 0]
        total -= log_p[captioned].sum().item()
        n_tokens += int(captioned.sum())
    curve = losses(trained)
    assert curve[0] == pytest.approx(total / n_tokens, rel=1e-3), "LoRA starts as the identity"
    assert curve[-1] < 0.9 * curve[0], f"the loss did not fall: {curve}"
    assert [point.step for point in trained.loss_curve] == [1, 2, 3, 4, 5, 6]


def test_adapter_loads_with_peft_and_changes_the_logits(model: str, trained: FinetuneResult) -> None:
    processor = load_processor(model)
    loader = ExampleLoader(EXAMPLES, read_frames, processor, SETTINGS)
    batch = loader.collate([loader[0]])
    with torch.no_grad():
        before = load_model(model)(**batch)
        after = load_model(model, adapter=trained.adapter_dir)(**batch)
    assert not torch.allclose(before.logits, after.logits, atol=1e-3)
    assert after.loss < before.loss


def test_only_linear_layers_of_the_language_model_are_tuned(model: str, trained: FinetuneResult) -> None:
    weights = load_file(Path(trained.adapter_dir) / "adapter_model.safetensors")
    tuned = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in weights}
    linear = {n for n, m in load_model(model).named_modules() if isinstance(m, torch.nn.Linear)}
    wanted = {name for name in linear if name.startswith("model.language_model.layers.")}
    assert tuned == wanted and len(tuned) == 3 * 7
    assert not any(re.match(LORA_TARGETS, name) for name in linear - wanted)


def test_the_result_is_saved_beside_the_adapter(trained: FinetuneResult) -> None:
    assert load_result(Path(trained.adapter_dir)) == trained
    assert (trained.examples_used, trained.examples_dropped) == (4, ())
    config = json.loads((Path(trained.adapter_dir) / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (8, 16, LORA_TARGETS)


def test_resuming_gives_the_very_weights_of_an_uninterrupted_run(
    model: str, trained: FinetuneResult, tmp_path: Path
) -> None:
    half_way = Path(trained.adapter_dir).parent / "checkpoints" / "checkpoint-3"
    resumed = finetune_on_cpu(model, None, EXAMPLES, read_frames, SETTINGS, EXECUTION, tmp_path, resume_from=half_way)
    assert losses(resumed) == losses(trained)
    first, second = (load_file(Path(result.adapter_dir) / "adapter_model.safetensors") for result in (trained, resumed))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_accumulating_single_clips_learns_the_same_as_one_batch(
    model: str, trained: FinetuneResult, tmp_path: Path
) -> None:
    single = replace(EXECUTION, per_device_batch=1, gradient_checkpointing=True)
    result = finetune_on_cpu(model, None, EXAMPLES, read_frames, SETTINGS, single, tmp_path)
    assert losses(result) == pytest.approx(losses(trained), rel=2e-3), (
        "captions differ in length: were losses averaged per clip before they were averaged over the step?"
    )


def test_unusable_examples_are_dropped_with_their_reasons(model: str, tmp_path: Path) -> None:
    def read_some(video: str) -> np.ndarray:
        if video.startswith("1"):
            raise OSError("moov atom not found")
        return read_frames(video)

    examples = [*EXAMPLES, replace(EXAMPLES[0], clip_id="long", caption="A dog barks. " * 400)]
    execution = replace(EXECUTION, max_dropped_share=0.5)
    settings = replace(SETTINGS, batch_size=1, max_steps=1, max_tokens=500)
    result = finetune_on_cpu(
        model, None, examples, read_some, settings, replace(execution, per_device_batch=1), tmp_path
    )
    reasons = {dropped.clip_id: dropped.reason for dropped in result.examples_dropped}
    assert result.examples_used == 3
    assert reasons.keys() == {"clip1", "long"}
    assert reasons["clip1"] == "OSError: moov atom not found"
    assert "500" in reasons["long"] and "tokens" in reasons["long"]


def test_what_cannot_be_trained_is_said_before_training(model: str, tiny_omni: Path, tmp_path: Path) -> None:
    def read_none(video: str) -> np.ndarray:
        raise OSError(f"{video} is gone")

    with pytest.raises(FinetuneError, match=r"4 of 4 examples.*clip0: OSError: 0.mp4 is gone"):
        finetune_on_cpu(model, None, EXAMPLES, read_none, SETTINGS, EXECUTION, tmp_path)
    with pytest.raises(FinetuneError, match=r"0 of 0 examples"):
        finetune_on_cpu(model, None, [], read_frames, SETTINGS, EXECUTION, tmp_path)
    with pytest.raises(FinetuneError, match=r"batch_size 6 is no multiple of .* = 4"):
        finetune_on_cpu(model, None, EXAMPLES, read_frames, replace(SETTINGS, batch_size=6), EXECUTION, tmp_path)
    with pytest.raises(FinetuneError, match=r"is a qwen2_5_omni; wanted a qwen2_5_vl"):
        finetune_on_cpu(str(tiny_omni), None, EXAMPLES, read_frames, SETTINGS, EXECUTION, tmp_path)


def test_zero_3_with_bfloat16_learns_too(model: str, trained: FinetuneResult, tmp_path: Path) -> None:
    sharded, rounded = replace(EXECUTION, zero_stage=3), replace(SETTINGS, precision="bfloat16")
    result = finetune_on_cpu(model, None, EXAMPLES, read_frames, rounded, sharded, tmp_path)
    assert losses(result) == pytest.approx(losses(trained), rel=0.1)
    before = load_model(model).state_dict()
    after = load_model(model, adapter=result.adapter_dir).state_dict()
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert before[name].shape == after[name].shape and not torch.equal(before[name], after[name])
