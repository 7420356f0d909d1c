"""The stages in flow order, one module each."""

from pipelines.stage import Stage


def all_stages() -> list[Stage]:
    """Every stage, in the order in which a run goes through them."""
    from pipelines.stages.captioner import CaptionerStage
    from pipelines.stages.captions import CaptionsStage
    from pipelines.stages.clips import ClipsStage
    from pipelines.stages.curation import CurationStage
    from pipelines.stages.features import FeaturesStage
    from pipelines.stages.flowley import FlowleyStage
    from pipelines.stages.samples import SamplesStage
    from pipelines.stages.scores import ScoresStage
    from pipelines.stages.silent_captions import SilentCaptionsStage

    return [
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
