"""Sounding objects of the films: each draws itself and synthesises its sound from the same event times.

An object draws itself in a field of 160 x 120 whose floor is at y = 112; a film places that field in its picture.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import numpy as np

from miniature.world.canvas import Canvas, Colour
from miniature.world.sounds import overtones, place

MIDDLE, FLOOR = 80.0, 112.0
BELL_PARTIALS = ((0.5, 0.6, 1.0), (1.0, 1.0, 0.8), (1.19, 0.7, 0.6), (1.56, 0.5, 0.45), (2.0, 0.6, 0.4),
                 (2.66, 0.3, 0.25), (3.01, 0.25, 0.2), (4.17, 0.15, 0.12))  # fmt: skip
"""(frequency ratio, level, decay ratio) of a church bell: hum, prime, tierce, quint, nominal and above."""


class SoundingObject(Protocol):
    """Something that is seen and may be heard."""

    EVENT: ClassVar[str]
    """Name of what happens at each of `times`."""
    LABEL: ClassVar[str]
    """Label in the corpus's CSV, in VGGSound's manner."""
    times: list[float]
    """Seconds at which it sounds; none if it rests."""

    def __init__(self, rng: np.random.Generator, duration_s: float, start_s: float | None) -> None:
        """Begins to sound about start_s, or rests for the whole film if that is None."""

    def draw(self, canvas: Canvas, t_s: float) -> None:
        """Draw the moment t_s."""

    def sound(self, duration_s: float, hz: int) -> np.ndarray:
        """(N,) mono samples; silence if it rests."""


def vivid(rng: np.random.Generator) -> Colour:
    """A strong colour of any hue."""
    hue = rng.uniform(0, 3)
    away = [abs((hue - k + 1.5) % 3 - 1.5) for k in range(3)]
    red, green, blue = (float(np.clip(1.5 - 1.5 * distance, 0.12, 0.95)) for distance in away)
    return red, green, blue


def beats(
    rng: np.random.Generator, duration_s: float, start_s: float | None, gap_s: tuple[float, float]
) -> list[float]:
    """Event times from start_s on with gaps uniform in gap_s; none in the last tenth of a second."""
    times: list[float] = []
    now_s = duration_s if start_s is None else start_s
    while now_s < duration_s - 0.1:
        times.append(round(now_s, 4))
        now_s += float(rng.uniform(*gap_s))
    return times


def since(times: list[float], t_s: float) -> tuple[float, float]:
    """(seconds since the last time, seconds to the next); infinite where there is none."""
    next_one = int(np.searchsorted(times, t_s, side="right"))
    before = t_s - times[next_one - 1] if next_one else np.inf
    after = times[next_one] - t_s if next_one < len(times) else np.inf
    return float(before), float(after)


class Ball(SoundingObject):
    """A ball, dropped, that bounces lower and lower and is thrown up again; it thumps as hard as it lands."""

    EVENT, LABEL = "bounce", "ball bouncing"
    DROP_S = 0.5

    def __init__(self, rng: np.random.Generator, duration_s: float, start_s: float | None) -> None:
        self.colour, self.rng = vivid(rng), rng
        self.radius, self.pitch_hz = rng.uniform(13, 18), rng.uniform(80, 130)
        loss, first_gap_s = rng.uniform(0.78, 0.86), rng.uniform(0.75, 0.95)
        self.times: list[float] = []
        self.falls_s: list[float] = []
        now_s, gap_s = duration_s if start_s is None else max(start_s, self.DROP_S), first_gap_s
        while now_s < duration_s - 0.1:
            self.times.append(round(now_s, 4))
            self.falls_s.append(gap_s)
            now_s += gap_s
            gap_s = gap_s * loss if gap_s * loss > 0.3 else first_gap_s

    def draw(self, canvas: Canvas, t_s: float) -> None:
        before, after = since(self.times, t_s)
        squash = 1 - 0.3 * np.exp(-min(before, after) / 0.03)
        half_h, half_w = self.radius * squash, self.radius / squash**0.5
        height = self._height(before, after)
        x, y = MIDDLE + 10 * np.sin(t_s * 0.9) * bool(self.times), FLOOR - height - half_h
        canvas.ellipse(x, FLOOR + 2, half_w * (1 - height / 200), 3, (0, 0, 0), 0.35)
        canvas.ellipse(x, y, half_w, half_h, self.colour)
        spin = t_s * 3 * bool(self.times)
        canvas.disc(x + 0.45 * half_w * np.cos(spin), y + 0.45 * half_h * np.sin(spin), 3, (1, 1, 1), 0.85)

    def _height(self, before: float, after: float) -> float:
        if np.isinf(before) and np.isinf(after):
            return 0.0
        if np.isinf(before):  # held up, then let go
            return 260.0 * (self.DROP_S**2 - max(0.0, self.DROP_S - after) ** 2)
        if np.isinf(after):  # it would land after the film's end
            after = max(0.0, self.falls_s[-1] - before)
        return 260.0 * before * after

    def sound(self, duration_s: float, hz: int) -> np.ndarray:
        """A falling low tone behind a short slap."""
        t = np.arange(round(0.35 * hz)) / hz
        tone = np.sin(2 * np.pi * self.pitch_hz * (t + 0.06 * (1 - np.exp(-t / 0.03)))) * np.exp(-t / 0.07)
        slaps = [self.rng.normal(0, 1, len(t)) * np.exp(-t / 0.006) for _ in self.times]
        hits = [fall_s * (tone + 0.35 * slap) for fall_s, slap in zip(self.falls_s, slaps, strict=True)]
        return place(list(zip(self.times, hits, strict=True)), duration_s, hz)


class Bell(SoundingObject):
    """A bell that a hammer strikes; it swings and shines for a while."""

    EVENT, LABEL = "strike", "bell ringing"

    def __init__(self, rng: np.random.Generator, duration_s: float, start_s: float | None) -> None:
        self.ring_s = rng.uniform(0.7, 1.4)
        self.pitch_hz = rng.uniform(320, 760)
        self.metal = np.array([0.78, 0.6, 0.2]) * rng.uniform(0.85, 1.1)
        self.times = beats(rng, duration_s, start_s, (0.7, 1.5))

    def draw(self, canvas: Canvas, t_s: float) -> None:
        before, after = since(self.times, t_s)
        swing = 0.0 if np.isinf(before) else 0.14 * np.sin(14 * before) * np.exp(-before / 0.5)
        glow = 0.0 if np.isinf(before) else 0.35 * np.exp(-before / 0.25)
        x, top = MIDDLE - 10, 32.0
        metal = tuple(np.clip(self.metal + glow, 0, 1))
        canvas.line(x, 0, x, top, 4, (0.25, 0.2, 0.18))
        for step in np.linspace(0, 1, 34):
            half_w = 11 + 15 * step**2.2
            y = top + 50 * step
            canvas.box(x - swing * (y - top), y, half_w, 1.5, metal, turn=swing)
        canvas.ellipse(x - swing * 52, top + 53, 27, 4, tuple(0.6 * self.metal))
        canvas.line(x - 12 - swing * 30, top + 8, x - 17 - swing * 40, top + 42, 3, (1, 0.95, 0.8), 0.5)
        pull = max(np.exp(-before / 0.12), 0.0) if before < after else 0.0
        away = 1 - max(np.exp(-after / 0.05), pull)
        hand_x, head_x = x + 68, x + 30 + 26 * away
        canvas.line(hand_x, 108, head_x, 66 - 8 * away, 4, (0.45, 0.28, 0.15))
        canvas.disc(head_x, 66 - 8 * away, 7, (0.2, 0.2, 0.24))

    def sound(self, duration_s: float, hz: int) -> np.ndarray:
        """Inharmonic partials, each with its own decay."""
        t = np.arange(round(4 * self.ring_s * hz)) / hz
        tones = [
            level * np.exp(-t / (self.ring_s * decay)) * np.sin(2 * np.pi * self.pitch_hz * ratio * t)
            for ratio, level, decay in BELL_PARTIALS
        ]
        strike = np.sum(tones, axis=0) * (1 - np.exp(-t / 0.001)) / 3
        return place([(time, strike) for time in self.times], duration_s, hz)


class Tap(SoundingObject):
    """A tap from which drops fall into a basin; each chirps as it lands and sends out rings."""

    EVENT, LABEL = "drip", "water dripping"
    FALL_S = 0.42

    def __init__(self, rng: np.random.Generator, duration_s: float, start_s: float | None) -> None:
        self.times = beats(rng, duration_s, start_s, (0.45, 1.1))
        self.pitches_hz = rng.uniform(600, 1300, len(self.times))

    def draw(self, canvas: Canvas, t_s: float) -> None:
        x, top, water = MIDDLE, 30.0, 94.0
        steel, blue = (0.62, 0.66, 0.7), (0.25, 0.5, 0.75)
        canvas.line(0, 14, x, 14, 9, steel)
        canvas.line(x, 14, x, top - 4, 9, steel)
        canvas.line(x - 30, 4, x - 18, 4, 5, (0.75, 0.2, 0.2))
        canvas.ellipse(x, water + 4, 62, 20, (0.85, 0.86, 0.88))
        canvas.ellipse(x, water + 3, 56, 16, blue)
        for time in self.times:
            age = t_s - time
            if 0 <= age < 1.6:
                for late in (0.0, 0.14):
                    if age > late:
                        reach = 3 + 30 * (age - late)
                        canvas.ring(x, water + 3, reach, reach * 0.28, 1.4, (0.9, 0.96, 1.0), 0.9 - age / 1.8)
            if 0 <= age < 0.18:
                canvas.line(x, water, x, water - 14 * np.sin(np.pi * age / 0.18), 2.5, (0.8, 0.92, 1.0))
        _, after = since(self.times, t_s)
        if after < self.FALL_S:
            fallen = 1 - after / self.FALL_S
            canvas.ellipse(x, top + 2 + (water - top) * fallen**2, 2.8, 4.2, (0.55, 0.8, 1.0))
        elif after < 1.2:
            canvas.disc(x, top, 3.0 * (1.2 - after) / (1.2 - self.FALL_S), (0.55, 0.8, 1.0))

    def sound(self, duration_s: float, hz: int) -> np.ndarray:
        """The rising chirp of the bubble that a drop drags down."""
        t = np.arange(round(0.16 * hz)) / hz
        phases = [2 * np.pi * pitch_hz * (t + 3.0 * t**2) for pitch_hz in self.pitches_hz]
        drops = [np.sin(phase) * np.exp(-t / 0.035) * (1 - np.exp(-t / 0.001)) for phase in phases]
        return place(list(zip(self.times, drops, strict=True)), duration_s, hz)


class Engine(SoundingObject):
    """An engine with a flywheel: the hum's pitch is the wheel's speed, revved up now and then."""

    EVENT, LABEL = "rev", "engine running"
    FIRINGS_PER_TURN = 60

    def __init__(self, rng: np.random.Generator, duration_s: float, start_s: float | None) -> None:
        self.colour, self.rng = vivid(rng), rng
        self.idle_turns_s, self.rev_turns_s = rng.uniform(0.6, 0.8), rng.uniform(1.4, 2.4)
        self.times = beats(rng, duration_s, start_s, (1.1, 2.0))
        clock = np.arange(0, duration_s + 0.1, 0.001)
        self.clock, self.turns = clock, np.cumsum(self.turns_per_s(clock)) * 0.001

    def turns_per_s(self, t_s: np.ndarray) -> np.ndarray:
        """Speed of the wheel: still, idle from the first rev on, and from each rev a quick rise and slow fall."""
        age = np.maximum(t_s[:, None] - np.asarray(self.times)[None, :], 0)
        pulse = (1 - np.exp(-age / 0.1)) * np.exp(-age / 0.5)
        running = 0.0 if not self.times else 1 - np.exp(-age[:, 0] / 0.05)
        speed: np.ndarray = self.idle_turns_s * running + self.rev_turns_s * pulse.sum(axis=1)
        return speed

    def draw(self, canvas: Canvas, t_s: float) -> None:
        angle = 2 * np.pi * np.interp(t_s, self.clock, self.turns)
        speed = float(self.turns_per_s(np.array([t_s]))[0])
        x, y, radius = MIDDLE, 62.0, 34.0
        shake = 0.9 * np.sin(9 * angle) * speed / 2
        canvas.box(x, 100 + shake, 48, 12, (0.3, 0.32, 0.36))
        canvas.box(x + 46, 72 + shake, 7, 22, self.colour)
        for puff in range(4 if speed > 0 else 0):
            rise = (angle / 6 + puff / 4) % 1
            canvas.disc(x + 46 + 8 * rise, 46 - 40 * rise, 3 + 6 * rise, (0.85, 0.85, 0.85), 0.6 * (1 - rise))
        canvas.ring(x, y, radius, radius, 7, (0.18, 0.18, 0.2))
        for spoke in range(3):
            turn = angle + spoke * 2 * np.pi / 3
            colour = self.colour if spoke == 0 else (0.5, 0.5, 0.55)
            canvas.line(x, y, x + radius * np.cos(turn), y + radius * np.sin(turn), 4.5, colour)
        canvas.disc(x, y, 7, (0.8, 0.8, 0.82))

    def sound(self, duration_s: float, hz: int) -> np.ndarray:
        """A hum at the rate of the firings and a rumble, louder with that rate."""
        t_s = np.arange(round(duration_s * hz)) / hz
        if not self.times:
            return np.zeros(len(t_s))
        rate_hz = self.FIRINGS_PER_TURN * np.interp(t_s, self.clock, self.turns_per_s(self.clock))
        phase = 2 * np.pi * np.cumsum(rate_hz) / hz
        hum = overtones(phase, [1 / k**0.8 for k in range(1, 13)])
        blur = np.hanning(99)
        rumble = np.convolve(self.rng.normal(0, 1, len(phase)), blur / np.linalg.norm(blur), mode="same")
        share = rate_hz / rate_hz.max()
        loudness = np.minimum(0.2 + 0.8 * share, 5 * share)
        return np.asarray(loudness * (hum + 0.12 * rumble * (1 + np.sin(phase))))


class Siren(SoundingObject):
    """A two-tone siren on a car roof; with each change of tone the other lamp lights up."""

    EVENT, LABEL = "tone_change", "siren wailing"

    def __init__(self, rng: np.random.Generator, duration_s: float, start_s: float | None) -> None:
        self.body, self.low_hz = vivid(rng), rng.uniform(380, 480)
        self.high_hz = self.low_hz * rng.uniform(1.3, 1.5)
        gap_s = rng.uniform(0.4, 0.65)
        self.times = beats(rng, duration_s, start_s, (gap_s, gap_s))

    def draw(self, canvas: Canvas, t_s: float) -> None:
        changes = int(np.searchsorted(self.times, t_s, side="right"))
        x, roof = MIDDLE, 66.0
        lamps: tuple[tuple[float, Colour], ...] = ((x - 17, (1.0, 0.12, 0.1)), (x + 17, (0.15, 0.35, 1.0)))
        for side, (lamp_x, colour) in enumerate(lamps):
            if changes and changes % 2 == side:
                for reach in (54, 40, 28, 18):
                    canvas.disc(lamp_x, roof - 10, reach, colour, 0.16)
        canvas.box(x, roof + 14, 38, 14, tuple(0.6 * np.asarray(self.body)))
        canvas.box(x, roof + 14, 30, 9, (0.55, 0.7, 0.8), alpha=0.7)
        canvas.box(x, roof + 34, 62, 11, self.body)
        for wheel_x in (x - 38, x + 38):
            canvas.disc(wheel_x, roof + 45, 11, (0.06, 0.06, 0.07))
            canvas.disc(wheel_x, roof + 45, 5, (0.5, 0.5, 0.52))
        for side, (lamp_x, colour) in enumerate(lamps):
            lit = changes > 0 and changes % 2 == side
            canvas.ellipse(lamp_x, roof - 4, 13, 8, colour if lit else tuple(0.25 * np.asarray(colour)))
            canvas.disc(lamp_x, roof - 5, 4, (1, 1, 1), 0.9 if lit else 0.0)

    def sound(self, duration_s: float, hz: int) -> np.ndarray:
        """Two tones, the high one first."""
        t = np.arange(round(duration_s * hz)) / hz
        if not self.times:
            return np.zeros(len(t))
        high = np.searchsorted(np.asarray(self.times), t, side="right") % 2 == 1
        phase = 2 * np.pi * np.cumsum(np.where(high, self.high_hz, self.low_hz)) / hz
        return np.asarray(overtones(phase, [0.5 / k for k in range(1, 6)]) * np.clip((t - self.times[0]) / 0.005, 0, 1))


class Drum(SoundingObject):
    """A drum and two sticks that take turns; the skin gives way where it is hit."""

    EVENT, LABEL = "hit", "drum beating"

    def __init__(self, rng: np.random.Generator, duration_s: float, start_s: float | None) -> None:
        self.colour, self.rng, self.pitch_hz = vivid(rng), rng, rng.uniform(150, 240)
        beat_s = rng.uniform(0.36, 0.5)
        pattern = [1.0, 0.5, 0.5, 1.0, 1.0] if rng.random() < 0.5 else [1.0, 1.0, 0.5, 0.5, 0.5, 0.5]
        gaps = np.tile(pattern, 40) * beat_s
        times = (duration_s if start_s is None else start_s) + np.concatenate([[0], np.cumsum(gaps)])
        self.times = [round(float(time), 4) for time in times if time < duration_s - 0.1]
        self.strengths = rng.uniform(0.6, 1.0, len(self.times))

    def draw(self, canvas: Canvas, t_s: float) -> None:
        x, top = MIDDLE, 72.0
        before, _ = since(self.times, t_s)
        dent = 0.0 if np.isinf(before) else 3.0 * np.exp(-before / 0.05)
        canvas.ellipse(x, top + 36, 46, 12, tuple(0.5 * np.asarray(self.colour)))
        canvas.box(x, top + 18, 46, 18, self.colour)
        for rib in np.linspace(-40, 40, 6):
            canvas.line(x + rib, top + 2, x + rib + 6, top + 36, 1.6, (0.95, 0.9, 0.7))
        canvas.ellipse(x, top, 47, 13, (0.8, 0.78, 0.72))
        canvas.ellipse(x, top + dent / 2, 43, 11 - dent / 2, (0.96, 0.95, 0.9))
        for hand, side in enumerate((-1, 1)):
            age, wait = since(self.times[hand::2], t_s)
            lift = 1 - max(np.exp(-age / 0.07), np.exp(-wait / 0.06))
            tip_x, tip_y = x + side * (14 + 8 * lift), top - 1 - 34 * lift + dent * (lift < 0.2)
            canvas.line(x + side * 62, top - 20 - 8 * lift, tip_x, tip_y, 4, (0.6, 0.4, 0.2))
            canvas.disc(tip_x, tip_y, 4, (0.75, 0.55, 0.3))

    def sound(self, duration_s: float, hz: int) -> np.ndarray:
        """Two modes of the skin, and the rattle of the snare."""
        t = np.arange(round(0.4 * hz)) / hz
        skin = np.sin(2 * np.pi * self.pitch_hz * t) * np.exp(-t / 0.09)
        skin += 0.6 * np.sin(2 * np.pi * 1.59 * self.pitch_hz * t) * np.exp(-t / 0.05)
        rattles = [self.rng.normal(0, 1, len(t)) * np.exp(-t / 0.04) for _ in self.times]
        hits = [strength * (skin + 0.5 * rattle) for strength, rattle in zip(self.strengths, rattles, strict=True)]
        return place(list(zip(self.times, hits, strict=True)), duration_s, hz)


OBJECTS: dict[str, type[SoundingObject]] = {
    "ball": Ball, "bell": Bell, "tap": Tap, "engine": Engine, "siren": Siren, "drum": Drum,
}  # fmt: skip
