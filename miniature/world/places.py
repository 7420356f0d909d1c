"""Backgrounds of the films, and the off-screen sound that belongs to each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from miniature.world import sounds
from miniature.world.canvas import Canvas, Colour

WIDTH_PX, HEIGHT_PX = 160, 120


def _tinted(colour: Colour, rng: np.random.Generator) -> Colour:
    """The colour as another lamp, camera and day show it."""
    red, green, blue = (float(np.clip(part * rng.uniform(0.85, 1.15), 0, 1)) for part in colour)
    return red, green, blue


def _ground(wall: Colour, floor: Colour, rng: np.random.Generator) -> Canvas:
    """A wall that darkens upwards, a floor that lightens to the viewer, a little paint texture."""
    horizon = rng.uniform(0.66, 0.74)
    wall, floor = _tinted(wall, rng), _tinted(floor, rng)
    y = (np.arange(HEIGHT_PX, dtype=np.float32) / HEIGHT_PX)[:, None, None]
    shade = np.where(y < horizon, 0.7 + 0.3 * y / horizon, 0.75 + 0.35 * (y - horizon) / (1 - horizon))
    paint = np.where(y < horizon, np.asarray(wall, np.float32), np.asarray(floor, np.float32))
    texture = rng.normal(0, 0.012, (HEIGHT_PX, WIDTH_PX, 1)).astype(np.float32)
    return Canvas(np.clip(shade * paint + texture, 0, 1).astype(np.float32))


def bare_room(rng: np.random.Generator) -> np.ndarray:
    return _ground((0.72, 0.66, 0.62), (0.55, 0.45, 0.38), rng).image


def forest(rng: np.random.Generator) -> np.ndarray:
    """Trees close by and far off."""
    picture = _ground((0.55, 0.75, 0.6), (0.3, 0.42, 0.2), rng)
    for x in np.sort(rng.uniform(0, WIDTH_PX, 7)):
        picture.box(x, 55, 3.5, 42, (0.32, 0.22, 0.14))
        picture.ellipse(x, 16 + rng.uniform(-6, 6), 20, 22, _tinted((0.16, 0.45, 0.18), rng), 0.9)
    return picture.image


def beach(rng: np.random.Generator) -> np.ndarray:
    """Dunes, a sunshade and much sky; the sea lies behind the viewer."""
    picture = _ground((0.55, 0.78, 0.95), (0.93, 0.85, 0.6), rng)
    x = rng.uniform(15, WIDTH_PX - 15)
    picture.disc(rng.uniform(10, WIDTH_PX - 10), 16, 9, (1.0, 0.95, 0.5))
    picture.line(x, 40, x, 95, 3, (0.9, 0.9, 0.9))
    picture.ellipse(x, 42, 24, 9, (0.95, 0.4, 0.35))
    picture.ellipse(x, 44, 9, 9, (0.98, 0.98, 0.95))
    return picture.image


def street(rng: np.random.Generator) -> np.ndarray:
    """House fronts with lit windows."""
    picture = _ground((0.45, 0.47, 0.55), (0.3, 0.3, 0.32), rng)
    for x in np.arange(rng.uniform(0, 14), WIDTH_PX, 26).tolist():
        top = rng.uniform(2, 22)
        picture.box(x, (top + 80) / 2, 11.5, (80 - top) / 2, _tinted((0.5, 0.3, 0.28), rng))
        for y in np.arange(top + 8, 74, 15).tolist():
            for side in (-5, 5):
                picture.box(x + side, y, 2.6, 4, (0.98, 0.88, 0.5) if rng.random() < 0.6 else (0.15, 0.17, 0.25))
    return picture.image


def kitchen(rng: np.random.Generator) -> np.ndarray:
    """White tiles and a blue cupboard."""
    picture = _ground((0.9, 0.92, 0.94), (0.62, 0.5, 0.42), rng)
    for x in np.arange(0.0, WIDTH_PX, 12).tolist():
        picture.line(x, 0, x, 82, 1, (0.7, 0.74, 0.78))
    for y in np.arange(4.0, 82, 12).tolist():
        picture.line(0, y, WIDTH_PX, y, 1, (0.7, 0.74, 0.78))
    x, blue = rng.uniform(25, WIDTH_PX - 25), _tinted((0.25, 0.4, 0.7), rng)
    picture.box(x, 14, 24, 15, blue)
    picture.disc(x - 3, 18, 2, (0.95, 0.9, 0.8))
    return picture.image


Layer = Callable[[float, int, np.random.Generator], np.ndarray]

OFF_SCREEN: dict[str, Layer] = {
    "birds": sounds.birds,
    "waves": sounds.waves,
    "traffic": sounds.traffic,
    "clock": sounds.clock,
}
"""Sounds from outside the picture."""

PLACES: dict[str, tuple[Callable[[np.random.Generator], np.ndarray], str | None]] = {
    "room": (bare_room, None),
    "forest": (forest, "birds"),
    "beach": (beach, "waves"),
    "street": (street, "traffic"),
    "kitchen": (kitchen, "clock"),
}
"""Background painter of each place, and the sound of `OFF_SCREEN` that belongs to it."""
