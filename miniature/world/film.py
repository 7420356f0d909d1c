"""Synthetic films: the world that they are sampled from, the plan of each, its frames and its sound."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from miniature.world.canvas import Canvas
from miniature.world.objects import FLOOR, MIDDLE, OBJECTS, SoundingObject
from miniature.world.places import HEIGHT_PX, OFF_SCREEN, PLACES, WIDTH_PX
from miniature.world.sounds import Voice, music, narration

Split = Literal["train", "test"]
SECOND_START_S = 1.0
"""The second of two objects begins so much later, so that their order can be heard and seen."""


@dataclass(frozen=True, slots=True)
class World:
    """Distribution of films; its shares are probabilities. Raises ValueError for a value out of range."""

    duration_s: float = 4.0
    """At least 2 s: in less, nothing might happen."""
    objects: tuple[str, ...] = tuple(OBJECTS)
    """Kinds that occur: the fewer, the more alike the events."""
    two_sounding: float = 0.4
    """Two objects sound, one after the other."""
    resting: float = 0.3
    """One object sounds; another is seen, still and silent."""
    moving_silent: float = 0.0
    """A second object moves but is not heard, as in a dubbed film."""
    place_heard: float = 0.85
    """The sound that belongs to a place is heard there."""
    odd_place: float = 0.0
    """The off-screen sound is uniformly random, whatever the place."""
    music: float = 0.25
    narration: float = 0.25
    still: float = 0.04
    """The picture is a photograph: the first frame, for all the film."""
    out_of_sync: float = 0.0
    """The sound comes up to half a second early or late."""
    voice: Voice = "synthetic"

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in ("objects", "voice"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} is {value!r}, wanted a number")
            if name != "duration_s" and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, wanted a share within [0, 1]")
        if not 2 <= self.duration_s < np.inf:
            raise ValueError(f"duration_s is {self.duration_s:g}, wanted at least 2 s for things to happen")
        kinds = list(self.objects)
        if not kinds or any(kinds.count(kind) > 1 or kind not in [*OBJECTS] for kind in kinds):
            raise ValueError(f"objects are {kinds}, wanted some of {', '.join(OBJECTS)}, each once")
        if self.voice not in get_args(Voice):
            raise ValueError(f"voice is {self.voice!r}, wanted one of {', '.join(get_args(Voice))}")
        if self.two_sounding + self.resting > 1:
            together = f"two_sounding {self.two_sounding} and resting {self.resting}"
            raise ValueError(f"{together} exclude each other: wanted at most 1 together")


@dataclass(frozen=True, slots=True)
class Seen:
    """Object in the picture."""

    kind: str
    x: float
    """Middle in the picture's width, [0, 1]."""
    scale: float
    start_s: float | None
    """Start of its sound; None if it never sounds."""
    heard: bool


@dataclass(frozen=True, slots=True)
class FilmPlan:
    """Content of one film, decided before anything is rendered."""

    seed: tuple[int, ...]
    """Seed of the film's own random numbers."""
    place: str
    seen: tuple[Seen, ...]
    """In the order in which they begin; one that never does comes last."""
    off_screen: str | None
    noise: str | None
    """"music", "narration" or "music and narration", added when the film was edited; None if nothing was."""
    still: bool
    offset_s: float
    """Delay of the sound."""

    @property
    def label(self) -> str:
        """Label of its first object, as the corpus's CSV has it."""
        return OBJECTS[self.seen[0].kind].LABEL

    @property
    def sounding(self) -> tuple[str, ...]:
        """Kinds in the picture that are heard, in order."""
        return tuple(one.kind for one in self.seen if one.heard)

    def moves(self, one: Seen) -> bool:
        """True where an object of the film is seen in motion."""
        return one.start_s is not None and not self.still

    @property
    def noises(self) -> tuple[str, ...]:
        return split_noise(self.noise)


def split_noise(noise: str | None) -> tuple[str, ...]:
    """Kinds in `FilmPlan.noise`, as truth.json has it too."""
    return tuple(noise.split(" and ")) if noise else ()


def plan_film(world: World, seed: int, split: Split, number: int) -> FilmPlan:
    """Film `number` of a split; the splits share no seed."""
    key = (seed, get_args(Split).index(split), number)
    rng = np.random.default_rng(key)
    place = str(rng.choice(list(PLACES)))
    lot, first_s = rng.random(), float(rng.uniform(0.25, 0.7))
    first, second = world.objects[number % len(world.objects)], str(rng.choice(world.objects))
    if len(world.objects) > 1:
        while second == first:
            second = str(rng.choice(world.objects))
    if lot >= world.two_sounding + world.resting:
        seen = [Seen(first, float(rng.uniform(0.4, 0.6)), float(rng.uniform(0.75, 0.95)), first_s, True)]
    else:
        left_first = rng.random() < 0.5
        xs = [float(rng.uniform(0.24, 0.28)), float(rng.uniform(0.72, 0.76))][:: 1 if left_first else -1]
        late_s = first_s + SECOND_START_S + float(rng.uniform(0, 0.3 * world.duration_s))
        dubbed = rng.random() < world.moving_silent
        resting = lot >= world.two_sounding
        start_s = None if resting and not dubbed else min(late_s, world.duration_s - 0.7)
        scales = rng.uniform(0.56, 0.64, 2)
        seen = [
            Seen(first, xs[0], float(scales[0]), first_s, True),
            Seen(second, xs[1], float(scales[1]), start_s, start_s is not None and not dubbed),
        ]
    off_screen = PLACES[place][1] if rng.random() < world.place_heard else None
    if rng.random() < world.odd_place:
        off_screen = [*OFF_SCREEN, None][rng.integers(len(OFF_SCREEN) + 1)]
    noise = [name for name in ("music", "narration") if rng.random() < getattr(world, name)]
    offset_s = float(rng.choice([-1, 1]) * rng.uniform(0.15, 0.5)) if rng.random() < world.out_of_sync else 0.0
    return FilmPlan(
        key, place, tuple(seen), off_screen, " and ".join(noise) or None, bool(rng.random() < world.still), offset_s
    )


class Film:
    """Film rendered from its plan, at any frame rate and sampling rate."""

    def __init__(self, world: World, plan: FilmPlan) -> None:
        self.world, self.plan = world, plan
        rng = np.random.default_rng([*plan.seed, 1])
        self.background = PLACES[plan.place][0](rng)
        self.objects: list[SoundingObject] = [
            OBJECTS[one.kind](rng, world.duration_s, one.start_s) for one in plan.seen
        ]

    @property
    def events_s(self) -> np.ndarray:
        """Sorted times at which something is both seen and heard."""
        heard = [what.times for one, what in zip(self.plan.seen, self.objects, strict=True) if one.heard]
        return np.unique(np.concatenate([np.asarray(times, float) for times in heard]))

    def frames(self, times_s: Sequence[float]) -> np.ndarray:
        """(T, 120, 160, 3) uint8, at those times."""
        if self.plan.still:
            return np.stack([self._frame(0.0)] * len(times_s))
        return np.stack([self._frame(time_s) for time_s in times_s])

    def _frame(self, t_s: float) -> np.ndarray:
        canvas = Canvas(self.background)
        for one, what in zip(self.plan.seen, self.objects, strict=True):
            floor = 0.94 * HEIGHT_PX
            view = canvas.placed(one.scale, WIDTH_PX * one.x - one.scale * MIDDLE, floor - one.scale * FLOOR)
            what.draw(view, t_s)
        return canvas.pixels()

    def sound(self, hz: int, *, stereo: bool) -> np.ndarray:
        """(N, 1 or 2) samples in [-1, 1]: objects panned to where they are seen, all else centred, faint hiss."""
        duration_s, rng = self.world.duration_s, np.random.default_rng([*self.plan.seed, 2])
        n = round(duration_s * hz)
        track = np.zeros((n, 2 if stereo else 1))
        # Copies: objects draw noise from their random numbers, and a film sounds the same however often it is heard.
        for one, what in zip(self.plan.seen, deepcopy(self.objects), strict=True):
            if one.heard:
                gains = np.sqrt(2 * np.array([1 - one.x, one.x])) if stereo else np.ones(1)
                track += _level(what.sound(duration_s, hz), 0.45)[:, None] * gains
        if self.plan.off_screen is not None:
            track += _level(OFF_SCREEN[self.plan.off_screen](duration_s, hz, rng), rng.uniform(0.12, 0.2))[:, None]
        for name in self.plan.noises:
            layer = music(duration_s, hz, rng) if name == "music" else narration(self.world.voice, duration_s, hz, rng)
            track += _level(layer, rng.uniform(0.15, 0.25))[:, None]
        late = round(self.plan.offset_s * hz)
        shifted = np.zeros_like(track)
        shifted[max(0, late) : n + min(0, late)] = track[max(0, -late) : n - max(0, late)]
        return np.asarray(np.clip(shifted + rng.normal(0, 0.0015, shifted.shape), -1, 1))

    def truth(self) -> dict[str, Any]:
        """The plan as plain data, with the times of every object's events."""
        seen = [
            asdict(one) | {"event": what.EVENT, "times_s": what.times}
            for one, what in zip(self.plan.seen, self.objects, strict=True)
        ]
        return asdict(self.plan) | {"seen": seen, "duration_s": self.world.duration_s}


def _level(samples: np.ndarray, peak: float) -> np.ndarray:
    return np.asarray(peak * samples / max(np.abs(samples).max(), 1e-9))
