"""The house itself: documents name what exists, starts stay light, and the measures of docs/architecture.md hold."""

import importlib.util
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("soundcap", "flowley", "pipelines", "miniature")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/operators.md")
PATH = re.compile(r"`([\w.-]+(?:/[\w.*-]+)+/?|[\w-]+/)`")
SAME_THING = {"__init__", "__main__", "flowley", "mmaudio"}
"""Names with one meaning in every package: the networks `flowley` and `mmaudio`, and their stage and command."""


def _measures():
    spec = importlib.util.spec_from_file_location("measure_house", ROOT / "scripts" / "measure_house.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {package: module.measure(package) for package in PACKAGES}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_that_a_document_names_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    named = {path for path in PATH.findall(text) if path.split("/")[0] in {p.name for p in ROOT.iterdir()}}
    missing = sorted(path for path in named if not list(ROOT.glob(path.rstrip("/"))))
    assert not missing, f"{document} names what is not there: {missing}"


def test_documents_stay_short() -> None:
    for document, limit in (("README.md", 200), ("docs/architecture.md", 120)):
        lines = (ROOT / document).read_text().count("\n")
        assert lines <= limit, f"{document} has {lines} lines, at most {limit}"
    for page in (ROOT / "docs" / "decisions").glob("*.md"):
        assert page.read_text().count("\n") <= 30, f"{page.name} has more than 30 lines"


def test_measures() -> None:
    measures = _measures().values()
    assert sum(modules for modules, _, _ in measures) <= 181, (
        "more than 181 modules: put what belongs together together"
    )
    hidden = sum(count for _, _, count in measures)
    assert hidden <= 40, f"{hidden} first-party imports inside functions, at most 40: import at the top"


def test_no_module_name_means_two_things() -> None:
    found = defaultdict(set)
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            folder = file.relative_to(ROOT).parent
            if folder != Path("pipelines/stages"):  # named after their stages
                found[file.stem].add(str(folder))
    doubled = {name: sorted(places) for name, places in found.items() if len(places) > 1 and name not in SAME_THING}
    assert not doubled, f"module names used for different things: {doubled}"


def test_help_and_planning_import_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "ray", "pandas", "scipy", "decord", "matplotlib", "vllm", "gradio"}
    code = (
        "import sys, pipelines.cli.soundcap, pipelines.cli.flowley, pipelines.stages, pipelines.engine.plan\n"
        f"heavy = {heavy} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_miniature_does_not_travel() -> None:
    from pipelines import submit

    assert "miniature" not in submit.PACKAGES
