"""Pipeline stages in flow order, one module each."""

from pipelines.engine.stage import Stage
from pipelines.stages.captioner import CaptionerStage
from pipelines.stages.captions import CaptionsStage
from pipelines.stages.clips import ClipsStage, PlannedClipsStage
from pipelines.stages.curation import CurationStage
from pipelines.stages.features import FeaturesStage
from pipelines.stages.flowley import FlowleyStage
from pipelines.stages.listing import SourceListing
from pipelines.stages.samples import SamplesStage
from pipelines.stages.scores import ScoresStage
from pipelines.stages.silent_captions import SilentCaptionsStage

STAGES: list[Stage] = [
    ClipsStage(),
    CaptionsStage(),
    CurationStage(),
    CaptionerStage(),
    SilentCaptionsStage(),
    FeaturesStage(),
    FlowleyStage(),
    SamplesStage(),
    ScoresStage(),
]
"""All stages, in execution order."""


def planned_stages(listing: SourceListing) -> list[Stage]:
    """All stages, for planning with a listing of the source that may be a remembered one."""
    return [PlannedClipsStage(listing), *STAGES[1:]]
