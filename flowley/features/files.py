"""Feature files: Arrow files of encoded clips, read through a memory map without copying.

Frames and sound are in one kind of file and captions in another, so that a changed caption rewrites its text only.
A clip at the paper's settings with a caption of 40 tokens takes 195 kB.

Shapes: L_vis video frames, L_aud latent frames, L_txt tokens, C channels of each.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

FORMAT = 4
ROWS_PER_BATCH = 4
"""Rows that are read at once when a few of a file are fetched from afar."""
EMPTY_CAPTION_ID = ""
"""Clip id of the encoded empty caption, the null condition of most networks, in a file of captions."""
_META = b"flowley.features.files"


@dataclass(frozen=True, slots=True, eq=False)
class AVFeatures:
    """Features of a clip's frames and sound."""

    clip_id: str
    visual: np.ndarray
    """(L_vis, C_vis)."""
    audio_mean: np.ndarray
    """(L_aud, C_aud), of the codec's latent."""
    audio_std: np.ndarray
    """(L_aud, C_aud), >= 0; all 0 for a deterministic codec. Kept to 2.2%."""
    sync: np.ndarray | None = None
    """(L_sync, C_sync) synchronisation features, for networks that take them; all clips of a file or none."""


@dataclass(frozen=True, slots=True, eq=False)
class TextFeatures:
    """Features of a clip's caption."""

    clip_id: str
    text: np.ndarray
    """(L_txt, C_txt); padding removed, or kept for a network that attends to it."""
    n_tokens: int
    """Tokens of the caption; the rest is padding."""
    tokens_cut: int = 0
    """Tokens of the caption beyond the encoder's limit, which the features lack. Not kept in files."""


def write_av_features(path: str | Path, clips: Iterable[AVFeatures]) -> int:
    """Writes a file of picture and sound features; returns the number of clips.

    Raises:
        ValueError: a clip is empty, not finite in float16, or shaped unlike the first; the message names it.
    """
    clips = list(clips)
    visual, C_vis = _ragged(clips, "visual")
    mean, C_aud = _ragged(clips, "audio_mean")
    columns = {"visual": visual, "audio_mean": mean, "audio_std": _std_column(clips)}
    channels = {"visual": C_vis, "audio_mean": C_aud, "audio_std": C_aud}
    without_sync = [c.clip_id for c in clips if c.sync is None]
    if len(without_sync) < len(clips):
        if without_sync:
            raise ValueError(f"clip {without_sync[0]!r} has no sync features, others of its file do: give all or none")
        columns["sync"], channels["sync"] = _ragged(clips, "sync")
    _write(path, [c.clip_id for c in clips], columns, channels)
    return len(clips)


def write_text_features(path: str | Path, captions: Iterable[TextFeatures]) -> int:
    """Writes a file of caption features; returns the number of captions. Errors as in `write_av_features`."""
    captions = list(captions)
    text, C_txt = _ragged(captions, "text")
    for c in captions:
        if not 1 <= c.n_tokens <= len(c.text):
            raise ValueError(f"clip {c.clip_id!r}: n_tokens = {c.n_tokens} of {len(c.text)} text features")
    columns = {"text": text, "n_tokens": pa.array([c.n_tokens for c in captions], pa.int32())}
    _write(path, [c.clip_id for c in captions], columns, {"text": C_txt})
    return len(captions)


def copy_rows(source: IO[bytes], rows: Iterable[int], target: str | Path) -> dict[int, int]:
    """Copies the record batches that hold some rows of a feature file, reading no others; returns the rows' new places.

    source: the opened file. target: path of the new file.
    """
    reader = pa.ipc.open_file(source)
    rows = list(rows)
    place_of = {number: place for place, number in enumerate(sorted({row // ROWS_PER_BATCH for row in rows}))}
    with pa.ipc.new_file(str(target), reader.schema) as writer:
        for number in place_of:
            writer.write_batch(reader.get_batch(number))
    return {row: place_of[row // ROWS_PER_BATCH] * ROWS_PER_BATCH + row % ROWS_PER_BATCH for row in rows}


class FeatureFile:
    """One feature file; arrays are read-only views of the memory-mapped file.

    Raises:
        ValueError: not a feature file, or of another format version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} is not a feature file ({error}): extract its features again") from error
        meta = json.loads((table.schema.metadata or {}).get(_META, b"{}"))
        if meta.get("format") != FORMAT:
            raise ValueError(
                f"{path} has feature format {meta.get('format')}, wanted {FORMAT}: extract its features again"
            )
        self.channels: dict[str, int] = meta["channels"]
        self.clip_ids = table.column("clip_id")
        self._n_tokens = table.column("n_tokens") if "n_tokens" in table.column_names else None
        self._columns = {
            name: [(c.offsets.to_numpy(), c.values.to_numpy(zero_copy_only=True)) for c in table[name].chunks]
            for name in self.channels
        }
        ends = np.cumsum([len(chunk) for chunk in self.clip_ids.chunks]).tolist()
        self._starts = [0, *ends[:-1]]

    def __len__(self) -> int:
        return len(self.clip_ids)

    def clip_id(self, row: int) -> str:
        return str(self.clip_ids[row].as_py())

    def n_tokens(self, row: int) -> int:
        """Tokens of a caption, in a file of captions."""
        if self._n_tokens is None:
            raise ValueError(f"{self.path} holds no captions: give a file of text features")
        return int(self._n_tokens[row].as_py())

    def array(self, column: str, row: int) -> np.ndarray:
        """(L, C) view of a row; uint8 codes for `audio_std` (see `decode_std`), float16 otherwise."""
        chunk = bisect_right(self._starts, row) - 1
        offsets, values = self._columns[column][chunk]
        r = row - self._starts[chunk]
        view: np.ndarray = values[offsets[r] : offsets[r + 1]].reshape(-1, self.channels[column])
        return view


def encode_std(std: np.ndarray) -> np.ndarray:
    """Codes (uint8) of std >= 0: 0 is 0, q is 2^((q - 192) / 16), which spans 2.6e-4 to 15 in steps of 4.4%."""
    with np.errstate(divide="ignore"):
        q = np.round(16 * np.log2(std.astype(np.float64))) + 192
    return np.where(std > 0, np.clip(q, 1, 255), 0).astype(np.uint8)


def decode_std(codes: np.ndarray) -> np.ndarray:
    """Inverse of `encode_std`, float16, within 2.2%."""
    decoded: np.ndarray = _STD_OF_CODE[codes]
    return decoded


_codes = np.arange(256, dtype=np.float32)
_STD_OF_CODE: np.ndarray = np.where(_codes > 0, 2.0 ** ((_codes - 192) / 16), 0).astype(np.float16)
"""By code: looking up takes a tenth of the time of powers."""


def _ragged(clips: Sequence[AVFeatures] | Sequence[TextFeatures], name: str) -> tuple[pa.Array, int]:
    """Checked (L_i, C) arrays as one list<float16> column, and C."""
    if not clips:
        raise ValueError("no clips to write, wanted at least one")
    C = getattr(clips[0], name).shape[-1]
    halves = []
    for clip in clips:
        x: np.ndarray = getattr(clip, name)
        if x.ndim != 2 or x.shape[0] < 1 or x.shape[1] != C:
            raise ValueError(f"clip {clip.clip_id!r}: {name} of shape {x.shape}, wanted (length >= 1, {C})")
        with np.errstate(over="ignore"):
            halves.append(x.astype(np.float16))
        if not np.isfinite(halves[-1]).all():
            raise ValueError(f"clip {clip.clip_id!r}: {name} is not finite in float16; wanted |x| < 65504")
    return _lists(halves, pa.float16()), int(C)


def _std_column(clips: Sequence[AVFeatures]) -> pa.Array:
    """uint8 codes; an all-zero std takes no room."""
    codes = []
    for clip in clips:
        if clip.audio_std.shape != clip.audio_mean.shape or not (clip.audio_std >= 0).all():
            raise ValueError(
                f"clip {clip.clip_id!r}: audio_std of shape {clip.audio_std.shape}, "
                f"wanted {clip.audio_mean.shape} like audio_mean, with no value below 0"
            )
        codes.append(encode_std(clip.audio_std) if clip.audio_std.any() else np.empty((0, 1), np.uint8))
    return _lists(codes, pa.uint8())


def _lists(arrays: Sequence[np.ndarray], kind: pa.DataType) -> pa.Array:
    offsets = np.cumsum([0, *(x.size for x in arrays)])
    values = pa.array(np.concatenate([x.ravel() for x in arrays]), kind)
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)


def _write(path: str | Path, clip_ids: list[str], columns: dict[str, pa.Array], channels: dict[str, int]) -> None:
    table = pa.table({"clip_id": pa.array(clip_ids, pa.string()), **columns})
    table = table.replace_schema_metadata({_META: json.dumps({"format": FORMAT, "channels": channels}).encode()})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=ROWS_PER_BATCH)
