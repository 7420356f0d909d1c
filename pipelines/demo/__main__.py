"""`make demo`: a small corpus, then the run that `configs/demo.yaml` describes, its report and its scorecard."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from pipelines.errors import RunError, UserError, one_line
from pipelines.progress import human_time

CONFIG = "configs/demo.yaml"
CLIPS = 120
SEED = 0


def main() -> None:
    """Makes what is missing; a second call finds nothing to do."""
    # Imported here: the corpus is made by processes that import this module again.
    from pipelines.cli import execute
    from pipelines.config import load_config
    from pipelines.demo.scorecard import PAGE, write_scorecard
    from pipelines.miniature.world.corpus import generate_corpus
    from pipelines.report.build import REPORT, build_report
    from pipelines.storage import Storage

    started = time.monotonic()
    config, unwarned = load_config(CONFIG), load_config(CONFIG, ["captions.warnings=null"])
    generate_corpus(Path(config.source.folder).parent, clips=CLIPS, seed=SEED, workers=os.cpu_count() or 1)
    execute(unwarned, until="captions")  # for the scorecard alone: what the teacher says without its warnings
    computed = execute(config)
    storage = Storage(config.root)
    if computed or not storage.exists(REPORT) or not storage.exists(PAGE):
        build_report(config)
        print("\n".join(write_scorecard(config, unwarned)))
    print(f"report: {storage.address(REPORT)}")
    print(f"scorecard: {storage.address(PAGE)}")
    print(f"demo: {human_time(time.monotonic() - started)}")


if __name__ == "__main__":
    try:
        main()
    except (UserError, RunError) as error:
        print(f"demo: {one_line(error, 2000)}", file=sys.stderr)
        sys.exit(1)
