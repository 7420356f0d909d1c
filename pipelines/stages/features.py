"""Stage `features`: features of each clip from frozen encoders and the codec, for Flowley.

Two ledgers, `features-av` and `features-text`: a changed caption re-encodes its text, never the video.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flowley.features.files import EMPTY_CAPTION_ID, AVFeatures, write_av_features, write_text_features
from flowley.network.config import NetworkConfig
from flowley.network.feature_spec import FeatureSpec
from flowley.network.presets import preset
from pipelines.engine.ledger import Failed
from pipelines.engine.recipe import Recipe, unhashed
from pipelines.engine.row_stage import Rows, RowSet, RowStage
from pipelines.engine.stage import Context, Refused
from pipelines.engine.storage import Storage
from pipelines.engine.store import file_columns, keep_file, text_columns
from pipelines.errors import RunError, UserError, one_line
from pipelines.media.faults import MediaError
from pipelines.media.read import read_audio, read_frames
from pipelines.run_config import Config, FeaturesExecution
from pipelines.scratch import scratch
from pipelines.stages.model_refs import Codec, Model, codec_of, model_of

if TYPE_CHECKING:
    from flowley.features.dataset import FeatureDataset
    from flowley.features.encode import Encoders

AV, TEXT = "features-av", "features-text"
ENCODERS = ("visual", "codec", "text")
PARTS_FOLDER = "features/parts"
NULL_TEXT = "null_text.json"
"""File that locates the encoded empty caption, Flowley's null condition: `{"file", "row"}`."""

AV_PLACE = pa.schema([*file_columns("av_file"), ("av_row", pa.int32())])
TEXT_PLACE = pa.schema([*file_columns("text_file"), ("text_row", pa.int32()), ("tokens_cut", pa.int32())])
FEATURE_COLUMNS = ("av_file", "av_row", "text_file", "text_row")

FeatureRow = Mapping[str, Any]
"""Row of this stage's output: clip_id, av_file, av_row, text_file, text_row."""


@dataclass(frozen=True)
class AVRecipe(Recipe):
    """Recipe of visual features and audio latents: all that determines them except the clip."""

    code_version = 2
    visual: Model
    visual_fps: float
    codec: Codec


@dataclass(frozen=True)
class TextRecipe(Recipe):
    """Recipe of text features: all that determines them except the caption."""

    code_version = 2
    text: Model
    max_tokens: int
    normalisation: str
    keep_padding: bool


@dataclass(frozen=True)
class FeaturesRecipe(Recipe):
    """Recipe of all features, with the source of the captions.

    Attributes:
        network: the network that the features are for; the other fields derive from it.
        sync: folder of precomputed synchronisation features, for networks that take them. A row's key has its
            file's size and version.
    """

    captions: str
    av: AVRecipe
    text: TextRecipe
    network: NetworkConfig = unhashed()
    duration_s: float = unhashed()
    sync: str | None = unhashed()

    def spec(self, duration_s: float) -> FeatureSpec:
        """Feature spec for a checkpoint, which thereby records how its conditions are made."""
        return FeatureSpec(
            visual=self.av.visual.path,
            visual_revision=self.av.visual.revision,
            text=self.text.text.path,
            text_revision=self.text.text.revision,
            codec=self.av.codec.name,
            codec_path=self.av.codec.path,
            codec_revision=self.av.codec.revision,
            duration_s=duration_s,
        )

    def on_node(self, storage: Storage, parts: Sequence[str] = ENCODERS) -> FeaturesRecipe:
        """The same recipe with these parts' models on this node; errors: `local_folder`."""
        av, text = self.av, self.text
        if "visual" in parts:
            av = replace(av, visual=av.visual.on_node(storage))
        if "codec" in parts:
            av = replace(av, codec=av.codec.on_node(storage))
        if "text" in parts:
            text = replace(text, text=text.text.on_node(storage))
        return replace(self, av=av, text=text)


class FeaturesStage(RowStage):
    """Feature extraction stage. `features.captions` selects no text, the label, or either model's captions."""

    name = "features"
    ledgers = (AV, TEXT)
    config_keys: ClassVar[Mapping[str, str]] = {
        "av.visual": "features.visual",
        "av.codec": "features.codec",
        "text.text": "features.text",
        "av": "flowley.preset",
        "text": "flowley.preset",
    }
    schema = pa.schema(
        [
            *text_columns("clip_id", "label", "split", "caption", "video", "audio"),
            *AV_PLACE,
            *TEXT_PLACE,
        ]
    )
    meaning = ("clip_id", "split", AV, TEXT)

    def inputs(self, config: Config) -> tuple[str, ...]:
        source = config.features.captions
        return ("clips", source) if source in ("captions", "silent_captions") else ("clips",)

    def work_recipes(self, config: Config, storage: Storage) -> Mapping[str, Recipe]:
        recipe = self.recipe(config, storage)
        return {AV: recipe.av, TEXT: recipe.text}

    def recipe(self, config: Config, storage: Storage) -> FeaturesRecipe:
        section = config.features
        network = preset(config.flowley.preset, **config.flowley.overrides)
        if network.sync_dim and section.sync is None:
            raise UserError(
                f"features.sync: missing; preset {config.flowley.preset} takes synchronisation features "
                f"(L, {network.sync_dim}): give the folder that holds them"
            )
        if not network.sync_dim and section.sync is not None:
            raise UserError(
                f"features.sync: got {section.sync!r}, but preset {config.flowley.preset} takes none; leave it out"
            )
        return FeaturesRecipe(
            captions=section.captions,
            av=AVRecipe(
                visual=model_of(section.visual, "features.visual", storage),
                visual_fps=float(network.r_v),
                codec=codec_of(section.codec, storage),
            ),
            text=TextRecipe(
                text=model_of(section.text, "features.text", storage),
                max_tokens=network.max_text_tokens,
                normalisation=network.text_normalisation,
                keep_padding=not network.mask_text,
            ),
            network=network,
            duration_s=config.clips.duration_s,
            sync=section.sync,
        )

    def rows(self, context: Context) -> Rows:
        recipe: FeaturesRecipe = context.recipe
        captions, sync = _captions(context), _sync_files(recipe)
        clips = context.inputs["clips"].rows("clip_id", "label", "split", "video", "audio", "source_name", "has_audio")
        refused, is_fit = [], []
        columns = (clips[name].to_pylist() for name in ("clip_id", "source_name", "has_audio"))
        for clip_id, name, has_audio in zip(*columns, strict=True):
            why = _why_refused(name, has_audio, clip_id in captions, recipe, sync)
            is_fit.append(why is None)
            if why is not None:
                refused.append(Refused(clip_id, *why))
        clips = clips.filter(pa.array(is_fit, pa.bool_()))
        texts = [captions[clip_id] for clip_id in clips["clip_id"].to_pylist()]
        carried = clips.select(["clip_id", "label", "split", "video", "audio"])
        carried = carried.append_column("caption", pa.array(texts, pa.string()))
        execution = context.config.features.execution
        av = AVWorker(recipe, execution, context.storage)
        text = TextWorker(recipe, execution, context.storage)
        # The clip is part of a text's key, because feature files record it.
        empty = pa.table({"clip_id": [EMPTY_CAPTION_ID], "caption": [""]})
        by_split = clips["split"].to_pylist()  # so that few files hold the test clips, which samples reads
        captioned = pa.concat_tables([carried.select(["clip_id", "caption"]), empty])
        return Rows(
            carried,
            [
                RowSet(AV, recipe.av, *_av_tasks(clips, recipe, sync), AV_PLACE, av, order=by_split),
                RowSet(TEXT, recipe.text, captioned, ("clip_id", "caption"), TEXT_PLACE, text, order=[*by_split, ""]),
            ],
            refused,
        )

    def finish(self, context: Context, rows: pa.Table, made: Mapping[str, pa.Table]) -> dict[str, Any]:
        [empty] = made[TEXT].slice(made[TEXT].num_rows - 1).to_pylist()
        if empty["error_class"]:
            raise RunError(
                f"features: the empty caption, which training needs, could not be encoded: {empty['error_class']}: "
                f"{empty['message']}; mend features.text, then run again with --retry-failed"
            )
        context.output.write_json(NULL_TEXT, {"file": empty["text_file"], "row": empty["text_row"]})
        return {"captions_cut": pc.sum(pc.greater(rows["tokens_cut"], 0)).as_py() or 0}


def _av_tasks(clips: pa.Table, recipe: FeaturesRecipe, sync: Mapping[str, str]) -> tuple[pa.Table, tuple[str, ...]]:
    """Tasks of the clips, and which of their columns are parts of the keys."""
    tasks = clips.select(["clip_id", "video", "audio"])
    if recipe.sync is None:
        return tasks, ("clip_id",)
    names = [_sync_name(name) for name in clips["source_name"].to_pylist()]
    tasks = tasks.append_column("sync", pa.array(names, pa.string()))
    tasks = tasks.append_column("sync_version", pa.array([sync[name] for name in names], pa.string()))
    return tasks, ("clip_id", "sync_version")


def _sync_name(source_name: str) -> str:
    return f"{PurePosixPath(source_name).stem}.npy"


def _why_refused(
    name: str, has_audio: bool, has_caption: bool, recipe: FeaturesRecipe, sync: Mapping[str, str]
) -> tuple[str, str] | None:
    """Reason (error class, message) to refuse a clip that lacks something, else None. `name`: of its source."""
    if not has_audio:
        return "NoAudioStream", f"{name}: no sound to learn from"
    if not has_caption:
        return "NoCaption", f"{name}: stage {recipe.captions} has no caption of it"
    if recipe.sync is not None and _sync_name(name) not in sync:
        return "NoSyncFeatures", f"{name}: no {_sync_name(name)} in features.sync ({recipe.sync})"
    return None


def _captions(context: Context) -> dict[str, str]:
    source = context.recipe.captions
    if source in ("captions", "silent_captions"):
        rows = context.inputs[source].rows("clip_id", "caption")
        return dict(zip(rows["clip_id"].to_pylist(), rows["caption"].to_pylist(), strict=True))
    rows = context.inputs["clips"].rows("clip_id", "label")
    texts = rows["label"].to_pylist() if source == "label" else [""] * rows.num_rows
    return dict(zip(rows["clip_id"].to_pylist(), texts, strict=True))


def _sync_files(recipe: FeaturesRecipe) -> dict[str, str]:
    """Size and version of each synchronisation file by name; empty if the network takes none."""
    if recipe.sync is None:
        return {}
    found = {i.name: f"{i.size} {i.version}" for i in Storage(recipe.sync).files() if i.name.endswith(".npy")}
    if not found:
        raise UserError(f"features.sync: no .npy file in {recipe.sync!r}; give a folder of (L, C) arrays")
    return found


@dataclass
class _FeatureWorker:
    """Base class of both workers. `loads`: encoders that are loaded before the first row."""

    loads: ClassVar[tuple[str, ...]]
    recipe: FeaturesRecipe
    execution: FeaturesExecution
    storage: Storage
    encoders: Encoders = field(init=False, repr=False)

    def setup(self) -> None:
        from flowley.features.encode import Encoders

        self.encoders = Encoders(
            self.recipe.on_node(self.storage, self.loads).spec(self.recipe.duration_s),
            self.recipe.network,
            device=self.execution.device,
            dtype=self.execution.dtype,
        )
        for part in self.loads:
            getattr(self.encoders, part)


class AVWorker(_FeatureWorker):
    """Worker for visual features and audio latents. Writes one feature file for each batch."""

    loads = ("visual", "codec")

    def process(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any] | Failed]:
        made = [self._encode(task) for task in tasks]
        good = [one for one in made if not isinstance(one, Failed)]
        file = _write(self.storage, "av", lambda path: write_av_features(path, good)) if good else {}
        places = iter(range(len(good)))
        return [one if isinstance(one, Failed) else {**file, "av_row": next(places)} for one in made]

    def _encode(self, task: Mapping[str, Any]) -> AVFeatures | Failed:
        from flowley.features.encode import checked_sync, encode_clip

        recipe, sync = self.recipe, None
        try:
            with self.storage.local(task["video"]) as video:
                frames = read_frames(video, recipe.av.visual_fps)
            with self.storage.local(task["audio"]) as file:
                wave = read_audio(file, self.encoders.codec.audio_hz)
            if recipe.sync is not None:
                data = Storage(recipe.sync).read_bytes(task["sync"])
                array = np.load(io.BytesIO(data), allow_pickle=False)
                sync = checked_sync(array, recipe.network, recipe.duration_s, name=task["sync"])
            return encode_clip(self.encoders, task["clip_id"], frames, wave, sync=sync)
        except (MediaError, ValueError) as error:
            return Failed(type(error).__name__, one_line(error))


class TextWorker(_FeatureWorker):
    """Worker for text features. Writes one feature file for each batch."""

    loads = ("text",)

    def process(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any] | Failed]:
        from flowley.features.encode import encode_captions

        made = encode_captions(self.encoders, {task["clip_id"]: task["caption"] for task in tasks})
        file = _write(self.storage, "text", lambda path: write_text_features(path, made))
        return [{**file, "text_row": row, "tokens_cut": one.tokens_cut} for row, one in enumerate(made)]


def _write(storage: Storage, kind: str, write: Callable[[Path], int]) -> dict[str, Any]:
    """Writes one feature file and moves it into the storage. Returns the values of its file columns."""
    name = f"{PARTS_FOLDER}/{kind}-{uuid.uuid4().hex}.arrow"
    with scratch("features") as folder:
        path = folder / "part.arrow"
        write(path)
        return keep_file(storage, path, name, f"{kind}_file")


# --- for the stages that read features ------------------------------------------------------------------------


def feature_files(rows: Iterable[FeatureRow]) -> set[str]:
    """Storage names of the feature files of some rows."""
    return {row[f"{kind}_file"] for row in rows for kind in ("av", "text")}


def fetch_rows(storage: Storage, rows: Sequence[FeatureRow], folder: Path) -> tuple[list[FeatureRow], dict[str, Path]]:
    """Rows with their files' local paths, for `open_features`; of a bucket's files only what holds the rows is read.

    folder: empty folder for the copies, needed as long as the features are.
    """
    from flowley.features.files import copy_rows

    if storage.is_local:
        return list(rows), {name: Path(storage.path(name)) for name in feature_files(rows)}
    files, places = {}, {}
    for number, name in enumerate(sorted(feature_files(rows))):
        wanted = {row[f"{kind}_row"] for row in rows for kind in ("av", "text") if row[f"{kind}_file"] == name}
        files[name] = folder / f"{number}.arrow"
        with storage.open(name) as source:
            places[name] = copy_rows(source, wanted, files[name])
    moved: list[FeatureRow] = [
        {**row, **{f"{kind}_row": places[row[f"{kind}_file"]][row[f"{kind}_row"]] for kind in ("av", "text")}}
        for row in rows
    ]
    return moved, files


def open_features(
    rows: Sequence[FeatureRow], files: Mapping[str, Path], null_text: Mapping[str, Any] | None = None
) -> FeatureDataset:
    """Dataset of `rows` in their order; `files`: local path by storage name; `null_text`: as in NULL_TEXT."""
    from flowley.features.dataset import FeatureDataset, Row

    av, text = (
        {row["clip_id"]: Row(str(files[row[f"{kind}_file"]]), row[f"{kind}_row"]) for row in rows}
        for kind in ("av", "text")
    )
    if null_text is not None:
        text[EMPTY_CAPTION_ID] = Row(str(files[null_text["file"]]), null_text["row"])
    return FeatureDataset.from_rows(av, text)
