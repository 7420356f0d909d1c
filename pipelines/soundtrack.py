"""Videos in, the same videos with generated sound out, in batches: for `soundcap generate` and `flowley generate`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.entry import user_input
from pipelines.errors import RunError, one_line
from pipelines.films import Film, make_film
from pipelines.media.clip import NormaliserSettings
from pipelines.media.errors import FfmpegMissing, MediaError
from pipelines.media.mux import mux
from pipelines.sampling import seed_of

if TYPE_CHECKING:
    from flowley.generator import Generator, SilentVideo
    from flowley.sample import SampleSettings

FAULTS_OF_ONE = (MediaError, OSError, ValueError)
"""What is wrong with one video and leaves the others as they are."""


@dataclass(frozen=True, slots=True)
class Order:
    """A video whose sound is wanted, and the file it goes to."""

    video: Path
    target: Path


@dataclass
class Studio:
    """Makes sound for videos.

    seen: how a video is normalised for the network, its duration included. caption: what should be heard in it.
    """

    generator: Generator
    settings: SampleSettings
    seen: Callable[[Path], NormaliserSettings]
    caption: Callable[[Film], str]
    negative: str | None
    seed: int
    batch: int
    say: Callable[[str], None]
    _failed: list[str] = field(default_factory=list, init=False)

    def make(self, orders: Sequence[Order]) -> list[Path]:
        """Writes every target and says so. Returns those written.

        Raises RunError if any video failed, after the rest, and at once for what is the same for all.
        """
        written: list[Path] = []
        try:
            for start in range(0, len(orders), self.batch):
                with tempfile.TemporaryDirectory(prefix="flowley-generate-") as folder:
                    written += self._batch(orders[start : start + self.batch], Path(folder))
        except FfmpegMissing as error:
            raise RunError(one_line(error)) from error
        if self._failed:
            raise RunError(f"{len(self._failed)} of {len(orders)} videos failed: {', '.join(self._failed)}")
        return written

    def _batch(self, orders: Sequence[Order], folder: Path) -> list[Path]:
        ready: list[tuple[Order, Film, SilentVideo]] = []
        for number, order in enumerate(orders):
            try:
                own = folder / str(number)
                own.mkdir()
                film = make_film(order.video, own, seen=self.seen(order.video))
                ready.append((order, film, self._silent(order, film)))
            except FAULTS_OF_ONE as error:
                self._fail(order, error)
        if not ready:
            return []
        videos = [video for _, _, video in ready]
        with user_input():  # what is left to be wrong is the same for all: encoders that are not the network's
            waves = self.generator.generate(videos, self.settings, video_hz=self._hz, negative=self.negative)
        written = []
        for (order, film, video), wave in zip(ready, waves, strict=True):
            try:
                order.target.parent.mkdir(parents=True, exist_ok=True)
                mux(film.shown, wave.numpy(), self.generator.codec.audio_hz, order.target)
            except FAULTS_OF_ONE as error:
                self._fail(order, error)
                continue
            self.say(f"{order.target}: {video.caption or 'from the picture alone'} ({film.duration_s:g} s)")
            written.append(order.target)
        return written

    def _silent(self, order: Order, film: Film) -> SilentVideo:
        from flowley.generator import SilentVideo

        seed = seed_of(order.video.name, self.seed)
        video = SilentVideo(film.frames(self._hz), self.caption(film), seed, film.duration_s)
        self.generator.check(video)
        return video

    @property
    def _hz(self) -> float:
        return float(self.generator.network.config.r_v)

    def _fail(self, order: Order, error: BaseException) -> None:
        self._failed.append(order.video.name)
        self.say(f"{order.video}: {type(error).__name__}: {one_line(error)}")
