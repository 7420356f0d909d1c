"""Captions of clips that are too quiet, in a store of real clips: dropped with their level, by their label."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipelines.engine.runner import run_stages
from pipelines.engine.store import Output, open_store
from pipelines.report.compare import captions_of, score
from pipelines.run_config import Config
from pipelines.stages.captions import CaptionsStage
from pipelines.stages.clips import ClipsStage
from pipelines.stages.curation import CurationStage, drops_by_label

STAGES = (ClipsStage(), CaptionsStage(), CurationStage())


def test_a_clip_below_the_level_is_dropped_with_its_reason(
    local_ray: None,
    configure: Callable[..., Config],
    caption: Callable[[Config, Sequence[str]], None],
    tmp_path: Path,
) -> None:
    config = configure(tmp_path)
    caption(config, [f"{kind} bells ring clearly and slowly nearby." for kind in ("Small", "Big", "Old", "New", "Far")])
    storage = open_store(config.root)
    clips = Output(storage, "clips", run_stages(STAGES[:1], config, say=lambda _: None)[0].manifest.fingerprint)
    peak_of = {row["clip_id"]: row["peak"] for row in clips.rows().to_pylist() if row["peak"]}
    between = np.sort(list(peak_of.values()))[:2].mean()  # just one clip is below

    limited = configure(tmp_path, f"curation.rules.min_peak={between}")
    said: list[str] = []
    [*_, run] = run_stages(STAGES, limited, say=said.append)
    rows = Output(storage, "curation", run.manifest.fingerprint).rows()
    found = {row["clip_id"]: row for row in rows.to_pylist()}
    quiet = min(peak_of, key=lambda clip_id: peak_of[clip_id])
    assert [clip_id for clip_id, row in found.items() if row["rule"] == "quiet"] == [quiet]
    assert found[quiet]["detail"] == f"largest level {peak_of[quiet]:g}"
    assert run.manifest.figures["dropped"]["quiet"] == 1
    assert ("quiet", 1) in {(one.rule, one.dropped) for one in drops_by_label(rows)}

    captions = captions_of(limited)
    assert captions is not None
    measures, _ = score(limited, captions)
    assert {one.name: one.mean for one in measures}["drop: quiet"] == 1 / len(found), "a canary shows it too"


def test_a_rule_that_is_off_reads_no_clips(configure: Callable[..., Config], tmp_path: Path) -> None:
    stage = CurationStage()
    assert stage.inputs(configure(tmp_path, "curation.rules.min_peak=0.001")) == ("captions", "clips")
    assert stage.inputs(configure(tmp_path, "curation.rules.min_peak=null")) == ("captions",)
