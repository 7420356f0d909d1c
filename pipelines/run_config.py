"""Configuration of a run: YAML validated into frozen models, one section for each stage.

Fields of a section determine the stage's output and are hashed into its fingerprint. Fields of its `execution`
block control speed and placement only, and are never hashed. Paths are relative to the working directory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from flowley.network.presets import preset
from flowley.sampling.solvers import SampleSettings
from flowley.training.settings import RECIPES, TrainExecution, TrainSettings
from pipelines.media.clip import NormaliserSettings
from soundcap.candidates import ChoiceRule
from soundcap.curate import Rules
from soundcap.engines import EngineExecution, EngineOptions
from soundcap.finetune_settings import FinetuneExecution, FinetuneSettings
from soundcap.prompts import SPECIAL_TOKEN
from soundcap.request import FrameSettings, Sampling

Split = Literal["train", "test"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _at_home(path: str) -> str:
    """Path in which `~` is the user's home."""
    return str(Path(path).expanduser()) if path.startswith("~") else path


class ModelRef(Section):
    """Reference to a checkpoint: a local folder, or a hub id with a revision."""

    path: Annotated[str, AfterValidator(_at_home)]
    """Local folder, or hub id."""
    revision: str | None = None
    """Commit, branch or tag of a hub id; a store keeps the first commit of a branch. Of a folder the content counts."""


@dataclass(frozen=True)
class Workers:
    """Fan-out of a stage's rows. A crash can cost a batch; too many quarantined rows end the run."""

    workers: Annotated[int, Field(ge=1)] = 2
    """Processes, wherever the cluster has room for them."""
    cpus_per_worker: Annotated[float, Field(ge=0)] = 1
    """Cores that each reserves."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPUs that each reserves; a half lets two share one."""
    batch_rows: Annotated[int, Field(ge=1)] = 8
    """Rows that a worker gets at once, the most that a crash costs."""
    batch_deadline_s: Annotated[float, Field(gt=0)] = 1800
    """Time after which a batch is killed and tried again in halves."""
    max_quarantined_share: Annotated[float, Field(ge=0, le=1, description="of the rows worked on; ten may always")] = (
        0.1
    )


class SourceConfig(Section):
    """Location of the raw clips: a folder, and a table that lists them if there is one."""

    folder: str
    """Folder of the videos, or an s3:// address."""
    table: str | None = None
    """CSV, TSV or Parquet that lists them (docs/inputs.md); without one, every video of the folder."""
    split: Split | None = Field(default=None, description="puts every clip into this split")
    test_fraction: float = Field(default=0.1, ge=0, le=1, description="share of the clips without a given split")
    sample: int | None = Field(
        default=None, ge=1, description="only so many of the videos, each label with its share (a canary); null: all"
    )


@dataclass(frozen=True)
class ClipsExecution(Workers):
    deadline_s: Annotated[float, Field(gt=0, description="for one file; then it is quarantined")] = 120

    def __post_init__(self) -> None:
        batch_s = self.batch_rows * self.deadline_s
        if batch_s > self.batch_deadline_s:
            raise ValueError(
                f"got batch_rows {self.batch_rows} x deadline_s {self.deadline_s:g} = {batch_s:g} s, wanted at most "
                f"batch_deadline_s, {self.batch_deadline_s:g} s, or slow files get a batch killed; lower batch_rows"
            )


Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class ClipLimits:
    """Largest shares, measured in a clip, with which it is a row; a clip beyond them is quarantined. None: no limit."""

    silent_share: Share | None = None
    """Share of the sound's samples that are digital silence."""
    clipped_share: Share | None = None
    """Share of the sound's samples at full scale."""
    still_share: Share | None = None
    """Share of the clip in which the picture stands still."""


@dataclass(frozen=True, kw_only=True)
class ClipsConfig(NormaliserSettings):
    """Normalisation of raw files to clips."""

    limits: ClipLimits = ClipLimits()
    execution: ClipsExecution = ClipsExecution()


@dataclass(frozen=True)
class CaptioningExecution(Workers, EngineExecution):
    """Fan-out and engine of a stage that captions."""

    batches_at_once: Annotated[int, Field(ge=1)] = 3
    """Batches that a worker has at once, so that its engine never waits for the last row of one."""


class CaptionsConfig(Section):
    """Sound-aware captions of picture and sound by an audio-visual language model."""

    model: ModelRef
    instruction: str = "prompts/av_caption.yaml"
    """File of the instruction."""
    warnings: str | None = "prompts/warnings.yaml"
    """File of the noise warnings; null for none."""
    silence: str | None = Field(
        default=None,
        description="caption of clips without sound or with digital silence, which no model hears; null: refused",
    )
    frames: FrameSettings = FrameSettings()
    sampling: Sampling = Sampling()
    candidates: int = Field(
        default=1, ge=1, le=64, description="captions a clip, of as many seeds from sampling.seed on; all are kept"
    )
    choose: ChoiceRule = Field(
        default="consensus", description="rule by which one of them is chosen: the most like the others, or as named"
    )
    execution: CaptioningExecution = CaptioningExecution()

    @model_validator(mode="after")
    def _candidates_differ(self) -> CaptionsConfig:
        if self.candidates > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"captions.candidates: got {self.candidates} with captions.sampling.temperature = 0, wanted a "
                "temperature above 0, or one candidate: without chance all would be equal"
            )
        return self

    @field_validator("silence")
    @classmethod
    def _is_a_caption(cls, text: str | None) -> str | None:
        if text is not None and (not text.strip() or SPECIAL_TOKEN.search(text)):
            raise ValueError(f"captions.silence: got {text!r}, wanted words without special tokens, or null")
        return text


@dataclass(frozen=True)
class AgreementExecution(Workers):
    """Fan-out of the agreement's rows, and where its model runs."""

    device: str = "cuda"
    """cpu, cuda or cuda:N."""


class AgreementConfig(Section):
    """Agreement of captions and of labels with the clips' sound by a CLAP model. Without this section: not measured."""

    model: ModelRef
    execution: AgreementExecution = AgreementExecution()


@dataclass(frozen=True)
class JudgeSampling(Sampling):
    """Decoding of a judge's answer, of which the first word counts."""

    max_new_tokens: int = 8
    """Most tokens of an answer, >= 1."""


class JudgeConfig(Section):
    """Judge of captions: an audio-visual model says if they tell only what is heard. Without this section: none."""

    model: ModelRef
    instruction: str = "prompts/judge.yaml"
    """File of the instruction."""
    frames: FrameSettings = FrameSettings()
    sampling: JudgeSampling = JudgeSampling()
    execution: CaptioningExecution = CaptioningExecution()


class CurationConfig(Section):
    """Selection of the captions that the captioner may learn from."""

    rules: Rules = Rules()


class TrainingExecution(Section):
    workers: int = Field(default=1, ge=1)
    """Processes that train together."""
    cpus_per_worker: int = Field(default=1, ge=1)
    """Cores that each reserves."""
    use_gpu: bool = True
    """One GPU for each worker."""
    max_failures: int = Field(default=2, ge=0, description="worker crashes survived before the stage gives up")


class CaptionerExecution(TrainingExecution):
    settings: FinetuneExecution = FinetuneExecution()


class CaptionerConfig(Section):
    """LoRA fine-tuning of a vision-language model on silent video."""

    model: ModelRef
    adapter: str | None = Field(default=None, description="folder of a trained adapter to use; nothing is trained")
    instruction: str = "prompts/silent_caption.yaml"
    """File of the instruction."""
    training: FinetuneSettings = FinetuneSettings()
    execution: CaptionerExecution = CaptionerExecution()


class SilentCaptionsConfig(Section):
    """Captions of silent video; model, instruction and frames are the captioner's."""

    sampling: Sampling = Sampling()
    execution: CaptioningExecution = CaptioningExecution()


@dataclass(frozen=True)
class FeaturesExecution(Workers):
    device: str = "cuda"
    """cpu, cuda or cuda:N."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which the encoders run."""


class CodecConfig(Section):
    """Audio codec for the latents that Flowley generates. All but `log_mel` load weights: a folder or hub id."""

    name: Literal["log_mel", "mmaudio_16k", "oobleck", "audioldm2", "log_mel_pca"] = "log_mel"
    """Codec; docs/architecture.md says where each is from."""
    path: Annotated[str, AfterValidator(_at_home)] | None = None
    """Folder or hub id of its weights."""
    revision: str | None = None
    """Commit, branch or tag of a hub id."""

    @model_validator(mode="after")
    def _weights_or_none(self) -> CodecConfig:
        if self.name == "log_mel" and self.path is not None:
            raise ValueError(f"features.codec.path: got {self.path!r}, but log_mel has no weights; leave it out")
        if self.name != "log_mel" and self.path is None:
            raise ValueError(f"features.codec.path: missing; codec {self.name} loads its weights from there")
        return self


class FeaturesConfig(Section):
    """Features that Flowley learns from. `captions` selects the text: a row of the paper's ablation."""

    captions: Literal["none", "label", "captions", "silent_captions"] = "silent_captions"
    """Text that conditions the sound: none, the label, the teacher's or the silent captioner's captions."""
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
    """Training of the video-to-audio model.

    `overrides` change fields of the preset's network, `training` fields of its published recipe; `steps` and
    `batch_size` are required.
    """

    preset: str = Field(default="flowley_169m", validate_default=True)
    """Network; `flowley presets` lists them."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Changed fields of the network."""
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
            fields = RECIPES[info.data["preset"]] | changes
            return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
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


@dataclass(frozen=True)
class SamplesExecution(Workers):
    device: str = "cuda"
    """cpu, cuda or cuda:N."""


@dataclass(frozen=True, kw_only=True)
class SamplesConfig(SampleSettings):
    """Sound generation for the test split."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the initial noise, with the clip."""
    execution: SamplesExecution = SamplesExecution()


class ScoresConfig(Section):
    """Metrics of the samples against the clips' own sound, both at `audio_hz`."""

    audio_hz: int = Field(default=16_000, ge=8_000)
    """Rate at which both sounds are compared."""
    execution: Workers = Workers()


for _settings in (
    AgreementExecution, CaptioningExecution, ClipLimits, ClipsConfig, ClipsExecution, EngineOptions, FeaturesExecution,
    FinetuneExecution, FinetuneSettings, FrameSettings, JudgeSampling, Rules, SamplesConfig, SamplesExecution, Sampling,
    TrainExecution, TrainSettings,
):  # fmt: skip
    setattr(_settings, "__pydantic_config__", ConfigDict(extra="forbid"))  # noqa: B010 (mypy knows no such field)


class PublishExclude(Section):
    """Videos whose captions must not leave."""

    labels: tuple[str, ...] = ()
    """Labels, whole; `*` stands for any text."""
    videos: str | None = None
    """Text file with a video id a line."""
    licences: tuple[str, ...] = ()
    """Licences, as the column `licence` of source.table names them."""


class PublishConfig(Section):
    """Publication on a data hub. Nothing here changes what is computed."""

    licence: str = "cc-by-4.0"
    """Licence of the captions, as the hub names licences."""
    model_licence: str | None = None
    """Licence of the captioner's adapter and of the network; null: the cards say that none was given."""
    version: str = Field(default="", pattern=r"^[a-z0-9_-]{0,40}$")
    """Name of this prompt version beside others in one repository; empty: the default one."""
    hub_ids: dict[str, Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+(@[\w.-]+)?$")]] = Field(
        default_factory=dict,
        description="hub id, or id@revision, of each model that a published one needs and that is a folder here, by "
        "its key: captioner.model, features.visual, features.text, features.codec",
    )
    author: str | None = None
    """Name to cite; null: the owner of the repository."""
    gate: tuple[str, ...] = ("*",)
    """Measures of `soundcap compare` in which a release may not be worse than what is published; `*` stands for any
    text. None: no gate."""
    exclude: PublishExclude = PublishExclude()


class Config(Section):
    """Configuration of a whole run."""

    root: str = Field(description="where all state lives: a local folder or s3://bucket/prefix")
    source: SourceConfig
    clips: ClipsConfig = ClipsConfig()
    captions: CaptionsConfig
    agreement: AgreementConfig | None = None
    judge: JudgeConfig | None = None
    curation: CurationConfig = CurationConfig()
    captioner: CaptionerConfig
    silent_captions: SilentCaptionsConfig = SilentCaptionsConfig()
    features: FeaturesConfig
    flowley: FlowleyConfig
    samples: SamplesConfig = SamplesConfig()
    scores: ScoresConfig = ScoresConfig()
    publish: PublishConfig = PublishConfig()
    prices: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict,
        description="USD an hour: of a GPU by its name in a plan, like NVIDIA H100 80GB HBM3, and of a core as CPU",
    )

    @model_validator(mode="after")
    def _fps_fit(self) -> Config:
        for name, fps in (
            ("captions.frames.fps", self.captions.frames.fps),
            ("judge.frames.fps", 0.0 if self.judge is None else self.judge.frames.fps),
            ("captioner.training.frames.fps", self.captioner.training.frames.fps),
        ):
            if fps > self.clips.fps:
                raise ValueError(f"{name}: got {fps}, wanted at most clips.fps = {self.clips.fps}")
        return self

    @model_validator(mode="after")
    def _agreement_is_measured(self) -> Config:
        margin = self.curation.rules.agreement_margin
        if margin is not None and self.agreement is None:
            raise ValueError(
                f"curation.rules.agreement_margin: got {margin:g}, but no agreement is measured; add the section "
                "agreement with its model, or leave the rule out"
            )
        return self
