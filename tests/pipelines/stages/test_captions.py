"""Captioning rows: clips without sound, which a rule routes past the model."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.config_file import load_config
from pipelines.engine.stage import Context
from pipelines.engine.storage import Storage
from pipelines.engine.store import Manifest, Output, PreviewedOutput
from pipelines.errors import UserError
from pipelines.run_config import CaptioningExecution
from pipelines.stages.captions import CaptionRecipe, CaptionsStage, CaptionWorker, caption_tasks
from soundcap.engines import CaptionEngine

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
CLIPS = pa.table(
    {
        "clip_id": ["heard", "mute", "quiet"],
        "source_name": ["heard.mp4", "mute.mp4", "quiet.mp4"],
        "label": ["dog barking"] * 3,
        "video": ["h.mp4", "m.mp4", "q.mp4"],
        "audio": ["h.flac", "", "q.flac"],
        "has_audio": [True, False, True],
        "peak": [0.3, None, 0.0],
    }
)


def _recipe(tmp_path: Path, *settings: str) -> CaptionRecipe:
    config = load_config(DEMO, [f"root={tmp_path}/store", *settings])
    return CaptionsStage().recipe(config, Storage(config.root))


def test_silent_clips_are_refused_by_default(tmp_path: Path) -> None:
    tasks, prompts, refused = caption_tasks(CLIPS, _recipe(tmp_path))
    assert tasks["clip_id"].to_pylist() == ["heard"] and tasks["audio"].to_pylist() == ["h.flac"]
    assert tasks["prompt"].to_pylist() == prompts.to_pylist() and "Warning" in prompts[0].as_py()
    assert [(one.row_id, one.error_class) for one in refused] == [("mute", "NoAudioStream"), ("quiet", "SilentClip")]
    assert "quiet.mp4: its sound is digital silence" in refused[1].message
    assert all("captions.silence" in one.message for one in refused)


def test_silent_clips_get_the_given_caption_without_a_prompt(tmp_path: Path) -> None:
    tasks, prompts, refused = caption_tasks(CLIPS, _recipe(tmp_path, "captions.silence=No sound at all."))
    assert refused == []
    assert tasks["audio"].to_pylist() == ["h.flac", "", ""]
    assert tasks["prompt"].to_pylist()[1:] == ["No sound at all."] * 2
    assert prompts.to_pylist()[1:] == ["", ""], "no model was asked"


def test_another_caption_of_silence_makes_only_silent_rows_again(tmp_path: Path) -> None:
    def keys(*settings: str) -> list[bytes]:
        recipe = _recipe(tmp_path, *settings)
        tasks = caption_tasks(CLIPS, recipe)[0]
        return recipe.keys(tasks["clip_id"].to_pylist(), tasks["prompt"].to_pylist())

    heard, *silent = keys("captions.silence=Silence.")
    other_heard, *other_silent = keys("captions.silence=Quiet.")
    assert heard == other_heard and [heard] == keys()
    assert not set(silent) & set(other_silent)


class DeafEngine(CaptionEngine):
    """Engine that must not be asked."""

    fills_batches = False
    has_room = True

    def prepare(self, request: Any) -> Any:
        raise AssertionError("a silent clip was sent to the model")

    def add(self, key: str, prepared: Any) -> None: ...

    def step(self) -> list[tuple[str, str | Exception]]:
        return []

    def close(self) -> None: ...


def test_the_worker_answers_for_silent_clips_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CaptionWorker, "load", lambda _: DeafEngine())
    recipe = _recipe(tmp_path, "captions.silence=Silence.")
    worker = CaptionWorker(recipe, CaptioningExecution(), Storage(str(tmp_path)))
    worker.setup()
    tasks = caption_tasks(CLIPS, recipe)[0].slice(1).select(["clip_id", "prompt", "video", "audio"]).to_pylist()
    assert sorted(worker.stream(tasks)) == [(0, {"caption": "Silence."}), (1, {"caption": "Silence."})]


@pytest.mark.parametrize("text", ["", "   ", "Silence.<|im_end|>"])
def test_what_is_no_caption_is_refused_for_silence(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=rf"captions.silence: got {re.escape(repr(text))}, wanted words"):
        _recipe(tmp_path, f"captions.silence='{text}'")


def test_prompts_are_counted_without_those_of_silent_clips(tmp_path: Path) -> None:
    rows = pa.table({"prompt": ["a", "", "a"], "caption": ["x", "Silence.", "y"]})
    config = load_config(DEMO, [f"root={tmp_path}/store"])
    output = Output(Storage(config.root), "captions", "f")
    context = Context(config, Storage(config.root), {}, output, _recipe(tmp_path))
    figures = CaptionsStage().finish(context, rows, {})
    assert figures["silent"] == 1 and figures["prompts"] == 1


def test_rows_that_no_model_saw_say_nothing_of_its_rate(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "captions.silence=Silence.")
    config = load_config(DEMO, [f"root={tmp_path}/store", "captions.silence=Silence."])
    clips = CLIPS.append_column("split", pa.array(["train"] * 3))
    given = PreviewedOutput(Storage(config.root), Manifest("clips", "f", "d", 3, 3, 0, 0, 0.0), clips)
    context = Context(config, Storage(config.root), {"clips": given}, given, recipe)
    [rows] = CaptionsStage().rows(context).sets
    assert rows.is_free is not None and rows.is_free.tolist() == [False, True, True]
