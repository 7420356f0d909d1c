"""`make demo`: a small corpus and tiny checkpoints, then the run that `configs/demo.yaml` describes."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from pipelines.errors import RunError, UserError, one_line
from pipelines.progress import human_time

CONFIG = "configs/demo.yaml"
CLIPS = 24
SEED = 0


def main() -> None:
    """Makes what is missing; a second call finds nothing to do."""
    # Imported here: the corpus is made by processes that import this module again.
    from pipelines.cli import execute
    from pipelines.config import load_config
    from pipelines.demo.checkpoints import build_checkpoints
    from pipelines.miniature.world.corpus import generate_corpus
    from pipelines.report.build import REPORT, build_report
    from pipelines.storage import Storage

    started = time.monotonic()
    config = load_config(CONFIG)
    corpus = Path(config.source.folder).parent
    generate_corpus(corpus, clips=CLIPS, seed=SEED, workers=os.cpu_count() or 1)
    build_checkpoints(Path(config.captions.model.path).parent, SEED, print)
    computed = execute(config)
    if computed or not Storage(config.root).exists(REPORT):
        build_report(config)
    print(f"report: {Storage(config.root).address(REPORT)}")
    print(f"demo: {human_time(time.monotonic() - started)}")


if __name__ == "__main__":
    try:
        main()
    except (UserError, RunError) as error:
        print(f"demo: {one_line(error, 2000)}", file=sys.stderr)
        sys.exit(1)
