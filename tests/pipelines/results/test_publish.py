"""A publication is what `datasets` opens, says how it was made, and never destroys what it did not write."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import UserError
from pipelines.publication.publish import publish as publish_parts
from pipelines.publication.published_rows import clean_text
from pipelines.publication.whole_folder import PublicationFolder
from pipelines.report.templates import markdown
from pipelines.run_config import Config

LOAD = """
import datasets, json, sys
loaded = {name: datasets.load_dataset(sys.argv[1], name) for name in ("captions", "silent_captions")}
print(json.dumps({name: {split: list(rows) for split, rows in data.items()} for name, data in loaded.items()}))
"""


def publish(config: Config, target: Path) -> Path:
    """Publishes captions to a folder; returns it."""
    [done] = publish_parts(config, to=target, say=lambda _: None)
    return Path(done.place)


@pytest.fixture(scope="module")
def published(finished: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(finished, tmp_path_factory.mktemp("hub") / "sounds")


def test_datasets_opens_both_configurations(published: Path, tmp_path: Path) -> None:
    # In a process of its own: `datasets` reads offline mode and its cache folder when it is imported.
    environment = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", LOAD, str(published)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    captions = loaded["captions"]["train"] + loaded["captions"]["test"]
    silent = loaded["silent_captions"]["train"] + loaded["silent_captions"]["test"]
    assert (len(captions), len(silent)) == (3, 4), "three captions were kept, all four clips captioned silently"
    assert all(row["video_id"] and row["start_s"] >= 0 and row["label"] for row in silent)
    origin = ("source", "model", "revision", "adapter")
    assert {tuple(row[name] for name in origin) for row in captions} == {("captions", "some/omni", "ab" * 20, "")}
    assert {tuple(row[name] for name in origin) for row in silent} == {
        ("silent_captions", "some/vl", "cd" * 20, "adapter-digest")
    }
    prompts = json.loads((published / "prompts.json").read_text())
    assert {row["prompt_fingerprint"] for row in captions + silent} == set(prompts)
    assert "Thud." not in {row["caption"] for row in captions}, "a caption that curation dropped was published"
    hostile = next(row["caption"] for row in captions if "script" in row["caption"])
    assert "*dull* thud <b>" in hostile, "control characters go, the words stay"


def test_card_tells_how_it_was_made(published: Path) -> None:
    _, front, body = (published / "README.md").read_text().split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["license"] == "cc-by-4.0"
    assert matter["language"] == ["en"]
    assert [config["config_name"] for config in matter["configs"]] == ["captions", "silent_captions"]
    for wanted in (
        "some/omni@abababababababababababababababababababab",
        "Describe what is heard",
        "### Warnings",
        "| curation | dropped | too\\_short | 1 |",
    ):
        assert wanted in body
    assert "| clips | quarantined | UnreadableSource | 1 |" in body
    assert "A </td>" not in body


def test_only_captions_are_published(published: Path) -> None:
    suffixes = {file.suffix for file in published.rglob("*") if file.is_file()}
    assert suffixes == {".parquet", ".md", ".json"}, "no media and no weights belong in a publication"


def test_publishing_again_replaces_an_earlier_publication(finished: Config, tmp_path: Path) -> None:
    target = publish(finished, tmp_path / "again")
    (target / "README.md").write_text("old")
    assert publish(finished, target).joinpath("README.md").read_text() != "old"
    assert [p.name for p in tmp_path.iterdir()] == ["again"], "temporary folders were left behind"


def test_a_publication_that_cannot_be_replaced_stays(
    finished: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = publish(finished, tmp_path / "hub")
    (target / "README.md").write_text("the earlier one")
    rename = Path.rename

    def fail(self: Path, to: Path) -> Path:
        if self.parent.name == "new" and self.name == "publication.json":  # some entries are in their places
            raise OSError("disk full")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="disk full"):
        publish(finished, target)
    assert (target / "README.md").read_text() == "the earlier one"
    names = ["README.md", "data", "prompts.json", "publication.json"]
    assert sorted(p.name for p in target.iterdir()) == names, "temporary folders were left behind"


def test_a_link_and_the_working_folder_are_written_through(
    finished: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, link = tmp_path / "disk", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    assert publish(finished, link) == folder and link.is_symlink()
    monkeypatch.chdir(folder)
    (folder / "README.md").write_text("old")
    assert publish(finished, Path()) == folder
    assert Path("README.md").read_text() != "old", "the working folder was replaced, not written to"


def test_what_a_killed_publication_left_is_removed(finished: Config, tmp_path: Path) -> None:
    left = tmp_path / "hub" / ".publication-0123" / "new"
    left.mkdir(parents=True)
    (left / "README.md").write_text("half")
    target = publish(finished, tmp_path / "hub")
    assert not left.exists() and (target / "README.md").is_file()


def test_a_folder_with_other_files_is_left_alone(finished: Config, tmp_path: Path) -> None:
    target = publish(finished, tmp_path / "hub")
    (target / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.tex.*give a new or an empty place"):
        publish(finished, target)
    assert (target / "thesis.tex").read_text() == "years of work"
    with pytest.raises(UserError, match="is a file, wanted a folder"):
        publish(finished, target / "thesis.tex")


def test_nothing_done_is_said(configure: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to publish: stage captions is unknown"):
        publish(configure(tmp_path / "store"), tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


@given(st.text())
def test_clean_text_is_one_line_of_utf8(text: str) -> None:
    cleaned = clean_text(text)
    cleaned.encode()
    assert len(cleaned.splitlines()) <= 1
    assert clean_text(cleaned) == cleaned


@pytest.mark.parametrize("text", ["# head", "- item", "1. item", "a | b", "<img src=x>", "[x](y)", "*b* _i_", "==="])
def test_markdown_shows_text_as_it_is(text: str) -> None:
    from markdown_it import MarkdownIt

    html = MarkdownIt("commonmark").enable("table").render(markdown(text))
    escaped = text.replace("<", "&lt;").replace(">", "&gt;")
    assert html == f"<p>{escaped}</p>\n"


@pytest.mark.parametrize("moves", range(1, 9))
def test_a_killed_publication_is_undone_by_the_next(
    finished: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    """Killed while entries move: nothing of the earlier state is lost."""
    target = publish(finished, tmp_path / "hub")
    before = {file.relative_to(target): file.read_bytes() for file in target.rglob("*") if file.is_file()}
    rename, left = Path.rename, [moves]

    class Killed(BaseException):
        pass

    def die(self: Path, to: Path) -> Path:
        left[0] -= not self.name.endswith(".part")
        if left[0] < 0:
            raise Killed
        return rename(self, to)

    other = finished.model_copy(update={"publish": finished.publish.model_copy(update={"author": "A. Lab"})})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die)
        patch.setattr(
            "pipelines.publication.whole_folder.shutil.rmtree", lambda *_, **__: None
        )  # a kill cleans nothing
        with pytest.raises(Killed):
            publish(other, target)
    (target / "notes.txt").write_text("somebody's, put there since")
    PublicationFolder(target).head()
    (target / "notes.txt").unlink()
    assert before == {file.relative_to(target): file.read_bytes() for file in target.rglob("*") if file.is_file()}
    publish(other, target)
    assert (target / "CITATION.cff").is_file() and not list(target.glob(".publication-*"))


def test_a_folder_in_the_store_is_refused(finished: Config) -> None:
    with pytest.raises(UserError, match="is inside the root"):
        publish(finished, Path(finished.root) / "hub")
