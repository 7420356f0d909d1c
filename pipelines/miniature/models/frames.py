"""Frames of many films in memory, at the encoders' size, with what each shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipelines.miniature.models.moments import Moment, moment
from pipelines.miniature.world.film import Film, Split, World, plan_film
from pipelines.progress import Progress

IMAGE_PX = 64
NEAR_S = 0.2


@dataclass(frozen=True)
class Frames:
    """The same number of frames of each film."""

    films: list[Film]
    times_s: np.ndarray
    """(films, frames)."""
    pixels: np.ndarray
    """(films, frames, IMAGE_PX, IMAGE_PX, 3) uint8."""
    moments: list[list[Moment]]


def render(
    seed: int, split: Split, numbers: Iterable[int], times: Callable[[Film], np.ndarray], say: Callable[[str], None]
) -> Frames:
    """The films' frames at the times (frames,) chosen for each."""
    world, processor = World(), image_processor()
    films = [Film(world, plan_film(world, seed, split, number)) for number in numbers]
    times_s = np.stack([times(film) for film in films])
    progress = Progress("encoders: drawing frames", times_s.size, "frames", say)
    pixels, moments = [], []
    for film, at in zip(films, times_s, strict=True):
        shown = torch.from_numpy(film.frames(list(at))).permute(0, 3, 1, 2)
        resized = processor(list(shown), do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
        pixels.append(resized.permute(0, 2, 3, 1).to(torch.uint8).numpy())
        moments.append([moment(film, float(t_s)) for t_s in at])
        progress.advance(len(at))
    progress.finish()
    return Frames(films, times_s, np.stack(pixels), moments)


def often_near_events(film: Film, *, frames: int) -> np.ndarray:
    """Times (frames,): half of them anywhere, half close to events, where pictures change fast."""
    rng = np.random.default_rng([*film.plan.seed, 4])
    times_s = rng.uniform(0, film.world.duration_s, frames)
    events = [event_s for what in film.objects for event_s in what.times]
    if events:
        near = frames // 2
        times_s[:near] = rng.choice(events, near) + rng.uniform(-NEAR_S, NEAR_S, near)
    return np.clip(times_s, 0, film.world.duration_s)


def evenly(film: Film, *, fps: float) -> np.ndarray:
    """Times of all frames of the film at fps, from an arbitrary moment within the first on."""
    first_s = np.random.default_rng([*film.plan.seed, 4]).uniform(0, 1 / fps)
    return np.asarray(first_s + np.arange(int(film.world.duration_s * fps)) / fps)


def image_processor() -> Any:
    """The whole picture, its sides squeezed to IMAGE_PX: a crop would cut off what happens at the border."""
    from transformers import CLIPImageProcessor

    size = {"height": IMAGE_PX, "width": IMAGE_PX}
    return CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)
