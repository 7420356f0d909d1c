"""Model inputs from captioning requests, made the same way for every engine and for fine-tuning.

The video, interleaved with its audio where there is any, comes before the text. Frame times and rotary
positions are explicit, so that training, transformers and vLLM see the same clip at any frame rate.
"""

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from soundcap.positions import TEXT, rope_positions, token_kinds
from soundcap.pretrained import CaptionProcessor
from soundcap.request import CaptionRequest, FrameSettings

if TYPE_CHECKING:
    from torch import Tensor

IGNORED_LABEL = -100
END_OF_TURN = "<|im_end|>"
MIN_FPS_WITH_AUDIO = 1.0
"""Sound and picture alternate every 2 s and a frame pair lasts 2 / fps: below this a chunk may lack a picture."""

_VIDEO_INPUTS = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts", "video_second_per_grid")
_AUDIO_INPUTS = ("input_features", "feature_attention_mask")
_REPLACED_BY_PROCESSOR = ("<|audio_placeholder|>", "<|image_placeholder|>", "<|video_placeholder|>")


def prepare_inputs(
    processor: CaptionProcessor,
    requests: Sequence[CaptionRequest],
    *,
    answers: Sequence[str] | None,
    frames: FrameSettings,
    max_tokens: int | None = None,
) -> "dict[str, Tensor]":
    """Batch of model inputs. Nothing is ever truncated.

    Args:
        processor: Processor of the checkpoint.
        requests: B clips.
        answers: None pads on the left, ready to generate. B captions pad on the right: each row ends with its
            answer and `<|im_end|>`.
        frames: Area within which frames are scaled, to sides of multiples of 28 px. Their rate is each request's own.
        max_tokens: Longest row; default: the model's own limit.

    Returns:
        For L tokens: `input_ids`, `attention_mask` (B, L); `position_ids` (3, B, L), see `soundcap.positions`;
        `pixel_values_videos` (patches, 1176), `video_grid_thw` (B, 3); the seconds per frame pair
        (`second_per_grid_ts` or `video_second_per_grid`) (B,); for Qwen2.5-VL `mm_token_type_ids` (B, L); for
        Omni, when any request has audio, `input_features` (B', 128, frames of 10 ms) and
        `feature_attention_mask` (B', frames). With answers, `labels` (B, L): the answer, and -100 elsewhere.

    Raises:
        ValueError: The model cannot take a request, or a row is longer than `max_tokens`.
    """
    if not requests:
        raise ValueError("got no requests, wanted at least one")
    if answers is not None and len(answers) != len(requests):
        raise ValueError(f"got {len(answers)} answers for {len(requests)} requests, wanted one each")
    limit = processor.max_tokens if max_tokens is None else max_tokens
    pairs = zip(requests, [None] * len(requests) if answers is None else answers, strict=True)
    rows = [_prepare_row(processor, request, answer, frames, limit) for request, answer in pairs]
    return collate_rows(rows, processor.hf.tokenizer.pad_token_id, pad_left=answers is None)


def render_chat(processor: CaptionProcessor, request: CaptionRequest) -> str:
    """The checkpoint's chat template around a video placeholder and the prompt, up to the answer's start.

    Raises ValueError if the prompt holds a special token, or the request does not suit the model.
    """
    _check_audio(processor, request)
    _refuse_special_tokens(processor, request.prompt, "prompt")
    content = [{"type": "video"}, {"type": "text", "text": request.prompt}]
    chat: str = processor.hf.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return chat


def _refuse_special_tokens(processor: CaptionProcessor, text: str, what: str) -> None:
    """Raise ValueError if `text` holds a token that structures the input, such as `<|im_start|>`."""
    # Normalisation comes first because the tokenizer normalises too
    normalised = unicodedata.normalize("NFC", text)
    for token in (*processor.hf.tokenizer.get_added_vocab(), *_REPLACED_BY_PROCESSOR):
        if token in normalised:
            raise ValueError(f"{what}: holds {token!r}, which structures the model's input; remove it from the text")


def _check_audio(processor: CaptionProcessor, request: CaptionRequest) -> None:
    """Raise ValueError if the model cannot take this request's audio."""
    if request.audio is None:
        return
    if not processor.family.hears:
        raise ValueError(f"audio: {processor.family.model_type} does not hear; pass audio=None for a silent caption")
    if request.audio_hz != (wanted_hz := processor.hf.feature_extractor.sampling_rate):
        raise ValueError(f"audio: got {request.audio_hz} Hz, the model hears {wanted_hz} Hz; resample it")
    if request.frames_fps < MIN_FPS_WITH_AUDIO:
        raise ValueError(
            f"frames_fps: got {request.frames_fps} with audio, wanted at least {MIN_FPS_WITH_AUDIO}; sample more frames"
        )


def video_metadata(request: CaptionRequest) -> dict[str, Any]:
    """Metadata that keeps the processors from assuming a frame rate and from sampling again."""
    n_frames = len(request.frames)
    return {
        "fps": request.frames_fps,
        "duration": request.duration_s,
        "total_num_frames": n_frames,
        "frames_indices": list(range(n_frames)),
    }


def padded_audio_samples(processor: CaptionProcessor, n_samples: int) -> int:
    """Length to which audio is padded before the spectrogram.

    The processor's own choice is 300 s. One analysis window of silence past the end gives the same features,
    because no frame that counts reaches further; none at all would reflect the sound at its end.
    """
    extractor = processor.hf.feature_extractor
    return int(-(-(n_samples + extractor.n_fft) // extractor.hop_length) * extractor.hop_length)


def _prepare_row(
    processor: CaptionProcessor, request: CaptionRequest, answer: str | None, frames: FrameSettings, limit: int
) -> "dict[str, Tensor]":
    """Inputs of one request, not padded; what is per token has no batch axis yet."""
    import torch

    row = _process(processor, request, frames)
    prompt_ids = row["input_ids"][0]
    answer_ids = torch.tensor([] if answer is None else _answer_ids(processor, answer), dtype=torch.long)
    if (n_tokens := len(prompt_ids) + len(answer_ids)) > limit:
        raise ValueError(
            f"got {n_tokens} tokens ({len(prompt_ids)} of clip and prompt, {len(answer_ids)} of answer), "
            f"wanted at most {limit}: lower max_px or the frame rate, or shorten prompt or answer"
        )
    input_ids = torch.cat([prompt_ids, answer_ids])
    hf, hears = processor.hf, processor.family.hears
    to_id = hf.tokenizer.convert_tokens_to_ids
    kinds = token_kinds(input_ids.numpy(), to_id(hf.video_token), to_id(hf.audio_token) if hears else None)
    pairs, height, width = row["video_grid_thw"][0].tolist()
    merge = hf.video_processor.merge_size
    interval_s = row["video_second_per_grid" if hears else "second_per_grid_ts"].item()
    grid = (pairs, height // merge, width // merge)
    positions = rope_positions(kinds, grid, interval_s, processor.positions_per_second)
    row |= {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    row["position_ids"] = torch.from_numpy(positions)
    if not hears:
        row["mm_token_type_ids"] = torch.from_numpy(kinds)
    if answer is not None:
        row["labels"] = torch.cat([torch.full_like(prompt_ids, IGNORED_LABEL), answer_ids])
    return row


def _process(processor: CaptionProcessor, request: CaptionRequest, frames: FrameSettings) -> "dict[str, Tensor]":
    """The checkpoint's own processor on one request: token ids, patches and, for Omni, audio features."""
    text = render_chat(processor, request)
    videos: dict[str, Any] = {
        "size": {"shortest_edge": frames.min_px, "longest_edge": frames.max_px},
        "do_sample_frames": False,
        "cap_pixels_per_frame": False,
        "video_metadata": [video_metadata(request)],
    }
    sound: dict[str, Any] = {}
    if processor.family.hears:
        videos |= {"fps": request.frames_fps, "use_audio_in_video": request.audio is not None}
    if request.audio is not None:
        padded = padded_audio_samples(processor, len(request.audio))
        sound = {"audio": [request.audio], "audio_kwargs": {"max_length": padded}}
    inputs: dict[str, Tensor] = processor.hf(
        text=[text], videos=[request.frames], videos_kwargs=videos, return_tensors="pt", **sound
    )
    return {name: inputs[name] for name in ("input_ids", *_VIDEO_INPUTS, *_AUDIO_INPUTS) if name in inputs}


def _answer_ids(processor: CaptionProcessor, answer: str) -> list[int]:
    if not answer.strip():
        raise ValueError(f"answer: got {answer!r}, wanted text that is not blank")
    _refuse_special_tokens(processor, answer, "answer")
    tokenizer = processor.hf.tokenizer
    ids: list[int] = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.convert_tokens_to_ids(END_OF_TURN)]


def collate_rows(rows: "list[dict[str, Tensor]]", pad_id: int, *, pad_left: bool) -> "dict[str, Tensor]":
    """Batch of rows of inputs, padded to the longest; a row of text alone has no picture."""
    import torch

    length = max(len(row["input_ids"]) for row in rows)
    fills = {"input_ids": pad_id, "attention_mask": 0, "mm_token_type_ids": TEXT, "labels": IGNORED_LABEL}

    def pad(tensor: "Tensor", to: int, fill: int, left: bool) -> "Tensor":
        missing = to - tensor.shape[-1]
        return torch.nn.functional.pad(tensor, (missing, 0) if left else (0, missing), value=fill)

    batch = {
        name: torch.stack([pad(row[name], length, fill, pad_left) for row in rows])
        for name, fill in fills.items()
        if name in rows[0]
    }
    batch["position_ids"] = torch.stack([pad(row["position_ids"], length, 0, pad_left) for row in rows], dim=1)
    for name in _VIDEO_INPUTS:
        if of_clips := [row[name] for row in rows if name in row]:
            batch[name] = torch.cat(of_clips)
    if heard := [row for row in rows if "input_features" in row]:
        n_frames = max(row["input_features"].shape[-1] for row in heard)
        for name in _AUDIO_INPUTS:
            batch[name] = torch.cat([pad(row[name], n_frames, 0, False) for row in heard])
    return batch
