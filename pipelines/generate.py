"""What a person finally wants: a silent video in, the same video with sound out.

The trained captioner describes what should be heard, Flowley makes it. No Ray: one process, one or a few videos.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checkpoints import model_location
from pipelines.config import Config
from pipelines.errors import RunError, UserError, one_line
from pipelines.sampling import seed_of
from pipelines.storage import Storage
from pipelines.store import Output

if TYPE_CHECKING:
    import numpy as np

SHOWN_LONG_SIDE_PX = 1920
SHOWN_CRF = 16
DEADLINE_S = 600.0


def generate(
    config: Config, videos: Sequence[Path], out: Path, *, caption: str | None, say: Callable[[str], None]
) -> list[Path]:
    """Makes sound for the first `clips.duration_s` of each video. Returns the MP4 files written.

    `out` is an .mp4 file for one video, a folder for several. `caption` replaces the captioner's words.
    Raises UserError before a captioner and a Flowley are trained, RunError if any video failed (after the rest).
    """
    from pipelines.media.errors import FfmpegMissing
    from soundcap.engines import EngineError

    targets = _targets(videos, out)
    maker = _Maker(config, _trained(config))
    written, failed = [], []
    for video, target in zip(videos, targets, strict=True):
        try:
            text = maker.make(video, target, caption)
        except (FfmpegMissing, EngineError) as error:  # the same for every video
            raise RunError(one_line(error)) from error
        except (OSError, ValueError, maker.media_error) as error:
            failed.append(video.name)
            say(f"{video}: {type(error).__name__}: {one_line(error)}")
            continue
        say(f"{target}: {text}")
        written.append(target)
    if failed:
        raise RunError(f"{len(failed)} of {len(videos)} videos failed: {', '.join(failed)}")
    return written


def _targets(videos: Sequence[Path], out: Path) -> list[Path]:
    for video in videos:
        if not video.is_file():
            raise UserError(f"{video}: no such video file")
    if out.suffix == ".mp4":
        if len(videos) != 1:
            raise UserError(f"-o {out}: one file for {len(videos)} videos; give a folder instead")
        return [out]
    names = [f"{video.stem}.mp4" for video in videos]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(f"-o {out}: several videos would become {', '.join(doubled)}; rename them or run them apart")
    return [out / name for name in names]


@dataclass(frozen=True)
class _Trained:
    storage: Storage
    adapter: str
    flowley: str


def _trained(config: Config) -> _Trained:
    """Storage names of the adapter and of the Flowley that the last runs stand on."""
    from pipelines.stages.captioner import ADAPTER_FOLDER, CaptionerStage
    from pipelines.stages.flowley import MODEL_FOLDER, FlowleyStage

    storage = Storage(config.root)
    found = {}
    for stage, folder in ((CaptionerStage.name, ADAPTER_FOLDER), (FlowleyStage.name, MODEL_FOLDER)):
        latest = f"{stage}/latest.json"
        if not storage.exists(latest):
            raise UserError(f"stage {stage} has not run in {config.root!r}; run `soundcap run CONFIG` first")
        found[stage] = Output(storage, stage, storage.read_json(latest)["fingerprint"]).name(folder)
    return _Trained(storage, found[CaptionerStage.name], found[FlowleyStage.name])


class _Maker:
    """Loads each model when the first video needs it."""

    def __init__(self, config: Config, trained: _Trained) -> None:
        from pipelines.media.errors import MediaError

        self.config, self.trained, self.media_error = config, trained, MediaError
        self.device = config.samples.execution.device

    def make(self, video: Path, target: Path, caption: str | None) -> str:
        """Writes `target`; returns the caption that the sound was made from."""
        from pipelines.media.clip import NormaliserSettings
        from pipelines.media.mux import mux
        from pipelines.media.normalise import normalise
        from pipelines.stages.clips import normaliser_settings

        own = normaliser_settings(self.config.clips)
        small = NormaliserSettings(own.duration_s, own.fps, own.long_side_px, own.crf, own.max_audio_hz, False)
        shown = NormaliserSettings(
            own.duration_s, own.fps, SHOWN_LONG_SIDE_PX, SHOWN_CRF, own.max_audio_hz, require_audio=False
        )
        with tempfile.TemporaryDirectory(prefix="soundcap-generate-") as name:
            folder = Path(name)
            clip, picture, unused = folder / "clip.mp4", folder / "shown.mp4", folder / "sound.flac"
            normalise(video, clip, unused, small, deadline_s=DEADLINE_S)
            normalise(video, picture, unused, shown, deadline_s=DEADLINE_S)
            text = self._caption(clip) if caption is None else caption
            wave = self._sound(clip, text, video.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            mux(picture, wave, self.codec.audio_hz, target)
        return text

    def _caption(self, clip: Path) -> str:
        from pipelines.media.read import read_frames
        from pipelines.stages.captions import read_prompts
        from soundcap.request import CaptionRequest

        fps = self.config.captioner.training.frames_fps
        prompt = read_prompts(self.config.captioner.instruction, None).render("")
        [answer] = self.engine.caption([CaptionRequest(prompt, read_frames(clip, fps), fps, None)])
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    def _sound(self, clip: Path, text: str, name: str) -> np.ndarray:
        import torch

        from flowley.model import Conditions
        from flowley.sample import SampleSettings, sample
        from pipelines.media.read import read_frames

        settings, network = self.config.samples, self.network
        visual = torch.from_numpy(self.visual.encode(read_frames(clip, float(network.config.r_v))))[None]
        words = torch.from_numpy(self.text.encode([text])[0].features).float()[None]
        L_aud, L_vis = network.config.lengths(self.config.clips.duration_s)
        conditions = Conditions(visual[:, :L_vis], words, torch.ones(words.shape[:2], dtype=torch.bool))
        latent = sample(
            network,
            Conditions(*(x.to(self.device) for x in conditions)),
            L_aud=L_aud,
            seeds=[seed_of(name, settings.seed)],
            settings=SampleSettings(steps=settings.steps, guidance=settings.guidance),
        )
        samples = round(self.config.clips.duration_s * self.codec.audio_hz)
        wave: np.ndarray = self.codec.decode(latent.cpu())[0, :samples].clamp(-1, 1).numpy()
        return wave

    @cached_property
    def engine(self) -> Any:
        from pipelines.stages.silent_captions import silent_frames
        from soundcap.engines import load_engine
        from soundcap.request import Sampling

        frames, section = silent_frames(self.config), self.config.silent_captions
        with self.trained.storage.local(self.trained.adapter) as adapter:
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

    @cached_property
    def network(self) -> Any:
        from flowley.model import Flowley

        with self.trained.storage.local(self.trained.flowley) as folder:
            return Flowley.from_pretrained(folder).eval().to(self.device)

    @cached_property
    def visual(self) -> Any:
        from flowley.encoders import VisualEncoder

        ref = self.config.features.visual
        return VisualEncoder(model_location(ref), revision=ref.revision, device=self.device)

    @cached_property
    def text(self) -> Any:
        from flowley.encoders import TextEncoder

        ref, network = self.config.features.text, self.network.config
        return TextEncoder(
            model_location(ref),
            max_tokens=network.max_text_tokens,
            normalisation=network.text_normalisation,
            revision=ref.revision,
            device=self.device,
        )

    @cached_property
    def codec(self) -> Any:
        from flowley.codec import load_codec

        return load_codec(self.config.features.codec)
