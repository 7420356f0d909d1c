"""The films of the corpus: each draws what is heard and sounds what is seen, at the same exact times."""

import numpy as np

from pipelines.demo import sounds
from pipelines.demo.canvas import Canvas, Colour
from pipelines.demo.setting import HEIGHT_PX, WIDTH_PX, Event, Scene, beats, scenery, since, vivid


class BouncingBall:
    """A ball that bounces lower and lower, and is thrown up again; each bounce thumps as hard as it lands."""

    def __init__(self, rng: np.random.Generator, duration_s: float) -> None:
        self.background, self.colour = scenery(rng, 0.72), vivid(rng)
        self.x, self.radius, self.pitch_hz = rng.uniform(0.35, 0.65), rng.uniform(9, 13), rng.uniform(80, 130)
        self.rng, loss = rng, rng.uniform(0.78, 0.86)
        self.times, gap_s = [0.0], rng.uniform(0.85, 1.05)
        first_gap_s = gap_s
        while self.times[-1] < duration_s:
            self.times.append(round(self.times[-1] + gap_s, 4))
            gap_s = gap_s * loss if gap_s * loss > 0.3 else first_gap_s
        self.events = [Event(time, "bounce") for time in self.times[1:] if time < duration_s - 0.1]

    def draw(self, canvas: Canvas, t_s: float) -> None:
        before, after = since(self.times, t_s)
        height = 165.0 * before * min(after, 2.0)
        floor = 0.86 * HEIGHT_PX
        x = WIDTH_PX * (self.x + 0.12 * np.sin(t_s * 0.9))
        squash = 1 - 0.3 * np.exp(-min(before, after) / 0.03)
        half_h, half_w = self.radius * squash, self.radius / squash**0.5
        y = floor - height - half_h
        canvas.ellipse(x, floor + 2, half_w * (1 - height / 200), 3, (0, 0, 0), 0.35)
        canvas.ellipse(x, y, half_w, half_h, self.colour)
        spin = t_s * 3
        canvas.disc(x + 0.45 * half_w * np.cos(spin), y + 0.45 * half_h * np.sin(spin), 2.5, (1, 1, 1), 0.85)

    def sound(self, duration_s: float, hz: int) -> np.ndarray:
        falls = np.diff(self.times)
        hits = [
            (time, sounds.thump(hz, self.pitch_hz, float(fall), self.rng))
            for time, fall in zip(self.times[1:], falls, strict=True)
            if time < duration_s
        ]
        return sounds.place(hits, duration_s, hz)


class Bell:
    """A bell that a hammer strikes; it swings and shines for a while."""

    def __init__(self, rng: np.random.Generator, duration_s: float) -> None:
        self.background = scenery(rng, 0.85)
        self.x, self.ring_s = rng.uniform(0.42, 0.55), rng.uniform(0.7, 1.4)
        self.pitch_hz = rng.uniform(320, 760)
        self.metal = np.array([0.78, 0.6, 0.2]) * rng.uniform(0.85, 1.1)
        self.times = beats(rng, duration_s, 0.9, 2.0)
        self.events = [Event(time, "strike") for time in self.times]

    def draw(self, canvas: Canvas, t_s: float) -> None:
        before, after = since(self.times, t_s)
        swing = 0.0 if np.isinf(before) else 0.14 * np.sin(14 * before) * np.exp(-before / 0.5)
        glow = 0.0 if np.isinf(before) else 0.35 * np.exp(-before / 0.25)
        x, top = WIDTH_PX * self.x, 26.0
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
        strike = sounds.bell(hz, self.pitch_hz, self.ring_s)
        return sounds.place([(time, strike) for time in self.times], duration_s, hz)


class DrippingTap:
    """A tap from which drops fall into a basin; each chirps as it lands and sends out rings."""

    FALL_S = 0.42

    def __init__(self, rng: np.random.Generator, duration_s: float) -> None:
        self.background = scenery(rng, 0.6)
        self.x, self.rng = rng.uniform(0.4, 0.6), rng
        self.times = beats(rng, duration_s, 0.55, 1.3)
        self.pitches_hz = rng.uniform(600, 1300, len(self.times))
        self.events = [Event(time, "drip") for time in self.times]

    def draw(self, canvas: Canvas, t_s: float) -> None:
        x, top, water = WIDTH_PX * self.x, 30.0, 94.0
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
        drops = [
            (time, sounds.drip(hz, float(pitch)))
            for time, pitch in zip(self.times, self.pitches_hz, strict=True)
        ]
        return sounds.place(drops, duration_s, hz)


class Engine:
    """An engine with a flywheel: the hum's pitch is the wheel's speed, revved up now and then."""

    FIRINGS_PER_TURN = 60

    def __init__(self, rng: np.random.Generator, duration_s: float) -> None:
        self.background, self.colour = scenery(rng, 0.75), vivid(rng)
        self.x, self.rng = rng.uniform(0.4, 0.6), rng
        self.idle_turns_s, self.rev_turns_s = rng.uniform(0.6, 0.8), rng.uniform(1.4, 2.4)
        self.times = beats(rng, duration_s, 1.8, 3.2)
        self.events = [Event(time, "rev") for time in self.times]
        clock = np.arange(0, duration_s + 0.1, 0.001)
        self.clock, self.turns = clock, np.cumsum(self.turns_per_s(clock)) * 0.001

    def turns_per_s(self, t_s: np.ndarray) -> np.ndarray:
        """Speed of the wheel: idle, and from each rev a quick rise and slow fall."""
        age = np.maximum(t_s[:, None] - np.asarray(self.times)[None, :], 0)
        pulse = (1 - np.exp(-age / 0.1)) * np.exp(-age / 0.5)
        speed: np.ndarray = self.idle_turns_s + self.rev_turns_s * pulse.sum(axis=1)
        return speed

    def draw(self, canvas: Canvas, t_s: float) -> None:
        angle = 2 * np.pi * np.interp(t_s, self.clock, self.turns)
        speed = float(self.turns_per_s(np.array([t_s]))[0])
        x, y, radius = WIDTH_PX * self.x, 62.0, 34.0
        shake = 0.9 * np.sin(9 * angle) * speed / 2
        canvas.box(x, 100 + shake, 48, 12, (0.3, 0.32, 0.36))
        canvas.box(x + 46, 72 + shake, 7, 22, self.colour)
        for puff in range(4):
            rise = (speed * t_s * 0.8 + puff / 4) % 1
            canvas.disc(x + 46 + 8 * rise, 46 - 40 * rise, 3 + 6 * rise, (0.85, 0.85, 0.85), 0.6 * (1 - rise))
        canvas.ring(x, y, radius, radius, 7, (0.18, 0.18, 0.2))
        for spoke in range(3):
            turn = angle + spoke * 2 * np.pi / 3
            colour = self.colour if spoke == 0 else (0.5, 0.5, 0.55)
            canvas.line(x, y, x + radius * np.cos(turn), y + radius * np.sin(turn), 4.5, colour)
        canvas.disc(x, y, 7, (0.8, 0.8, 0.82))

    def sound(self, duration_s: float, hz: int) -> np.ndarray:
        t_s = np.arange(round(duration_s * hz)) / hz
        speed = np.interp(t_s, self.clock, self.turns_per_s(self.clock))
        return sounds.engine(self.FIRINGS_PER_TURN * speed, hz, self.rng)


class Siren:
    """A two-tone siren on a car roof by night: with each change of tone the other lamp lights up."""

    def __init__(self, rng: np.random.Generator, duration_s: float) -> None:
        self.background, self.body = scenery(rng, 0.7, dark=True), vivid(rng)
        self.x, self.low_hz = rng.uniform(0.42, 0.58), rng.uniform(380, 480)
        self.high_hz = self.low_hz * rng.uniform(1.3, 1.5)
        gap_s, first_s = rng.uniform(0.45, 0.7), rng.uniform(0.2, 0.5)
        self.times = [round(float(time), 4) for time in np.arange(first_s, duration_s - 0.1, gap_s)]
        self.events = [Event(time, "tone_change") for time in self.times]

    def draw(self, canvas: Canvas, t_s: float) -> None:
        changes = int(np.searchsorted(self.times, t_s, side="right"))
        x, roof = WIDTH_PX * self.x, 66.0
        lamps: tuple[tuple[float, Colour], ...] = ((x - 17, (1.0, 0.12, 0.1)), (x + 17, (0.15, 0.35, 1.0)))
        for side, (lamp_x, colour) in enumerate(lamps):
            if changes % 2 == side:
                for reach in (54, 40, 28, 18):
                    canvas.disc(lamp_x, roof - 10, reach, colour, 0.16)
        canvas.box(x, roof + 14, 38, 14, tuple(0.6 * np.asarray(self.body)))
        canvas.box(x, roof + 14, 30, 9, (0.55, 0.7, 0.8), alpha=0.7)
        canvas.box(x, roof + 34, 62, 11, self.body)
        for wheel_x in (x - 38, x + 38):
            canvas.disc(wheel_x, roof + 45, 11, (0.06, 0.06, 0.07))
            canvas.disc(wheel_x, roof + 45, 5, (0.5, 0.5, 0.52))
        for side, (lamp_x, colour) in enumerate(lamps):
            lit = changes % 2 == side
            canvas.ellipse(lamp_x, roof - 4, 13, 8, colour if lit else tuple(0.25 * np.asarray(colour)))
            canvas.disc(lamp_x, roof - 5, 4, (1, 1, 1), 0.9 if lit else 0.0)

    def sound(self, duration_s: float, hz: int) -> np.ndarray:
        return sounds.two_tone(self.times, self.low_hz, self.high_hz, duration_s, hz)


class Drum:
    """A drum and two sticks that take turns; the skin gives way where it is hit."""

    def __init__(self, rng: np.random.Generator, duration_s: float) -> None:
        self.background, self.colour, self.rng = scenery(rng, 0.7), vivid(rng), rng
        self.x, self.pitch_hz = rng.uniform(0.44, 0.56), rng.uniform(150, 240)
        beat_s, start_s = rng.uniform(0.36, 0.5), rng.uniform(0.3, 0.6)
        pattern = [1.0, 0.5, 0.5, 1.0, 1.0] if rng.random() < 0.5 else [1.0, 1.0, 0.5, 0.5, 0.5, 0.5]
        gaps = np.tile(pattern, 40) * beat_s
        times = start_s + np.concatenate([[0], np.cumsum(gaps)])
        self.times = [round(float(time), 4) for time in times if time < duration_s - 0.1]
        self.strengths = rng.uniform(0.6, 1.0, len(self.times))
        self.events = [Event(time, "hit") for time in self.times]

    def draw(self, canvas: Canvas, t_s: float) -> None:
        x, top = WIDTH_PX * self.x, 72.0
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
        hits = [
            (time, sounds.drum(hz, self.pitch_hz, float(strength), self.rng))
            for time, strength in zip(self.times, self.strengths, strict=True)
        ]
        return sounds.place(hits, duration_s, hz)


SCENES: dict[str, type[Scene]] = {
    "ball bouncing": BouncingBall,
    "bell ringing": Bell,
    "water dripping": DrippingTap,
    "engine running": Engine,
    "siren wailing": Siren,
    "playing drum": Drum,
}
"""By the label that the corpus's CSV gives them."""
