"""Sound generation for silent videos: implementation of both `generate` commands and of the demo page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from flowley.network.feature_spec import FeatureSpec
from flowley.sampling.generator import Generator, SilentVideo, clip_seed, open_network
from flowley.sampling.solvers import SampleSettings
from pipelines.engine.store import Output, latest, open_store
from pipelines.errors import RunError, UserError, one_line, user_input
from pipelines.media.clip import NormaliserSettings
from pipelines.media.mux import mux
from pipelines.media.probe import Source
from pipelines.media.videos import PreparedVideo, find_videos, one_of_many, prepare_video, settings_for, targets_of
from pipelines.run_config import Config
from pipelines.scratch import scratch
from pipelines.stages.captioner import ADAPTER_FOLDER
from pipelines.stages.captions import CaptionWorker
from pipelines.stages.features import FeaturesStage
from pipelines.stages.flowley import MODEL_FOLDER
from pipelines.stages.silent_captions import SilentCaptionsStage
from soundcap.engines import CaptionEngine, EngineError
from soundcap.request import CaptionRequest

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """Generation options of the commands and the demo page. None: no text, and the duration of the training clips.

    `seed` and the video's name determine its initial noise. `batch`: videos per batch.
    """

    settings: SampleSettings
    caption: str | None = None
    negative: str | None = None
    seed: int = 0
    duration_s: float | None = None
    whole: bool = False
    batch: int = 8

    def __post_init__(self) -> None:
        if self.whole and self.duration_s is not None:
            raise UserError(f"--whole and --duration {self.duration_s:g}: give one of them")
        if self.duration_s is not None and not self.duration_s > 0:
            raise UserError(f"--duration {self.duration_s:g}: wanted > 0 s")
        if self.batch < 1:
            raise UserError(f"--batch {self.batch}: wanted at least 1")
        if self.negative is not None and self.settings.guidance == 1:
            raise UserError("--negative needs --guidance other than 1, which uses none")


# --- batches of videos ----------------------------------------------------------------------------------------


@dataclass
class VideoBatches:
    """Batched sound generation for videos.

    Attributes:
        generator: network, encoders and codec.
        options: sampler settings, negative prompt, seed and batch size.
        normalised: normaliser settings of a video for the network, its duration included.
        caption: caption of a video.
        say: receives one line for each video.
    """

    generator: Generator
    options: GenerateOptions
    normalised: Callable[[Source], NormaliserSettings]
    caption: Callable[[PreparedVideo], str]
    say: Say
    _failed: list[str] = field(default_factory=list, init=False)

    def write(self, videos: Sequence[Path], targets: Sequence[Path]) -> list[Path]:
        """Writes each video with its sound to its target. Returns those written.

        Raises:
            RunError: a video failed (after the rest), or ffmpeg is missing.
            UserError: encoders that do not fit the network.
        """
        written: list[Path] = []
        pairs = list(zip(videos, targets, strict=True))
        for start in range(0, len(pairs), self.options.batch):
            with scratch("generate") as folder:
                written += self._batch(pairs[start : start + self.options.batch], folder)
        if self._failed:
            raise RunError(f"{len(self._failed)} of {len(pairs)} videos failed: {', '.join(self._failed)}")
        return written

    def _batch(self, pairs: Sequence[tuple[Path, Path]], folder: Path) -> list[Path]:
        ready: list[tuple[Path, Path, PreparedVideo, SilentVideo]] = []
        for number, (video, target) in enumerate(pairs):
            with self._one(video):
                own = folder / str(number)
                own.mkdir()
                prepared = prepare_video(video, own, self.normalised)
                ready.append((video, target, prepared, self._silent(video, prepared)))
        if not ready:
            return []
        silent = [one for *_, one in ready]
        with user_input():  # the remaining fault is common to all videos: encoders that do not fit
            waves = self.generator.generate(
                silent, self.options.settings, video_hz=self._hz, negative=self.options.negative
            )
        written = []
        for (video, target, prepared, one), wave in zip(ready, waves, strict=True):
            with self._one(video):
                target.parent.mkdir(parents=True, exist_ok=True)
                mux(prepared.played, wave.numpy(), self.generator.encoders.codec.audio_hz, target)
                self.say(f"{target}: {one.caption or 'from the picture alone'} ({prepared.duration_s:g} s)")
                written.append(target)
        return written

    def _silent(self, video: Path, prepared: PreparedVideo) -> SilentVideo:
        seed = clip_seed(video.name, self.options.seed)
        silent = SilentVideo(prepared.frames(self._hz), self.caption(prepared), seed, prepared.duration_s)
        self.generator.check(silent)
        return silent

    @property
    def _hz(self) -> float:
        return float(self.generator.network.config.r_v)

    def _one(self, video: Path) -> AbstractContextManager[None]:
        return one_of_many(video, self._failed, self.say, common=(EngineError,))


# --- flowley generate -----------------------------------------------------------------------------------------


def open_generator(
    checkpoint: str, features_of: Callable[[FeatureSpec | None], FeatureSpec], *, device: str
) -> Generator:
    """Generator of a checkpoint (a folder, a hub id or a published file), with its encoders loaded.

    `features_of` maps the checkpoint's feature spec to the one to use.
    Raises UserError if anything is missing or does not fit.
    """
    with user_input():
        network = open_network(checkpoint)
        generator = Generator(network, features_of(network.features), device=device)
        generator.encoders.load()
    return generator


def generate(
    open_: Callable[[], Generator], videos: Sequence[Path], out: Path, options: GenerateOptions, say: Say
) -> list[Path]:
    """Generates the videos' sound and writes each video with it.

    `open_` loads the models, which takes a while: what is wrong with the paths is said before.

    Raises:
        UserError: invalid options or paths.
        RunError: a video failed (after the rest).
    """
    found = find_videos(videos, say)
    targets = targets_of(found, out)
    generator = open_()
    trained_s = generator.encoders.spec.duration_s
    duration_s = None if options.whole else options.duration_s or trained_s
    if options.caption is None:
        say("no --caption: the sound follows the picture alone")
    with user_input():
        generator.encode_text([text for text in (options.caption, options.negative) if text is not None] or [""])
    batches = VideoBatches(
        generator,
        replace(options, settings=replace(options.settings, window_s=trained_s)),
        normalised=partial(settings_for, duration_s=duration_s, least_hz=float(generator.network.config.r_v)),
        caption=lambda video: options.caption or "",
        say=say,
    )
    return batches.write(found, targets)


# --- soundcap generate ----------------------------------------------------------------------------------------


def generate_from_run(
    config: Config, videos: Sequence[Path], out: Path, *, caption: str | None, say: Say
) -> list[Path]:
    """Captions the first `clips.duration_s` of each video with a run's captioner, then generates its sound.

    Args:
        config: configuration of the run.
        videos: files.
        out: an .mp4 file for one video, a folder for several.
        caption: replaces the captioner's captions.
        say: receives progress lines.

    Raises:
        UserError: Flowley, or without `caption` the captioner, is not trained.
        RunError: a video failed (after the rest).
    """
    for video in videos:
        if not video.is_file():
            raise UserError(f"{video}: no such video file")
    targets = targets_of(videos, out)
    captioner = None if caption is not None else SilentCaptioner(config)
    generator = _generator(config)
    if caption is not None:
        with user_input():
            generator.encode_text([caption])
    section = config.samples
    batches = VideoBatches(
        generator,
        GenerateOptions(settings=section, seed=section.seed, batch=section.execution.batch_rows),
        normalised=lambda source: config.clips,
        caption=(lambda video: caption or "") if captioner is None else captioner.caption,
        say=say,
    )
    try:
        return batches.write(videos, targets)
    except EngineError as error:  # the same for every video
        raise RunError(one_line(error)) from error


def _generator(config: Config) -> Generator:
    output = _trained(config, "flowley")
    recipe = FeaturesStage().recipe(config, output.storage).on_node(output.storage)
    features = recipe.spec(config.flowley.training.duration_s)
    with output.storage.local(output.name(MODEL_FOLDER)) as folder:
        return open_generator(str(folder), lambda _: features, device=config.samples.execution.device)


def _trained(config: Config, stage: str) -> Output:
    """Output of a stage's last run. Raises UserError if the stage has not run."""
    storage = open_store(config.root)
    fingerprint = latest(storage, stage)
    if fingerprint is None:
        raise UserError(f"stage {stage} has not run in {config.root!r}; run `soundcap run CONFIG` first")
    return Output(storage, stage, fingerprint)


class SilentCaptioner:
    """Fine-tuned captioner of a run. The model is loaded for the first video."""

    def __init__(self, config: Config) -> None:
        adapter = _trained(config, "captioner")
        self.recipe = SilentCaptionsStage().recipe(config, adapter.storage)
        execution = config.silent_captions.execution
        self._worker = CaptionWorker(self.recipe, execution, adapter.storage, adapter.name(ADAPTER_FOLDER))

    @cached_property
    def engine(self) -> CaptionEngine:
        return self._worker.load()

    def caption(self, video: PreparedVideo) -> str:
        """Caption of a silent video's sound."""
        fps = self.recipe.frames.fps
        request = CaptionRequest(self.recipe.prompts.render(""), video.frames(fps), fps, None)
        [answer] = self.engine.caption([request])
        if isinstance(answer, Exception):
            raise answer
        return str(answer)
