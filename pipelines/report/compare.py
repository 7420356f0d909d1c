"""Comparison of two sets of captions of the same clips, of two configurations or of one before and after an edit."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.config_file import load_config
from pipelines.engine.fingerprint import canonical, stage_fingerprint
from pipelines.engine.model_pins import Unresolved
from pipelines.engine.plan import StagePlan, make_plan
from pipelines.engine.stage import Stage
from pipelines.engine.store import Output, committed_outputs, open_store
from pipelines.errors import UserError
from pipelines.report.build import Media, clip_player, side_by_side
from pipelines.report.templates import render
from pipelines.run_config import Config
from pipelines.stages import wanted_stages
from pipelines.stages.agreement import AgreementStage, caption_rows
from pipelines.stages.captions import CaptionsStage, read_prompts
from pipelines.stages.judgements import JudgementsStage
from pipelines.stages.listing import SourceListing
from soundcap.caption_scores import (
    AGREEMENT,
    LEAST_DIFFERENT,
    LEVEL,
    Comparison,
    Measure,
    Run,
    changed_share,
    compare,
    distinct,
    measure,
    paragraph_changes,
    word_changes,
)
from soundcap.curate import CaptionRow, curate
from soundcap.human_labels import HumanLabels, human_labels, vggsound_id
from soundcap.prompts import NoiseWarning

MAX_PLAYED, MAX_LISTED = 12, 200
"""Changed captions on the page that can be played, and those that are listed."""


@dataclass(frozen=True)
class Side:
    """Captions to compare: how they were named, their configuration, and their output with those that tell of it.

    agreement: of just these captions, by the model that the configuration names; None if it is not there.
    judgements: the same, by the judge that the configuration names.
    """

    name: str
    config: Config
    captions: Output
    clips: Output | None
    agreement: Output | None
    judgements: Output | None

    @classmethod
    def of(cls, named: str, overrides: Sequence[str], canary: int | None = None) -> Side:
        """Side of `CONFIG` or `CONFIG@FINGERPRINT`; of its canary, or of all captions where those alone are there.

        Raises UserError if there are none.
        """
        is_file = os.path.exists(named)  # noqa: PTH110 (Path's raises for a name that is too long)
        path, at, fingerprint = (named, "", "") if is_file or "@" not in named else named.rpartition("@")
        if at and not fingerprint:
            raise UserError(f"{named}: no fingerprint behind the @; `soundcap status` and earlier runs print them")
        config = load_config(path, [*overrides, *([] if canary is None else [f"source.sample={canary}"])])
        clips, captions = _planned(config)
        made = _output_of(config, fingerprint) if fingerprint else _made(config, captions)
        if made is None and canary is not None:
            with contextlib.suppress(UserError):
                return cls.of(named, overrides)
        if made is None:
            limit = ("--until", "captions") if canary is None else ("--canary", str(canary))
            settings = chain.from_iterable(("--set", one) for one in overrides)
            command = shlex.join(["soundcap", "run", path, *limit, *settings])
            other = ", or compare canaries, with --canary N" if canary is None else ""
            raise UserError(
                f"{named}: its captions are not there as one output ({captions.rows_at_most} rows of it are to be "
                f"made at most); run it first: `{command}`{other}"
            )
        return cls(named, config, made, _made(config, clips), *_told_of(config, made))

    def rows(self, *, with_agreement: bool = True, with_judgements: bool = True) -> dict[str, CaptionRow]:
        """Captions by clip id, with their agreements and verdicts if those are there and asked for."""
        agreement = self.agreement.rows() if self.agreement is not None and with_agreement else None
        judged = self.judgements.rows() if self.judgements is not None and with_judgements else None
        clips = None if self.clips is None else self.clips.rows("clip_id", "peak")
        captions = self.captions.rows("clip_id", "label", "caption", "prompt")
        return {row.clip_id: row for row in caption_rows(captions, clips, agreement, judged)}

    @property
    def heard_by(self) -> str:
        """Identity of the model that measured the agreement, or "" without one."""
        return "" if self.agreement is None else str(self.agreement.spec()["meaning"]["model"])

    @property
    def judge(self) -> dict[str, Any]:
        """All that decides a judge's answers beside the captions, or {} without one."""
        return {} if self.judgements is None else dict(self.judgements.spec()["meaning"])

    def paragraphs(self) -> list[str]:
        """Paragraphs of the instruction and of the warnings that made the captions."""
        prompts = self.captions.spec()["meaning"]["prompts"]
        return [*prompts["instruction"].splitlines(), *(warning["text"] for warning in prompts["warnings"])]

    def told(self) -> dict[str, Any]:
        """Facts of the side: name, fingerprint, model, counts."""
        manifest, meaning = self.captions.committed(), self.captions.spec()["meaning"]
        return {
            "name": self.name,
            "fingerprint": self.captions.fingerprint,
            "model": meaning["model"],
            "captions": manifest.rows_out,
            "quarantined": manifest.rows_quarantined,
        }


def _told_of(config: Config, captions: Output) -> tuple[Output | None, Output | None]:
    """Agreement and judgements of an output of captions, as of `_output_of_stage`."""
    agreement, judgements = (_output_of_stage(one, config, captions) for one in (AgreementStage(), JudgementsStage()))
    return agreement, judgements


def _output_of_stage(stage: Stage, config: Config, captions: Output) -> Output | None:
    """Committed output of a stage that tells of captions, by a configuration's model; None if it is not there.

    Found by what it was made of, since the captions may be earlier ones, which no plan of the configuration reaches.
    """
    if not stage.is_wanted(config):
        return None
    digests = {"captions": captions.committed().digest, "clips": captions.spec()["inputs"]["clips"]}
    try:
        meaning = canonical(stage.recipe(config, captions.storage).meaning())
    except Unresolved:  # then it was never run
        return None
    output = Output(captions.storage, stage.name, stage_fingerprint(stage.name, meaning, digests))
    return output if output.manifest() is not None else None


def captions_of(config: Config) -> Output | None:
    """Captions of a configuration; None if they are not there."""
    return _made(config, _planned(config)[1])


def _planned(config: Config) -> list[StagePlan]:
    """Plans of clips and captions."""
    stages = wanted_stages(config, CaptionsStage.name, listing=SourceListing(config.source.folder, rescan=False))
    return make_plan(stages, config, open_store(config.root))


def _made(config: Config, plan: StagePlan) -> Output | None:
    """Output of a stage that is done."""
    if plan.state != "done" or plan.fingerprint is None:
        return None
    return Output(open_store(config.root), plan.name, plan.fingerprint)


def _output_of(config: Config, fingerprint: str) -> Output:
    outputs = committed_outputs(open_store(config.root), "captions")
    found = [output for output in outputs if output.fingerprint.startswith(fingerprint)]
    if len(found) != 1:
        there = ", ".join(output.fingerprint for output in outputs) or "none"
        raise UserError(f"@{fingerprint}: {len(found)} outputs of captions begin so, wanted one of {there}")
    return found[0]


@dataclass(frozen=True)
class CaptionPair:
    """Captions of one clip by both sides. `changed`: share of their words that are not in both."""

    clip_id: str
    label: str
    a: str
    b: str
    changed: float


@dataclass(frozen=True)
class Scorecard:
    """Scorecard of two sides over the clips that both have captioned.

    Attributes:
        sides: what is told of each.
        common: clips that both have captioned.
        only: clips that one side alone has.
        different: clips whose captions differ.
        comparisons: measures, judged by the rules of B's configuration and the warnings of both.
        own_kept: share of each side that its own configuration keeps.
        distinct: distinct-2 of each side's captions.
        prompt: changes of the prompts' paragraphs.
        pairs: captions that differ, the most changed first.
        labelled: clips of which VGGSounder has people's labels.
        without_agreement: why the agreement with the sound is not compared although a side has it, or "".
        without_judgements: the same of a judge's verdicts.
    """

    sides: Sequence[Mapping[str, Any]]
    common: int
    only: tuple[int, int]
    different: int
    comparisons: Sequence[Comparison]
    own_kept: tuple[float, float]
    distinct: tuple[float, float]
    prompt: Sequence[Sequence[Run]]
    pairs: Sequence[CaptionPair]
    labelled: int = 0
    without_agreement: str = ""
    without_judgements: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain data; numbers that are not there are None."""
        found: dict[str, Any] = _without_nan(asdict(self))
        return found

    @property
    def summary(self) -> str:
        """Result of the comparison, in one line."""
        words = [f"{self.different} of {self.common} captions differ"]
        alone = zip(self.only, "AB", strict=True)
        words += [f"{count} of {side} alone are not compared" for count, side in alone if count]
        for verdict, told in (("better", "B is better in"), ("worse", "B is worse in"), ("parts", "they part in")):
            names = [one.name for one in self.comparisons if one.verdict == verdict]
            words += [f"{told} {', '.join(names)}"] * bool(names)
        if not any(one.verdict for one in self.comparisons):
            words.append("no measure parts them")
        judged = next(((one.a, one.b) for one in self.comparisons if one.name == "kept"), self.own_kept)
        if judged != self.own_kept:
            a, b = (figure("kept", share) for share in self.own_kept)
            words.append(f"by its own rules and warnings A keeps {a}, and B {b}")
        return "; ".join(words)


def judged_by(a: Config, b: Config) -> list[NoiseWarning]:
    """Warnings of both configurations; of those of one name B's."""
    warnings: dict[str, NoiseWarning] = {}
    for config in (a, b):
        prompts = read_prompts(config.captions.instruction, config.captions.warnings)
        warnings |= {warning.name: warning for warning in prompts.warnings}
    return list(warnings.values())


def score(config: Config, output: Output) -> tuple[list[Measure], float]:
    """Measures and distinct-2 of one output of captions."""
    clips = _made(config, _planned(config)[0])
    rows = list(Side("", config, output, clips, *_told_of(config, output)).rows().values())
    measures = measure(rows, config.curation.rules, judged_by(config, config), _by_people(clips))
    return measures, distinct([row.caption for row in rows], 2)


def compare_sides(a: Side, b: Side, judged: Sequence[NoiseWarning] = ()) -> Scorecard:
    """Scorecard of two sides. Raises UserError if no clip has a caption in both.

    `judged`: warnings by which both are judged beside their own, such as those of an earlier configuration.
    """
    without_agreement, without_judgements = _without_agreement(a, b), _without_judgements(a, b)
    of_a, of_b = (
        side.rows(with_agreement=not without_agreement, with_judgements=not without_judgements) for side in (a, b)
    )
    common = sorted(of_a.keys() & of_b.keys())
    if not common:
        raise UserError(
            f"{a.name} ({len(of_a)} captions) and {b.name} ({len(of_b)}) have no clip in common; a canary is compared "
            "with one of the same source and clips"
        )
    rows_a, rows_b = [of_a[clip_id] for clip_id in common], [of_b[clip_id] for clip_id in common]
    rules, warnings = b.config.curation.rules, judged_by(a.config, b.config)
    warnings += [warning for warning in judged if warning.name not in {one.name for one in warnings}]
    by_people = _by_people(a.clips) | _by_people(b.clips)
    measures = [measure(rows, rules, warnings, by_people) for rows in (rows_a, rows_b)]
    pairs = [
        CaptionPair(x.clip_id, x.label, x.caption, y.caption, changed_share(x.caption, y.caption))
        for x, y in zip(rows_a, rows_b, strict=True)
        if x.caption != y.caption
    ]
    return Scorecard(
        sides=(a.told(), b.told()),
        common=len(common),
        only=(len(of_a) - len(common), len(of_b) - len(common)),
        different=len(pairs),
        comparisons=compare(*measures),
        own_kept=(_own_kept(a, rows_a), _own_kept(b, rows_b)),
        distinct=(distinct([row.caption for row in rows_a], 2), distinct([row.caption for row in rows_b], 2)),
        prompt=paragraph_changes(a.paragraphs(), b.paragraphs()),
        pairs=sorted(pairs, key=lambda pair: (-pair.changed, pair.clip_id)),
        labelled=len(by_people.keys() & set(common)),
        without_agreement=without_agreement,
        without_judgements=without_judgements,
    )


def _own_kept(side: Side, rows: Sequence[CaptionRow]) -> float:
    """Share of the captions that a side's own configuration keeps."""
    config = side.config
    verdicts = curate(rows, config.curation.rules, judged_by(config, config))
    return sum(verdict.kept for verdict in verdicts) / len(verdicts)


def _by_people(clips: Output | None) -> dict[str, HumanLabels]:
    """People's labels by clip id, of the clips that are VGGSound's and in VGGSounder."""
    if clips is None:
        return {}
    names = ("clip_id", "video_id", "start_s")
    rows = clips.rows(*names)
    columns = (rows[name].to_pylist() for name in names)
    ids = {clip: vggsound_id(video, start_s) for clip, video, start_s in zip(*columns, strict=True)}
    found = human_labels(ids.values())
    return {clip: found[name] for clip, name in ids.items() if name in found}


def _without_agreement(a: Side, b: Side) -> str:
    """Why the agreement with the sound cannot be compared although a side has it, or ""."""
    if a.heard_by == b.heard_by:
        return ""
    lacking = [side.name for side in (a, b) if side.agreement is None]
    if lacking:
        return f"{lacking[0]} has none by its configuration; `soundcap run` it until stage agreement"
    return f"measured by different models, {a.heard_by} and {b.heard_by}; give both configurations one agreement.model"


def _without_judgements(a: Side, b: Side) -> str:
    """Why a judge's verdicts cannot be compared although a side has them, or ""."""
    if a.judge == b.judge:
        return ""
    lacking = [side.name for side in (a, b) if side.judgements is None]
    if lacking:
        return f"{lacking[0]} has none by its configuration; `soundcap run` it until stage judgements"
    keys = {"prompts": "instruction"}
    parts = [keys.get(part, part) for part in sorted(a.judge | b.judge) if a.judge.get(part) != b.judge.get(part)]
    return f"judged by another {' and '.join(parts)}; give both configurations one section judge"


def figure(name: str, value: float, *, signed: bool = False) -> str:
    """A measure's value for people: a share in %, words and cosines with decimals, and – for none."""
    if math.isnan(value):
        return "–"
    sign = "+" if signed else ""
    decimals = {"words": 1, AGREEMENT: 3}.get(name)
    return f"{100 * value:{sign}.1f}%" if decimals is None else f"{value:{sign}.{decimals}f}"


def verdict_words(one: Comparison) -> str:
    """Verdict in words, or what it would take."""
    if one.verdict:
        return {"better": "B is better", "worse": "B is worse", "parts": "they differ"}[one.verdict]
    if not one.clips:
        return "no such clip"
    if one.clips_needed is None:
        return "equal in each clip" if not one.different else "equal on average"
    few = f": only {one.different} clips differ" if one.different < LEAST_DIFFERENT else ""
    return f"none{few}; about {one.clips_needed:,} clips would tell"


def write_page(card: Scorecard, a: Side, path: Path) -> None:
    """Writes the comparison as one self-contained page. Clips that cannot be played are named on it."""
    listed = card.pairs[:MAX_LISTED]
    players = _players(a, [pair.clip_id for pair in listed[:MAX_PLAYED]])
    shown = [
        (pair, players[place] if place < len(players) else None, word_changes(pair.a, pair.b))
        for place, pair in enumerate(listed)
    ]
    scale = {one.name: _scale(one) for one in card.comparisons}
    page = render(
        "compare.html.jinja",
        card=card,
        level=LEVEL,
        least_different=LEAST_DIFFERENT,
        shown=shown,
        figure=figure,
        verdict_words=verdict_words,
        scale=scale,
        max_listed=MAX_LISTED,
    )
    path.write_text(page, encoding="utf-8", errors="replace")


def _scale(one: Comparison) -> dict[str, float] | None:
    """Places of interval and difference on a line from -1 to 1 times the largest end, in % of its width."""
    reach = max(abs(one.low), abs(one.high))
    if not reach or math.isnan(reach):
        return None
    low, high, middle = (50 + 50 * value / reach for value in (one.low, one.high, one.b - one.a))
    return {"low": low, "width": max(high - low, 1.0), "middle": middle}


def _players(side: Side, clip_ids: Sequence[str]) -> list[Media]:
    if side.clips is None:
        return [Media(problem="clips that are not there")] * len(clip_ids)
    storage, rows = side.clips.storage, side.clips.rows("clip_id", "video", "audio")
    rows = rows.filter(pc.is_in(rows["clip_id"], value_set=pa.array(clip_ids, pa.string())))
    files = {row["clip_id"]: (row["video"], row["audio"]) for row in rows.to_pylist()}
    missing = Media(problem="its clip is not there")
    return side_by_side(
        lambda clip_id: clip_player(storage, *files[clip_id]) if clip_id in files else missing, clip_ids
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
