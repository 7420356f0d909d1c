"""`python -m miniature.demo`: a small corpus, the run that configs/demo.yaml describes, its report and scorecard."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pipelines.config_file import load_config
from pipelines.engine.storage import Storage
from pipelines.errors import run_command
from pipelines.progress import human_time

CONFIG = "configs/demo.yaml"
CLIPS, SEED = 120, 0
SCORECARD = "report/scorecard.html"
"""Key in the store."""


def main() -> None:
    """Make what is missing; a second call finds nothing to do, and loads neither torch nor ray."""
    from miniature.world.corpus import generate_corpus
    from pipelines.cli.running import execute
    from pipelines.report.build import REPORT, build_report, is_report_of
    from pipelines.stages import wanted_stages

    started = time.monotonic()
    config, unwarned = load_config(CONFIG), load_config(CONFIG, ["captions.warnings=null"])
    print("the corpus: up to 2 minutes", flush=True)
    generate_corpus(Path(config.source.folder).parent, clips=CLIPS, seed=SEED, workers=os.cpu_count() or 1)
    print("captions without warnings, for the scorecard alone", flush=True)
    execute(unwarned, until="captions")
    print("the run", flush=True)
    computed = execute(config)
    storage = Storage(config.root)
    if computed or not storage.exists(SCORECARD) or not is_report_of(config, wanted_stages(config)):
        from miniature.scorecard import write_scorecard  # loads scipy, which takes a second

        build_report(config, wanted_stages(config))
        print("\n".join(write_scorecard(config, unwarned, SCORECARD)))
    print(f"report: {storage.address(REPORT)}")
    print(f"scorecard: {storage.address(SCORECARD)}")
    print(f"demo: {human_time(time.monotonic() - started)}")


if __name__ == "__main__":
    run_command("demo", main, interrupted="the same command goes on where it stopped")
