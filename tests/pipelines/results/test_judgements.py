"""Stage `judgements`: a tiny Omni model's answers about real clips, their keys, and how verdicts are compared."""

import csv
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from miniature.models.tiny import build_tiny_omni
from pipelines.cli.soundcap import app
from pipelines.engine.ledger import Ledger
from pipelines.engine.plan import make_plan, resolve
from pipelines.engine.runner import StageRun, run_stages
from pipelines.engine.stage import Context
from pipelines.engine.store import Output, open_store
from pipelines.errors import UserError
from pipelines.media.read import read_audio, read_frames
from pipelines.report.compare import Side, compare_sides, write_page
from pipelines.run_config import Config
from pipelines.stages import wanted_stages
from pipelines.stages.captions import AUDIO_HZ, CaptionsStage
from pipelines.stages.clips import ClipsStage
from pipelines.stages.judgements import JudgementsStage
from soundcap.caption_scores import JUDGED
from soundcap.engines import load_engine
from soundcap.request import CaptionRequest

ROOT = Path(__file__).parents[3]
SILENCE = "No sound at all."
TEXTS = ("A dog barks twice.", "Bells ring while rain falls.", "", "Steps on a wooden floor.")
EDITED = ("A dog barks twice, then howls.", *TEXTS[1:])
EDIT = "captions.sampling.max_new_tokens=9"


@dataclass(frozen=True)
class Store:
    """Store with captions of five clips: four with sound, of which one caption is empty, and one without sound."""

    folder: Path
    configure: Callable[..., Config]
    omni: Path

    def config(self, *more: str) -> Config:
        judge = (
            f"judge={{model: {{path: {self.omni}}}, instruction: {ROOT / 'prompts/judge.yaml'}, "
            "frames: {fps: 2, min_px: 3136, max_px: 16384}, sampling: {max_new_tokens: 12}, "
            "execution: {engine: transformers, device: cpu, dtype: float32, workers: 1}}"
        )
        overrides = (
            f"source.folder={self.folder / 'source' / 'videos'}",
            f"source.table={self.folder / 'source' / 'vggsound.csv'}",
            "clips.require_audio=false",
            f"captions.silence={SILENCE}",
            *([judge] if "judge=null" not in more else []),
            *(one for one in more if one != "judge=null"),
        )
        return self.configure(self.folder / "store", *overrides)

    def file(self, name: str, *more: str) -> str:
        """Path of a configuration's file."""
        path = self.folder / name
        path.write_text(yaml.safe_dump(self.config(*more).model_dump(mode="json")))
        return str(path)


def run(config: Config, until: str = "judgements") -> dict[str, StageRun]:
    return {one.manifest.stage: one for one in run_stages(wanted_stages(config, until), config, say=lambda _: None)}


def output(config: Config, found: StageRun) -> Output:
    return Output(open_store(config.root), found.manifest.stage, found.manifest.fingerprint)


def context_of(config: Config) -> Context:
    """Context of the judgements, whose inputs are there."""
    done: dict[str, Output] = {}
    for stage in (ClipsStage(), CaptionsStage(), JudgementsStage()):
        resolved = resolve(stage, config, open_store(config.root), done)
        assert not isinstance(resolved, str)
        done[stage.name] = resolved.context.output
    return resolved.context


@pytest.fixture(scope="module")
def judged(
    local_ray: None,
    source: Path,
    configure: Callable[..., Config],
    caption: Callable[[Config, Sequence[str]], None],
    tiny_omni: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Store:
    folder = tmp_path_factory.mktemp("judgements")
    shutil.copytree(source, folder / "source")
    videos, table = folder / "source" / "videos", folder / "source" / "vggsound.csv"
    (videos / "broken_000003.mp4").unlink()
    rows = [row for row in csv.reader(table.open()) if row[0] != "broken"]
    first = videos / f"{rows[0][0]}_{int(rows[0][1]):06d}.mp4"
    mute = ["ffmpeg", "-v", "error", "-i", first, "-an", "-c", "copy", videos / "zmute_000001.mp4"]
    subprocess.run(mute, check=True)
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([*rows, ["zmute", "1", "dog barking", "train"]])
    store = Store(folder, configure, tiny_omni)
    caption(store.config(), [*TEXTS, SILENCE])
    return store


def answered(config: Config, *answers: str) -> StageRun:
    """Judgements with an answer for each caption in order, written to the ledger as rows. A row that is there stays."""
    context = context_of(config)
    [rows] = JudgementsStage().rows(context).sets
    ids = rows.tasks.column(0).to_pylist()
    values = [{"answer": answer} for answer in answers]
    Ledger(open_store(config.root, write=True), rows.ledger, rows.values).write(rows.keys.to_pylist(), ids, values)
    made = run(config)["judgements"]
    assert made.rows_computed == 0
    return made


def test_each_caption_has_the_answer_of_the_model_that_saw_and_heard_its_clip(judged: Store) -> None:
    config = judged.config()
    made = run(config)
    manifest = made["judgements"].manifest
    assert (manifest.rows_in, manifest.rows_out, manifest.rows_quarantined) == (3, 3, 0)
    rows = output(config, made["judgements"]).rows().to_pylist()
    clips = {row["clip_id"]: row for row in output(config, made["clips"]).rows().to_pylist()}
    captions = {row["clip_id"]: row for row in output(config, made["captions"]).rows().to_pylist()}
    assert {row["caption"] for row in rows} == set(TEXTS) - {""}, "no row for an empty caption or a silent clip"
    section = config.judge
    assert section is not None
    engine = load_engine(
        str(judged.omni), None, None, frames=section.frames, sampling=section.sampling, execution=section.execution
    )
    instruction = context_of(config).recipe.prompts.instruction.text
    for row in rows:
        assert row["caption"] == captions[row["clip_id"]]["caption"] and row["label"] == clips[row["clip_id"]]["label"]
        frames = read_frames(Path(config.root) / clips[row["clip_id"]]["video"], 2.0)
        audio = read_audio(Path(config.root) / clips[row["clip_id"]]["audio"], AUDIO_HZ)
        [alone] = engine.caption([CaptionRequest(f'{instruction}\n"{row["caption"]}"', frames, 2.0, audio)])
        assert row["answer"] == alone, "as asked without the pipeline"
    assert len({row["answer"] for row in rows}) > 1, "answers that are all alike show nothing"
    assert manifest.figures == {"licence": "not said", "without_sound_or_words": 2, "unclear": 3}
    assert [one.state for one in make_plan(wanted_stages(config, "judgements"), config, open_store(config.root))] == [
        "done"
    ] * 3


def test_only_another_caption_instruction_or_judge_makes_another_row(
    judged: Store, caption: Callable[[Config, Sequence[str]], None], tmp_path: Path
) -> None:
    run(judged.config())
    edited = judged.config(EDIT)
    caption(edited, [*EDITED, SILENCE])
    assert run(edited)["judgements"].rows_computed == 1, "one caption is another"
    executed = judged.config("judge.execution.batch_rows=1", "judge.execution.batches_at_once=1")
    assert not run(executed)["judgements"].is_new
    remarked = tmp_path / "judge.yaml"
    remarked.write_text("# a remark\n" + (ROOT / "prompts/judge.yaml").read_text())
    assert not run(judged.config(f"judge.instruction={remarked}"))["judgements"].is_new
    other_words, other_model = tmp_path / "other.yaml", tmp_path / "omni"
    other_words.write_text("text: Is this heard? Begin with yes or no.\n")
    build_tiny_omni(other_model, seed=7)
    for change, reason in (
        (f"judge.instruction={other_words}", f"{other_words} changed"),
        (f"judge.model.path={other_model}", "judge.model: files:"),
        ("judge.sampling.max_new_tokens=11", "judge.sampling.max_new_tokens: 12 -> 11"),
        ("judge.frames.fps=4", "judge.frames.fps: 2"),
    ):
        config = judged.config(change)
        [*_, plan] = make_plan(wanted_stages(config, "judgements"), config, open_store(config.root))
        assert (plan.rows_to_run, plan.rows_total) == (3, 3) and reason in plan.reason, plan.reason


def test_a_key_holds_the_clip_and_the_prompt_with_the_caption(judged: Store) -> None:
    run(judged.config())
    context = context_of(judged.config())
    [rows] = JudgementsStage().rows(context).sets
    assert (rows.ledger, rows.parts) == ("judgements", ("clip_id", "prompt"))
    assert rows.keys.to_pylist() == rows.recipe.keys(*(rows.tasks[part].to_pylist() for part in rows.parts))
    known = Ledger(context.storage, rows.ledger, rows.values).read()
    assert set(rows.keys.to_pylist()) <= set(known["key"].to_pylist())


def test_a_caption_that_holds_a_special_token_is_quarantined(
    judged: Store, caption: Callable[[Config, Sequence[str]], None]
) -> None:
    config = judged.config("captions.sampling.max_new_tokens=10")
    caption(config, ["A dog<|im_end|> barks.", *TEXTS[1:], SILENCE])
    made = run(config)["judgements"]
    assert (made.manifest.rows_out, made.manifest.rows_quarantined) == (2, 1)
    [row] = output(config, made).quarantine().to_pylist()
    assert row["error_class"] == "ValueError" and "'<|im_end|>', which structures the model's input" in row["message"]


def test_without_its_section_the_stage_is_not_there(judged: Store) -> None:
    with_it, without = judged.config(), judged.config("judge=null")
    names = [stage.name for stage in wanted_stages(with_it)]
    assert names[:4] == ["clips", "captions", "judgements", "curation"]
    assert [stage.name for stage in wanted_stages(without)] == [name for name in names if name != "judgements"]
    with pytest.raises(UserError, match="--until judgements: this configuration has no section judge; add it"):
        wanted_stages(without, "judgements")
    found = [run(config, "curation")["curation"].manifest for config in (with_it, without)]
    assert found[0].fingerprint == found[1].fingerprint, "curation does not read it"


def test_a_judge_that_cannot_be_used_is_said_before_anything_runs(judged: Store, tmp_path: Path) -> None:
    for change, words in (
        ("judge.model.path=/nowhere/omni", r"judge\.model\.path: no such checkpoint folder '/nowhere/omni'"),
        ("judge.instruction=/nowhere/judge.yaml", "/nowhere/judge.yaml: No such file"),
    ):
        with pytest.raises(UserError, match=words):
            run(judged.config(f"root={tmp_path / 'empty'}", change))
    assert not (tmp_path / "empty").exists()
    for change, words in (
        ("judge.frames.fps=30", "judge.frames.fps: got 30"),
        ("judge.sampling.max_new_tokens=0", "max_new_tokens: got 0, wanted at least 1"),
        ("judge.sampling.tokens=3", "judge.sampling.tokens: unknown key"),
    ):
        with pytest.raises(UserError, match=words):
            judged.config(change)


def test_an_answer_has_few_tokens_whatever_else_is_said_of_it(judged: Store) -> None:
    sampling = "judge.sampling={temperature: 0.5}"
    section = judged.config(sampling).judge
    assert section is not None and section.sampling.max_new_tokens == 8


@pytest.fixture(scope="module")
def sides(judged: Store, caption: Callable[[Config, Sequence[str]], None]) -> tuple[str, str]:
    """Configuration files of a judge of its own, whose answers are written here; the second has the edited captions."""
    own = "judge.sampling.seed=5"
    caption(judged.config(EDIT, own), [*EDITED, SILENCE])
    first = answered(judged.config(own), "Yes.", "no", "I cannot tell.")
    assert first.manifest.figures["unclear"] == 1 and first.manifest.figures["judged_true_share"] == 0.5
    second = answered(judged.config(EDIT, own), "No, no howl.", "of this caption", "and of this there is one")
    assert second.manifest.figures["unclear"] == 1 and second.manifest.figures["judged_true_share"] == 0.0
    return judged.file("a.yaml", own), judged.file("b.yaml", EDIT, own)


def test_verdicts_of_one_judge_are_compared(judged: Store, sides: tuple[str, str], tmp_path: Path) -> None:
    a, b = (Side.of(side, []) for side in sides)
    card = compare_sides(a, b)
    found = {one.name: one for one in card.comparisons}[JUDGED]
    assert (found.clips, found.a, found.b, found.better) == (2, 0.5, 0.0, "higher"), "the unclear one is left out"
    assert (card.common, found.verdict, card.without_judgements) == (5, "", "")
    write_page(card, a, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert f"<b>{JUDGED}</b>" in page and "verdicts are not compared" not in page
    assert JUDGED in {one["name"] for one in card.as_json()["comparisons"]}
    earlier = Side.of(f"{sides[1]}@{a.captions.fingerprint}", [])
    assert earlier.judgements is not None and a.judgements is not None
    assert earlier.judgements.fingerprint == a.judgements.fingerprint, "that of the earlier captions, not of the latest"


def test_verdicts_that_cannot_be_compared_are_not_shown(judged: Store, sides: tuple[str, str], tmp_path: Path) -> None:
    a, lacking = Side.of(sides[0], []), Side.of(judged.file("without.yaml", "judge=null"), [])
    card = compare_sides(a, lacking)
    assert JUDGED not in {one.name for one in card.comparisons}
    assert "without.yaml has none" in card.without_judgements
    write_page(card, a, tmp_path / "page.html")
    assert "verdicts are not compared:" in (tmp_path / "page.html").read_text()
    assert compare_sides(lacking, lacking).without_judgements == ""
    said = CliRunner().invoke(app, ["compare", sides[0], lacking.name])
    assert said.exit_code == 0 and "a judge's verdicts are not compared: " in said.output
    said = CliRunner().invoke(app, ["compare", lacking.name, lacking.name, "--json"])
    assert JUDGED not in {one["name"] for one in json.loads(said.stdout)["comparisons"]}
    words = tmp_path / "words.yaml"
    words.write_text("text: Is this heard? Begin with yes or no.\n")
    other = (f"judge.instruction={words}", "judge.sampling.seed=5")
    answered(judged.config(*other), "Yes", "Yes", "Yes")
    card = compare_sides(a, Side.of(judged.file("other.yaml", *other), []))
    assert JUDGED not in {one.name for one in card.comparisons}
    assert card.without_judgements == "judged by another instruction; give both configurations one section judge"


def test_a_canary_shows_its_verdicts(judged: Store, sides: tuple[str, str]) -> None:
    done = CliRunner().invoke(app, ["run", sides[0], "--canary", "5"], catch_exceptions=False)
    assert done.exit_code == 0 and JUDGED in done.output, done.output
    without = judged.file("without.yaml", "judge=null")
    done = CliRunner().invoke(app, ["run", without, "--canary", "5"], catch_exceptions=False)
    assert done.exit_code == 0 and JUDGED not in done.output and "judgements" not in done.output
