"""Page of the study (docs/miniature.md), rendered from the stored results alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from miniature.language import TABLED_SCORES
from miniature.study.claims import CLAIMS, Claim, cell_of, result_file
from pipelines.errors import UserError

Result = dict[str, Any]
SOUND_METRICS = {
    "onset_f1": "onset F1 ↑",
    "aligned": "aligned ↑",
    "log_mel_correlation": "log-mel corr. ↑",
    "kad": "KAD ↓",
    "fad": "FAD ↓",
    "kl": "KL ↓",
    "is": "IS ↑",
    "noise": "noise ↓",
}
SUMMARY = "summary.md"
CAPTIONED = {"captions": "teacher", "silent_captions": "silent captioner"}
"""Stages that write captions, and who does."""
PLOTTED = ("onset_f1", "aligned", "kad")
CAPTION_METRICS = {metric: f"{label} {better}" for metric, (label, better) in TABLED_SCORES.items()}
T_QUANTILES = {3: 4.303, 4: 3.182, 5: 2.776}
"""97.5% of Student's t with n - 1 degrees of freedom, by n."""


def render(results: Path, page: Path, notes: Path) -> None:
    """Write the page and its plots.

    Args:
        results: folder of the cells' results.
        page: Markdown file; its plots go into a folder beside it.
        notes: folder of a person's conclusions, in Markdown: one file a claim, and one of all.

    Raises:
        UserError: a result is damaged.
    """
    plots = page.parent / page.stem
    plots.mkdir(parents=True, exist_ok=True)
    parts = [_HEAD]
    if (notes / SUMMARY).exists():
        parts.append(f"## In short\n\n{(notes / SUMMARY).read_text().strip()}\n")
    for name, claim in CLAIMS.items():
        parts.append(f"## {claim.title}\n")
        parts.append(f"`make miniature CELLS='{name}/*'`\n")
        note = notes / f"{name}.md"
        if note.exists():
            parts.append(note.read_text().strip() + "\n")
        found = _results_of(name, claim, results)
        parts.append(_section(name, claim, found, plots) if found else "Not run yet.\n")
    page.write_text("\n".join(parts))


def _results_of(name: str, claim: Claim, results: Path) -> list[Result]:
    """Results of a claim so far, each under the claim's own name of its setting."""
    found = []
    for setting in claim.settings:
        for seed in claim.seeds:
            file = result_file(cell_of(name, setting, seed), results)
            if file.exists():
                found.append(_read(file) | {"setting": setting})
    return found


def _read(file: Path) -> Result:
    try:
        result: Result = json.loads(file.read_text())
        _check(result)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        wanted = "wanted the JSON of a cell: restore the file, or delete it and run the cell again"
        raise UserError(f"{file}: {type(error).__name__} {error}; {wanted}") from error
    return result


def _check(result: Result) -> None:
    """Raise an error of lookup or type unless the result has all that a section shows."""
    _ = result["seed"] + result["seconds"], date.fromisoformat(result["date"])
    if "curve" in result:
        _ = [sum(point[metric] for metric in ("steps", *PLOTTED)) for point in result["curve"]][-1]
    elif "captions" in result:
        _ = result["captions"].keys()
    else:
        for one in result["rounds"]:
            _ = one["round"] + "", one["seconds"] + one["scores"]["onset_f1"]
            _ = [stage["stage"] + "" for stage in one["stages"]]
            _ = [stage["computed"] + stage["rows"] + stage["seconds"] for stage in one["stages"]]
            _ = [one["scores"][stage][metric] for stage in CAPTIONED for metric in CAPTION_METRICS]


_HEAD = """# The paper's claims in miniature

Films of a small world in which everything is known (`miniature/world`), captioned by small models trained
on it (`miniature/checkpoints`), and sounded by networks of Flowley's and MMAudio's architecture, 96 wide,
over a codec of 12 channels. Every figure here comes from `docs/miniature/results`; `make miniature` makes those
that are missing and renders this page again, in parts if asked (`CELLS`).

A table shows, for each setting, the mean over the seeds of the last scores with its 95% interval (Student's t), and
below it the differences from the first setting, paired by seed: same films, same initial weights, same noise.
**Bold** differences have an interval that excludes 0. A seed is another corpus: 400 films to train on and 80 test
films of 4 s, none of which the captioners or encoders were trained on. Onset F1 counts onsets of the made sound
against events that are seen and heard, within 0.1 s; aligned is the share of clips that a classifier takes for in
time with their picture; KAD, FAD, KL and IS are of the shipped listener, and so is noise: how much of what it hears is
music or narration (missing where a cell was run before that was asked).
"""


def _section(name: str, claim: Claim, results: Sequence[Result], plots: Path) -> str:
    text = _rounds(results) if "rounds" in results[0] else _comparison(name, claim, results, plots)
    seconds = sum(r["seconds"] for r in results)
    dates = sorted({r["date"] for r in results})
    return text + f"\n{len(results)} cells, {seconds / 60:.0f} min of one core, {dates[0]} to {dates[-1]}.\n"


def _comparison(name: str, claim: Claim, results: Sequence[Result], plots: Path) -> str:
    """Table of the settings, and their learning curves."""
    captions = "captions" in results[0]
    metrics = CAPTION_METRICS if captions else SOUND_METRICS
    last = {
        setting: {
            r["seed"]: (r["captions"] if captions else r["curve"][-1]) for r in results if r["setting"] == setting
        }
        for setting in claim.settings
    }
    last = {setting: seeds for setting, seeds in last.items() if seeds}
    text = _table(last, metrics)
    if not captions and len(results[0]["curve"]) > 1:
        _plot(results, claim, plots / f"{name}.svg")
        text += f"\n![onset F1, aligned and KAD over training steps]({plots.name}/{name}.svg)\n"
    return text


def _rounds(results: Sequence[Result]) -> str:
    """Table of the pipeline's rounds: rows computed, time, and the scores after each."""
    names = [one["round"] for one in results[0]["rounds"]]
    lines = ["| rows computed, seconds | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    rounds = [[r["rounds"][k] for r in results] for k in range(len(names))]
    for number, stage in enumerate(one["stage"] for one in results[0]["rounds"][0]["stages"]):
        cells = []
        for same in rounds:
            stages = [one["stages"][number] for one in same]
            computed, rows, seconds = (np.mean([one[key] for one in stages]) for key in ("computed", "rows", "seconds"))
            cells.append(f"{computed:.0f} of {rows:.0f}, {seconds:.0f} s" if computed else "–")
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    whole = [np.mean([one["seconds"] for one in same]) for same in rounds]
    lines.append("| all | " + " | ".join(f"{seconds:.0f} s" for seconds in whole) + " |")
    lines += ["", "| after it | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for stage, title in CAPTIONED.items():
        for metric, label in CAPTION_METRICS.items():
            shown = [_interval([one["scores"][stage][metric] for one in same]) for same in rounds]
            lines.append(f"| {title}: {label} | " + " | ".join(shown) + " |")
    onsets = [_interval([one["scores"]["onset_f1"] for one in same]) for same in rounds]
    return "\n".join([*lines, "| Flowley: onset F1 ↑ | " + " | ".join(onsets) + " |"]) + "\n"


def _table(last: dict[str, dict[int, Any]], metrics: dict[str, str]) -> str:
    """Means and paired differences; without the metrics that no cell has."""
    scored = {metric for seeds in last.values() for scores in seeds.values() for metric in scores}
    metrics = {metric: label for metric, label in metrics.items() if metric in scored}
    lines = ["| setting | seeds | " + " | ".join(metrics.values()) + " |", "|---|---|" + "---|" * len(metrics)]
    for setting, seeds in last.items():
        shown = [_interval([scores.get(metric) for scores in seeds.values()]) for metric in metrics]
        lines.append(f"| {setting} | {len(seeds)} | " + " | ".join(shown) + " |")
    first, *others = last
    for setting in others:
        common = sorted(last[first].keys() & last[setting].keys())
        pairs = [[(last[setting][s].get(m), last[first][s].get(m)) for s in common] for m in metrics]
        shown = [_difference(one) for one in pairs]
        lines.append(f"| *{setting} − {first}* | {len(common)} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _difference(pairs: Sequence[tuple[float | None, float | None]]) -> str:
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    if not differences:
        return "–"
    shown = _interval(differences, signed=True)
    half = half_width(differences)
    return f"**{shown}**" if half is not None and abs(np.mean(differences)) > half else shown


def _interval(values: Sequence[float | None], *, signed: bool = False) -> str:
    kept = [value for value in values if value is not None]
    if not kept:
        return "–"
    mean, half, sign = float(np.mean(kept)), half_width(kept), "+" if signed else ""
    return f"{mean:{sign}.3f}" if half is None else f"{mean:{sign}.3f} ± {half:.3f}"


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95% interval of the mean; None for fewer than three values."""
    n = len(values)
    return None if n < min(T_QUANTILES) else float(T_QUANTILES[n] * np.std(values, ddof=1) / n**0.5)


def _plot(results: Sequence[Result], claim: Claim, file: Path) -> None:
    """Plot scores over the steps: a line for each setting, a faint one for each seed."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3), layout="constrained")
    for axis, metric in zip(figure.subplots(1, len(PLOTTED)), PLOTTED, strict=True):
        for number, setting in enumerate(claim.settings):
            curves = [[(p["steps"], p[metric]) for p in r["curve"]] for r in results if r["setting"] == setting]
            if not curves:
                continue
            for curve in curves:
                axis.plot(*np.transpose(curve), color=f"C{number}", alpha=0.25, linewidth=0.8)
            axis.plot(*np.transpose(np.mean(curves, axis=0)), color=f"C{number}", label=setting)
        axis.set(xlabel="steps", ylabel=SOUND_METRICS[metric])
        axis.legend(frameon=False, fontsize=8)
    with rc_context({"svg.hashsalt": file.name}):  # the same results give the same file
        figure.savefig(file, metadata={"Date": None})
