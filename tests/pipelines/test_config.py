"""A configuration that is wrong gets one line that names the key; the shipped ones are right."""

from pathlib import Path

import pytest
import yaml

from pipelines.config_file import load_config
from pipelines.errors import UserError

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


def test_shipped_configurations_are_valid() -> None:
    for file in DEMO.parent.glob("*.yaml"):
        load_config(file)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("clips.fps=fast", "clips.fps: got 'fast', wanted"),
        ("captions.candidates=65", "captions.candidates: got 65, wanted less than or equal to 64"),
        ("captions.sampling.seed=99999999999999999999", "captions.sampling.seed: got 99999999999999999999"),
        ("clips.fps=true", "clips.fps: got True, wanted integer"),
        ('clips.fps="25"', "clips.fps: got '25', wanted integer"),
        ("prices={CPU: true}", "prices.CPU: got True, wanted number"),
        ("clips.duration_s=.inf", "clips.duration_s: got inf, wanted a finite number"),
        ("curation.rules.min_peak=1e400", "curation.rules.min_peak: got inf, wanted a finite number"),
        ("clips.crf=0b_", "the value is not valid YAML; quote it if it is text"),
        ("curation.rules=null", "curation.rules: got None, wanted keys with values, or this section left out"),
        ("captions.model.revision=0012", "captions.model.revision: got 10, wanted text: put it in quotes"),
        ("captions.instruction=true", "captions.instruction: got True, wanted text: put it in quotes"),
        ("clips.fsp=25", "clips.fsp: unknown key; did you mean fps?"),
        ("source.split=val", "source.split: got 'val', wanted 'train' or 'test'"),
        ("captions.execution.engine=tgi", "captions.execution.engine: got 'tgi'"),
        ("captions.frames.fps=60", "captions.frames.fps: got 60.0, wanted at most clips.fps = 24"),
        ("captioner.training.rnak=4", "captioner.training.rnak: unknown key; did you mean rank?"),
        ("curation.rules.min_wrods=4", "did you mean min_words?"),
        ("captions.sampling.top_p=2", "captions.sampling.top_p: got 2.0, wanted a number in (0, 1]"),
        ("captions.frames.max_px=800", "captions.frames.max_px: got 800, wanted at least 3136"),
        ("captions.execution.device=tpu", "captions.execution.device: got 'tpu', wanted 'cpu' or 'cuda'"),
        ("captions.execution.options.batch_size=0", "captions.execution.options.batch_size: got 0, wanted at least 1"),
        ("captioner.training.frames.fps=60", "captioner.training.frames.fps: got 60.0, wanted at most clips.fps = 24"),
        ("captioner.training.dropout=1", "captioner.training.dropout: got 1.0, wanted a number in [0, 1)"),
        ("root=null", "root: got None, wanted"),
        ("clips", "wanted key=value"),
        ("root.x=1", "root is a value, not a section"),
    ],
)
def test_wrong_values_are_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(DEMO, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: &a [*a]\nroot: x\n", "root: [unclosed", "", "\x00"])
def test_files_that_are_no_configuration(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError):
        load_config(file)
    with pytest.raises(UserError, match="no such configuration file"):
        load_config(tmp_path / "none.yaml")


def test_missing_sections_are_all_named(tmp_path: Path) -> None:
    data = yaml.safe_load(DEMO.read_text())
    del data["root"], data["captions"]["model"]
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(UserError, match=r"root: missing.*captions\.model: missing"):
        load_config(file)


def test_overrides_win_and_execution_is_apart() -> None:
    config = load_config(DEMO, ["clips.fps=12", "captions.execution.workers=7"])
    assert config.clips.fps == 12 and config.captions.execution.workers == 7


@pytest.mark.parametrize("value", ["1e-4", "1.0e-4", "0.0001", "1E-4", "+1e-4"])
def test_numbers_are_read_as_people_write_them(value: str) -> None:
    assert load_config(DEMO, [f"captioner.training.learning_rate={value}"]).captioner.training.learning_rate == 1e-4


def test_a_key_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    """The second section would replace the first one whole, in silence."""
    config = tmp_path / "config.yaml"
    config.write_text(DEMO.read_text() + "\nclips:\n  fps: 10\n")
    with pytest.raises(UserError, match="the key clips is given twice"):
        load_config(config)


def test_dates_home_and_empty_sections_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/people/ann")
    settings = ["source.folder=2024-02-30", "captions.model.path=~/omni", "agreement=null"]
    config = load_config(DEMO, [*settings, "agreement.model.path=~/clap"])
    assert config.source.folder == "2024-02-30", "no key takes a date"
    assert config.captions.model.path == "/people/ann/omni"
    assert config.agreement is not None and config.agreement.model.path == "/people/ann/clap"


def test_another_encoding_is_said(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(DEMO.read_text().encode("utf-16"))
    with pytest.raises(UserError, match="is not UTF-8 text .byte .*; save it so"):
        load_config(tmp_path / "c.yaml")
