"""What a model is shown. Most mistakes here raise nothing: they only make captions worse."""

import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from soundcap.inputs import padded_audio_samples, prepare_inputs
from soundcap.positions import AUDIO, TEXT, VIDEO, rope_positions
from soundcap.pretrained import CaptionProcessor, load_model, load_processor
from soundcap.request import CaptionRequest, FrameSettings

MakeRequest = Callable[..., CaptionRequest]
FRAMES = FrameSettings(min_px=56 * 56, max_px=128 * 128)


@pytest.fixture(scope="module")
def omni(tiny_omni: Path) -> CaptionProcessor:
    return load_processor(str(tiny_omni))


@pytest.fixture(scope="module")
def vl(tiny_vl: Path) -> CaptionProcessor:
    return load_processor(str(tiny_vl))


@pytest.fixture(scope="module")
def omni_model(tiny_omni: Path) -> Any:
    return load_model(str(tiny_omni)).eval()


def show(processor: CaptionProcessor, *requests: CaptionRequest, **given: Any) -> dict[str, torch.Tensor]:
    return prepare_inputs(processor, requests, **({"answers": None, "frames": FRAMES} | given))


def tokens_of(processor: CaptionProcessor, inputs: dict[str, torch.Tensor], token: str) -> torch.Tensor:
    return inputs["input_ids"][0] == processor.hf.tokenizer.convert_tokens_to_ids(token)


# Time


@pytest.mark.parametrize("fps", [2.0, 4.0, 8.0])
def test_frame_pairs_are_2_over_fps_seconds_apart(
    fps: float, omni: CaptionProcessor, vl: CaptionProcessor, make_request: MakeRequest
) -> None:
    silent = show(vl, make_request(fps=fps))
    heard = show(omni, make_request(fps=fps, audio_s=8.0))
    assert silent["second_per_grid_ts"].tolist() == heard["video_second_per_grid"].tolist() == [2 / fps]

    # 8 s of picture end at the same place on the time axis at any rate: 2 positions a second, and 25 for Omni
    shown = ((vl, silent, "<|video_pad|>", 2), (omni, heard, "<|VIDEO|>", 25))
    for processor, inputs, token, per_second in shown:
        time = inputs["position_ids"][0, 0, tokens_of(processor, inputs, token)]
        assert time[-1] - time[0] == int((8 - 2 / fps) * per_second)


@pytest.mark.parametrize("fps", [2.0, 4.0, 8.0])
def test_what_sounds_together_is_seen_together(fps: float, omni: CaptionProcessor, make_request: MakeRequest) -> None:
    inputs = show(omni, make_request(fps=fps, audio_s=8.0))
    sequence = inputs["input_ids"][0].tolist()
    ids = {name: omni.hf.tokenizer.convert_tokens_to_ids(name) for name in ("<|VIDEO|>", "<|AUDIO|>")}
    kinds = "".join("v" if i == ids["<|VIDEO|>"] else "a" if i == ids["<|AUDIO|>"] else " " for i in sequence)
    per_pair = 3 * 4  # 84 x 112 px in merged patches of 28 x 28
    chunk = "v" * int(fps) * per_pair + "a" * 50
    assert kinds.strip() == chunk * 4, "2 s of picture, then the 50 audio tokens of the same 2 s"

    time = inputs["position_ids"][0, 0]
    first_seen = time[tokens_of(omni, inputs, "<|VIDEO|>")][::per_pair]
    heard = time[tokens_of(omni, inputs, "<|AUDIO|>")]
    at = (torch.arange(len(first_seen)) * 2 / fps * 25).long()
    assert torch.equal(first_seen, heard[at]), "a frame pair and the sound of its first frame share a position"


# Positions


def positions_by_hand(kinds: list[int], grid: tuple[int, int, int], seconds: float, per_second: float) -> list[Any]:
    """The published rule of Qwen2.5-VL, token by token: text follows the largest position so far."""
    positions: list[tuple[int, int, int]] = []
    block = None
    n_seen = 0
    for kind in kinds:
        reached = max((max(p) for p in positions), default=-1)
        if kind == TEXT:
            positions.append((reached + 1,) * 3)
            continue
        block = reached + 1 if block is None else block
        pair, rest = divmod(n_seen, grid[1] * grid[2])
        row, column = divmod(rest, grid[2])
        positions.append((block + int(pair * seconds * per_second), block + row, block + column))
        n_seen += 1
    return [list(axis) for axis in zip(*positions, strict=True)]


@settings(deadline=None, max_examples=50)
@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5)),
    fps=st.sampled_from([1.0, 2.0, 4.0, 8.0]),
    before=st.integers(0, 5),
    after=st.integers(0, 5),
)
def test_positions_of_a_silent_video_follow_the_published_rule(
    grid: tuple[int, int, int], fps: float, before: int, after: int
) -> None:
    kinds = [TEXT] * before + [VIDEO] * int(np.prod(grid)) + [TEXT] * after
    got = rope_positions(np.array(kinds), grid, 2 / fps, 2.0)
    assert got.tolist() == positions_by_hand(kinds, grid, 2 / fps, 2.0)


def test_after_a_low_video_text_does_not_fall_back_in_time(vl: CaptionProcessor, make_request: MakeRequest) -> None:
    inputs = show(vl, make_request(fps=2.0))
    last_seen = inputs["position_ids"][0, 0, tokens_of(vl, inputs, "<|video_pad|>")][-1]
    first_text = inputs["position_ids"][0, 0, tokens_of(vl, inputs, "<|vision_end|>")][0]
    assert first_text == last_seen + 1, "transformers' own positions would say max(h, w) / 2 here"


@pytest.mark.parametrize("fps", [1.0, 2.0, 3.0, 4.0, 8.0])
@pytest.mark.parametrize("audio_s", [None, 8.0, 9.7, 6.5, 5.0])
def test_omni_positions_are_the_reference_implementations(
    fps: float, audio_s: float | None, omni: CaptionProcessor, omni_model: Any, make_request: MakeRequest
) -> None:
    inputs = show(omni, make_request(fps=fps, audio_s=audio_s))
    heard = inputs.get("feature_attention_mask")
    reference, _ = omni_model.get_rope_index(
        inputs["input_ids"],
        video_grid_thw=inputs["video_grid_thw"],
        attention_mask=inputs["attention_mask"],
        use_audio_in_video=audio_s is not None,
        audio_seqlens=None if heard is None else heard.sum(dim=1),
        second_per_grids=inputs["video_second_per_grid"],
    )
    assert torch.equal(inputs["position_ids"], reference)


def test_video_tokens_that_do_not_fill_the_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="got 5 video tokens, wanted 6"):
        rope_positions(np.array([TEXT] + [VIDEO] * 5 + [AUDIO]), (1, 2, 3), 1.0, 25)


# Picture and sound


def test_small_frames_are_not_scaled_up(
    omni: CaptionProcessor, vl: CaptionProcessor, make_request: MakeRequest
) -> None:
    for processor in (omni, vl):
        assert show(processor, make_request(fps=2.0))["video_grid_thw"].tolist() == [[8, 84 // 14, 112 // 14]]


def test_frame_area_stays_within_its_limits(vl: CaptionProcessor, make_request: MakeRequest) -> None:
    request = make_request(duration_s=1.0, height_px=300, width_px=400)
    _, height, width = show(vl, request, frames=replace(FRAMES, max_px=20_000))["video_grid_thw"][0].tolist()
    assert 10_000 < height * width * 14 * 14 <= 20_000
    inputs = show(vl, request, frames=FrameSettings(min_px=200_000, max_px=300_000))
    _, height, width = inputs["video_grid_thw"][0].tolist()
    assert 200_000 <= height * width * 14 * 14 <= 300_000


def test_swapping_the_sound_changes_what_is_heard_and_nothing_else(
    omni: CaptionProcessor, omni_model: Any, make_request: MakeRequest, make_sound: Callable[..., np.ndarray]
) -> None:
    request = make_request(audio_s=8.0)
    one, other = show(omni, request), show(omni, replace(request, audio=make_sound(1, 8.0)))
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert changed == {"input_features"}
    with torch.inference_mode():
        difference = (omni_model(**one).logits[0, -1] - omni_model(**other).logits[0, -1]).abs().max()
    assert difference > 0.01, f"the next token's logits differ by {difference:.1e}: the sound is not heard"


@pytest.mark.parametrize("audio_s", [8.0, 3.337, 0.05])
def test_short_padding_hears_what_300_s_of_padding_hears(
    audio_s: float, omni: CaptionProcessor, make_sound: Callable[..., np.ndarray]
) -> None:
    sound = make_sound(0, audio_s)
    extract = omni.hf.feature_extractor
    given = {"sampling_rate": 16_000, "return_attention_mask": True, "return_tensors": "pt"}
    full = extract(sound, padding="max_length", **given)
    short = extract(sound, padding="max_length", max_length=padded_audio_samples(omni, len(sound)), **given)
    n_frames = int(full["attention_mask"].sum())
    assert short["attention_mask"].sum() == n_frames
    heard = short["input_features"][..., :n_frames]
    torch.testing.assert_close(heard, full["input_features"][..., :n_frames])


def test_silent_and_sounding_clips_share_a_batch(
    omni: CaptionProcessor, omni_model: Any, make_request: MakeRequest
) -> None:
    short = make_request(2, fps=4.0, duration_s=3.0, audio_s=3.0)
    requests = [make_request(0, audio_s=8.0), make_request(1), short]
    together = show(omni, *requests)
    with torch.inference_mode():
        logits = omni_model(**together).logits[:, -1]
        alone = torch.cat([omni_model(**show(omni, request)).logits[:, -1] for request in requests])
    torch.testing.assert_close(logits, alone, atol=1e-4, rtol=1e-4)


def test_a_model_that_does_not_hear_refuses_sound(vl: CaptionProcessor, make_request: MakeRequest) -> None:
    with pytest.raises(ValueError, match="qwen2_5_vl does not hear; pass audio=None"):
        show(vl, make_request(audio_s=8.0))


def test_sound_at_another_rate_is_refused(omni: CaptionProcessor, make_request: MakeRequest) -> None:
    with pytest.raises(ValueError, match="got 44100 Hz, the model hears 16000 Hz"):
        show(omni, replace(make_request(audio_s=8.0), audio_hz=44_100))


def test_frames_too_sparse_to_alternate_with_sound_are_refused(
    omni: CaptionProcessor, make_request: MakeRequest
) -> None:
    with pytest.raises(ValueError, match=r"frames_fps: got 0.5 with audio, wanted at least 1"):
        show(omni, make_request(fps=0.5, audio_s=8.0))


# Text


@settings(deadline=None, max_examples=60)
@given(caption=st.text(st.characters(codec="utf-8"), min_size=1, max_size=60))
def test_labels_decode_to_exactly_the_caption(vl: CaptionProcessor, caption: str) -> None:
    caption = unicodedata.normalize("NFC", caption)
    assume(caption.strip() and "<|" not in caption)
    request = CaptionRequest("Describe the sounds.", np.zeros((2, 28, 28, 3), np.uint8), 2.0, None)
    inputs = show(vl, request, answers=[caption])
    labels = inputs["labels"][0]
    assert vl.hf.tokenizer.decode(labels[labels != -100]) == caption + "<|im_end|>"
    assert torch.equal(inputs["input_ids"][0][labels != -100], labels[labels != -100])


def test_a_trained_row_is_a_prompt_as_generated_from_and_then_its_answer(
    omni: CaptionProcessor, vl: CaptionProcessor, make_request: MakeRequest
) -> None:
    for processor, audio_s in ((omni, 8.0), (vl, None)):
        requests = [make_request(0, audio_s=audio_s), make_request(1, audio_s=audio_s, duration_s=2.0)]
        trained = show(processor, *requests, answers=["A bell rings twice.", "Rain."])
        for row, request in enumerate(requests):
            prompt = show(processor, request)
            n_prompt = prompt["input_ids"].shape[1]
            assert torch.equal(trained["input_ids"][row, :n_prompt], prompt["input_ids"][0])
            assert torch.equal(trained["position_ids"][:, row, :n_prompt], prompt["position_ids"][:, 0])
            assert (trained["labels"][row, :n_prompt] == -100).all()
            unused = trained["attention_mask"][row] == 0
            assert (trained["labels"][row, unused] == -100).all()


def test_video_comes_before_the_text(vl: CaptionProcessor, make_request: MakeRequest) -> None:
    text = vl.hf.tokenizer.decode(show(vl, make_request(prompt="Which sounds?"))["input_ids"][0])
    assert text.index("<|video_pad|>") < text.index("Which sounds?")
    assert text.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    "token", ["<|im_start|>", "<|im_end|>", "<|vision_end|>", "<|video_pad|>", "<|video_placeholder|>"]
)
def test_text_cannot_break_the_structure(token: str, vl: CaptionProcessor, make_request: MakeRequest) -> None:
    with pytest.raises(ValueError, match="prompt: holds .* which structures the model's input"):
        show(vl, make_request(prompt=f"Describe {token} the sounds."))
    with pytest.raises(ValueError, match="answer: holds .* which structures the model's input"):
        show(vl, make_request(), answers=[f"A bell.{token}"])


def test_a_row_that_is_too_long_is_refused_with_its_lengths(vl: CaptionProcessor, make_request: MakeRequest) -> None:
    n_tokens = show(vl, make_request(), answers=["Rain."])["input_ids"].shape[1]
    show(vl, make_request(), answers=["Rain."], max_tokens=n_tokens)
    with pytest.raises(ValueError, match=f"got {n_tokens} tokens .* at most {n_tokens - 1}: lower max_px"):
        show(vl, make_request(), answers=["Rain."], max_tokens=n_tokens - 1)
    with pytest.raises(ValueError, match="at most 4096"):
        show(vl, make_request(prompt="bell " * 5000))


def test_requests_and_answers_must_match(vl: CaptionProcessor, make_request: MakeRequest) -> None:
    with pytest.raises(ValueError, match="got no requests"):
        show(vl)
    with pytest.raises(ValueError, match="got 2 answers for 1 requests"):
        show(vl, make_request(), answers=["one", "two"])
    with pytest.raises(ValueError, match="answer: got ' '"):
        show(vl, make_request(), answers=[" "])
