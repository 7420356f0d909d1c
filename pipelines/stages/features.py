"""Stage `features`: what the frozen encoders and the codec make of each clip, for Flowley.

Two ledgers: picture and sound, and text. A changed caption encodes its text again, never the film.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipelines.checkpoints import codec_identity, located, model_identity, model_location
from pipelines.config import Config
from pipelines.errors import UserError
from pipelines.featuring import FEATURES_VERSION, AVWorker, GivenSync, TextWorker
from pipelines.fingerprint import digest
from pipelines.ledger import Entry, Ledger, missing
from pipelines.stage import Context, Counts, Refused, Row, Spec, Stage, Worker
from pipelines.stages.clips import normaliser_meaning
from pipelines.storage import Storage
from pipelines.store import Manifest

if TYPE_CHECKING:
    from flowley.config import NetworkConfig

SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("caption", pa.string()),
        ("video", pa.string()),
        ("audio", pa.string()),
        ("av_file", pa.string()),
        ("av_row", pa.int32()),
        ("text_file", pa.string()),
        ("text_row", pa.int32()),
        ("tokens_cut", pa.int32()),
    ]
)
NULL_TEXT = "null_text.json"
NULL_ID = ""
"""Row id of the encoded empty caption, Flowley's null condition."""


@dataclass(frozen=True)
class _Work:
    """The rows of both ledgers; `clips` are those that have all a clip needs."""

    clips: list[dict[str, Any]]
    av: list[Row]
    text: list[Row]
    refused: list[Refused]


class FeaturesStage(Stage):
    """`features.captions` says whose text conditions Flowley: nobody's, the label, the teacher's or the captioner's."""

    name = "features"

    def inputs(self, config: Config) -> tuple[str, ...]:
        source = config.features.captions
        return ("clips", source) if source in ("captions", "silent_captions") else ("clips",)

    def spec(self, config: Config, storage: Storage) -> Spec:
        _given_sync(config)  # given where none are taken, or the reverse: said before anything runs
        return Spec({"captions": config.features.captions, "av": _av_meaning(config), "text": _text_meaning(config)})

    def counts(self, context: Context) -> Counts:
        work = _work(context)
        todo = {
            row_id
            for name, rows in (("features-av", work.av), ("features-text", work.text))
            for row_id in _missing(context, name, rows)
        }
        return Counts(len(work.clips) + len(work.refused), len(todo - {NULL_ID}), len(work.refused))

    def run(self, context: Context) -> Manifest:
        started = time.monotonic()
        work = _work(context)
        computed = self.counts(context).to_run
        av = _compute(context, "features-av", work.av, _av_worker(context.config, context.storage))
        text = _compute(context, "features-text", work.text, _text_worker(context.config, context.storage))
        rows: list[dict[str, Any]] = []
        quarantined = [_quarantined(r.row_id, r.error_class, r.message) for r in work.refused]
        for clip in work.clips:
            entries = av[clip["clip_id"]], text[clip["clip_id"]]
            bad = next((entry for entry in entries if entry.status != "ok"), None)
            if bad is not None:
                quarantined.append(_quarantined(clip["clip_id"], bad.error_class, bad.message))
                continue
            av_entry, text_entry = entries
            places = {f"av_{k}": av_entry.value[k] for k in _PLACE} | {f"text_{k}": text_entry.value[k] for k in _PLACE}
            rows.append({**clip, **places, "tokens_cut": text_entry.value["tokens_cut"]})
        context.output.write_rows(rows, SCHEMA)
        context.output.write_quarantine(quarantined)
        context.storage.write_json(context.output.name(NULL_TEXT), text[NULL_ID].value)
        keys = {row.row_id: row.key for row in work.av}, {row.row_id: row.key for row in work.text}
        return Manifest(
            stage=self.name,
            fingerprint=context.output.fingerprint,
            digest=digest([[r["clip_id"], r["split"], *(k[r["clip_id"]] for k in keys)] for r in rows]),
            rows_in=len(work.clips) + len(work.refused),
            rows_out=len(rows),
            rows_quarantined=len(quarantined),
            rows_computed=computed,
            seconds=round(time.monotonic() - started, 3),
            figures={"captions_cut": sum(row["tokens_cut"] > 0 for row in rows)},
        )


_PLACE = ("file", "row")


def _network(config: Config) -> NetworkConfig:
    from flowley.presets import preset

    return preset(config.flowley.preset, **config.flowley.overrides)


def _av_meaning(config: Config) -> dict[str, Any]:
    return {
        "version": FEATURES_VERSION,
        "visual": model_identity(config.features.visual, "features.visual"),
        "visual_fps": float(_network(config).r_v),
        "codec": codec_identity(config.features.codec),
    }


def _text_meaning(config: Config) -> dict[str, Any]:
    network = _network(config)
    return {
        "version": FEATURES_VERSION,
        "text": model_identity(config.features.text, "features.text"),
        "max_tokens": network.max_text_tokens,
        "normalisation": network.text_normalisation,
        "keep_padding": not network.mask_text,
    }


def _work(context: Context) -> _Work:
    config = context.config
    captions = _captions(context)
    av_meaning, text_meaning = _av_meaning(config), _text_meaning(config)
    normaliser = normaliser_meaning(config.clips)
    sync = _sync_files(config)
    clips, refused = [], []
    av, text = [], [Row(NULL_ID, {**text_meaning, "caption": ""}, {"clip_id": NULL_ID, "caption": ""})]
    for clip in context.inputs["clips"].rows():
        clip_id = clip["clip_id"]
        if not clip["has_audio"]:
            refused.append(Refused(clip_id, "NoAudioStream", f"{clip['source_name']}: no sound to learn from"))
            continue
        if clip_id not in captions:
            message = f"{clip['source_name']}: stage {config.features.captions} has no caption of it"
            refused.append(Refused(clip_id, "NoCaption", message))
            continue
        sync_name = f"{PurePosixPath(clip['source_name']).stem}.npy"
        if sync is not None and sync_name not in sync:
            message = f"{clip['source_name']}: no {sync_name} in features.sync ({config.features.sync})"
            refused.append(Refused(clip_id, "NoSyncFeatures", message))
            continue
        caption = captions[clip_id]
        identity = {"source_sha256": clip["source_sha256"], "normaliser": normaliser}
        task = {"clip_id": clip_id, "video": clip["video"], "audio": clip["audio"]}
        given = {} if sync is None else {"sync": sync[sync_name]}
        if sync is not None:
            task["sync"] = sync_name
        av.append(Row(clip_id, {**av_meaning, **identity, **given}, task))
        # The clip is part of the key: a feature file's row says whose it is.
        text.append(
            Row(clip_id, {**text_meaning, **identity, "caption": caption}, {"clip_id": clip_id, "caption": caption})
        )
        clips.append({k: clip[k] for k in ("clip_id", "label", "split", "video", "audio")} | {"caption": caption})
    return _Work(clips, av, text, refused)


def _sync_files(config: Config) -> dict[str, list[Any]] | None:
    """Size and version by name of the given synchronisation features; None where the network takes none."""
    given = _given_sync(config)
    if given is None:
        return None
    found = {i.name: [i.size, i.version] for i in Storage(given.folder).files() if i.name.endswith(".npy")}
    if not found:
        raise UserError(f"features.sync: no .npy file in {given.folder!r}; give a folder of (L, C) arrays")
    return found


def _given_sync(config: Config) -> GivenSync | None:
    """Raises UserError where the preset takes synchronisation features and none are given, or the reverse."""
    network, folder = _network(config), config.features.sync
    if network.sync_dim == 0 and folder is None:
        return None
    if folder is None:
        raise UserError(
            f"features.sync: missing; preset {config.flowley.preset} takes synchronisation features "
            f"(L, {network.sync_dim}): give the folder that holds them"
        )
    if network.sync_dim == 0:
        raise UserError(f"features.sync: got {folder!r}, but preset {config.flowley.preset} takes none; leave it out")
    return GivenSync(folder, network.sync_dim, network.sync_length(config.clips.duration_s))


def _captions(context: Context) -> dict[str, str]:
    source = context.config.features.captions
    if source in ("captions", "silent_captions"):
        return {row["clip_id"]: row["caption"] for row in context.inputs[source].rows()}
    clips = context.inputs["clips"].rows()
    return {clip["clip_id"]: clip["label"] if source == "label" else "" for clip in clips}


def _missing(context: Context, ledger: str, rows: list[Row]) -> list[str]:
    known = Ledger(context.storage, ledger).read()
    return missing({row.row_id: row.key for row in rows}, known, retry_failed=context.retry_failed)


def _compute(context: Context, name: str, rows: list[Row], worker: Callable[[], Worker]) -> dict[str, Entry]:
    """Computes what is missing; returns every row's entry by row id."""
    from pipelines.fanout import fan_out

    ledger = Ledger(context.storage, name)
    todo = set(_missing(context, name, rows))
    items = [(row.row_id, row.key, dict(row.task)) for row in rows if row.row_id in todo]
    if items:
        workers = context.config.features.execution
        fan_out(items, worker, ledger=ledger, workers=workers, label=name, say=context.say)
        ledger.compact()
    entries = ledger.read()
    return {row.row_id: entries[row.key] for row in rows}


def _av_worker(config: Config, storage: Storage) -> Callable[[], Worker]:
    section = config.features
    return partial(
        AVWorker,
        storage,
        model_location(section.visual),
        section.visual.revision,
        _av_meaning(config)["visual_fps"],
        located(section.codec),
        _given_sync(config),
        section.execution,
    )


def _text_worker(config: Config, storage: Storage) -> Callable[[], Worker]:
    section, meaning = config.features, _text_meaning(config)
    return partial(
        TextWorker,
        storage,
        model_location(section.text),
        section.text.revision,
        meaning["max_tokens"],
        meaning["normalisation"],
        meaning["keep_padding"],
        section.execution,
    )


def _quarantined(row_id: str, error_class: str, message: str) -> dict[str, Any]:
    return {"row_id": row_id, "stage": FeaturesStage.name, "error_class": error_class, "message": message}
