"""What a person finally wants: a silent video in, the same video with sound out.

The trained captioner describes what should be heard, Flowley makes it. No Ray: one process, one or a few videos.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checkpoints import model_location
from pipelines.config import Config
from pipelines.entry import user_input
from pipelines.errors import RunError, UserError, one_line
from pipelines.feature_spec import feature_spec
from pipelines.storage import Storage
from pipelines.store import Output

if TYPE_CHECKING:
    from flowley.generator import Generator
    from pipelines.films import Film
    from pipelines.media.clip import NormaliserSettings


def generate(
    config: Config, videos: Sequence[Path], out: Path, *, caption: str | None, say: Callable[[str], None]
) -> list[Path]:
    """Makes sound for the first `clips.duration_s` of each video. Returns the MP4 files written.

    `out` is an .mp4 file for one video, a folder for several. `caption` replaces the captioner's words.
    Raises UserError before a Flowley and, for its words, a captioner are trained, RunError if any video failed
    (after the rest).
    """
    from flowley.sample import SampleSettings
    from pipelines.films import targets_of
    from pipelines.soundtrack import Order, Studio
    from soundcap.engines import EngineError

    for video in videos:
        if not video.is_file():
            raise UserError(f"{video}: no such video file")
    orders = [Order(*pair) for pair in zip(videos, targets_of(videos, out), strict=True)]
    captioner = None if caption is not None else _Captioner(config)
    generator = _generator(config)
    if caption is not None:
        with user_input():
            generator.encode_text([caption])
    studio = Studio(
        generator,
        SampleSettings(steps=config.samples.steps, guidance=config.samples.guidance, solver=config.samples.solver),
        seen=lambda video: _seen(config),
        caption=(lambda film: caption or "") if captioner is None else captioner.caption,
        negative=None,
        seed=config.samples.seed,
        batch=config.samples.execution.batch_rows,
        say=say,
    )
    try:
        return studio.make(orders)
    except EngineError as error:  # the same for every video
        raise RunError(one_line(error)) from error


def _trained(config: Config, stage: str, folder: str) -> tuple[Storage, str]:
    """Storage name of the weights that the last run of a stage stands on."""
    storage = Storage(config.root)
    latest = f"{stage}/latest.json"
    if not storage.exists(latest):
        raise UserError(f"stage {stage} has not run in {config.root!r}; run `soundcap run CONFIG` first")
    return storage, Output(storage, stage, storage.read_json(latest)["fingerprint"]).name(folder)


def _generator(config: Config) -> Generator:
    from flowley.generator import Generator
    from pipelines.stages.flowley import MODEL_FOLDER, FlowleyStage

    storage, model = _trained(config, FlowleyStage.name, MODEL_FOLDER)
    with user_input(), storage.local(model) as folder:
        generator = Generator.load(folder, features=feature_spec(config), device=config.samples.execution.device)
        generator.load_parts()
    return generator


def _seen(config: Config) -> NormaliserSettings:
    """As the stage `clips` makes clips, sound or not."""
    from dataclasses import replace

    from pipelines.stages.clips import normaliser_settings

    return replace(normaliser_settings(config.clips), require_audio=False)


class _Captioner:
    """Loads the model when the first video needs it."""

    def __init__(self, config: Config) -> None:
        from pipelines.stages.captioner import ADAPTER_FOLDER, CaptionerStage

        self.config = config
        self.storage, self.adapter = _trained(config, CaptionerStage.name, ADAPTER_FOLDER)

    def caption(self, film: Film) -> str:
        """What should be heard in a silent film."""
        from pipelines.stages.captions import read_prompts
        from soundcap.request import CaptionRequest

        fps = self.config.captioner.training.frames_fps
        prompt = read_prompts(self.config.captioner.instruction, None).render("")
        [answer] = self.engine.caption([CaptionRequest(prompt, film.frames(fps), fps, None)])
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    @cached_property
    def engine(self) -> Any:
        from pipelines.stages.silent_captions import silent_frames
        from soundcap.engines import load_engine
        from soundcap.request import Sampling

        frames, section = silent_frames(self.config), self.config.silent_captions
        with self.storage.local(self.adapter) as adapter:
            return load_engine(
                section.execution.engine,
                model=model_location(self.config.captioner.model),
                revision=self.config.captioner.model.revision,
                adapter=str(adapter),
                sampling=Sampling(**section.sampling.model_dump()),
                min_frame_px=frames.min_px,
                max_frame_px=frames.max_px,
                dtype=section.execution.dtype,
                device=section.execution.device,
                options=section.execution.options,
            )
