"""Captioner inputs of films, prepared once for any prompt and answer.

`soundcap.inputs.prepare_inputs` costs more than a training step of a small model. It runs once per film here; another
prompt and answer only change the text after the clip, whose positions count up by one. The sound has gone through
AAC, as a film's file keeps it: AAC drops faint sounds, and a model trained without that loses them in real files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from typing import Any

import ffmpeg
import numpy as np
import torch
from torch import Tensor

from miniature.world.film import Film, FilmPlan, World, plan_film
from pipelines.media.process import Deadline, run
from soundcap.inputs import END_OF_TURN, IGNORED_LABEL, prepare_inputs
from soundcap.pretrained import CaptionProcessor, load_processor
from soundcap.request import CaptionRequest, FrameSettings

FRAMES = FrameSettings(fps=2.0, min_px=3136, max_px=16_384)
"""Frames of a clip, those of configs/demo.yaml."""
RECORDED_HZ, AUDIO_HZ = 44_100, 16_000
AAC_BIT_RATE, AAC_DEADLINE_S = "128k", 60.0
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
    raw = {"format": "f32le", "ac": 1}
    coding = {"c:a": "aac", "b:a": AAC_BIT_RATE}
    encode = ffmpeg.input("pipe:", ar=hz, **raw).output("pipe:", format="adts", **coding)
    coded = _piped(encode, samples.astype("<f4").tobytes())
    trimmed = ffmpeg.input("pipe:", format="aac").filter("atrim", start_sample=AAC_PRIMING_SAMPLES)
    decoded = np.frombuffer(_piped(trimmed.output("pipe:", ar=to_hz, **raw), coded), "<f4")
    return np.resize(decoded, round(len(samples) * to_hz / hz)).copy()


def _piped(stream: object, data: bytes) -> bytes:
    argv = [*ffmpeg.compile(stream), "-v", "error"]
    done = run(argv, subject="a film's sound", deadline=Deadline(AAC_DEADLINE_S), stdin=data)
    if done.returncode != 0:
        raise RuntimeError(f"ffmpeg could not encode a film's sound: {done.stderr}")
    return done.stdout


def prepare_films(
    checkpoint: str, world: World, seed: int, numbers: Iterable[int], *, workers: int
) -> list[FilmInputs]:
    """Inputs of films of the train split, for the model of a checkpoint."""
    jobs = [(checkpoint, world, seed, number) for number in numbers]
    if workers == 1:
        return [_prepare(job) for job in jobs]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_prepare, jobs, chunksize=32))


def _prepare(job: tuple[str, World, int, int]) -> FilmInputs:
    checkpoint, world, seed, number = job
    torch.multiprocessing.set_sharing_strategy("file_system")  # type: ignore[no-untyped-call]  # thousands come back
    return prepare_film(_processor(checkpoint), world, plan_film(world, seed, "train", number))


@cache
def _processor(checkpoint: str) -> CaptionProcessor:
    return load_processor(checkpoint)


def prepare_film(processor: CaptionProcessor, world: World, plan: FilmPlan) -> FilmInputs:
    """Inputs of one film, for any prompt."""
    request = caption_request(world, plan, "x", hears=processor.family.hears)
    limits = {"min_frame_px": FRAMES.min_px, "max_frame_px": FRAMES.max_px}
    inputs = prepare_inputs(processor, [request], answers=None, **limits)
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


def _row(processor: CaptionProcessor, film: FilmInputs | None, prompt: str, answer: str) -> tuple[Tensor, Tensor, int]:
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
