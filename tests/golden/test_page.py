"""The miniature's page and plots, made by the command from the results that are stored: the committed bytes.

`tests/miniature/test_study.py` compares the page and the plots' names; here the command draws the plots too.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

PAGE, PLOTS = Path("docs/miniature.md"), Path("docs/miniature")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_page_and_its_plots_are_those_of_the_results(project: Any, run: Any, tmp_path: Path) -> None:
    folder = project.mirror(tmp_path / "project", copied=("docs",))
    committed = {PAGE, *(PLOTS / plot.name for plot in (project.root / PLOTS).glob("*.svg"))}
    assert len(committed) > 10
    results = sorted((project.root / PLOTS / "results").iterdir())
    for file in committed:
        (folder / file).unlink()
    one_done = ["--cells", results[0].name.removesuffix(".json").replace(".", "/")]
    places = ["--results", PLOTS / "results", "--page", PAGE, "--notes", PLOTS / "notes"]
    run(sys.executable, "-m", "miniature", *one_done, *places, cwd=folder, timeout_s=570).ok()
    made = {PAGE, *(PLOTS / plot.name for plot in (folder / PLOTS).glob("*.svg"))}
    assert made == committed, "other plots than the committed ones"
    differ = [str(one) for one in sorted(made) if (folder / one).read_bytes() != (project.root / one).read_bytes()]
    if differ:
        kept = project.root / "build" / "golden-page"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder / "docs", kept / "docs")
        pytest.fail(f"made from the same results, but not the committed bytes: {', '.join(differ)}; see {kept}")
