"""`flowley generate`: silent videos and a caption in, the same videos with sound out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.entry import user_input
from pipelines.errors import UserError
from pipelines.films import find_videos, seen_settings, targets_of
from pipelines.soundtrack import Order, Studio
from pipelines.standalone.options import chosen_features, quiet_libraries, require_device

if TYPE_CHECKING:
    from flowley.generator import Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """What `flowley generate` is asked for."""

    caption: str | None
    negative: str | None
    steps: int
    guidance: float
    solver: str
    seed: int
    duration_s: float | None
    """None: the training's."""
    whole: bool
    """All of each video, in windows where it is longer than the training's clips."""
    batch: int


def open_generator(
    checkpoint: str, *, visual: str | None, text: str | None, codec: str | None, device: str
) -> Generator:
    """A checkpoint with its encoders. Raises UserError where anything is missing or does not fit."""
    from flowley.generator import Generator, open_network

    require_device(device)
    quiet_libraries()
    with user_input():
        network = open_network(checkpoint)
        features = chosen_features(network.features, visual=visual, text=text, codec=codec, whose=checkpoint)
        generator = Generator(network, features, device=device)
        generator.load_parts()
    return generator


def generate(
    generator: Generator, videos: Sequence[Path], out: Path, options: GenerateOptions, say: Callable[[str], None]
) -> list[Path]:
    """Writes the videos with their sound. Raises UserError for options that cannot be, RunError if a video failed."""
    from flowley.sample import SampleSettings

    if options.whole and options.duration_s is not None:
        raise UserError(f"--whole and --duration {options.duration_s:g}: give one of them")
    if options.duration_s is not None and not options.duration_s > 0:
        raise UserError(f"--duration {options.duration_s:g}: wanted > 0 s")
    if options.batch < 1:
        raise UserError(f"--batch {options.batch}: wanted at least 1")
    found = find_videos(videos, say)
    trained_s = generator.features.duration_s
    duration_s = None if options.whole else options.duration_s or trained_s
    if options.caption is None:
        say("no --caption: the sound follows the picture alone")
    with user_input():
        settings = SampleSettings(
            steps=options.steps,
            guidance=options.guidance,
            solver=options.solver,  # type: ignore[arg-type]
            window_s=trained_s,
        )
        if options.negative is not None and options.guidance == 1:
            raise ValueError("--negative needs --guidance other than 1, which uses none")
        generator.encode_text([text for text in (options.caption, options.negative) if text is not None] or [""])
    hz = float(generator.network.config.r_v)
    studio = Studio(
        generator,
        settings,
        seen=partial(seen_settings, duration_s=duration_s, least_hz=hz),
        caption=lambda film: options.caption or "",
        negative=options.negative,
        seed=options.seed,
        batch=options.batch,
        say=say,
    )
    return studio.make([Order(*pair) for pair in zip(found, targets_of(found, out), strict=True)])
