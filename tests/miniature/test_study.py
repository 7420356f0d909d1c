"""Study: its cells, its page, bad input, and a cell of each kind at its smallest."""

import json
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from miniature.study import run as running
from miniature.study.claims import CLAIMS, SoundModel, cell_of, cells, result_file
from miniature.study.film_dataset import FilmDataset
from miniature.study.page import CAPTION_METRICS, half_width, render
from miniature.study.run import run_study
from miniature.study.sound_models import learning_curve, train_networks
from miniature.world.film import World
from pipelines.errors import RunError, UserError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/miniature/results"


def test_cells_are_chosen_by_pattern_and_paired_by_seed():
    every = cells([])
    assert len({cell.name for cell in every}) == len(every)
    assert [cell.name for cell in cells(["alignment/*/0"])] == ["alignment/psca/0", "alignment/plain/0"]
    assert {cell.seed for cell in cells(["alignment/psca/*"])} == set(range(5))
    for claim, content in CLAIMS.items():
        seeds = {name: {cell.seed for cell in cells([f"{claim}/{name}/*"])} for name in content.settings}
        assert len({frozenset(one) for one in seeds.values()}) == 1, f"{claim}: all settings have the same seeds"


def test_a_setting_that_claims_share_is_run_once():
    assert cell_of("mask", "psca", 1).name == "alignment/psca/1"
    assert "alignment/psca/1" in [cell.name for cell in cells(["mask/*"])]
    assert not [cell.name for cell in cells([]) if cell.name.startswith("mask/psca")]
    settings = [(CLAIMS[cell.claim].settings[cell.setting], cell.seed) for cell in cells([])]
    assert all(settings.count(one) == 1 for one in settings)


def test_a_pattern_without_cells_is_an_error_that_says_how_they_are_named(tmp_path):
    with pytest.raises(UserError, match="claim/setting/seed"):
        run_study(["alinement/*"], work=tmp_path, results=tmp_path, processes=1, again=False)


def test_a_cell_that_has_a_result_is_not_run_again(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(running, "_in_process", lambda cell, work, results: ran.append(cell.name))
    first = cells(["mask/*"])[-1]
    result_file(first, tmp_path).write_text("{}")
    run_study(["mask/*"], work=tmp_path, results=tmp_path, processes=2, again=False)
    assert sorted(ran) == sorted(cell.name for cell in cells(["mask/*"]) if cell != first)
    run_study([first.name], work=tmp_path, results=tmp_path, processes=1, again=True)
    assert ran[-1] == first.name


def test_cells_that_fail_are_named_and_the_others_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(
        running, "_in_process", lambda cell, work, results: "failed: no memory" if cell.setting == "round" else None
    )
    with pytest.raises(RunError, match=r"3 cells failed: mask/round/0"):
        run_study(["mask/*"], work=tmp_path, results=tmp_path, processes=1, again=False)


def test_intervals_are_students():
    values = [0.31, 0.35, 0.29, 0.4, 0.33]
    for n in range(3, 6):
        low, high = stats.t.interval(0.95, n - 1, loc=np.mean(values[:n]), scale=stats.sem(values[:n]))
        assert half_width(values[:n]) == pytest.approx((high - low) / 2, rel=1e-3)
    assert half_width([0.3]) is None and half_width(values[:2]) is None


def test_the_page_shows_means_and_paired_differences(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    zeros = {"aligned": 0.0, "log_mel_correlation": 0.0, "fad": 0.0, "kad": 0.0, "kl": 0.0, "is": 1.0}
    for seed, base in enumerate((0.2, 0.4, 0.6)):
        for setting, onset in (("psca", base), ("plain", base - 0.1)):
            curve = [{"steps": steps, "onset_f1": onset * steps / 500, **zeros} for steps in (250, 500)]
            result = {"claim": "alignment", "setting": setting, "seed": seed, "date": "2026-11-25", "seconds": 60.0}
            (results / f"alignment.{setting}.{seed}.json").write_text(json.dumps(result | {"curve": curve}))
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "alignment.md").write_text("It holds.")
    (notes / "summary.md").write_text("All of it holds.")
    render(results, tmp_path / "page.md", notes)
    page = (tmp_path / "page.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| psca"))
    assert row.startswith("| psca | 3 | 0.400 ± 0.497 |")
    assert "noise ↓" not in page, "a metric that no cell has"
    difference = next(line for line in page.splitlines() if line.startswith("| *plain − psca*"))
    assert "**-0.100 ± 0.000**" in difference, "paired by seed, the difference is sure where the means are not"
    assert page.index("All of it holds.") < page.index("It holds.")
    assert "make miniature CELLS='alignment/*'" in page
    assert (tmp_path / "page/alignment.svg").read_text().startswith("<?xml")
    assert page.count("| psca | 3 |") == 2, "the claim `mask` has a setting in common with `alignment`"
    assert page.count("Not run yet.") == len(CLAIMS) - 2


def test_the_page_shows_what_each_round_of_the_pipeline_computed(tmp_path):
    captions = dict.fromkeys(CAPTION_METRICS, 0.5)
    for seed in (0, 1, 2):
        rounds = []
        for name, computed in (("first", 60), ("again", 0)):
            stages = [{"stage": "clips", "rows": 60, "computed": computed, "seconds": 2.0 + seed}]
            scores = {
                "captions": captions,
                "silent_captions": captions | {"order": None},
                "onset_f1": 0.25 * (seed + 1),
            }
            rounds.append({"round": name, "seconds": 3.0, "stages": stages, "scores": scores})
        result = {"claim": "prompt-change", "setting": "pipeline", "seed": seed, "date": "2026-11-25", "seconds": 60.0}
        (tmp_path / f"prompt-change.pipeline.{seed}.json").write_text(json.dumps(result | {"rounds": rounds}))
    render(tmp_path, tmp_path / "page.md", tmp_path)
    page = (tmp_path / "page.md").read_text()
    assert "| clips | 60 of 60, 3 s | – |" in page
    assert "| Flowley: onset F1 ↑ | 0.500 ± 0.621 | 0.500 ± 0.621 |" in page
    assert "| silent captioner: in order ↑ | – | – |" in page


WHOLE = json.loads((RESULTS / "mask.round.0.json").read_text())
ROUNDS = json.loads((RESULTS / "prompt-change.pipeline.0.json").read_text())


@pytest.mark.parametrize(
    "content",
    [
        "{",
        [],
        {},
        {"seed": 0, "seconds": 1.0, "date": "2026-11-25"},
        WHOLE | {"curve": []},
        WHOLE | {"curve": [{"steps": 100}]},
        WHOLE | {"curve": [point | {"kad": None} for point in WHOLE["curve"]]},
        WHOLE | {"date": "today"},
        ROUNDS | {"rounds": [one | {"stages": None} for one in ROUNDS["rounds"]]},
        ROUNDS | {"rounds": [one | {"scores": {"onset_f1": 0.5}} for one in ROUNDS["rounds"]]},
    ],
)
def test_a_damaged_result_is_named(content, tmp_path):
    file = result_file(cell_of("mask", "round", 0), tmp_path)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=r"mask\.round\.0\.json: .*delete it and run the cell again"):
        render(tmp_path, tmp_path / "page.md", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cells", "nonsense"], "--cells nonsense matches no cell; they are named claim/setting/seed"),
        (["--cells", "mask/round/0", "--results", "FILE/results"], "FILE/results: cannot be written (Not a directory)"),
        (["--cells", "mask/round/0", "--page", "FILE/page.md"], "--page FILE: cannot be written"),
        (["--cells", "mask/round/0", "--results", "DAMAGED"], "mask.round.0.json: "),
    ],
)
def test_bad_input_is_one_line_and_runs_nothing(arguments, words, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/mask.round.0.json").write_text("{")
    places = {"FILE": str(tmp_path / "file"), "DAMAGED": str(tmp_path / "damaged")}
    for name, place in places.items():
        arguments, words = [one.replace(name, place) for one in arguments], words.replace(name, place)
    usual = ["--work", str(tmp_path / "work"), "--page", str(tmp_path / "page.md")]
    monkeypatch.setattr(sys, "argv", ["miniature", *usual, *arguments])
    monkeypatch.delitem(sys.modules, "miniature.__main__", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("miniature", run_name="__main__")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and words in said, said
    assert len(said.strip().splitlines()) == 1 and said.startswith("miniature: ")
    assert not (tmp_path / "work/logs").exists()


def test_help_the_page_and_a_demo_without_work_load_nothing_heavy():
    light = "miniature.__main__, miniature.demo, miniature.study.run, miniature.study.page, miniature.world.corpus"
    light += ", pipelines.cli.soundcap, pipelines.report.build, pipelines.stages"  # all that a second demo loads
    heavy = "{'torch', 'ray', 'transformers', 'scipy', 'matplotlib'}"
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, {light}; print({heavy} & set(sys.modules))"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert loaded.stdout.strip() == "set()"
    usage = [sys.executable, "-m", "miniature", "--help"]
    assert "--cells" in subprocess.run(usage, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_committed_results_are_cells_of_the_study():
    known = {result_file(cell, RESULTS).name for cell in cells([])}
    assert {file.name for file in RESULTS.glob("*.json")} <= known


def test_the_committed_page_is_that_of_the_committed_results(tmp_path, monkeypatch):
    plots = []
    monkeypatch.setattr("miniature.study.page._plot", lambda results, claim, file: plots.append(file.name))
    committed = RESULTS.parents[1] / "miniature.md"
    render(RESULTS, tmp_path / committed.name, RESULTS.parent / "notes")
    page = (tmp_path / committed.name).read_text()
    assert page == committed.read_text(), "run `make miniature` to render it"
    assert sorted(plots) == sorted(file.name for file in RESULTS.parent.glob("*.svg"))
    assert re.findall(r"\]\(miniature/(.*\.svg)\)", page) == plots


def scored_twice(claim, name, films, work):
    """Networks of a setting after 2 and after 4 steps, what their training said, and their scores."""
    model: SoundModel = replace(CLAIMS[claim].settings[name].model, steps=4)
    said: list[str] = []
    networks = train_networks(model, films, ["ball bouncing"] * 6, work, seed=0, say=said.append)
    curve = learning_curve(networks, films, ["bell ringing"] * 3, work, lambda _: None)
    assert [point["steps"] for point in curve] == [2, 4]
    for point in curve:
        assert set(point) == {"steps", "onset_f1", "aligned", "log_mel_correlation", "fad", "kad", "kl", "is", "noise"}
        assert all(np.isfinite(value) for value in point.values())
    return model, networks, said, curve


def test_a_network_is_trained_once_and_scored_as_it_learns(tmp_path, monkeypatch):
    monkeypatch.setattr("miniature.study.sound_models.KEEP_EVERY_STEPS", 2)
    films = FilmDataset(World(duration_s=2.0), 5, train=6, test=3)
    model, networks, said, curve = scored_twice("alignment", "psca", films, tmp_path)
    assert any("clips/s" in line and "left" in line for line in said)
    made, said = sorted(path.name for path in (tmp_path / "made").iterdir()), []
    again = train_networks(model, films, ["ball bouncing"] * 6, tmp_path, seed=0, say=said.append)
    assert said == [] and sorted(path.name for path in (tmp_path / "made").iterdir()) == made
    assert learning_curve(again, films, ["bell ringing"] * 3, tmp_path, said.append) == curve
    longer = FilmDataset(World(duration_s=9.0), 5, train=6, test=2)
    [_, last] = learning_curve(networks, longer, ["bell ringing"] * 2, tmp_path, said.append)
    assert np.isfinite(last["onset_f1"]), "films longer than those trained on, and than the classifiers take"


def test_mmaudios_architecture_is_trained_and_scored_too(tmp_path, monkeypatch):
    monkeypatch.setattr("miniature.study.sound_models.KEEP_EVERY_STEPS", 2)
    scored_twice("captions-mmaudio", "label", FilmDataset(World(duration_s=2.0), 5, train=6, test=3), tmp_path)
