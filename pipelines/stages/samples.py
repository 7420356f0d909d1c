"""Stage `samples`: sound generation for the clips of the test split, muxed onto their picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flowley.network.config import NetworkConfig
from flowley.network.presets import preset
from flowley.sampling.solvers import SampleSettings, SolverName
from pipelines.engine.ledger import Failed
from pipelines.engine.recipe import Recipe
from pipelines.engine.row_stage import Rows, RowSet, RowStage, with_constants
from pipelines.engine.stage import Context
from pipelines.engine.storage import Storage
from pipelines.engine.store import file_columns, keep_file, text_columns
from pipelines.errors import one_line
from pipelines.media.faults import MediaError
from pipelines.media.mux import mux
from pipelines.run_config import Config, SamplesExecution
from pipelines.scratch import scratch
from pipelines.stages.features import fetch_rows, open_features
from pipelines.stages.flowley import MODEL_FOLDER
from pipelines.stages.model_refs import Codec, codec_of

if TYPE_CHECKING:
    from flowley.codecs import AudioCodec
    from flowley.network.base import VelocityNetwork


SAMPLE_ID_CHARS = 24
SAMPLES_FOLDER = "samples/media"
PLACE = ("av_file", "av_row")
SOUND = pa.schema([*file_columns("video"), *file_columns("audio")])


@dataclass(frozen=True)
class SampleRecipe(Recipe):
    """Recipe of a sample: all that determines it except the weights, the features and the clip."""

    network: NetworkConfig
    steps: int
    guidance: float
    solver: SolverName
    seed: int
    codec: Codec
    duration_s: float


class SamplesStage(RowStage):
    """Sampling stage: one row for each test clip, so that an interrupted run resumes."""

    name = "samples"
    split = "test"
    reads = ("features", "flowley")
    ledgers = ("samples",)
    config_keys: ClassVar[Mapping[str, str]] = {
        "network": "flowley.preset",
        "codec": "features.codec",
        "duration_s": "clips.duration_s",
    }
    schema = pa.schema([*text_columns("clip_id", "label", "caption", "original_audio"), *SOUND])
    meaning = ("clip_id", "video")

    def recipe(self, config: Config, storage: Storage) -> SampleRecipe:
        section = config.samples
        return SampleRecipe(
            network=preset(config.flowley.preset, **config.flowley.overrides),
            steps=section.steps,
            guidance=section.guidance,
            solver=section.solver,
            seed=section.seed,
            codec=codec_of(config.features.codec, storage),
            duration_s=config.clips.duration_s,
        )

    def rows(self, context: Context) -> Rows:
        recipe: SampleRecipe = context.recipe
        flowley, features = context.inputs["flowley"], context.inputs["features"]
        clips = features.rows()
        clips = clips.filter(pc.equal(clips["split"], "test"))
        places = [f"{file} {row:06d}" for file, row in zip(*(clips[n].to_pylist() for n in PLACE), strict=True)]
        worker = SampleWorker(recipe, context.config.samples.execution, context.storage, flowley.name(MODEL_FOLDER))
        tasks = with_constants(clips, flowley=flowley.committed().digest, features=features.committed().digest)
        parts = ("clip_id", "flowley", "features")
        keys = RowSet(self.name, recipe, tasks, parts, SOUND, worker).keys
        ids = pa.array([key.hex()[:SAMPLE_ID_CHARS] for key in keys.to_pylist()], pa.string())
        rows = RowSet(self.name, recipe, tasks.append_column("sample_id", ids), parts, SOUND, worker, order=places)
        carried = clips.select(["clip_id", "label", "caption", "audio"])
        return Rows(carried.rename_columns(["clip_id", "label", "caption", "original_audio"]), [rows])


@dataclass
class SampleWorker:
    """Sampling worker: Flowley with its codec. `model`: storage name of the network's folder."""

    recipe: SampleRecipe
    execution: SamplesExecution
    storage: Storage
    model: str
    network: VelocityNetwork = field(init=False, repr=False)
    codec: AudioCodec = field(init=False, repr=False)

    def setup(self) -> None:
        """Loads network and codec."""
        from flowley.codecs import load_codec
        from flowley.network.registry import load_network

        device, codec = self.execution.device, self.recipe.codec.on_node(self.storage)
        with self.storage.local(self.model) as folder:
            self.network = load_network(folder).to(device)
        self.codec = load_codec(codec.name, path=codec.path, revision=codec.revision, device=device)

    def process(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any] | Failed]:
        from flowley.sampling.generator import clip_seed, sample_clips

        recipe = self.recipe
        settings = SampleSettings(steps=recipe.steps, guidance=recipe.guidance, solver=recipe.solver)
        with scratch("features") as folder:
            dataset = open_features(*fetch_rows(self.storage, tasks, folder))
            clips = [dataset[index] for index in range(len(dataset))]
            waves = sample_clips(
                self.network,
                self.codec,
                clips,
                duration_s=recipe.duration_s,
                seeds=[clip_seed(clip.clip_id, recipe.seed) for clip in clips],
                settings=settings,
            ).numpy()
        return [self._keep(task, wave) for task, wave in zip(tasks, waves, strict=True)]

    def _keep(self, task: dict[str, Any], wave: np.ndarray) -> dict[str, Any] | Failed:
        import soundfile

        stem = f"{SAMPLES_FOLDER}/{task['sample_id']}"
        try:
            with scratch("sample") as folder:
                video, sound = folder / "sample.mp4", folder / "sample.flac"
                soundfile.write(sound, wave, self.codec.audio_hz)
                with self.storage.local(task["video"]) as silent:
                    mux(silent, wave, self.codec.audio_hz, video)
                return {
                    **keep_file(self.storage, video, f"{stem}.mp4", "video"),
                    **keep_file(self.storage, sound, f"{stem}.flac", "audio"),
                }
        except (MediaError, ValueError) as error:
            return Failed(type(error).__name__, one_line(error))
