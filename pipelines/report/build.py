"""Builds the report: what each stage did, clips with their captions, what was left out, losses, samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import jinja2

from pipelines.engine.plan import read_status
from pipelines.engine.storage import Storage
from pipelines.engine.store import Output, open_store
from pipelines.errors import one_line
from pipelines.media.faults import MediaError
from pipelines.media.read import read_audio
from pipelines.progress import human_time
from pipelines.report.figures import data_uri, loss_curve, player, spectrograms, video_sound
from pipelines.report.training_sounds import training_sounds
from pipelines.run_config import Config
from pipelines.stages import STAGES

REPORT = "report/index.html"
MAX_CLIPS = 24
"""Clips, and samples, that a page carries; each weighs some 150 KB."""
MAX_LISTED = 200
"""Rows of a list of dropped or quarantined rows; counts are always of all."""
SPECTROGRAM_HZ = 24_000
PLAYERS_AT_ONCE = 2


@dataclass(frozen=True)
class Box:
    """One stage in the graph. Counts are of its last output, None while it has none."""

    name: str
    state: str
    reason: str
    reads: tuple[str, ...]
    counts: tuple[int, int, int] | None
    took: str
    figures: list[tuple[str, str]]
    fingerprint: str | None


@dataclass(frozen=True)
class Media:
    """A `data:` URI, or why there is none."""

    uri: str = ""
    problem: str = ""


def build_report(config: Config) -> str:
    """Writes `report/index.html`, one page without any outside resource, to the storage; returns its address.

    It shows the last output of each stage and says where that is out of date. Media that cannot be read are
    named in the page. Raises UserError where `plan` would: for a source, prompt or checkpoint that is missing.
    """
    storage = open_store(config.root, write=True)
    statuses = read_status(STAGES, config, storage)
    outputs = {s["name"]: Output(storage, s["name"], s["fingerprint"]) for s in statuses if _has_output(s)}
    reads = {stage.name: stage.inputs(config) for stage in STAGES}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.jinja").render(
        root=storage.address(),
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        stages=[_box(status, reads[status["name"]]) for status in statuses],
        clips=_clips(storage, outputs),
        clips_total=len(outputs["clips"].rows()) if "clips" in outputs else 0,
        has=set(outputs),
        left_out=_left_out(outputs),
        max_listed=MAX_LISTED,
        curves=_curves(storage, outputs),
        drawn=training_sounds(storage, outputs),
        samples=_samples(storage, outputs),
    )
    storage.write_bytes(REPORT, page.encode("utf-8", errors="replace"))
    return storage.address(REPORT)


def _has_output(status: Mapping[str, Any]) -> bool:
    return status["fingerprint"] is not None and status["rows_in"] > 0


def _box(status: Mapping[str, Any], reads: tuple[str, ...]) -> Box:
    there = _has_output(status)
    return Box(
        name=status["name"],
        state=status["state"],
        reason=status["reason"],
        reads=reads,
        counts=(status["rows_in"], status["rows_out"], status["rows_quarantined"]) if there else None,
        took=human_time(status["seconds"]),
        figures=_figures(status["figures"]),
        fingerprint=status["fingerprint"],
    )


def _figures(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Figures of a manifest as words and values, one level deep."""
    shown = []
    for name, value in figures.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {_number(count)}" for key, count in value.items()) or "none"
        shown.append((name.replace("_", " "), _number(value)))
    return shown


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- clips ---------------------------------------------------------------------------------------------------


def _clips(storage: Storage, outputs: Mapping[str, Output]) -> list[dict[str, Any]]:
    """Up to MAX_CLIPS clips, both splits alike, each with its player, its captions and curation's verdict."""
    if "clips" not in outputs:
        return []
    chosen = choose(outputs["clips"].rows(), MAX_CLIPS)
    captions, silent, verdicts = (_by_clip(outputs, name) for name in ("captions", "silent_captions", "curation"))
    jobs = [(clip["video"], clip["audio"]) for clip in chosen]
    players = _side_by_side(lambda job: _player(storage, *job), jobs)
    return [
        {
            **clip,
            "player": shown,
            "caption": captions.get(clip["clip_id"]),
            "silent": silent.get(clip["clip_id"]),
            "verdict": verdicts.get(clip["clip_id"]),
        }
        for clip, shown in zip(chosen, players, strict=True)
    ]


def choose(clips: Sequence[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """Up to `limit` clips, taken from test and train in turn, sorted by split and id; the same ones each time."""
    ordered = sorted(clips, key=lambda clip: str(clip["clip_id"]))
    test, train = ([clip for clip in ordered if clip["split"] == split] for split in ("test", "train"))
    turns = [clip for clip in chain.from_iterable(zip_longest(test, train)) if clip is not None]
    return sorted(turns[:limit], key=lambda clip: (clip["split"], clip["clip_id"]))


def _by_clip(outputs: Mapping[str, Output], stage: str) -> dict[str, dict[str, Any]]:
    return {row["clip_id"]: row for row in outputs[stage].rows()} if stage in outputs else {}


def _player(storage: Storage, video: str, audio: str) -> Media:
    try:
        with storage.local(video) as picture:
            if not audio:
                return Media(player(picture, None))
            with storage.local(audio) as sound:
                return Media(player(picture, sound))
    except (MediaError, OSError) as error:
        return Media(problem=one_line(error))


def _side_by_side(work: Callable[[Any], Any], jobs: Sequence[Any]) -> list[Any]:
    """Encoding is done by ffmpeg's processes, so threads are enough to keep a few of them busy."""
    with ThreadPoolExecutor(PLAYERS_AT_ONCE) as pool:
        return list(pool.map(work, jobs))


# --- samples -------------------------------------------------------------------------------------------------


def _samples(storage: Storage, outputs: Mapping[str, Output]) -> list[dict[str, Any]]:
    """Generated against original sound, for up to MAX_CLIPS rows of stage `samples`."""
    if "samples" not in outputs:
        return []
    clips = _by_clip(outputs, "clips")
    rows = sorted(outputs["samples"].rows(), key=lambda row: str(row["clip_id"]))
    pairs = [(clips[row["clip_id"]], row) for row in rows if row["clip_id"] in clips][:MAX_CLIPS]
    return _side_by_side(lambda pair: _sample(storage, *pair), pairs)


def _sample(storage: Storage, clip: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    original, generated = Media(), Media()
    problem = ""
    try:
        with storage.local(clip["audio"]) as sound, storage.local(row["video"]) as muxed:
            waves = read_audio(sound, SPECTROGRAM_HZ), video_sound(muxed, SPECTROGRAM_HZ)
            pictures = spectrograms(waves, SPECTROGRAM_HZ)
        original, generated = (Media(data_uri("image/png", picture)) for picture in pictures)
    except (MediaError, OSError) as error:
        problem = one_line(error)
    return {
        "clip_id": clip["clip_id"],
        "label": clip["label"],
        "problem": problem,
        "sides": [
            ("original", _player(storage, clip["video"], clip["audio"]), original),
            ("generated", _player(storage, row["video"], ""), generated),
        ],
    }


# --- what was left out, and losses ---------------------------------------------------------------------------


def _left_out(outputs: Mapping[str, Output]) -> list[dict[str, Any]]:
    """By stage: dropped or quarantined rows as (row, reason, detail), with the count of each reason."""
    groups = []
    for stage, output in outputs.items():
        rows = [(row["row_id"], row["error_class"], row["message"]) for row in output.quarantine()]
        groups.append(_group(stage, "quarantined", rows))
        if stage == "curation":
            dropped = [
                (r["clip_id"], r["rule"], f"{r['detail']}: {r['caption']}") for r in output.rows() if not r["kept"]
            ]
            groups.append(_group(stage, "dropped", dropped))
    return [group for group in groups if group["rows"]]


def _group(stage: str, what: str, rows: list[tuple[str, str, str]]) -> dict[str, Any]:
    reasons = [reason for _, reason, _ in rows]
    counts = sorted(((reasons.count(r), r) for r in set(reasons)), key=lambda pair: (-pair[0], pair[1]))
    return {"stage": stage, "what": what, "counts": counts, "rows": sorted(rows, key=lambda row: (row[1], row[0]))}


def _curves(storage: Storage, outputs: Mapping[str, Output]) -> list[dict[str, Any]]:
    """The loss curve of every stage that recorded one in `loss.json`."""
    curves = []
    for stage, output in outputs.items():
        name = output.name("loss.json")
        if storage.exists(name):
            points = storage.read_json(name)
            curves.append({"stage": stage, "points": points, "svg": loss_curve(points)})
    return curves
