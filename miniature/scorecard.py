"""Scorecard of the demo: its captions and sounds against the ground truth, which no stage reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from flowley.metrics.onsets import detect_onsets, onset_f1
from miniature.language import TABLED_SCORES, caption_scores, claimed_by, heard_by_truth
from pipelines.engine.plan import make_plan
from pipelines.engine.storage import Storage
from pipelines.engine.store import Output
from pipelines.errors import UserError
from pipelines.media.read import read_audio
from pipelines.run_config import Config
from pipelines.stages import STAGES

ONSET_TOLERANCE_S = 0.1


@dataclass(frozen=True)
class Line:
    """Line of the scorecard: captions of one origin, by clip id."""

    title: str
    captions: Mapping[str, str]


def rows_of(config: Config, stage: str) -> list[dict[str, Any]]:
    """Rows of a stage's finished output for this configuration. Raises UserError where it is not finished."""
    storage = Storage(config.root)
    [planned] = [one for one in make_plan(STAGES, config, storage) if one.name == stage]
    if planned.fingerprint is None:
        raise UserError(f"{stage} is not finished for this configuration: run it before its scorecard is written")
    return Output(storage, stage, planned.fingerprint).rows()


def write_scorecard(config: Config, unwarned: Config, page: str) -> list[str]:
    """Write the page into the store, and its figures beside it as JSON.

    Args:
        config: of a finished run.
        unwarned: the same without warnings, finished up to its captions.
        page: key of the HTML page.

    Returns:
        The scores of each line as text.
    """
    clips = _truth(config)
    lines = [
        Line("teacher, no warnings", _captions(unwarned, "captions")),
        Line("teacher, warned", _captions(config, "captions")),
        Line("silent captioner, tuned on warned captions", _captions(config, "silent_captions")),
    ]
    table = {line.title: _scores(line, clips) for line in lines}
    sounds = _onsets(config, clips)
    test = _held_out(clips)
    storage = Storage(config.root)
    storage.write_json(page.replace(".html", ".json"), {"captions": table, "sounds": sounds, "test_clips": len(test)})
    storage.write_bytes(page, _page(table, sounds, lines, clips, test).encode())
    return [f"{title}: {_text(scores)}" for title, scores in table.items()]


def held_out_scores(config: Config) -> dict[str, Any]:
    """Scores of a finished run on its test clips: {"captions", "silent_captions", "onset_f1"}."""
    clips = _truth(config)
    scores: dict[str, Any] = {
        stage: _scores(Line(stage, _captions(config, stage)), clips) for stage in ("captions", "silent_captions")
    }
    return scores | {"onset_f1": _onsets(config, clips)["generated"]}


def _truth(config: Config) -> dict[str, dict[str, Any]]:
    """Ground truth of each clip, by clip id."""
    truth_file = Path(config.source.folder).parent / "truth.json"
    truth = {Path(clip["file"]).stem: clip for clip in json.loads(truth_file.read_text())["clips"]}
    return {row["clip_id"]: truth[Path(row["source_name"]).stem] for row in rows_of(config, "clips")}


def _held_out(clips: Mapping[str, Any]) -> list[str]:
    return [clip_id for clip_id, clip in clips.items() if clip["split"] == "test"]


def _captions(config: Config, stage: str) -> dict[str, str]:
    return {row["clip_id"]: row["caption"] for row in rows_of(config, stage)}


def _scores(line: Line, clips: Mapping[str, Any]) -> dict[str, float | None]:
    """Scores on test clips; a clip without a caption claims nothing."""
    test = _held_out(clips)
    heard = [heard_by_truth(clips[one]) for one in test]
    return caption_scores(heard, [claimed_by(line.captions.get(one, "")) for one in test])


def _onsets(config: Config, clips: Mapping[str, Any]) -> dict[str, float]:
    """Onset F1 of the samples, and of the clips' own sound, against the events that are seen and heard."""
    storage, hz = Storage(config.root), config.scores.audio_hz
    found: dict[str, list[float]] = {"generated": [], "original": []}
    for row in rows_of(config, "samples"):
        events_s = _events_s(clips[row["clip_id"]], config.clips.duration_s)
        for name, column in (("generated", "audio"), ("original", "original_audio")):
            with storage.local(row[column]) as file:
                onsets_s = detect_onsets(read_audio(file, hz), hz)
            found[name].append(onset_f1(onsets_s, events_s, tolerance_s=ONSET_TOLERANCE_S))
    return {name: round(float(np.mean(values)), 4) for name, values in found.items() if values}


def _events_s(clip: Mapping[str, Any], duration_s: float) -> np.ndarray:
    times = [time for one in clip["seen"] if one["heard"] for time in one["times_s"] if time < duration_s]
    return np.unique(np.asarray(times, float))


def _text(scores: Mapping[str, float | None]) -> str:
    return ", ".join(f"{label} {_number(scores[name])}" for name, (label, _) in TABLED_SCORES.items())


def _number(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f}%"


def _page(
    table: Mapping[str, Mapping[str, float | None]], sounds: Mapping[str, float], lines: Sequence[Line],
    clips: Mapping[str, Any], test: Sequence[str],
) -> str:  # fmt: skip
    def row(cells: Sequence[str], tag: str = "td") -> str:
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"

    scores = [row(["captions", *(label for label, _ in TABLED_SCORES.values())], "th")]
    scores += [row([escape(title), *(_number(one[name]) for name in TABLED_SCORES)]) for title, one in table.items()]
    texts = [row(["clip", "in truth", *(escape(line.title) for line in lines)], "th")]
    for one in test:
        said = [escape(line.captions.get(one, "(left out)")) for line in lines]
        texts.append(row([escape(one), escape(_truth_in_words(clips[one])), *said]))
    onsets = " and ".join(f"{value:.2f} for the {name} sound" for name, value in sounds.items())
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Scorecard of the demo</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse;margin:1rem 0}}td,th{{border:1px solid #ccc;padding:.3rem .6rem;text-align:left;
vertical-align:top}}th{{background:#f3f3f3}}</style>
<h1>Scorecard of the demo</h1>
<p>{len(test)} test clips against the truth that was written with them. No stage reads that truth.</p>
<table>{"".join(scores)}</table>
<p>Events that are seen and heard, against onsets of sound within {ONSET_TOLERANCE_S:g} s: F1 is {onsets}.</p>
<table>{"".join(texts)}</table></html>
"""


def _truth_in_words(clip: Mapping[str, Any]) -> str:
    heard = heard_by_truth(clip)
    noise = f", and {', '.join(sorted(heard.noises))} added" if heard.noises else ""
    still = "; the picture is still" if clip["still"] else ""
    return ", then ".join(heard.objects) + "".join(f"; {one}" for one in sorted(heard.surroundings)) + noise + still
