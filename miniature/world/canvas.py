"""Anti-aliased drawing on a small picture: each shape is a signed distance, blended over half a pixel."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import numpy as np

Colour = tuple[float, float, float]
"""Red, green, blue in [0, 1]."""
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Canvas:
    """Picture to draw on: `image` is (H, W, 3) float32 in [0, 1]; x to the right, y down, in pixels."""

    def __init__(self, background: np.ndarray) -> None:
        self.image = background.copy()
        self.scale, self.left, self.top = 1.0, 0.0, 0.0

    def placed(self, scale: float, left: float, top: float) -> Canvas:
        """The same picture in other coordinates: a shape at (x, y) appears at (left, top) + scale (x, y)."""
        view = copy(self)
        view.scale, view.left, view.top = scale, left, top
        return view

    def disc(self, x: float, y: float, radius: float, colour: Colour, alpha: float = 1.0) -> None:
        def distance(px: np.ndarray, py: np.ndarray) -> np.ndarray:
            return np.asarray(np.hypot(px - x, py - y) - radius)

        reach = radius + 1
        self._blend(x - reach, y - reach, x + reach, y + reach, colour, alpha, distance)

    def ellipse(self, x: float, y: float, half_w: float, half_h: float, colour: Colour, alpha: float = 1.0) -> None:
        """Filled ellipse with level axes."""

        def distance(px: np.ndarray, py: np.ndarray) -> np.ndarray:
            radius = np.hypot((px - x) / half_w, (py - y) / half_h)
            return (radius - 1) * min(half_w, half_h)

        self._blend(x - half_w - 1, y - half_h - 1, x + half_w + 1, y + half_h + 1, colour, alpha, distance)

    def ring(
        self, x: float, y: float, half_w: float, half_h: float, width: float, colour: Colour, alpha: float = 1.0
    ) -> None:
        """Outline of an ellipse, `width` pixels wide at its narrow side."""
        narrow = min(half_w, half_h)

        def distance(px: np.ndarray, py: np.ndarray) -> np.ndarray:
            radius = np.hypot((px - x) / half_w, (py - y) / half_h)
            return np.asarray(np.abs((radius - 1) * narrow) - width / 2)

        reach_x, reach_y = half_w + width + 1, half_h + width + 1
        self._blend(x - reach_x, y - reach_y, x + reach_x, y + reach_y, colour, alpha, distance)

    def line(
        self, x0: float, y0: float, x1: float, y1: float, width: float, colour: Colour, alpha: float = 1.0
    ) -> None:
        """Line with round ends."""
        dx, dy = x1 - x0, y1 - y0
        squared = dx * dx + dy * dy or 1.0

        def distance(px: np.ndarray, py: np.ndarray) -> np.ndarray:
            along = np.clip(((px - x0) * dx + (py - y0) * dy) / squared, 0, 1)
            return np.hypot(px - x0 - along * dx, py - y0 - along * dy) - width / 2

        reach = width / 2 + 1
        left, right, top, bottom = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
        self._blend(left - reach, top - reach, right + reach, bottom + reach, colour, alpha, distance)

    def box(
        self, x: float, y: float, half_w: float, half_h: float, colour: Colour, *, turn: float = 0.0, alpha: float = 1.0
    ) -> None:
        """Filled rectangle around (x, y), turned clockwise by `turn` radians."""
        cos, sin = np.cos(turn), np.sin(turn)

        def distance(px: np.ndarray, py: np.ndarray) -> np.ndarray:
            across = np.abs((px - x) * cos + (py - y) * sin) - half_w
            down = np.abs(-(px - x) * sin + (py - y) * cos) - half_h
            return np.asarray(np.maximum(across, down))

        reach = np.hypot(half_w, half_h) + 1
        self._blend(x - reach, y - reach, x + reach, y + reach, colour, alpha, distance)

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        return np.asarray(np.clip(self.image, 0, 1) * 255 + 0.5).astype(np.uint8)

    def _blend(
        self, left: float, top: float, right: float, bottom: float, colour: Colour, alpha: float, distance: Distance
    ) -> None:
        """Paint where `distance` (signed, of pixel coordinates) is negative, inside a bounding box."""
        reach = 1 / self.scale  # the blended border is a pixel wide in whatever coordinates
        x0, x1 = self._span(self.left, left - reach, right + reach, self.image.shape[1])
        y0, y1 = self._span(self.top, top - reach, bottom + reach, self.image.shape[0])
        if x0 >= x1 or y0 >= y1 or alpha <= 0:
            return
        px = ((np.arange(x0, x1, dtype=np.float32) + 0.5 - self.left) / self.scale)[None, :]
        py = ((np.arange(y0, y1, dtype=np.float32) + 0.5 - self.top) / self.scale)[:, None]
        cover = (np.clip(0.5 - self.scale * distance(px, py), 0, 1) * min(alpha, 1.0))[..., None]
        patch = self.image[y0:y1, x0:x1]
        patch += cover * (np.asarray(colour, np.float32) - patch)

    def _span(self, origin: float, low: float, high: float, limit: int) -> tuple[int, int]:
        """First and last + 1 of the pixels from low to high."""
        return max(0, int(origin + self.scale * low)), min(limit, int(origin + self.scale * high) + 1)
