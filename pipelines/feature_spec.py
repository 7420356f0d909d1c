"""What a run's features are made with, in the words of a checkpoint."""

from __future__ import annotations

from flowley.feature_spec import FeatureSpec
from pipelines.checkpoints import located, model_location
from pipelines.config import Config


def feature_spec(config: Config) -> FeatureSpec:
    """For `flowley.train.train(features=...)`, so that a checkpoint of this run alone says how to use it."""
    features = config.features
    codec = located(features.codec)
    return FeatureSpec(
        visual=model_location(features.visual),
        visual_revision=features.visual.revision,
        text=model_location(features.text),
        text_revision=features.text.revision,
        codec=codec.name,
        codec_path=codec.path,
        codec_revision=codec.revision,
        duration_s=config.flowley.training.duration_s,
    )
