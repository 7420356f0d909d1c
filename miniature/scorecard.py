"""Scorecard of the demo: its captions and sounds against the ground truth, which no stage reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from flowley.metrics import ONSET_TOLERANCE_S
from flowley.metrics.onsets import detect_onsets, onset_f1
from miniature.language import TABLED_SCORES, caption_scores, claimed_by, heard_by_truth
from pipelines.engine.plan import make_plan
from pipelines.engine.storage import Storage
from pipelines.engine.store import Output
from pipelines.errors import UserError
from pipelines.media.read import read_audio
from pipelines.run_config import Config
from pipelines.stages import wanted_stages

Captions = dict[str, str]
"""Captions by clip id; a clip that has none claims nothing."""
Scores = dict[str, float | None]


def rows_of(config: Config, stage: str) -> list[dict[str, Any]]:
    """Rows of a stage's finished output for this configuration. Raises UserError where it is not finished."""
    storage = Storage(config.root)
    [planned] = [one for one in make_plan(wanted_stages(config), config, storage) if one.name == stage]
    if planned.fingerprint is None:
        raise UserError(f"{stage} is not finished for this configuration: run it before its scorecard is written")
    rows: list[dict[str, Any]] = Output(storage, stage, planned.fingerprint).rows().to_pylist()
    return rows


def write_scorecard(config: Config, unwarned: Config, page: str) -> list[str]:
    """Write the HTML page into the store under this key, and its figures beside it as JSON.

    Args:
        config: of a finished run.
        unwarned: the same without warnings, finished up to its captions.

    Returns:
        The scores of each line as text.
    """
    clips = _truth(config)
    test = _held_out(clips)
    lines = {
        "teacher, no warnings": _captions(unwarned, "captions"),
        "teacher, warned": _captions(config, "captions"),
        "silent captioner, tuned on warned captions": _captions(config, "silent_captions"),
    }
    table = {title: _scores(captions, test) for title, captions in lines.items()}
    sounds = _onsets(config, clips)
    storage = Storage(config.root)
    storage.write_json(page.replace(".html", ".json"), {"captions": table, "sounds": sounds, "test_clips": len(test)})
    storage.write_bytes(page, _page(table, sounds, lines, test).encode())
    return [
        f"{title}: " + ", ".join(f"{label} {_percent(scores[name])}" for name, (label, _) in TABLED_SCORES.items())
        for title, scores in table.items()
    ]


def held_out_scores(config: Config) -> dict[str, Any]:
    """Scores of a finished run on its test clips: {"captions", "silent_captions", "onset_f1"}."""
    clips = _truth(config)
    test = _held_out(clips)
    scores: dict[str, Any] = {
        stage: _scores(_captions(config, stage), test) for stage in ("captions", "silent_captions")
    }
    return scores | {"onset_f1": _onsets(config, clips)["generated"]}


def _truth(config: Config) -> dict[str, dict[str, Any]]:
    """Ground truth of each clip, by clip id."""
    truth_file = Path(config.source.folder).parent / "truth.json"
    truth = {Path(clip["file"]).stem: clip for clip in json.loads(truth_file.read_text())["clips"]}
    return {row["clip_id"]: truth[Path(row["source_name"]).stem] for row in rows_of(config, "clips")}


def _held_out(clips: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {clip_id: clip for clip_id, clip in clips.items() if clip["split"] == "test"}


def _captions(config: Config, stage: str) -> Captions:
    return {row["clip_id"]: row["caption"] for row in rows_of(config, stage)}


def _scores(captions: Captions, clips: Mapping[str, Any]) -> Scores:
    claims = [claimed_by(captions.get(clip_id, "")) for clip_id in clips]
    return caption_scores([heard_by_truth(clip) for clip in clips.values()], claims)


def _onsets(config: Config, clips: Mapping[str, Any]) -> dict[str, float]:
    """Onset F1 of the samples, and of the clips' own sound, against the events that are seen and heard."""
    storage, hz = Storage(config.root), config.scores.audio_hz
    found: dict[str, list[float]] = {"generated": [], "original": []}
    for row in rows_of(config, "samples"):
        heard = [one for one in clips[row["clip_id"]]["seen"] if one["heard"]]
        times_s = [time_s for one in heard for time_s in one["times_s"] if time_s < config.clips.duration_s]
        events_s = np.unique(np.asarray(times_s, float))
        for name, column in (("generated", "audio"), ("original", "original_audio")):
            with storage.local(row[column]) as file:
                onsets_s = detect_onsets(read_audio(file, hz), hz)
            found[name].append(onset_f1(onsets_s, events_s, tolerance_s=ONSET_TOLERANCE_S))
    return {name: round(float(np.mean(values)), 4) for name, values in found.items() if values}


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f}%"


def _page(
    table: Mapping[str, Scores], sounds: Mapping[str, float], lines: Mapping[str, Captions], test: Mapping[str, Any]
) -> str:
    def row(cells: Sequence[str], tag: str = "td") -> str:
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"

    scores = [row(["captions", *(" ".join(heading) for heading in TABLED_SCORES.values())], "th")]
    scores += [row([escape(title), *(_percent(one[name]) for name in TABLED_SCORES)]) for title, one in table.items()]
    texts = [row(["clip", "in truth", *map(escape, lines)], "th")]
    for clip_id, clip in test.items():
        said = [escape(captions.get(clip_id, "(left out)")) for captions in lines.values()]
        texts.append(row([escape(clip_id), escape(_truth_in_words(clip)), *said]))
    onsets = " and ".join(f"{value:.2f} for the {name} sound" for name, value in sounds.items())
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>Scorecard of the demo</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse;margin:1rem 0}}td,th{{border:1px solid #ccc;padding:.3rem .6rem;text-align:left;
vertical-align:top}}th{{background:#f3f3f3}}div{{overflow-x:auto}}</style>
<h1>Scorecard of the demo</h1>
<p>{len(test)} test clips against the truth that was written with them. No stage reads that truth.</p>
<div><table>{"".join(scores)}</table></div>
<p>Events that are seen and heard, against onsets of sound within {ONSET_TOLERANCE_S:g} s: F1 ↑ is {onsets}.</p>
<div><table>{"".join(texts)}</table></div></html>
"""


def _truth_in_words(clip: Mapping[str, Any]) -> str:
    heard = heard_by_truth(clip)
    noise = f", and {', '.join(sorted(heard.noises))} added" if heard.noises else ""
    still = "; the picture is still" if clip["still"] else ""
    return ", then ".join(heard.objects) + "".join(f"; {one}" for one in sorted(heard.surroundings)) + noise + still
