"""Scorecard of the demo: captions of each line, their scores, and a page that a browser can show."""

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import miniature.scorecard as scorecard
from miniature.language import NOISES, PHRASES, SURROUNDINGS
from miniature.scorecard import held_out_scores, write_scorecard
from miniature.world.corpus import generate_corpus
from miniature.world.film import World
from pipelines.config_file import load_config
from pipelines.run_config import Config

PAGE = "report/scorecard.html"
CONFIG = Path(__file__).parents[2] / "configs/demo.yaml"
WORLD = World(duration_s=2.0, objects=("bell", "drum"), two_sounding=0.0, resting=0.0, music=1.0, narration=0.0)


def told(clip: dict[str, Any], *, noise: bool) -> str:
    parts = [PHRASES[one["kind"]] for one in clip["seen"] if one["heard"]]
    parts += [SURROUNDINGS[clip["off_screen"]]] if clip["off_screen"] else []
    return ", and ".join(parts + [NOISES["music"]] * noise) + "."


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six films of 2 s and their sounds beside them, as FLAC."""
    folder = tmp_path_factory.mktemp("corpus")
    generate_corpus(folder, clips=6, seed=2, workers=1, world=WORLD, test_every=2)
    for video in (folder / "videos").glob("*.mp4"):
        subprocess.run(["ffmpeg", "-v", "error", "-i", video, video.with_suffix(".flac")], check=True)
    return folder


@pytest.fixture
def configs(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Config, Config]:
    """A run whose teacher is right about everything, mentions music unless warned, and whose silent captioner says
    that <b>nothing</b> is heard; its sounds are the films' own. Only the stages' rows are made up."""
    shutil.rmtree(corpus / "report", ignore_errors=True)
    overrides = [f"root={corpus}", f"source.folder={corpus}/videos", "clips.duration_s=2"]
    warned, unwarned = (load_config(CONFIG, [*overrides, *more]) for more in ([], ["captions.warnings=null"]))
    clips = {Path(one["file"]).stem: one for one in json.loads((corpus / "truth.json").read_text())["clips"]}

    def rows_of(config: Config, stage: str) -> list[dict[str, Any]]:
        noisy = config.captions.warnings is None
        rows = {
            "clips": [{"clip_id": f"id-{stem}", "source_name": f"{stem}.mp4"} for stem in clips],
            "captions": [{"clip_id": f"id-{k}", "caption": told(one, noise=noisy)} for k, one in clips.items()],
            "silent_captions": [{"clip_id": f"id-{stem}", "caption": "<b>Nothing</b> is heard."} for stem in clips],
            "samples": [
                {"clip_id": f"id-{k}", "audio": f"videos/{k}.flac", "original_audio": f"videos/{k}.flac"}
                for k, one in clips.items()
                if one["split"] == "test"
            ],
        }
        return rows[stage]

    monkeypatch.setattr(scorecard, "rows_of", rows_of)
    return warned, unwarned


def test_each_line_has_the_captions_of_its_own_configuration(configs: tuple[Config, Config]) -> None:
    warned, unwarned = configs
    lines = write_scorecard(warned, unwarned, PAGE)
    assert [line.split(":")[0] for line in lines] == [
        "teacher, no warnings", "teacher, warned", "silent captioner, tuned on warned captions",
    ]  # fmt: skip
    assert "all true 100%" in lines[0] and "noise mentioned 100%" in lines[0]
    assert "all true 100%" in lines[1] and "noise mentioned 0%" in lines[1]
    assert "all true 0%" in lines[2] and "on screen 0%" in lines[2]


def test_only_held_out_clips_count_and_their_own_sound_fits_their_events(configs: tuple[Config, Config]) -> None:
    warned, unwarned = configs
    write_scorecard(warned, unwarned, PAGE)
    written = json.loads((Path(warned.root) / PAGE.replace(".html", ".json")).read_text())
    assert written["test_clips"] == 3
    assert written["sounds"]["generated"] == written["sounds"]["original"] > 0.5
    scores = held_out_scores(unwarned)
    assert scores["captions"] == written["captions"]["teacher, no warnings"]
    assert scores["onset_f1"] == written["sounds"]["generated"]


def test_the_page_is_whole_and_shows_captions_as_text(configs: tuple[Config, Config]) -> None:
    warned, unwarned = configs
    write_scorecard(warned, unwarned, PAGE)
    page = (Path(warned.root) / PAGE).read_text()
    open_tags: list[str] = []

    class Balance(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            open_tags.extend([tag] if tag != "meta" else [])

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Balance().feed(page)
    assert open_tags == []
    assert "&lt;b&gt;Nothing&lt;/b&gt;" in page and "<b>" not in page
    assert len(re.findall("<tr>", page)) == 4 + 1 + 3, "a head and three lines, a head and three clips"
