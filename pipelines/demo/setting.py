"""What the films of the corpus share: their size, their rooms, and the times at which something happens."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipelines.demo.canvas import Canvas, Colour, room

WIDTH_PX, HEIGHT_PX = 160, 120


@dataclass(frozen=True, slots=True)
class Event:
    """Something seen and heard at once."""

    time_s: float
    kind: str


class Scene(Protocol):
    """One film. `x` in [0, 1] is where its sound comes from."""

    background: np.ndarray
    events: list[Event]
    x: float

    def draw(self, canvas: Canvas, t_s: float) -> None:
        """Draw the moment t_s onto a copy of the background."""

    def sound(self, duration_s: float, hz: int) -> np.ndarray:
        """(N,) mono samples."""


def vivid(rng: np.random.Generator) -> Colour:
    """A strong colour of any hue."""
    hue = rng.uniform(0, 3)
    away = [abs((hue - k + 1.5) % 3 - 1.5) for k in range(3)]
    red, green, blue = (float(np.clip(1.5 - 1.5 * distance, 0.12, 0.95)) for distance in away)
    return red, green, blue


def scenery(rng: np.random.Generator, horizon: float, *, dark: bool = False) -> np.ndarray:
    """A room in muted colours."""
    level = 0.22 if dark else 0.72
    wall, floor = (tuple(level * (0.75 + 0.25 * np.asarray(vivid(rng)))) for _ in range(2))
    return room(WIDTH_PX, HEIGHT_PX, wall, floor, horizon, rng)


def beats(rng: np.random.Generator, duration_s: float, low_s: float, high_s: float) -> list[float]:
    """Event times with random gaps between low_s and high_s; none in the last tenth of a second."""
    times, now_s = [], float(rng.uniform(0.3, 0.8))
    while now_s < duration_s - 0.1:
        times.append(round(now_s, 4))
        now_s += float(rng.uniform(low_s, high_s))
    return times


def since(times: list[float], t_s: float) -> tuple[float, float]:
    """(seconds since the last time, seconds to the next); infinite where there is none."""
    next_one = int(np.searchsorted(times, t_s, side="right"))
    before = t_s - times[next_one - 1] if next_one else np.inf
    after = times[next_one] - t_s if next_one < len(times) else np.inf
    return float(before), float(after)
