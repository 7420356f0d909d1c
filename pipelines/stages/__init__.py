"""Pipeline stages in flow order, one module each."""

from pipelines.engine.stage import Stage
from pipelines.errors import UserError
from pipelines.run_config import Config
from pipelines.stages.agreement import AgreementStage
from pipelines.stages.captioner import CaptionerStage
from pipelines.stages.captions import CaptionsStage
from pipelines.stages.clips import ClipsStage, PlannedClipsStage
from pipelines.stages.curation import CurationStage
from pipelines.stages.features import FeaturesStage
from pipelines.stages.flowley import FlowleyStage
from pipelines.stages.judgements import JudgementsStage
from pipelines.stages.listing import SourceListing
from pipelines.stages.samples import SamplesStage
from pipelines.stages.scores import ScoresStage
from pipelines.stages.silent_captions import SilentCaptionsStage

STAGES: list[Stage] = [
    ClipsStage(),
    CaptionsStage(),
    AgreementStage(),
    JudgementsStage(),
    CurationStage(),
    CaptionerStage(),
    SilentCaptionsStage(),
    FeaturesStage(),
    FlowleyStage(),
    SamplesStage(),
    ScoresStage(),
]
"""All stages, in execution order."""


def wanted_stages(config: Config, until: str | None = None, *, listing: SourceListing | None = None) -> list[Stage]:
    """Stages that a configuration wants, in execution order, up to `until`.

    listing: for planning, a listing of the source that may be a remembered one; None for a run, which lists it anew.

    Raises UserError if `until` is none of them.
    """
    stages = [stage for stage in STAGES if stage.is_wanted(config)]
    names = [stage.name for stage in stages]
    if until is not None and until not in names:
        sections = {stage.name: stage.config_section for stage in STAGES}
        lacks = f"this configuration has no section {sections.get(until)}; add it, or take"
        why = lacks if until in sections else "no such stage; wanted"
        raise UserError(f"--until {until}: {why} one of {', '.join(names)}")
    if listing is not None:
        stages[0] = PlannedClipsStage(listing)
    return stages if until is None else stages[: names.index(until) + 1]
