"""Films as a captioner is shown them, prepared once and asked about many times.

`soundcap.inputs.prepare_inputs` costs more than a training step of a small model. It runs once per film here; another
prompt and answer only change the text after the clip, whose positions count up by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.miniature.models.recorded import as_recorded
from pipelines.miniature.world.film import Film, FilmPlan, World, plan_film
from soundcap.checkpoint import CaptionProcessor, load_processor
from soundcap.inputs import END_OF_TURN, IGNORED_LABEL, prepare_inputs
from soundcap.request import CaptionRequest

FRAMES_FPS = 2.0
RECORDED_HZ, AUDIO_HZ = 44_100, 16_000
CLIP_SIZE_PX = (112, 84)
MIN_FRAME_PX, MAX_FRAME_PX = 3136, 16_384
"""As configs/demo.yaml has them."""

_PER_CLIP = ("pixel_values_videos", "video_grid_thw", "input_features", "feature_attention_mask")
_WIDE = ("pixel_values_videos", "input_features")  # kept in half precision


@dataclass(frozen=True, slots=True)
class ShownFilm:
    """A film's model inputs up to the prompt."""

    plan: FilmPlan
    head_ids: Tensor
    """(L,) token ids up to the prompt."""
    head_positions: Tensor
    """(3, L)."""
    tail_ids: Tensor
    """Token ids between prompt and answer."""
    clip: dict[str, Tensor]


def request_of(world: World, plan: FilmPlan, prompt: str, *, hears: bool) -> CaptionRequest:
    """The film as the stage `captions` would decode it; only its picture was not encoded before."""
    audio = None
    if hears:
        audio = as_recorded(Film(world, plan).sound(RECORDED_HZ, stereo=False)[:, 0], RECORDED_HZ, AUDIO_HZ)
    return CaptionRequest(prompt, clip_frames(world, plan), FRAMES_FPS, audio, AUDIO_HZ)


def clip_frames(world: World, plan: FilmPlan) -> np.ndarray:
    """(T, 84, 112, 3) uint8: the film's frames at 2 per second."""
    from PIL import Image

    frames = Film(world, plan).frames(np.arange(0, world.duration_s, 1 / FRAMES_FPS).tolist())
    return np.stack(
        [np.asarray(Image.fromarray(frame).resize(CLIP_SIZE_PX, Image.Resampling.BICUBIC)) for frame in frames]
    )


def show_films(checkpoint: str, world: World, seed: int, numbers: Iterable[int], *, workers: int) -> list[ShownFilm]:
    """Films of the train split, shown to the model of a checkpoint."""
    jobs = [(checkpoint, world, seed, number) for number in numbers]
    if workers == 1:
        return [_show(job) for job in jobs]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_show, jobs, chunksize=32))


_loaded: dict[str, CaptionProcessor] = {}


def _show(job: tuple[str, World, int, int]) -> ShownFilm:
    checkpoint, world, seed, number = job
    torch.multiprocessing.set_sharing_strategy("file_system")  # type: ignore[no-untyped-call]  # thousands come back
    if checkpoint not in _loaded:
        _loaded[checkpoint] = load_processor(checkpoint)
    return show(_loaded[checkpoint], world, plan_film(world, seed, "train", number))


def show(processor: CaptionProcessor, world: World, plan: FilmPlan) -> ShownFilm:
    """A film's model inputs, ready for any prompt."""
    request = request_of(world, plan, "x", hears=processor.family.hears)
    inputs = prepare_inputs(processor, [request], answers=None, min_frame_px=MIN_FRAME_PX, max_frame_px=MAX_FRAME_PX)
    ids = inputs["input_ids"][0]
    clip_token = processor.hf.tokenizer.convert_tokens_to_ids(processor.hf.video_token)
    end = processor.hf.tokenizer.convert_tokens_to_ids(END_OF_TURN)
    after_clip = int(torch.nonzero(ids == clip_token)[-1])
    end_at = after_clip + int(torch.nonzero(ids[after_clip:] == end)[0])
    prompt_at = end_at - len(processor.hf.tokenizer("x", add_special_tokens=False)["input_ids"])
    clip = {name: inputs[name] for name in inputs if name in _PER_CLIP}
    clip |= {name: clip[name].half() for name in _WIDE if name in clip}
    return ShownFilm(plan, ids[:prompt_at], inputs["position_ids"][:, 0, :prompt_at], ids[end_at:], clip)


def batch(processor: CaptionProcessor, asked: Sequence[tuple[ShownFilm | None, str, str]]) -> dict[str, Any]:
    """Training inputs of (film, prompt, answer), padded on the right; a film of None is text alone."""
    rows = [_row(processor, *one) for one in asked]
    length = max(len(ids) for ids, _, _ in rows)
    pad_id = processor.hf.tokenizer.pad_token_id
    out: dict[str, Any] = {
        "input_ids": torch.full((len(rows), length), pad_id),
        "attention_mask": torch.zeros(len(rows), length, dtype=torch.long),
        "position_ids": torch.zeros(3, len(rows), length, dtype=torch.long),
        "labels": torch.full((len(rows), length), IGNORED_LABEL),
    }
    for row, (ids, positions, n_answer) in enumerate(rows):
        n = len(ids)
        out["input_ids"][row, :n], out["attention_mask"][row, :n] = ids, 1
        out["position_ids"][:, row, :n] = positions
        out["labels"][row, n - n_answer : n] = ids[n - n_answer :]
    clips = [film.clip for film, _, _ in asked if film is not None]
    for name in _PER_CLIP:
        if clips and name in clips[0]:
            out[name] = torch.cat([clip[name] for clip in clips])
            out[name] = out[name].float() if name in _WIDE else out[name]
    if not processor.family.hears:
        video_id = processor.hf.tokenizer.convert_tokens_to_ids(processor.hf.video_token)
        out["mm_token_type_ids"] = torch.where(out["input_ids"] == video_id, 2, 0)
    return out


def _row(processor: CaptionProcessor, film: ShownFilm | None, prompt: str, answer: str) -> tuple[Tensor, Tensor, int]:
    tokenizer = processor.hf.tokenizer

    def ids_of(text: str) -> Tensor:
        return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])

    answer_ids = ids_of(answer + END_OF_TURN)
    if film is None:
        ids = torch.cat([ids_of(f"<|im_start|>user\n{prompt}{END_OF_TURN}\n<|im_start|>assistant\n"), answer_ids])
        return ids, torch.arange(len(ids)).expand(3, -1), len(answer_ids)
    text = torch.cat([ids_of(prompt), film.tail_ids, answer_ids])
    after = film.head_positions[:, -1:] + 1 + torch.arange(len(text))
    return torch.cat([film.head_ids, text]), torch.cat([film.head_positions, after], dim=1), len(answer_ids)
