"""What is true of one frame of a film, in words: sentences about the instant and captions about the whole.

A statement is a short string such as "a ball: on the floor". A sentence claims some statements and fits every frame
of which all of them are true, so that a batch knows which of its sentences fit which of its frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.miniature.language import noises, sound_caption, visible_caption
from pipelines.miniature.world.film import Film, FilmPlan
from pipelines.miniature.world.objects import Ball, Engine, SoundingObject, since

CAPTION_SHARE = 0.25
"""Of sentences drawn by lot: captions of the whole film, one half of what is heard, the other of what is seen."""


@dataclass(frozen=True, slots=True)
class Part:
    """One object at one moment."""

    name: str
    """"a ball"."""
    side: str
    states: tuple[str, ...]
    """What its parts do; never empty."""

    def statements(self) -> set[str]:
        """All that can be said of it."""
        return {self.name, f"{self.name} {self.side}", *(f"{self.name}: {state}" for state in self.states)}


@dataclass(frozen=True, slots=True)
class Sentence:
    """A text and what it claims."""

    text: str
    claims: frozenset[str]


@dataclass(frozen=True, slots=True)
class Moment:
    """One frame's truth."""

    place: str
    parts: tuple[Part, ...]
    captions: tuple[Sentence, ...]
    """What may be said of the whole film."""
    statements: frozenset[str]
    """All that is true."""


def moment(film: Film, t_s: float) -> Moment:
    """What the frame at t_s shows."""
    plan = film.plan
    shown_s = 0.0 if plan.still else t_s
    parts = tuple(
        Part(f"{'an' if one.kind == 'engine' else 'a'} {one.kind}", _side(one.x), STATES[one.kind](what, shown_s))
        for one, what in zip(plan.seen, film.objects, strict=True)
    )
    captions = (Sentence(sound_caption(plan), _heard(plan)), Sentence(visible_caption(plan), _seen(plan)))
    place = f"in a {plan.place}" if plan.place in ("room", "kitchen", "forest") else f"on a {plan.place}"
    statements = {place}.union(*(part.statements() for part in parts), *(caption.claims for caption in captions))
    return Moment(place, parts, captions, frozenset(statements))


def full_sentence(now: Moment) -> Sentence:
    """All that can be said of the instant."""
    clauses = [(part, f"{part.name} {part.side}", part.states) for part in now.parts]
    return _sentence(clauses, now.place)


def random_sentence(now: Moment, rng: np.random.Generator) -> Sentence:
    """A true sentence of the instant with some details left out, or a caption of the film."""
    if rng.random() < CAPTION_SHARE:
        return now.captions[rng.integers(len(now.captions))]
    order = rng.permutation(len(now.parts))[: 1 if rng.random() < 0.3 else None]
    clauses = []
    for part in (now.parts[k] for k in order):
        lot = rng.random()
        states = part.states if lot < 0.7 else (part.states[rng.integers(len(part.states))],) if lot < 0.9 else ()
        clauses.append((part, f"{part.name} {part.side}" if rng.random() < 0.6 else part.name, states))
    return _sentence(clauses, now.place if rng.random() < 0.5 else None)


def fits(moments: Sequence[Moment], sentences: Sequence[Sentence]) -> np.ndarray:
    """(moments, sentences) bool: whether all that the sentence claims is true of the moment."""
    return np.array([[one.claims <= now.statements for one in sentences] for now in moments])


def _sentence(clauses: Sequence[tuple[Part, str, tuple[str, ...]]], place: str | None) -> Sentence:
    texts = [f"{name}, {' and '.join(states)}" if states else name for _, name, states in clauses]
    claims = {name for _, name, _ in clauses} | {part.name for part, _, _ in clauses}
    claims |= {f"{part.name}: {state}" for part, _, states in clauses for state in states}
    return Sentence(
        "; ".join(texts) + (f", {place}" if place else "") + ".", frozenset(claims | ({place} if place else set()))
    )


def _heard(plan: FilmPlan) -> frozenset[str]:
    kinds = {*plan.sounding, *noises(plan)} | ({plan.off_screen} if plan.off_screen else set())
    return frozenset(f"heard: {kind}" for kind in kinds)


def _seen(plan: FilmPlan) -> frozenset[str]:
    moves = {True: "in motion", False: "at rest"}
    return frozenset(
        {f"seen {plan.place}"}
        | {f"seen {one.kind} {moves[one.start_s is not None and not plan.still]} {_side(one.x)}" for one in plan.seen}
    )


def _side(x: float) -> str:
    return "on the left" if x < 1 / 3 else "on the right" if x > 2 / 3 else "in the middle"


def _first_above(value: float, names: Sequence[tuple[float, str]], beyond: str) -> str:
    """The name of the first limit that value is below."""
    return next((name for limit, name in names if value < limit), beyond)


def _ball(ball: SoundingObject, t_s: float) -> tuple[str, ...]:
    assert isinstance(ball, Ball)
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


def _engine(engine: SoundingObject, t_s: float) -> tuple[str, ...]:
    assert isinstance(engine, Engine)
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


STATES: dict[str, Callable[[SoundingObject, float], tuple[str, ...]]] = {
    "ball": _ball,
    "bell": _bell,
    "tap": _tap,
    "engine": _engine,
    "siren": _siren,
    "drum": _drum,
}
"""What each kind of object may be seen doing."""
