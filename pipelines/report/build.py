"""HTML report of a store, as one self-contained page."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.plan import read_status
from pipelines.engine.stage import Stage
from pipelines.engine.storage import Storage
from pipelines.engine.store import Output, open_store
from pipelines.errors import UserError, one_line
from pipelines.media.faults import MediaError
from pipelines.media.process import Deadline
from pipelines.media.read import decode_sound, read_audio
from pipelines.report.figures import DEADLINE_S, data_uri, loss_curve, player, sound_player, spectrograms
from pipelines.report.templates import render
from pipelines.run_config import Config
from pipelines.stages.clips import PASSED_OVER
from pipelines.stages.curation import drops_by_label
from pipelines.stages.flowley import SOUND_CLIPS, SOUNDS_FOLDER

REPORT, REPORT_OF = "report/index.html", "report/of.json"
MAX_CLIPS = 24
"""Clips, and samples, on a page; each takes some 150 KB."""
MAX_LISTED = 200
"""Dropped or quarantined rows in a list; the counts cover all of them."""
MAX_STEPS = 6
"""Training steps shown for each clip's sound, the first and the last among them; each takes some 120 KB."""
SAMPLE_SPECTROGRAM_HZ, TRAINING_SPECTROGRAM_HZ = 24_000, 16_000
PLAYERS_AT_ONCE = 2

Outputs = Mapping[str, Output]


@dataclass(frozen=True)
class Media:
    """Embedded player and picture as `data:` URIs, or the problem that prevented them."""

    uri: str = ""
    picture: str = ""
    problem: str = ""


def build_report(config: Config, stages: list[Stage]) -> str:
    """Writes `report/index.html`, a page without external resources, to the storage; returns its address.

    It shows each stage's output under this configuration. Unreadable media are named on the page.
    `stages`: all of them, with a listing of the source that may be a remembered one (`wanted_stages`).
    Raises UserError as `plan` does: for a source, prompt or checkpoint that is missing.
    """
    storage = open_store(config.root)
    if storage.is_empty():
        raise UserError(f"root {config.root!r} holds no store; `soundcap run CONFIG` makes one")
    statuses = read_status(stages, config, storage)
    outputs = {s["name"]: Output(storage, s["name"], s["fingerprint"]) for s in statuses if s["rows_in"] > 0}
    page = render(
        "page.html.jinja",
        root=storage.address(),
        config=config,
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        stages=statuses,
        reads={stage.name: stage.inputs(config) for stage in stages},
        clips=_clips(storage, outputs),
        clips_total=outputs["clips"].committed().rows_out if "clips" in outputs else 0,
        has=set(outputs),
        left_out=_left_out(outputs),
        max_listed=MAX_LISTED,
        curves=_curves(storage, outputs),
        training_sounds=training_sounds(storage, outputs),
        samples=_samples(storage, outputs),
    )
    storage.write_bytes(REPORT, page.encode("utf-8", errors="replace"))
    storage.write_record(REPORT_OF, {"outputs": {status["name"]: status["fingerprint"] for status in statuses}})
    return storage.address(REPORT)


def is_report_of(config: Config, stages: list[Stage]) -> bool:
    """Whether the report that is there shows the outputs of this configuration: those of a root share one page."""
    storage = open_store(config.root)
    if not storage.exists(REPORT):
        return False
    now = {status["name"]: status["fingerprint"] for status in read_status(stages, config, storage)}
    return storage.find_record(REPORT_OF) == {"outputs": now}


# --- clips and samples ---------------------------------------------------------------------------------------


def _clips(storage: Storage, outputs: Outputs) -> list[dict[str, Any]]:
    """Page data of up to MAX_CLIPS clips of both splits: player, captions and curation verdict."""
    chosen = choose(outputs["clips"].rows(), MAX_CLIPS) if "clips" in outputs else []
    ids = [clip["clip_id"] for clip in chosen]
    told = {stage: _by_clip(outputs, stage, ids) for stage in ("captions", "silent_captions", "curation")}
    players = side_by_side(lambda clip: clip_player(storage, clip["video"], clip["audio"]), chosen)
    return [
        {**clip, "player": shown, **{stage: rows.get(clip["clip_id"]) for stage, rows in told.items()}}
        for clip, shown in zip(chosen, players, strict=True)
    ]


def choose(clips: pa.Table, limit: int) -> list[dict[str, Any]]:
    """Deterministic choice of up to `limit` clips, test and train in turn, sorted by split and id."""
    test, train = (
        clips.filter(pc.equal(clips["split"], split)).sort_by("clip_id").slice(0, limit).to_pylist()
        for split in ("test", "train")
    )
    turns = [clip for clip in chain.from_iterable(zip_longest(test, train)) if clip is not None]
    return sorted(turns[:limit], key=lambda clip: (clip["split"], clip["clip_id"]))


def _by_clip(outputs: Outputs, stage: str, clip_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Rows of the given clips in a stage's output, by clip id."""
    if stage not in outputs:
        return {}
    rows = outputs[stage].rows()
    chosen = rows.filter(pc.is_in(rows["clip_id"], value_set=pa.array(clip_ids, pa.string())))
    return {row["clip_id"]: row for row in chosen.to_pylist()}


def clip_player(storage: Storage, video: str, audio: str) -> Media:
    """Player of a clip's picture with its sound, if it has any."""
    try:
        with storage.local(video) as picture:
            if not audio:
                return Media(player(picture, None))
            with storage.local(audio) as sound:
                return Media(player(picture, sound))
    except (MediaError, OSError) as error:
        return Media(problem=one_line(error))


def side_by_side(work: Callable[[Any], Any], jobs: Sequence[Any]) -> list[Any]:
    """Results of parallel jobs, in order. Threads suffice, because ffmpeg's processes do the encoding."""
    with ThreadPoolExecutor(PLAYERS_AT_ONCE) as pool:
        return list(pool.map(work, jobs))


def _samples(storage: Storage, outputs: Outputs) -> list[dict[str, Any]]:
    """Page data of up to MAX_CLIPS rows of stage `samples`: generated against original sound."""
    if not {"clips", "samples"} <= outputs.keys():
        return []
    ids = outputs["samples"].rows("clip_id")["clip_id"].sort().to_pylist()[:MAX_CLIPS]
    clips, samples = _by_clip(outputs, "clips", ids), _by_clip(outputs, "samples", ids)
    pairs = [(clips[clip_id], samples[clip_id]) for clip_id in ids]
    return side_by_side(lambda pair: _sample(storage, *pair), pairs)


def _sample(storage: Storage, clip: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    hz, problem = SAMPLE_SPECTROGRAM_HZ, ""
    pictures = ["", ""]
    try:
        with storage.local(clip["audio"]) as sound, storage.local(row["video"]) as muxed:
            waves = read_audio(sound, hz), decode_sound(muxed, hz, Deadline(DEADLINE_S))
            pictures = [data_uri("image/png", picture) for picture in spectrograms(waves, hz)]
    except (MediaError, OSError) as error:
        problem = one_line(error)
    players = clip_player(storage, clip["video"], clip["audio"]), clip_player(storage, row["video"], "")
    sides = list(zip(("original", "generated"), players, pictures, strict=True))
    return {"clip_id": clip["clip_id"], "label": clip["label"], "problem": problem, "sides": sides}


# --- sounds over training ------------------------------------------------------------------------------------


def training_sounds(storage: Storage, outputs: Outputs) -> list[tuple[str, dict[int, Media]]]:
    """Sounds over the last training run of Flowley: (clip id, sounds by step); empty if it made none."""
    folder = outputs["flowley"].name(SOUNDS_FOLDER) if "flowley" in outputs else ""
    if not folder or not storage.exists(f"{folder}/{SOUND_CLIPS}"):
        return []
    files = [info.name for info in storage.files(folder) if info.name.endswith(".flac")]
    steps = evenly(sorted({int(Path(name).stem.split("-")[0]) for name in files}), MAX_STEPS)
    return [
        (clip_id, _sounds_of_clip(storage, {step: f"{folder}/{step:08d}-{number}.flac" for step in steps}))
        for number, clip_id in enumerate(storage.read_json(f"{folder}/{SOUND_CLIPS}"))
    ]


def evenly(steps: list[int], limit: int) -> list[int]:
    """Evenly spaced choice of up to `limit` steps, with the first and the last."""
    if len(steps) <= limit:
        return steps
    return [steps[round(k * (len(steps) - 1) / (limit - 1))] for k in range(limit)]


def _sounds_of_clip(storage: Storage, files: Mapping[int, str]) -> dict[int, Media]:
    """Sounds of a clip by step, with spectrograms on a common scale."""
    uris, waves, sounds = {}, {}, {}
    for step, name in files.items():
        try:
            with storage.local(name) as file:
                uris[step], waves[step] = sound_player(file), read_audio(file, TRAINING_SPECTROGRAM_HZ)
        except (MediaError, OSError) as error:
            sounds[step] = Media(problem=one_line(error))
    pictures = spectrograms(list(waves.values()), TRAINING_SPECTROGRAM_HZ) if waves else []
    for (step, uri), picture in zip(uris.items(), pictures, strict=True):
        sounds[step] = Media(uri, data_uri("image/png", picture))
    return dict(sorted(sounds.items()))


# --- rows left out, and losses -------------------------------------------------------------------------------


def _left_out(outputs: Outputs) -> list[dict[str, Any]]:
    """Dropped or quarantined rows by stage, as (row, reason, detail), with the count of each reason."""
    groups = []
    for stage, output in outputs.items():
        if stage == "clips":
            found = json.loads(output.read_bytes(PASSED_OVER)).items()
            listed = [(name, kind, "") for kind, names in found for name in names]
            columns = zip(*listed, strict=True) if listed else ([], [], [])
            groups.append((stage, "passed over", pa.table(dict(zip(("name", "kind", "detail"), columns, strict=True)))))
        groups.append((stage, "quarantined", output.quarantine().select(["row_id", "error_class", "message"])))
        if stage == "curation":
            rows = output.rows("clip_id", "rule", "detail", "caption", "kept")
            rows = rows.filter(pc.invert(rows["kept"]))
            detail = pc.binary_join_element_wise(rows["detail"], rows["caption"], ": ")
            groups.append((stage, "dropped", rows.select(["clip_id", "rule"]).append_column("detail", detail)))
            groups.append((stage, "labels with drops", _drops_by_label(output)))
    return [_group(*group) for group in groups if group[2].num_rows]


def _drops_by_label(output: Output) -> pa.Table:
    drops = drops_by_label(output.rows("label", "rule", "kept"))
    labels = [one.label or "no label" for one in drops]
    shares = [f"{one.dropped / one.clips:.0%}: {one.dropped} of {one.clips}" for one in drops]
    return pa.table({"label": labels, "rule": [one.rule for one in drops], "share": shares})


def _group(stage: str, what: str, rows: pa.Table) -> dict[str, Any]:
    """Page data of a table of (row, reason, detail): counts of all reasons, and the first MAX_LISTED rows."""
    row, reason, _ = rows.column_names
    counts = Counter(rows[reason].to_pylist()).most_common()
    listed = rows.sort_by([(reason, "ascending"), (row, "ascending")]).slice(0, MAX_LISTED).to_pylist()
    return {
        "stage": stage,
        "what": what,
        "total": rows.num_rows,
        "counts": counts,
        "rows": [tuple(one.values()) for one in listed],
    }


def _curves(storage: Storage, outputs: Outputs) -> list[tuple[str, str]]:
    """Loss curves as (stage, `data:` URI), of every stage that recorded losses in `loss.json`."""
    recorded = {stage: output.name("loss.json") for stage, output in outputs.items()}
    pictures = {stage: loss_curve(storage.read_json(name)) for stage, name in recorded.items() if storage.exists(name)}
    return [(stage, data_uri("image/png", picture) if picture else "") for stage, picture in pictures.items()]
