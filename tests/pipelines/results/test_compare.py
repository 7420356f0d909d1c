"""Comparison of captions in a finished store: which captions are meant, what is told, and the page."""

import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli.soundcap import app
from pipelines.engine.runner import run_stages
from pipelines.engine.store import latest, open_store
from pipelines.errors import UserError
from pipelines.report.compare import Side, compare_sides, score, write_page
from pipelines.run_config import Config
from pipelines.stages.captions import CaptionsStage
from pipelines.stages.clips import ClipsStage

TEXTS = ("A dog barks.", "<b>Bells</b> ring & ring.", "Rain falls softly.", "Somebody plays music.")
EDITED = ("A dog barks.", "<i>Horns</i> ring & \x1b[31mring.", "Rain falls.", "Somebody knocks.")


@pytest.fixture(scope="module")
def sides(
    local_ray: None,
    configure: Callable[..., Config],
    caption: Callable[[Config, Sequence[str]], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """Configuration files of one store: without warnings, and with them."""
    folder = tmp_path_factory.mktemp("compare")
    files = folder / "unwarned.yaml", folder / "warned.yaml"
    for file, texts, more in zip(files, (TEXTS, EDITED), (["captions.warnings=null"], []), strict=True):
        config = configure(folder / "store", *more)
        file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=not more)))
        caption(config, texts)
    return files


def test_what_two_sides_have(sides: tuple[Path, Path]) -> None:
    a, b = (Side.of(str(file), []) for file in sides)
    card = compare_sides(a, b)
    assert (card.common, card.only, card.different) == (4, (0, 0), 3)
    assert {(pair.a, pair.b) for pair in card.pairs} == set(zip(TEXTS[1:], EDITED[1:], strict=True))
    measures = {one.name: one for one in card.comparisons}
    assert (measures["violates music"].a, measures["violates music"].b) == (0.25, 0)
    assert measures["violates music"].verdict == "", "four clips tell nothing"
    assert [runs for runs in card.prompt if {kind for kind, _ in runs} == {"in"}], "warnings came in"
    assert json.loads(json.dumps(card.as_json(), allow_nan=False))["common"] == 4


def test_the_page_escapes_what_models_wrote_and_shows_what_changed(sides: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = (Side.of(str(file), []) for file in sides)
    write_page(compare_sides(a, b), a, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<b>Bells" not in page and "<del>&lt;b&gt;Bells&lt;/b&gt;</del>" in page
    assert "<del>plays music.</del> <ins>knocks.</ins>" in page
    assert not re.search("[\x00-\x08\x0b-\x1f]", page) and "\N{REPLACEMENT CHARACTER}[31mring." in page
    assert page.count("<video controls") == 3 and 'src="data:video/' in page
    assert "http" not in page.replace("http-equiv", ""), "the page loads nothing"


def test_the_summary_tells_every_verdict(sides: tuple[Path, Path]) -> None:
    """As the table does: lengths that part are better for neither."""
    card = compare_sides(*(Side.of(str(file), []) for file in sides))
    words = next(one for one in card.comparisons if one.name == "words")
    assert "they part in words" in replace(card, comparisons=[replace(words, verdict="parts")]).summary
    assert "no measure parts them" in replace(card, comparisons=[words]).summary


def test_a_fingerprint_names_earlier_captions(sides: tuple[Path, Path]) -> None:
    unwarned = Side.of(str(sides[0]), []).captions.fingerprint
    assert Side.of(f"{sides[1]}@{unwarned[:6]}", []).captions.fingerprint == unwarned
    with pytest.raises(UserError, match=f"@zz: 0 outputs of captions begin so, wanted one of .*{unwarned}"):
        Side.of(f"{sides[1]}@zz", [])


def test_an_empty_fingerprint_and_a_page_that_cannot_be_written_are_said(
    sides: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no fingerprint behind the @"):
        Side.of(f"{sides[0]}@", [])
    for page, words in ((tmp_path, "is a folder"), (tmp_path / "no" / "page.html", "no is no folder")):
        error = CliRunner().invoke(app, ["compare", *map(str, sides), "--page", str(page)]).exception
        assert isinstance(error, UserError) and words in str(error)


def test_captions_that_are_not_there_are_said(sides: tuple[Path, Path]) -> None:
    changed = "captions.sampling.max_new_tokens=7"
    command = re.escape(f"`soundcap run {sides[0]} --until captions --set {changed}`")
    with pytest.raises(UserError, match=f"its captions are not there as one output .4 rows.*{command}"):
        Side.of(str(sides[0]), [changed])
    with pytest.raises(UserError, match=re.escape(f"`soundcap run {sides[0]} --canary 2 --set {changed}`")):
        Side.of(str(sides[0]), [changed], 2)


def test_a_canary_is_compared_on_its_clips_alone(sides: tuple[Path, Path]) -> None:
    """The whole run's rows are the canary's, which does not become the latest output."""
    for file in sides:
        before = latest(open_store(Side.of(str(file), []).config.root), "captions")
        config = Side.of(str(file), []).config
        sampled = config.model_copy(update={"source": config.source.model_copy(update={"sample": 3})})
        runs = run_stages([ClipsStage(), CaptionsStage()], sampled, say=lambda _: None)
        assert [one.rows_computed for one in runs] == [0, 0], "its rows were there"
        assert latest(open_store(config.root), "captions") == before
    a, b = (Side.of(str(file), [], 3) for file in sides)
    assert compare_sides(a, b).common == 3 - sum(one.rows_quarantined for one in [runs[0].manifest])
    whole = Side.of(str(sides[0]), [], 2)
    assert whole.captions.fingerprint == Side.of(str(sides[0]), []).captions.fingerprint, (
        "no such canary was run: all captions are its clips'"
    )


def test_a_canary_shows_its_scorecard_and_what_all_will_take(sides: tuple[Path, Path]) -> None:
    done = CliRunner().invoke(app, ["run", str(sides[1]), "--canary", "3"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "violates music" in done.output and "curation" in done.output
    assert "no rate is known for this model" in done.output, "its rows were written here, not captioned"
    done = CliRunner().invoke(app, ["run", str(sides[1]), "--canary", "9"])
    assert isinstance(done.exception, UserError) and "of 9 videos: the source has 5" in str(done.exception)


def test_the_command_prints_a_table_and_json(sides: tuple[Path, Path], tmp_path: Path) -> None:
    def invoke(*more: str) -> str:
        done = CliRunner().invoke(app, ["compare", *map(str, sides), *more], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    said = invoke("--page", str(tmp_path / "page.html"))
    assert "3 of 4 captions differ; no measure parts them" in said and (tmp_path / "page.html").exists()
    found: dict[str, Any] = json.loads(invoke("--json"))
    assert found["different"] == 3 and found["sides"][0]["captions"] == 4


VIOLIN, ROOSTER = ("2NESqWU89V0", 338), ("17L2VkXtcQ0", 30)
"""Clips of VGGSound's test split: playing violin; a rooster, with music that was added."""


def test_people_judge_the_clips_that_they_labelled(
    local_ray: None,
    configure: Callable[..., Config],
    caption: Callable[[Config, Sequence[str]], None],
    source: Path,
    tmp_path: Path,
) -> None:
    """Two of four films are told to be VGGSound's. Each label follows its clip, wherever that stands."""
    table, ids = tmp_path / "table.csv", [VIOLIN, ("x", 1), ROOSTER, ("y", 2)]
    films = sorted(file.name for file in (source / "videos").glob("*.mp4") if "broken" not in file.name)
    with table.open("w", newline="") as file:
        rows = [(film, *one, "train") for film, one in zip(films, ids, strict=True)]
        csv.writer(file).writerows([("file", "video_id", "start_s", "split"), *rows])
    files = []
    for name, said in (("a", "Soft music."), ("b", "A rooster.")):
        config = configure(tmp_path / "store", f"source.table={table}", f"captions.sampling.seed={len(files)}")
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(yaml.safe_dump(config.model_dump(mode="json")))
        caption(config, [said] * len(films))
    a, b = (Side.of(str(file), []) for file in files)
    card = compare_sides(a, b)
    found = {one.name: (one.clips, one.a, one.b) for one in card.comparisons if "VGGSounder" in one.name}
    assert card.labelled == card.as_json()["labelled"] == 2
    assert found == {
        "VGGSounder: violates music": (1, 1, 0),
        "VGGSounder: silences music": (1, 0, 1),
        "VGGSounder: names heard": (2, 0, 0),
    }
    write_page(card, a, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "VGGSounder: violates music" in page and "gave to 2 of the clips" in " ".join(page.split())
    done = CliRunner().invoke(app, ["compare", *map(str, files)], catch_exceptions=False)
    assert "VGGSounder: violates" in done.output
    measures, _ = score(b.config, b.captions)
    assert {one.name: one.mean for one in measures}["VGGSounder: silences music"] == 1


def test_other_sources_have_no_labels_of_people(sides: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = (Side.of(str(file), []) for file in sides)
    card = compare_sides(a, b)
    write_page(card, a, tmp_path / "page.html")
    assert card.labelled == 0 and "VGGSounder" not in (tmp_path / "page.html").read_text()
    assert not [one.name for one in card.comparisons if "VGGSounder" in one.name]
