"""Stage `agreement` on real clips: its values, what they decide in curation, and how they are compared."""

import csv
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import ClapModel, ClapProcessor
from typer.testing import CliRunner

from miniature.models.tiny import CLAP_HZ, build_tiny_clap
from pipelines.cli.soundcap import app
from pipelines.engine.ledger import Ledger
from pipelines.engine.plan import make_plan, resolve
from pipelines.engine.runner import StageRun, run_stages
from pipelines.engine.store import Output, open_store
from pipelines.errors import UserError
from pipelines.media.read import read_audio
from pipelines.report.compare import Side, compare_sides, figure, write_page
from pipelines.run_config import Config
from pipelines.stages import wanted_stages
from pipelines.stages.agreement import LEDGER, AgreementStage
from pipelines.stages.captions import CaptionsStage
from pipelines.stages.clips import ClipsStage
from soundcap.caption_scores import AGREEMENT

SILENCE = "No sound at all."
TEXTS = ("A dog barks twice.", "Bells ring while rain falls.", "A low engine hum.", "Steps on a wooden floor.")
EDITED = ("A dog barks twice, then howls.", *TEXTS[1:])


@dataclass(frozen=True)
class Store:
    """Store with captions of five clips: four with sound, one of those without label, and one without sound."""

    folder: Path
    configure: Callable[..., Config]
    clap: Path

    def config(self, *more: str) -> Config:
        source, clap = self.folder / "source", f"agreement={{model: {{path: {self.clap}}}, execution: {{device: cpu}}}}"
        overrides = (
            f"source.folder={source / 'videos'}",
            f"source.table={source / 'vggsound.csv'}",
            "clips.require_audio=false",
            f"captions.silence={SILENCE}",
            *([clap] if "agreement=null" not in more else []),
            *(one for one in more if one != "agreement=null"),
        )
        return self.configure(self.folder / "store", *overrides)

    def file(self, name: str, *more: str) -> str:
        """Path of a configuration's file."""
        path = self.folder / name
        path.write_text(yaml.safe_dump(self.config(*more).model_dump(mode="json")))
        return str(path)


def run(config: Config, until: str = "agreement") -> dict[str, StageRun]:
    return {one.manifest.stage: one for one in run_stages(wanted_stages(config, until), config, say=lambda _: None)}


def output(config: Config, found: StageRun) -> Output:
    return Output(open_store(config.root), found.manifest.stage, found.manifest.fingerprint)


@pytest.fixture(scope="module")
def store(
    local_ray: None,
    source: Path,
    configure: Callable[..., Config],
    caption: Callable[[Config, Sequence[str]], None],
    tiny_clap: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Store:
    folder = tmp_path_factory.mktemp("agreement")
    shutil.copytree(source, folder / "source")
    videos, table = folder / "source" / "videos", folder / "source" / "vggsound.csv"
    (videos / "broken_000003.mp4").unlink()
    rows = [row for row in csv.reader(table.open()) if row[0] != "broken"]
    first = videos / f"{rows[0][0]}_{int(rows[0][1]):06d}.mp4"
    mute = ["ffmpeg", "-v", "error", "-i", first, "-an", "-c", "copy", videos / "zmute_000001.mp4"]
    subprocess.run(mute, check=True)
    rows[1][2] = ""
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([*rows, ["zmute", "1", "dog barking", "train"]])
    store = Store(folder, configure, tiny_clap)
    config = store.config()
    caption(config, [*TEXTS, SILENCE])
    return store


def direct(clap: Path, wave: np.ndarray, text: str) -> float:
    """Cosine by transformers' own forward pass."""
    inputs: Any = ClapProcessor.from_pretrained(clap)(
        text=[text], audio=[wave], sampling_rate=CLAP_HZ, return_tensors="pt"
    )
    with torch.inference_mode():
        outputs: Any = ClapModel.from_pretrained(clap).eval()(**inputs)
    return float(torch.cosine_similarity(outputs.audio_embeds, outputs.text_embeds)[0])


def test_each_caption_has_the_agreement_with_its_own_clips_sound(store: Store) -> None:
    config = store.config()
    made = run(config)
    manifest = made["agreement"].manifest
    assert (manifest.rows_in, manifest.rows_out, manifest.rows_quarantined) == (4, 4, 0)
    assert manifest.figures["without_sound"] == 1, "counted, and not failed"
    rows = output(config, made["agreement"]).rows().to_pylist()
    clips = {row["clip_id"]: row for row in output(config, made["clips"]).rows().to_pylist()}
    captions = {row["clip_id"]: row for row in output(config, made["captions"]).rows().to_pylist()}
    assert len({row["clip_id"] for row in rows}) == 4 and {row["caption"] for row in rows} == set(TEXTS)
    for row in rows:
        wave = read_audio(Path(config.root) / clips[row["clip_id"]]["audio"], CLAP_HZ)
        assert row["caption"] == captions[row["clip_id"]]["caption"] and row["label"] == clips[row["clip_id"]]["label"]
        assert row["agreement"] == pytest.approx(direct(store.clap, wave, row["caption"]), abs=1e-5)
        if row["label"]:
            assert row["label_agreement"] == pytest.approx(direct(store.clap, wave, row["label"]), abs=1e-5)
    assert [row["label_agreement"] for row in rows if not row["label"]] == [None]
    assert np.ptp([row["agreement"] for row in rows]) > 1e-3, "agreements that are all alike show nothing"
    assert manifest.figures["agreement_mean"] == pytest.approx(np.mean([row["agreement"] for row in rows]), abs=1e-4)
    assert [one.state for one in make_plan(wanted_stages(config, "agreement"), config, open_store(config.root))] == [
        "done"
    ] * 3


def test_only_what_decides_an_agreement_makes_it_again(
    store: Store, caption: Callable[[Config, Sequence[str]], None], tmp_path: Path
) -> None:
    run(store.config())
    edited = store.config("captions.sampling.max_new_tokens=9")
    caption(edited, [*EDITED, SILENCE])
    assert run(edited)["agreement"].rows_computed == 1, "one caption is another"
    executed = store.config("agreement.execution.workers=1", "agreement.execution.batch_rows=1")
    assert not run(executed)["agreement"].is_new
    build_tiny_clap(tmp_path / "other", seed=7)
    other = store.config(f"agreement.model.path={tmp_path / 'other'}")
    [*_, plan] = make_plan(wanted_stages(other, "agreement"), other, open_store(other.root))
    assert (plan.rows_to_run, plan.rows_total) == (4, 4) and plan.reason.startswith("agreement.model: ")


def test_without_its_section_the_stage_is_not_there(store: Store) -> None:
    with_it, without = store.config(), store.config("agreement=null")
    names = [stage.name for stage in wanted_stages(with_it)]
    assert names[:4] == ["clips", "captions", "agreement", "curation"]
    assert [stage.name for stage in wanted_stages(without)] == [name for name in names if name != "agreement"]
    with pytest.raises(UserError, match="--until agreement: this configuration has no section agreement; add it"):
        wanted_stages(without, "agreement")
    with pytest.raises(UserError, match="--until nowhere: no such stage; wanted one of clips"):
        wanted_stages(without, "nowhere")
    assert (
        run(without, "curation")["curation"].manifest.fingerprint
        == run(with_it, "curation")["curation"].manifest.fingerprint
    ), "while no rule asks for it, curation is what it was"


def test_curation_drops_captions_that_do_not_beat_their_label_by_the_margin(store: Store) -> None:
    measured = run(store.config())["agreement"]
    agreements = {row["clip_id"]: row for row in output(store.config(), measured).rows().to_pylist()}
    gains = {one: row["agreement"] - row["label_agreement"] for one, row in agreements.items() if row["label"]}
    least, second, _ = sorted(gains.values())
    margin = max(0.0, (least + second) / 2)
    config = store.config(f"curation.rules.agreement_margin={margin}")
    made = run(config, "curation")
    verdicts = output(config, made["curation"]).rows().to_pylist()
    below = {one: gain < margin for one, gain in gains.items()}
    assert len(verdicts) == 5 and 0 < sum(below.values()) < 3, "some must fall, and some not"
    for row in verdicts:
        is_below = below.get(row["clip_id"], False)
        assert (row["kept"], row["rule"]) == (not is_below, "below_label" if is_below else None), row
        if is_below:
            found = agreements[row["clip_id"]]
            cosines = f"agreement {found['agreement']:.3f}, of its label {found['label_agreement']:.3f}"
            assert row["detail"] == cosines
    assert made["curation"].manifest.figures["dropped"] == {"below_label": sum(below.values())}
    all_dropped = run(store.config("curation.rules.agreement_margin=2.1"), "curation")["curation"].manifest
    assert all_dropped.figures["dropped"] == {"below_label": 3}, "but not those without label or without sound"


def test_agreements_are_no_bound_of_curation(store: Store, tmp_path: Path) -> None:
    """They tell of the captions with sound, and curation judges all."""
    build_tiny_clap(tmp_path / "new", seed=9)
    config = store.config(f"agreement.model.path={tmp_path / 'new'}", "curation.rules.agreement_margin=0.0")
    plans = {one.name: one for one in make_plan(wanted_stages(config, "curation"), config, open_store(config.root))}
    assert (plans["captions"].state, plans["agreement"].rows_to_run) == ("done", 4)
    assert (plans["curation"].state, plans["curation"].rows_at_most) == ("unknown", 5)


def test_a_sound_that_cannot_be_read_is_quarantined_and_its_caption_not_kept(
    store: Store, caption: Callable[[Config, Sequence[str]], None]
) -> None:
    config = store.config(f"root={store.folder / 'damaged'}", "curation.rules.agreement_margin=0.0")
    caption(config, [*TEXTS, SILENCE])
    clips = run(config, "captions")["clips"]
    damaged = next(row for row in output(config, clips).rows().to_pylist() if row["label"] and row["audio"])
    (Path(config.root) / damaged["audio"]).write_bytes(b"fLaC and nothing else")
    made = run(config, "curation")
    assert (made["agreement"].manifest.rows_out, made["agreement"].manifest.rows_quarantined) == (3, 1)
    [row] = output(config, made["agreement"]).quarantine().to_pylist()
    assert (row["row_id"], row["error_class"]) == (damaged["clip_id"], "UnreadableSource")
    verdicts = {row["clip_id"]: row for row in output(config, made["curation"]).rows().to_pylist()}
    assert (verdicts[row["row_id"]]["rule"], verdicts[row["row_id"]]["detail"]) == ("below_label", "not measured")


def test_clips_that_are_all_without_sound_end_no_run(
    store: Store, caption: Callable[[Config, Sequence[str]], None], tmp_path: Path
) -> None:
    (tmp_path / "mute").mkdir()
    shutil.copy(store.folder / "source" / "videos" / "zmute_000001.mp4", tmp_path / "mute")
    config = store.config(f"root={tmp_path / 'store'}", f"source.folder={tmp_path / 'mute'}", "source.table=null")
    caption(config, [SILENCE])
    made = run(config, "curation")
    assert (made["agreement"].manifest.rows_in, made["agreement"].manifest.figures) == (0, {"without_sound": 1})
    assert made["curation"].manifest.figures["kept"] == 1


def test_a_model_that_is_not_there_is_said_before_anything_runs(store: Store, tmp_path: Path) -> None:
    config = store.config(f"root={tmp_path / 'empty'}", "agreement.model.path=/nowhere/clap")
    with pytest.raises(UserError, match=r"agreement\.model\.path: no such checkpoint folder '/nowhere/clap'"):
        run(config)
    assert not (tmp_path / "empty").exists()


def test_agreements_of_one_model_are_compared(
    store: Store, caption: Callable[[Config, Sequence[str]], None], tmp_path: Path
) -> None:
    edited = ("captions.sampling.max_new_tokens=9",)
    caption(store.config(*edited), [*EDITED, SILENCE])
    means = []
    for config in (store.config(), store.config(*edited)):
        rows = output(config, run(config)["agreement"]).rows().to_pylist()
        of_labels = [row["agreement"] < row["label_agreement"] for row in rows if row["label"]]
        means.append((np.mean([row["agreement"] for row in rows]), np.mean(of_labels)))
    a, b = Side.of(store.file("a.yaml"), []), Side.of(store.file("b.yaml", *edited), [])
    card = compare_sides(a, b)
    found = {one.name: one for one in card.comparisons}
    agreement, below = found[AGREEMENT], found["below the label's own"]
    assert (agreement.clips, below.clips, card.common) == (4, 3, 5)
    assert (agreement.a, agreement.b) == pytest.approx((means[0][0], means[1][0]))
    assert (below.a, below.b) == pytest.approx((means[0][1], means[1][1]))
    assert agreement.a != agreement.b and agreement.low < agreement.b - agreement.a < agreement.high
    assert figure(AGREEMENT, 0.31234) == "0.312" and figure(AGREEMENT, -0.02, signed=True) == "-0.020"
    write_page(card, a, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert f"<b>{AGREEMENT}</b>" in page and "is not\ncompared" not in page
    earlier = Side.of(f"{store.file('b.yaml', *edited)}@{a.captions.fingerprint}", [])
    assert earlier.agreement is not None and a.agreement is not None
    assert earlier.agreement.fingerprint == a.agreement.fingerprint, "that of the earlier captions, not of the latest"


def test_agreements_that_cannot_be_compared_are_not_shown(store: Store, tmp_path: Path) -> None:
    run(store.config())
    a = Side.of(store.file("a.yaml"), [])
    lacking = Side.of(store.file("without.yaml", "agreement=null"), [])
    card = compare_sides(a, lacking)
    assert AGREEMENT not in {one.name for one in card.comparisons}
    assert "without.yaml has none" in card.without_agreement
    write_page(card, a, tmp_path / "page.html")
    assert "without.yaml has none" in (tmp_path / "page.html").read_text()
    assert compare_sides(lacking, lacking).without_agreement == ""
    build_tiny_clap(tmp_path / "other", seed=7)
    other = store.config(f"agreement.model.path={tmp_path / 'other'}")
    run(other)
    card = compare_sides(a, Side.of(store.file("other.yaml", f"agreement.model.path={tmp_path / 'other'}"), []))
    assert AGREEMENT not in {one.name for one in card.comparisons}
    assert card.without_agreement.startswith("measured by different models, files:")
    said = CliRunner().invoke(app, ["compare", store.file("a.yaml"), store.file("without.yaml", "agreement=null")])
    assert said.exit_code == 0 and "agreement with the sound is not compared: " in said.output


def test_a_canary_shows_its_agreement(store: Store) -> None:
    done = CliRunner().invoke(app, ["run", store.file("a.yaml"), "--canary", "4"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert AGREEMENT in done.output and "below the label's own" in done.output
    done = CliRunner().invoke(
        app, ["run", store.file("without.yaml", "agreement=null"), "--canary", "4"], catch_exceptions=False
    )
    assert done.exit_code == 0 and AGREEMENT not in done.output


def test_a_key_holds_model_clip_caption_and_label(store: Store) -> None:
    config, storage = store.config(), open_store(store.config().root)
    done = {}
    for stage in (ClipsStage(), CaptionsStage(), AgreementStage()):
        resolved = resolve(stage, config, storage, done)
        assert not isinstance(resolved, str)
        done[stage.name] = resolved.context.output
    [rows] = AgreementStage().rows(resolved.context).sets
    assert (rows.ledger, rows.parts) == (LEDGER, ("clip_id", "caption", "label"))
    assert rows.keys.to_pylist() == rows.recipe.keys(*(rows.tasks[part].to_pylist() for part in rows.parts))
    assert set(rows.keys.to_pylist()) <= set(Ledger(storage, LEDGER, rows.values).read()["key"].to_pylist())
    assert rows.recipe.meaning() == {"code_version": 1, "model": rows.recipe.model.identity}
