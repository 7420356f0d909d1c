"""A folder of feature files: what `flowley extract` writes and `flowley train` reads.

features.json    what they are made with
av-*.arrow       picture and sound, some clips each
text.arrow       captions, and the empty one under the clip id ""
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from flowley.feature_spec import FeatureSpec
from pipelines.entry import user_input
from pipelines.errors import UserError

if TYPE_CHECKING:
    from flowley.dataset import FeatureDataset, Row

SPEC, TEXT, AV_PATTERN = "features.json", "text.arrow", "av-*.arrow"
EMPTY_CAPTION_ID = ""


def read_spec(folder: Path) -> FeatureSpec | None:
    """What the features of a folder are made with; None where there are none yet."""
    file = folder / SPEC
    if not file.is_file():
        return None
    with user_input():
        return FeatureSpec.from_dict(json.loads(file.read_text()))


def require_spec(folder: Path) -> FeatureSpec:
    """What the features of a folder are made with. Raises UserError for one that `flowley extract` did not write."""
    spec = read_spec(folder)
    if spec is None:
        raise UserError(f"{folder} has no {SPEC}; give a folder that `flowley extract` wrote")
    return spec


def write_spec(folder: Path, spec: FeatureSpec) -> None:
    """Keeps it. Raises UserError where the folder's features are made with something else."""
    before = read_spec(folder)
    if before is not None and before != spec:
        differing = [name for name, value in spec.to_dict().items() if before.to_dict()[name] != value]
        raise UserError(
            f"-o {folder}: holds features of another {', '.join(differing)}; give a new folder, or the same options"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SPEC).write_text(json.dumps(spec.to_dict(), indent=2) + "\n")


def rows_by_clip(folder: Path, pattern: str) -> dict[str, Row]:
    """Where each clip's features lie in the files of that name."""
    from flowley.dataset import Row
    from flowley.features import FeatureFile

    rows: dict[str, Row] = {}
    with user_input():
        for path in sorted(folder.glob(pattern)):
            file = FeatureFile(path)
            rows |= {file.clip_id(row): Row(str(path), row) for row in range(len(file))}
    return rows


def open_dataset(folder: Path) -> tuple[FeatureDataset, int]:
    """The clips that have picture, sound and a caption, and how many lack a caption.

    Raises UserError for a folder that `flowley extract` did not write, or without such clips.
    """
    from flowley.dataset import Entry, FeatureDataset
    from flowley.features import FeatureFile

    require_spec(folder)
    av, text = rows_by_clip(folder, AV_PATTERN), rows_by_clip(folder, TEXT)
    empty = text.pop(EMPTY_CAPTION_ID, None)
    entries = [Entry(clip_id, row, text[clip_id]) for clip_id, row in av.items() if clip_id in text]
    if not entries:
        raise UserError(f"{folder} has {len(av)} clips and {len(text)} captions, none of the same clip; extract again")
    null_text = None if empty is None else FeatureFile(empty.path).array("text", empty.row)
    return FeatureDataset(entries, null_text=null_text), len(av) - len(entries)
