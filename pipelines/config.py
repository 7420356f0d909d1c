"""The run's configuration: YAML checked into frozen models, one section for each stage.

Fields of a section decide what the stage makes and are hashed into its fingerprint; fields of its `execution`
block decide how fast and where, and are never hashed. Paths are relative to the working directory.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from flowley.presets import preset
from flowley.recipes import RECIPES
from flowley.settings import SolverName, TrainExecution, TrainSettings
from pipelines.errors import UserError
from soundcap.curate import Rules
from soundcap.engines import EngineName, EngineOptions
from soundcap.finetune import ExecutionSettings, FinetuneSettings

Split = Literal["train", "test"]


for _settings in (Rules, EngineOptions, FinetuneSettings, ExecutionSettings, TrainSettings, TrainExecution):
    setattr(_settings, "__pydantic_config__", ConfigDict(extra="forbid"))  # noqa: B010 (mypy knows no such field)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelRef(Section):
    """A checkpoint: a local folder, or a hub id with the commit it is pinned to."""

    path: str
    revision: str | None = None


class Workers(Section):
    """How a stage's rows are fanned out. Batches are what a crash can cost."""

    workers: int = Field(default=2, ge=1)
    cpus_per_worker: float = Field(default=1, ge=0)
    gpus_per_worker: float = Field(default=0, ge=0)
    batch_rows: int = Field(default=8, ge=1)
    batch_deadline_s: float = Field(default=1800, gt=0)


class SourceConfig(Section):
    """Where the raw clips are: a folder, or VGGSound's headerless CSV (id, start_s, label, split) plus a folder."""

    folder: str
    csv: str | None = None
    split: Split | None = Field(default=None, description="puts every clip into this split")
    test_fraction: float = Field(default=0.1, ge=0, le=1, description="of a folder without CSV or split")


class ClipsExecution(Workers):
    deadline_s: float = Field(default=120, gt=0, description="for one file; then it is quarantined")


class ClipsConfig(Section):
    """Normalised clips."""

    duration_s: float = Field(default=8.0, gt=0)
    fps: int = Field(default=25, ge=1)
    long_side_px: int = Field(default=448, ge=32)
    crf: int = Field(default=12, ge=0, le=51)
    max_audio_hz: int = Field(default=48_000, ge=8_000)
    require_audio: bool = True
    execution: ClipsExecution = ClipsExecution()


class EngineExecution(Workers):
    """`engine` changes speed, not meaning: stored captions are the record whichever wrote them."""

    engine: EngineName = "vllm"
    device: str = "cuda"
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    options: EngineOptions = EngineOptions()


class SamplingConfig(Section):
    max_new_tokens: int = Field(default=96, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0)
    seed: int = 0


class FramesConfig(Section):
    """How a language model sees a clip. Pixel bounds are areas of one frame."""

    fps: float = Field(default=2.0, gt=0)
    min_px: int = Field(default=128 * 28 * 28, ge=28 * 28)
    max_px: int = Field(default=256 * 28 * 28, ge=28 * 28)


class CaptionsConfig(Section):
    """Sound-aware captions of picture and sound by an audio-visual language model."""

    model: ModelRef
    instruction: str = "prompts/av_caption.yaml"
    warnings: str | None = "prompts/warnings.yaml"
    frames: FramesConfig = FramesConfig()
    sampling: SamplingConfig = SamplingConfig()
    execution: EngineExecution = EngineExecution()


class CurationConfig(Section):
    """Which captions the captioner may learn from."""

    rules: Rules = Rules()


class TrainingExecution(Section):
    workers: int = Field(default=1, ge=1)
    cpus_per_worker: float = Field(default=1, ge=0)
    use_gpu: bool = True
    max_failures: int = Field(default=2, ge=0, description="worker crashes survived before the stage gives up")


class CaptionerExecution(TrainingExecution):
    settings: ExecutionSettings = ExecutionSettings()


class CaptionerConfig(Section):
    """LoRA fine-tuning of a vision-language model on silent video."""

    model: ModelRef
    adapter: str | None = Field(default=None, description="folder of a trained adapter to use; nothing is trained")
    instruction: str = "prompts/silent_caption.yaml"
    training: FinetuneSettings = FinetuneSettings()
    execution: CaptionerExecution = CaptionerExecution()


class SilentCaptionsConfig(Section):
    """Captions of silent video; model, instruction and frames are the captioner's."""

    sampling: SamplingConfig = SamplingConfig()
    execution: EngineExecution = EngineExecution()


class FeaturesExecution(Workers):
    device: str = "cuda"
    dtype: Literal["float32", "bfloat16"] = "float32"


class CodecConfig(Section):
    """Between sound and the latent frames Flowley generates. All but `log_mel` load weights: a folder or hub id."""

    name: Literal["log_mel", "mmaudio_16k", "oobleck", "audioldm2", "log_mel_pca"] = "log_mel"
    path: str | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def _weights_or_none(self) -> CodecConfig:
        if self.name == "log_mel" and self.path is not None:
            raise ValueError(f"features.codec.path: got {self.path!r}, but log_mel has no weights; leave it out")
        if self.name != "log_mel" and self.path is None:
            raise ValueError(f"features.codec.path: missing; codec {self.name} loads its weights from there")
        return self


class FeaturesConfig(Section):
    """What Flowley learns from. `captions` says whose text: a row of the paper's ablation."""

    captions: Literal["none", "label", "captions", "silent_captions"] = "silent_captions"
    visual: ModelRef
    text: ModelRef
    codec: CodecConfig = CodecConfig()
    sync: str | None = Field(
        default=None,
        description="folder or s3:// address of given synchronisation features, {video file's stem}.npy (L, C) each, "
        "for presets that take them",
    )
    execution: FeaturesExecution = FeaturesExecution()


class FlowleyExecution(TrainingExecution):
    settings: TrainExecution = TrainExecution()


class FlowleyConfig(Section):
    """Training of the video-to-audio model. `overrides` change fields of the preset's network, `training` fields of
    its published recipe; `steps` and `batch_size` are always given."""

    preset: str = Field(default="flowley_169m", validate_default=True)
    overrides: dict[str, Any] = Field(default_factory=dict)
    checkpoint: str | None = Field(default=None, description="folder of a trained Flowley to use; nothing is trained")
    training: TrainSettings
    execution: FlowleyExecution = FlowleyExecution()

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, name: str) -> str:
        preset(name)
        return name

    @field_validator("overrides")
    @classmethod
    def _known_network(cls, overrides: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "preset" in info.data:
            preset(info.data["preset"], **overrides)
        return overrides

    @field_validator("training", mode="before")
    @classmethod
    def _changed_recipe(cls, changes: Any, info: ValidationInfo) -> Any:
        if isinstance(changes, dict) and "preset" in info.data:
            return RECIPES[info.data["preset"]] | changes
        return changes

    @model_validator(mode="after")
    def _workers_fit(self) -> FlowleyConfig:
        workers = self.execution.workers
        if self.training.batch_size % workers:
            raise ValueError(
                f"flowley.training.batch_size: got {self.training.batch_size}, wanted a multiple of "
                f"flowley.execution.workers = {workers}"
            )
        if self.execution.settings.sharding == "fsdp" and workers == 1:
            raise ValueError(
                "flowley.execution.settings.sharding: got 'fsdp' with one worker, which has no one to share with; "
                "wanted none, or more flowley.execution.workers"
            )
        return self


class SamplesExecution(Workers):
    device: str = "cuda"


class SamplesConfig(Section):
    """Sound for the test split."""

    steps: int = Field(default=25, ge=1)
    guidance: float = Field(default=7.5, ge=0)
    solver: SolverName = "euler"
    seed: int = Field(default=0, ge=0)
    execution: SamplesExecution = SamplesExecution()


class ScoresConfig(Section):
    """Metrics of the samples against the clips' own sound, both at `audio_hz`."""

    audio_hz: int = Field(default=16_000, ge=8_000)


class Config(Section):
    """A whole run."""

    root: str = Field(description="where all state lives: a local folder or s3://bucket/prefix")
    source: SourceConfig
    clips: ClipsConfig = ClipsConfig()
    captions: CaptionsConfig
    curation: CurationConfig = CurationConfig()
    captioner: CaptionerConfig
    silent_captions: SilentCaptionsConfig = SilentCaptionsConfig()
    features: FeaturesConfig
    flowley: FlowleyConfig
    samples: SamplesConfig = SamplesConfig()
    scores: ScoresConfig = ScoresConfig()

    @model_validator(mode="after")
    def _fps_fit(self) -> Config:
        for name, fps in (
            ("captions.frames.fps", self.captions.frames.fps),
            ("captioner.training.frames_fps", self.captioner.training.frames_fps),
        ):
            if fps > self.clips.fps:
                raise ValueError(f"{name}: got {fps}, wanted at most clips.fps = {self.clips.fps}")
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads and checks a configuration; `overrides` are `dotted.key=value` with YAML values.

    Raises UserError: one line with the key, what was got and what was wanted.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{path}: no such configuration file. Give the path of a YAML file, like configs/demo.yaml")
    try:
        data = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: got {type(data).__name__}, wanted a mapping with keys like root and source")
    for override in overrides:
        _apply(data, override)
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error)}") from error


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise UserError(f"--set {override}: wanted key=value, for example --set clips.fps=25")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: the value is not valid YAML; quote it if it is text") from error
    for part in parts[:-1]:
        inner = data.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UserError(f"--set {override}: {part} is a value, not a section")
        data = inner
    data[parts[-1]] = value


def _explain(error: ValidationError) -> str:
    """Every fault of a configuration as `key: got, wanted`, on one line."""
    return "; ".join(_explain_one(dict(fault)) for fault in error.errors())


def _explain_one(fault: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _fields_at(fault["loc"][:-1])
        close = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    if fault["type"] == "missing":
        return f"{key}: missing; {'it is required' if key else 'wanted a value'}"
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    wanted = fault["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{key}: got {fault['input']!r}, wanted {wanted}"


def _fields_at(location: Sequence[int | str]) -> list[str]:
    model: Any = Config
    for part in location:
        fields = model.model_fields if hasattr(model, "model_fields") else model.__pydantic_fields__
        model = fields[str(part)].annotation
    return [f.name for f in dataclasses.fields(model)] if dataclasses.is_dataclass(model) else list(model.model_fields)
