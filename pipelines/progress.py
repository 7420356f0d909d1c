"""Progress reporting: plain lines with rate and time left, for terminals and job logs alike."""

from __future__ import annotations

import time
from collections.abc import Callable

LINE_EVERY_S = 5.0


class Progress:
    """Progress counter of `total` units, with a line at most every LINE_EVERY_S. `note` ends each line."""

    def __init__(self, label: str, total: int, unit: str, say: Callable[[str], None]) -> None:
        self.label, self.total, self.unit, self.say = label, total, unit, say
        self.done = self.quarantined = 0
        self.note = ""
        self.started_s = self.said_s = time.monotonic()

    def advance(self, count: int, quarantined: int = 0) -> None:
        self.done += count
        self.quarantined += quarantined
        self.tick()

    def tick(self) -> None:
        if time.monotonic() - self.said_s >= LINE_EVERY_S:
            self.said_s = time.monotonic()
            self.say(self.line())

    def finish(self) -> None:
        self.say(self.line())

    def line(self) -> str:
        elapsed_s = max(time.monotonic() - self.started_s, 1e-9)
        rate = self.done / elapsed_s
        parts = [f"  {self.label}: {self.done}/{self.total} {self.unit}", f"{rate:.2g}/s"]
        if self.done < self.total:
            parts.append(f"{human_time((self.total - self.done) / rate)} left" if self.done else "starting")
        else:
            parts.append(human_time(elapsed_s))
        if self.quarantined:
            parts.append(f"{self.quarantined} quarantined")
        if self.note:
            parts.append(self.note)
        return ", ".join(parts)


def human_bytes(size: int) -> str:
    """Readable size: 12 kB, 3.4 MB, 56 GB."""
    value, unit = size / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.{1 if value < 10 else 0}f} {unit}"


def human_time(seconds: float) -> str:
    """Readable duration: 12 s, 3 min 20 s, 5 h 02 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
