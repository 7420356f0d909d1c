"""Weights that are given instead of trained: the stage takes them over, and later stages see no difference."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import UserError
from pipelines.fingerprint import file_sha256
from pipelines.stage import Context
from pipelines.store import Manifest


def given_files(folder: str, names: Sequence[str], key: str) -> dict[str, str]:
    """SHA-256 by name of the files that a given folder must have. Raises UserError naming what is missing."""
    missing = [name for name in names if not (Path(folder) / name).is_file()]
    if missing:
        raise UserError(f"{key}: {folder!r} has no {' and no '.join(missing)}; give a folder with {', '.join(names)}")
    return {name: file_sha256(Path(folder) / name) for name in names}


def take_over(context: Context, folder: str, names: Sequence[str], into: str, digest: str) -> Manifest:
    """Copies the files into the stage's output. Its one row is the set of weights."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soundcap-given-") as copy:
        for name in names:
            shutil.copyfile(Path(folder) / name, Path(copy) / name)
        context.storage.upload_folder(Path(copy), context.output.name(into))
    context.output.write_quarantine([])
    return Manifest(
        stage=context.output.stage,
        fingerprint=context.output.fingerprint,
        digest=digest,
        rows_in=1,
        rows_out=1,
        rows_quarantined=0,
        rows_computed=1,
        seconds=round(time.monotonic() - started, 3),
        figures={"weights": "given, not trained"},
    )
