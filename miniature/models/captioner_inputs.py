"""Captioner inputs of films, prepared once for any prompt and answer.

`soundcap.inputs.prepare_inputs` costs more than a training step of a small model. It runs once per film here; another
prompt and answer only change the text after the clip, whose positions count up by one. The sound has gone through
AAC, as a film's file keeps it: AAC drops faint sounds, and a model trained without that loses them in real files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ffmpeg
import numpy as np
import torch
from torch import Tensor

from miniature.world.corpus import map_in_processes, run_ffmpeg
from miniature.world.film import Film, FilmPlan, World, plan_film
from soundcap.inputs import END_OF_TURN, IGNORED_LABEL, collate_rows, prepare_inputs
from soundcap.positions import token_kinds
from soundcap.pretrained import CaptionProcessor, load_processor
from soundcap.request import CaptionRequest, FrameSettings

FRAMES = FrameSettings(fps=2.0, min_px=3136, max_px=16_384)
"""Frames of a clip, those of configs/demo.yaml."""
RECORDED_HZ, AUDIO_HZ = 44_100, 16_000
AAC_BIT_RATE = "128k"
AAC_PRIMING_SAMPLES = 1024
"""Silence that ffmpeg's encoder puts before the sound; an MP4 records it, a bare stream does not."""
CLIP_SIZE_PX = (112, 84)

_PER_CLIP = ("pixel_values_videos", "video_grid_thw", "input_features", "feature_attention_mask")
_WIDE = ("pixel_values_videos", "input_features")  # kept in half precision


@dataclass(frozen=True, slots=True)
class FilmInputs:
    """Model inputs of a film up to the prompt."""

    plan: FilmPlan
    head_ids: Tensor
    """(L,) token ids up to the prompt."""
    head_positions: Tensor
    """(3, L)."""
    tail_ids: Tensor
    """Token ids between prompt and answer."""
    clip: dict[str, Tensor]


def caption_request(world: World, plan: FilmPlan, prompt: str, *, hears: bool) -> CaptionRequest:
    """Request for a film's caption, as the stage `captions` decodes it; only the picture was not encoded before."""
    audio = None
    if hears:
        audio = aac_round_trip(Film(world, plan).sound(RECORDED_HZ, stereo=False)[:, 0], RECORDED_HZ, AUDIO_HZ)
    return CaptionRequest(prompt, clip_frames(world, plan), FRAMES.fps, audio, AUDIO_HZ)


def clip_frames(world: World, plan: FilmPlan) -> np.ndarray:
    """(T, 84, 112, 3) uint8: the film's frames at 2 per second."""
    from PIL import Image

    frames = Film(world, plan).frames(np.arange(0, world.duration_s, 1 / FRAMES.fps).tolist())
    return np.stack(
        [np.asarray(Image.fromarray(frame).resize(CLIP_SIZE_PX, Image.Resampling.BICUBIC)) for frame in frames]
    )


def aac_round_trip(samples: np.ndarray, hz: int, to_hz: int) -> np.ndarray:
    """Mono (N,) at hz, encoded, decoded and resampled: (N to_hz / hz,) float32."""
    subject, raw = "a film's sound", {"format": "f32le", "ac": 1}
    encode = ffmpeg.input("pipe:", ar=hz, **raw).output("pipe:", format="adts", **{"c:a": "aac", "b:a": AAC_BIT_RATE})
    coded = run_ffmpeg(encode, samples.astype("<f4").tobytes(), subject)
    trimmed = ffmpeg.input("pipe:", format="aac").filter("atrim", start_sample=AAC_PRIMING_SAMPLES)
    decoded = np.frombuffer(run_ffmpeg(trimmed.output("pipe:", ar=to_hz, **raw), coded, subject), "<f4")
    return np.resize(decoded, round(len(samples) * to_hz / hz)).copy()


def prepare_films(checkpoint: Path, world: World, seed: int, *, films: int, workers: int) -> list[FilmInputs]:
    """Inputs of the first films of the train split, for the model of a checkpoint."""
    jobs = [(str(checkpoint), world, plan_film(world, seed, "train", number)) for number in range(films)]
    return map_in_processes(_prepare, jobs, workers)


def _prepare(job: tuple[str, World, FilmPlan]) -> FilmInputs:
    checkpoint, world, plan = job
    torch.multiprocessing.set_sharing_strategy("file_system")  # type: ignore[no-untyped-call]  # thousands come back
    return prepare_film(_processor(checkpoint), world, plan)


@cache
def _processor(checkpoint: str) -> CaptionProcessor:
    return load_processor(checkpoint)


def prepare_film(processor: CaptionProcessor, world: World, plan: FilmPlan) -> FilmInputs:
    """Inputs of one film, for any prompt."""
    request = caption_request(world, plan, "x", hears=processor.family.hears)
    inputs = prepare_inputs(processor, [request], answers=None, frames=FRAMES)
    ids = inputs["input_ids"][0]
    clip_token = processor.hf.tokenizer.convert_tokens_to_ids(processor.hf.video_token)
    end = processor.hf.tokenizer.convert_tokens_to_ids(END_OF_TURN)
    after_clip = int(torch.nonzero(ids == clip_token)[-1])
    end_at = after_clip + int(torch.nonzero(ids[after_clip:] == end)[0])
    prompt_at = end_at - len(processor.hf.tokenizer("x", add_special_tokens=False)["input_ids"])
    clip = {name: inputs[name] for name in inputs if name in _PER_CLIP}
    clip |= {name: clip[name].half() for name in _WIDE if name in clip}
    return FilmInputs(plan, ids[:prompt_at], inputs["position_ids"][:, 0, :prompt_at], ids[end_at:], clip)


def collate(processor: CaptionProcessor, asked: Sequence[tuple[FilmInputs | None, str, str]]) -> dict[str, Any]:
    """Training batch of (film, prompt, answer), padded on the right; a film of None is text alone."""
    rows = [_row(processor, *one) for one in asked]
    return collate_rows(rows, processor.hf.tokenizer.pad_token_id, pad_left=False)


def _row(processor: CaptionProcessor, film: FilmInputs | None, prompt: str, answer: str) -> dict[str, Tensor]:
    tokenizer = processor.hf.tokenizer

    def ids_of(text: str) -> Tensor:
        return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])

    answer_ids = ids_of(answer + END_OF_TURN)
    if film is None:
        ids = torch.cat([ids_of(f"<|im_start|>user\n{prompt}{END_OF_TURN}\n<|im_start|>assistant\n"), answer_ids])
        row = {"input_ids": ids, "position_ids": torch.arange(len(ids)).expand(3, -1)}
    else:
        text = torch.cat([ids_of(prompt), film.tail_ids, answer_ids])
        after = film.head_positions[:, -1:] + 1 + torch.arange(len(text))
        ids, positions = torch.cat([film.head_ids, text]), torch.cat([film.head_positions, after], dim=1)
        row = {"input_ids": ids, "position_ids": positions} | film.clip
        row |= {name: row[name].float() for name in _WIDE if name in row}
    labels = torch.full_like(ids, IGNORED_LABEL)
    labels[-len(answer_ids) :] = answer_ids
    row |= {"attention_mask": torch.ones_like(ids), "labels": labels}
    if not processor.family.hears:
        video_token = tokenizer.convert_tokens_to_ids(processor.hf.video_token)
        row["mm_token_type_ids"] = torch.from_numpy(token_kinds(ids.numpy(), video_token, None))
    return row
