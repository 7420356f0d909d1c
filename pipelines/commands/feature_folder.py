"""Folder of feature files, which `flowley extract` writes and `flowley train` reads.

features.json    feature spec: encoders, codec and duration
av-*.arrow       visual features and audio latents, some clips each
text.arrow       text features of the captions, and of the empty one under the clip id ""
"""

from __future__ import annotations

import json
from pathlib import Path

from flowley.features.dataset import FeatureDataset, Row, index_files
from flowley.features.files import EMPTY_CAPTION_ID
from flowley.network.feature_spec import FeatureSpec
from pipelines.errors import UserError, user_input

SPEC, TEXT, AV_PATTERN = "features.json", "text.arrow", "av-*.arrow"


def read_spec(folder: Path) -> FeatureSpec | None:
    """Feature spec of a folder, or None if it has none yet."""
    file = folder / SPEC
    if not file.is_file():
        return None
    with user_input():
        return FeatureSpec.from_dict(json.loads(file.read_text()))


def require_spec(folder: Path) -> FeatureSpec:
    """Feature spec of a folder. Raises UserError if `flowley extract` did not write it."""
    spec = read_spec(folder)
    if spec is None:
        raise UserError(f"{folder} has no {SPEC}; give a folder that `flowley extract` wrote")
    return spec


def require_same_spec(folder: Path, spec: FeatureSpec) -> None:
    """Raises UserError if the folder already has a different spec."""
    before = read_spec(folder)
    if before is not None and before != spec:
        differing = [name for name, value in spec.to_dict().items() if before.to_dict()[name] != value]
        raise UserError(
            f"-o {folder}: holds features of another {', '.join(differing)}; give a new folder, or the same options"
        )


def write_spec(folder: Path, spec: FeatureSpec) -> None:
    """Writes the feature spec into a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SPEC).write_text(json.dumps(spec.to_dict(), indent=2) + "\n")


def rows_by_clip(folder: Path, pattern: str) -> dict[str, Row]:
    """Feature file and row number by clip id, over the files that match `pattern`."""
    with user_input():
        return index_files(sorted(folder.glob(pattern)))


def open_dataset(folder: Path) -> tuple[FeatureDataset, int]:
    """Dataset of the clips that have all features, and the number of clips without a caption.

    Raises UserError for a folder that `flowley extract` did not write, or without such clips.
    """
    require_spec(folder)
    av, text = rows_by_clip(folder, AV_PATTERN), rows_by_clip(folder, TEXT)
    dataset = FeatureDataset.from_rows(av, text)
    if not len(dataset):
        captions = len(text.keys() - {EMPTY_CAPTION_ID})
        raise UserError(f"{folder} has {len(av)} clips and {captions} captions, none of the same clip; extract again")
    return dataset, len(av) - len(dataset)
