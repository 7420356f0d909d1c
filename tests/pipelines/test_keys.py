"""Keys of a configuration and the page that lists them."""

from pathlib import Path

import yaml

from pipelines.commands.keys import REQUIRED, Key, all_keys, markdown
from pipelines.config_file import load_config

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_fields_say() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == markdown(), "if this is meant: soundcap keys --markdown > docs/configuration.md"


def test_every_key_has_a_meaning() -> None:
    assert [key.name for key in all_keys() if not key.meaning] == []


def test_the_configurations_keys_are_listed_and_defaults_are_what_is_loaded() -> None:
    config = load_config(
        ROOT / "configs" / "demo.yaml", [f"{name}.model.path=some/model" for name in ("agreement", "judge")]
    )
    given = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    for key in all_keys():
        value, written, is_written = config, given, True
        for name in key.name.split("."):
            value = getattr(value, name)
            is_written = is_written and isinstance(written, dict) and name in written
            written = written[name] if is_written else None
        is_plain = key.default not in (REQUIRED, "") and not key.default.endswith("patterns")
        if is_plain and not is_written and not key.name.startswith("flowley.training"):  # those are the preset's
            assert yaml.safe_load(key.default) == (list(value) if isinstance(value, tuple) else value), key


def test_kinds_and_defaults() -> None:
    keys = {key.name: key for key in all_keys()}
    assert keys["clips.fps"] == Key("clips.fps", "whole number", "25", keys["clips.fps"].meaning)
    assert keys["clips.limits.still_share"].kind == "number or null"
    assert keys["source.split"].kind == "train, test or null"
    assert keys["flowley.training.betas"].default == "[0.9, 0.95]"
    assert keys["root"].default == REQUIRED
    assert keys["agreement.model.path"].default == REQUIRED, "of a section that may be left out"
    assert keys["agreement.execution.device"].default == "cuda"
    assert keys["judge.sampling.max_new_tokens"].default == "8", "not that of a caption"
