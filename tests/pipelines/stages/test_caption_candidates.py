"""Several captions a clip: all are kept, one is chosen, keys of single captions stay, and no clip is lost for one."""

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from miniature.world.corpus import generate_corpus
from miniature.world.film import World
from pipelines.config_file import load_config
from pipelines.engine.fingerprint import canonical, stage_fingerprint
from pipelines.engine.ledger import Failed, counted_rows
from pipelines.engine.plan import make_plan
from pipelines.engine.row_stage import RowWork
from pipelines.engine.runner import StageRun, run_stages
from pipelines.engine.stage import Context
from pipelines.engine.storage import Storage, parquet_table
from pipelines.engine.store import Manifest, Output, PreviewedOutput, open_store
from pipelines.errors import UserError
from pipelines.media.read import read_audio, read_frames
from pipelines.run_config import CaptioningExecution, Config
from pipelines.stages.captions import AUDIO_HZ, CANDIDATES, CaptionRecipe, CaptionsStage, CaptionWorker
from pipelines.stages.clips import ClipsStage
from pipelines.stages.model_refs import Model
from soundcap.candidates import choose
from soundcap.engines import CaptionEngine, load_engine
from soundcap.prompts import Instruction, PromptSet
from soundcap.request import CaptionRequest, FrameSettings, Sampling

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
CLIPS = pa.table(
    {
        "clip_id": ["dog", "rain", "bell", "mute"],
        "source_name": ["d.mp4", "r.mp4", "b.mp4", "m.mp4"],
        "label": ["dog", "rain", "bell", "bell"],
        "split": ["train"] * 4,
        "video": ["d.mp4", "r.mp4", "b.mp4", "m.mp4"],
        "audio": ["d.flac", "r.flac", "b.flac", ""],
        "has_audio": [True, True, True, False],
        "peak": [0.3, 0.3, 0.3, None],
    }
)


def _recipe(**changes: Any) -> CaptionRecipe:
    prompts = PromptSet(Instruction("Say what is heard.", "i.yaml"))
    return CaptionRecipe(Model("o/m@1", "o/m"), FrameSettings(), Sampling(temperature=0.7), True, prompts, **changes)


def test_a_single_captions_key_and_fingerprint_are_those_of_before_candidates_and_silence() -> None:
    """Recorded with the code before each of these fields. A failure means that stored captions would be made again."""
    recipe = _recipe()
    assert recipe.keys(["clip"], ["Say what is heard."])[0].hex() == "de70a824a286d513964310047173b60a"
    assert stage_fingerprint("captions", canonical(recipe.meaning()), {"clips": "0" * 64}) == "d24f14ffb417"
    for changes in ({"silence": "Silence."}, {"candidates": 2}, {"candidates": 2, "choose": "longest"}):
        other = _recipe(**changes)
        assert other.meaning() != recipe.meaning() and other.shared_digest == recipe.shared_digest


def test_greedy_candidates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load_config(DEMO, [f"root={tmp_path}/store", "captions.candidates=3"])
    assert "captions.candidates: got 3 with captions.sampling.temperature = 0, wanted" in str(error.value)
    assert "\n" not in str(error.value)


def _work(tmp_path: Path, candidates: int, choose: str = "consensus") -> RowWork:
    """Work of the stage over CLIPS."""
    settings = ["captions.silence=Silence.", "captions.sampling.temperature=1.0", f"captions.choose={choose}"]
    config = load_config(DEMO, [f"root={tmp_path}/store", f"captions.candidates={candidates}", *settings])
    storage = open_store(config.root, write=True)
    given = PreviewedOutput(storage, Manifest("clips", "f", "d", 4, 4, 0, 0, 0.0), CLIPS)
    output = Output(storage, "captions", f"{candidates}-{choose}")
    recipe = CaptionsStage().recipe(config, storage)
    return CaptionsStage().work(Context(config, storage, {"clips": given}, output, recipe, print))


def _fill(work: RowWork, captions: Sequence[str | None]) -> None:
    """Puts captions into the ledger, in the order of the tasks; None for a failed one."""
    [rows] = work.rows.sets
    values = [
        Failed("MediaError", f"task {n}") if text is None else {"caption": text} for n, text in enumerate(captions)
    ]
    work.ledgers[0].write(rows.keys.to_pylist(), rows.tasks["clip_id"].to_pylist(), values)


def test_more_candidates_use_those_that_are_there(tmp_path: Path) -> None:
    one, two, four = (_work(tmp_path, count) for count in (1, 2, 4))
    keys = [work.rows.sets[0].keys.to_pylist() for work in (one, two, four)]
    assert [len(found) for found in keys] == [4, 7, 13], "a silent clip has one caption"
    assert keys[1][:4] == keys[0] and keys[2][:7] == keys[1] and len(set(keys[2])) == 13
    _fill(one, ["A dog.", "Rain.", "A bell.", "Silence."])
    after = _work(tmp_path, 2)
    assert (after.counts.to_run, after.counts.total, after.rows_by_ledger) == (3, 4, {"captions": 3})
    assert _work(tmp_path, 1).counts.to_run == 0
    [rows] = after.rows.sets
    assert rows.is_free is not None and rows.is_free.tolist() == [False, False, False, True, False, False, False]
    assert rows.tasks["candidate"].to_pylist() == [None] * 4 + ["1"] * 3
    assert rows.order == ["dog", "rain", "bell", "mute", "dog", "rain", "bell"]


def test_a_clip_is_lost_only_if_all_its_candidates_failed(tmp_path: Path) -> None:
    work = _work(tmp_path, 3)
    first = [None, "Rain falls.", None, "Silence."]  # of dog, rain, bell, mute
    second, third = ["A dog barks.", "A loud bell rings.", None], ["A dog barks.", "Rain falls hard.", None]
    _fill(work, [*first, *second, *third])
    work = _work(tmp_path, 3)
    assert work.counts.to_run == 0
    result = work.make()
    rows = parquet_table(work.context.storage.read_bytes(work.context.output.name("rows.parquet")))
    assert dict(zip(rows["clip_id"].to_pylist(), rows["caption"].to_pylist(), strict=True)) == {
        "dog": "A dog barks.",
        "rain": "Rain falls.",
        "mute": "Silence.",
    }
    [bad] = result.quarantined
    assert (bad.row_id, bad.message, result.rows_in) == ("bell", "task 2", 4)
    assert result.figures["candidates"] == 10 and result.figures["candidates_failed"] == 4
    found = parquet_table(work.context.storage.read_bytes(work.context.output.name(CANDIDATES))).to_pylist()
    assert [(one["clip_id"], one["seed"], one["caption"], one["error_class"], one["is_chosen"]) for one in found] == [
        ("dog", 0, None, "MediaError", False),
        ("dog", 1, "A dog barks.", "", True),
        ("dog", 2, "A dog barks.", "", False),
        ("rain", 0, "Rain falls.", "", True),
        ("rain", 1, "A loud bell rings.", "", False),
        ("rain", 2, "Rain falls hard.", "", False),
        ("bell", 0, None, "MediaError", False),
        ("bell", 1, None, "MediaError", False),
        ("bell", 2, None, "MediaError", False),
        ("mute", None, "Silence.", "", True),
    ]


@pytest.mark.parametrize(("rule", "caption"), [("consensus", "a b c"), ("longest", "x x x x x"), ("first", "z")])
def test_rules(tmp_path: Path, rule: str, caption: str) -> None:
    work = _work(tmp_path, 4, rule)
    of_one = ["z", "a b c", "a b c d", "x x x x x"]
    _fill(work, [*[of_one[0]] * 3, "Silence.", *(text for text in of_one[1:] for _ in range(3))])
    work = _work(tmp_path, 4, rule)
    preview = work.preview()
    assert preview is not None and preview.rows("caption")["caption"].to_pylist() == [caption] * 3 + ["Silence."]
    assert work.make().digest == preview.committed().digest


class SeedEngine(CaptionEngine):
    """Engine whose captions are the seeds of their requests."""

    fills_batches = False
    has_room = True

    def __init__(self) -> None:
        self.inside: dict[str, str] = {}

    def prepare(self, request: CaptionRequest) -> CaptionRequest:
        return request

    def add(self, key: str, prepared: CaptionRequest) -> None:
        self.inside[key] = f"{prepared.prompt} {prepared.seed}"

    def step(self) -> list[tuple[str, str | Exception]]:
        done, self.inside = list(self.inside.items()), {}
        return list(done)

    def close(self) -> None: ...


def test_a_batch_reads_a_clip_once_and_seeds_each_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def bring(_: CaptionWorker, task: dict[str, Any]) -> CaptionRequest | Failed:
        read.append(task["clip_id"])
        frames = np.zeros((1, 28, 28, 3), np.uint8)
        return (
            Failed("MediaError", "cut") if task["clip_id"] == "bad" else CaptionRequest(task["prompt"], frames, 2, None)
        )

    monkeypatch.setattr(CaptionWorker, "load", lambda _: SeedEngine())
    monkeypatch.setattr(CaptionWorker, "_read", bring)
    recipe = replace(_recipe(candidates=3), sampling=Sampling(temperature=1.0, seed=5))
    worker = CaptionWorker(recipe, CaptioningExecution(), Storage(str(tmp_path)))
    worker.setup()
    order = [("a", "1"), ("bad", None), ("bad", "1"), ("b", None), ("b", "1"), ("b", "2")]
    tasks = [{"clip_id": clip, "prompt": clip, "candidate": candidate} for clip, candidate in order]
    cut = Failed("MediaError", "cut")
    expected = [{"caption": "a 6"}, cut, cut, {"caption": "b 5"}, {"caption": "b 6"}, {"caption": "b 7"}]
    assert sorted(worker.stream(tasks), key=lambda one: one[0]) == list(enumerate(expected))
    assert sorted(read) == ["a", "b", "bad"]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three films, of which the last has no sound."""
    folder = tmp_path_factory.mktemp("films")
    generate_corpus(folder, clips=3, seed=3, workers=1, world=World(duration_s=2.5))
    last = sorted((folder / "videos").iterdir())[-1]
    mute = last.with_name("mute.mp4")
    subprocess.run(["ffmpeg", "-v", "error", "-i", last, "-an", "-c", "copy", mute], check=True)
    last.unlink()
    return folder / "videos"


def test_through_the_stage_with_a_real_model(tmp_path: Path, films: Path, tiny_omni: Path, local_ray: None) -> None:
    def configure(candidates: int, *more: str) -> Config:
        settings = {
            "root": f"{tmp_path}/store", "source.folder": films, "source.table": "null", "clips.duration_s": 2.0,
            "clips.require_audio": "false", "captions.silence": "Silence.", "captions.model.path": tiny_omni,
            "captions.sampling": "{max_new_tokens: 12, temperature: 1.0}", "captions.candidates": candidates,
        }  # fmt: skip
        return load_config(DEMO, [*(f"{key}={value}" for key, value in settings.items()), *more])

    def run(config: Config) -> tuple[StageRun, list[dict[str, Any]]]:
        made = run_stages([ClipsStage(), CaptionsStage()], config, say=lambda _: None)[1]
        return made, Output(Storage(config.root), "captions", made.manifest.fingerprint).rows().to_pylist()

    _, single = run(configure(1))
    ledger = Storage(configure(1).root), "captions"
    assert counted_rows(*ledger) == (3, 0)
    made, _ = run(configure(2))
    assert made.rows_computed == 2 and counted_rows(*ledger) == (5, 0)
    four = configure(4)
    [_, plan] = make_plan([ClipsStage(), CaptionsStage()], four, Storage(four.root))
    assert (plan.rows_to_run, plan.rows_by_ledger) == (2, {"captions": 4})
    made, rows = run(four)
    assert counted_rows(*ledger) == (9, 0)
    assert (made.manifest.rows_in, made.manifest.rows_out, made.manifest.rows_quarantined) == (3, 3, 0)
    assert [(usage["rows"], usage["ledger"]) for usage in made.manifest.usage] == [(4, "captions")]

    output = Output(Storage(four.root), "captions", made.manifest.fingerprint)
    candidates = parquet_table(output.read_bytes(CANDIDATES)).to_pylist()
    clips = {row["clip_id"]: row for row in Output(Storage(four.root), "clips", _latest(four)).rows().to_pylist()}
    for row, alone in zip(rows, single, strict=True):
        of_clip = [one for one in candidates if one["clip_id"] == row["clip_id"]]
        texts = [one["caption"] for one in of_clip]
        assert texts[0] == alone["caption"]
        assert [one["is_chosen"] for one in of_clip].index(True) == choose(texts, "consensus")
        assert texts[choose(texts, "consensus")] == row["caption"]
        if row["prompt"]:
            assert [one["seed"] for one in of_clip] == [0, 1, 2, 3] and len(set(texts)) > 1
            assert texts[3] == _asked(four, clips[row["clip_id"]], row["prompt"], seed=3), "asked alone"
        else:
            assert (texts, of_clip[0]["seed"]) == (["Silence."], None)

    made, longest = run(configure(4, "captions.choose=longest"))
    assert made.rows_computed == 0 and counted_rows(*ledger) == (9, 0)
    for row in longest:
        texts = [one["caption"] for one in candidates if one["clip_id"] == row["clip_id"]]
        assert row["caption"] == texts[choose(texts, "longest")]


def _latest(config: Config) -> str:
    [clips] = make_plan([ClipsStage()], config, Storage(config.root))
    assert clips.fingerprint is not None
    return clips.fingerprint


def _asked(config: Config, clip: dict[str, Any], prompt: str, seed: int) -> str | Exception:
    """Caption of a clip by the engine itself, without the pipeline, of an engine with this seed."""
    storage, section = Storage(config.root), config.captions
    frames = read_frames(Path(storage.path(clip["video"])), section.frames.fps)
    audio = read_audio(Path(storage.path(clip["audio"])), AUDIO_HZ)
    sampling = Sampling(section.sampling.max_new_tokens, temperature=1.0, seed=seed)
    engine = load_engine(
        section.model.path, None, None, frames=section.frames, sampling=sampling, execution=section.execution
    )
    [caption] = engine.caption([CaptionRequest(prompt, frames, section.frames.fps, audio, AUDIO_HZ)])
    return caption
