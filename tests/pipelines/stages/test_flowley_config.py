"""`flowley.training` is what a run changes of its preset's published recipe."""

from pathlib import Path

import pytest

from flowley.training.settings import RECIPES, TrainSettings
from pipelines.config_file import load_config
from pipelines.errors import UserError

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"


@pytest.mark.parametrize("preset", ["tiny", "mmaudio_small_16k"])
def test_training_changes_the_presets_recipe(preset: str) -> None:
    config = load_config(
        DEMO,
        [
            f"flowley.preset={preset}",
            "clips.duration_s=8.0",
            "flowley.training={steps: 7, batch_size: 4, seed: 3}",
        ],
    )
    assert config.flowley.training == TrainSettings(**RECIPES[preset], steps=7, batch_size=4, seed=3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("flowley.training.stpes=3", "flowley.training.stpes: unknown key; did you mean steps?"),
        ("flowley.training.steps=many", "flowley.training.steps: got 'many', wanted"),
        ("flowley.training={steps: 3}", "flowley.training.batch_size: missing; it is required"),
        ("flowley.training.timesteps=uniform", "flowley.training.timesteps: got 'uniform', wanted 'tangent' or"),
        ("flowley.training=fast", "flowley.training: got 'fast'"),
        ("flowley.training.drop_text=2", "drop_text = 2.0, wanted within [0, 1)"),
        ("flowley.preset=tny", "preset 'tny': wanted one of flowley_169m"),
        ("flowley.execution.workers=3", "flowley.training.batch_size: got 16, wanted a multiple of"),
        ("flowley.execution.settings.sharding=fsdp", "got 'fsdp' with one worker"),
        ("flowley.execution.settings.sample_evry_steps=5", "did you mean sample_every_steps?"),
    ],
)
def test_wrong_trainings_are_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(DEMO, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
