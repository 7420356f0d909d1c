"""Frames of films as the encoders' training data, with the statements that are true of each.

A statement is a short string such as "a ball: on the floor". A sentence claims some statements and fits every frame
of which all of them are true, so that a batch knows which of its sentences fit which of its frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from miniature.language import motion_in_words, sound_caption, visible_caption
from miniature.models.training import Say, with_progress
from miniature.world.film import Film, FilmPlan, Split, World, plan_film
from miniature.world.objects import Ball, Engine, SoundingObject, since

IMAGE_PX = 64
NEAR_S = 0.2
CAPTION_SHARE = 0.25
"""Share of random sentences that are captions of the film, half of them of its sound, half of its picture."""


@dataclass(frozen=True, slots=True)
class ObjectState:
    """Object in one frame."""

    name: str
    """"a ball"."""
    side: str
    states: tuple[str, ...]
    """States of what moves on it; never empty."""

    def statements(self) -> set[str]:
        return {self.name, f"{self.name} {self.side}", *(f"{self.name}: {state}" for state in self.states)}


@dataclass(frozen=True, slots=True)
class Sentence:
    """Text and the statements that it claims."""

    text: str
    claims: frozenset[str]


@dataclass(frozen=True, slots=True)
class FrameTruth:
    """Content of one frame."""

    place: str
    objects: tuple[ObjectState, ...]
    captions: tuple[Sentence, ...]
    """True captions of the whole film."""
    statements: frozenset[str]
    """All that is true of the frame."""


@dataclass(frozen=True)
class Frames:
    """Frames of films, the same number of each."""

    films: list[Film]
    times_s: np.ndarray
    """(films, frames)."""
    pixels: np.ndarray
    """(films, frames, IMAGE_PX, IMAGE_PX, 3) uint8."""
    truths: list[list[FrameTruth]]


def render(seed: int, split: Split, numbers: Iterable[int], times: Callable[[Film], np.ndarray], say: Say) -> Frames:
    """Frames of some films, each at the times (frames,) that `times` chooses for it."""
    world, processor = World(), image_processor()
    films = [Film(world, plan_film(world, seed, split, number)) for number in numbers]
    times_s = np.stack([times(film) for film in films])
    pixels, truths = [], []
    for film, at in with_progress(list(zip(films, times_s, strict=True)), "encoders: drawing frames", "films", say):
        full_size = torch.from_numpy(film.frames(list(at))).permute(0, 3, 1, 2)
        resized = processor(list(full_size), do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
        pixels.append(resized.permute(0, 2, 3, 1).to(torch.uint8).numpy())
        truths.append([describe_frame(film, float(t_s)) for t_s in at])
    return Frames(films, times_s, np.stack(pixels), truths)


def often_near_events(film: Film, *, frames: int) -> np.ndarray:
    """Random times (frames,): half of them uniform, half close to events, where pictures change fast."""
    rng = np.random.default_rng([*film.plan.seed, 4])
    times_s = rng.uniform(0, film.world.duration_s, frames)
    events = [event_s for what in film.objects for event_s in what.times]
    if events:
        near = frames // 2
        times_s[:near] = rng.choice(events, near) + rng.uniform(-NEAR_S, NEAR_S, near)
    return np.clip(times_s, 0, film.world.duration_s)


def evenly(film: Film, *, fps: float) -> np.ndarray:
    """Times of all frames of the film at fps, the first at a random time within 1 / fps."""
    first_s = np.random.default_rng([*film.plan.seed, 4]).uniform(0, 1 / fps)
    return np.asarray(first_s + np.arange(int(film.world.duration_s * fps)) / fps)


def image_processor() -> Any:
    """Preprocessor that squeezes the whole picture to IMAGE_PX: a crop would cut off what happens at the border."""
    from transformers import CLIPImageProcessor

    size = {"height": IMAGE_PX, "width": IMAGE_PX}
    return CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)


def describe_frame(film: Film, t_s: float) -> FrameTruth:
    plan = film.plan
    at_s = 0.0 if plan.still else t_s
    objects = tuple(
        ObjectState(f"{'an' if one.kind == 'engine' else 'a'} {one.kind}", _side(one.x), STATES[one.kind](what, at_s))
        for one, what in zip(plan.seen, film.objects, strict=True)
    )
    captions = (Sentence(sound_caption(plan), _heard(plan)), Sentence(visible_caption(plan), _seen(plan)))
    place = f"in a {plan.place}" if plan.place in ("room", "kitchen", "forest") else f"on a {plan.place}"
    statements = {place}.union(*(one.statements() for one in objects), *(caption.claims for caption in captions))
    return FrameTruth(place, objects, captions, frozenset(statements))


def full_sentence(now: FrameTruth) -> Sentence:
    """Sentence that claims all that is true of the instant."""
    clauses = [(part, f"{part.name} {part.side}", part.states) for part in now.objects]
    return _sentence(clauses, now.place)


def random_sentence(now: FrameTruth, rng: np.random.Generator) -> Sentence:
    """Random true sentence of the instant with some details left out, or a caption of the film."""
    if rng.random() < CAPTION_SHARE:
        return now.captions[rng.integers(len(now.captions))]
    order = rng.permutation(len(now.objects))[: 1 if rng.random() < 0.3 else None]
    clauses = []
    for part in (now.objects[k] for k in order):
        detail = rng.random()
        states = part.states if detail < 0.7 else (part.states[rng.integers(len(part.states))],) if detail < 0.9 else ()
        clauses.append((part, f"{part.name} {part.side}" if rng.random() < 0.6 else part.name, states))
    return _sentence(clauses, now.place if rng.random() < 0.5 else None)


def fits(truths: Sequence[FrameTruth], sentences: Sequence[Sentence]) -> np.ndarray:
    """(frames, sentences) bool: True where all that the sentence claims is true of the frame."""
    return np.array([[one.claims <= now.statements for one in sentences] for now in truths])


def _sentence(clauses: Sequence[tuple[ObjectState, str, tuple[str, ...]]], place: str | None) -> Sentence:
    texts = [f"{name}, {' and '.join(states)}" if states else name for _, name, states in clauses]
    claims = {name for _, name, _ in clauses} | {part.name for part, _, _ in clauses}
    claims |= {f"{part.name}: {state}" for part, _, states in clauses for state in states}
    return Sentence(
        "; ".join(texts) + (f", {place}" if place else "") + ".", frozenset(claims | ({place} if place else set()))
    )


def _heard(plan: FilmPlan) -> frozenset[str]:
    kinds = {*plan.sounding, *plan.noises} | ({plan.off_screen} if plan.off_screen else set())
    return frozenset(f"heard: {kind}" for kind in kinds)


def _seen(plan: FilmPlan) -> frozenset[str]:
    return frozenset(
        {f"seen {plan.place}"} | {f"seen {one.kind} {motion_in_words(plan, one)} {_side(one.x)}" for one in plan.seen}
    )


def _side(x: float) -> str:
    return "on the left" if x < 1 / 3 else "on the right" if x > 2 / 3 else "in the middle"


def _first_above(value: float, names: Sequence[tuple[float, str]], beyond: str) -> str:
    """Name of the first limit that value is below."""
    return next((name for limit, name in names if value < limit), beyond)


def _ball(ball: Ball, t_s: float) -> tuple[str, ...]:
    if not ball.times:
        return ("lying there",)
    before, after = since(ball.times, t_s)
    if np.isinf(after):  # it would land after the film's end
        after = max(0.0, ball.falls_s[-1] - before)
    heights = ((0.02, "touching the floor"), (0.06, "just off the floor"), (0.12, "low"), (0.2, "halfway up"))
    return (_first_above(min(before, after), heights, "high in the air"),)


def _bell(bell: SoundingObject, t_s: float) -> tuple[str, ...]:
    before, after = since(bell.times, t_s)
    blow = ((0.02, "about to be hit"), (0.05, "hammer close"), (0.1, "hammer swinging at it"))
    if after < 0.1:
        return (_first_above(after, blow, ""),)
    rung = ((0.04, "hit now and flashing"), (0.1, "just hit and shining"), (0.2, "hammer going back, still shining"),
            (0.4, "swinging and dim"))  # fmt: skip
    return (_first_above(before, rung, "hammer waiting"),)


def _tap(tap: SoundingObject, t_s: float) -> tuple[str, ...]:
    before, after = since(tap.times, t_s)
    drop = ((0.04, "drop at the water"), (0.1, "drop near the water"), (0.2, "drop falling fast"),
            (0.42, "drop let go"), (0.8, "big drop hanging"), (1.1, "small drop hanging"))  # fmt: skip
    water = ((0.04, "splash beginning"), (0.15, "splash standing"), (0.3, "small rings"), (0.6, "rings"),
             (1.2, "wide rings"))  # fmt: skip
    return _first_above(after, drop, "no drop"), _first_above(before, water, "calm water")


def _engine(engine: Engine, t_s: float) -> tuple[str, ...]:
    turns = float(np.interp(t_s, engine.clock, engine.turns))
    running = bool(engine.times) and t_s > engine.times[0]
    hour = round(12 * turns + 3) % 12 or 12
    return f"spoke at {hour} o'clock", "smoking" if running else "without smoke"


def _siren(siren: SoundingObject, t_s: float) -> tuple[str, ...]:
    changes = int(np.searchsorted(siren.times, t_s, side="right"))
    return (("blue lamp lit", "red lamp lit")[1 - changes % 2] if changes else "both lamps dark",)


def _drum(drum: SoundingObject, t_s: float) -> tuple[str, ...]:
    heights = ((0.02, "down"), (0.05, "near the skin"), (0.1, "half raised"))
    return tuple(
        f"{name} stick {_first_above(min(since(drum.times[hand::2], t_s)), heights, 'raised')}"
        for hand, name in enumerate(("left", "right"))
    )


STATES: dict[str, Callable[[Any, float], tuple[str, ...]]] = {
    "ball": _ball, "bell": _bell, "tap": _tap, "engine": _engine, "siren": _siren, "drum": _drum,
}  # fmt: skip
"""Visible states of each kind of object at a time."""
