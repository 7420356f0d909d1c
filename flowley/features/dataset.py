"""Dataset of feature files, and its batches.

Shapes: B batch, L_vis video frames, L_aud latent frames, L_txt tokens, C channels of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from flowley.features.files import EMPTY_CAPTION_ID, AVFeatures, FeatureFile, decode_std
from flowley.network.base import Conditions
from flowley.network.config import NetworkConfig

Shapes = dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Row:
    """Place of one clip's features: a feature file and the row in it."""

    path: str
    row: int


@dataclass(frozen=True, slots=True)
class Entry:
    """Training example: one clip. Several may share frames and sound and differ in their caption."""

    clip_id: str
    av: Row
    text: Row


def index_files(paths: Iterable[str | Path]) -> dict[str, Row]:
    """The place of every clip in some feature files, by clip id. Raises ValueError where one is no feature file."""
    return {file.clip_id(row): Row(str(file.path), row) for file in map(FeatureFile, paths) for row in range(len(file))}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Clip(AVFeatures):
    """Features of one clip's frames, sound and caption; float16 views of memory-mapped files."""

    text: np.ndarray
    """(L_txt, C_txt)."""
    n_tokens: int
    """Tokens of the caption; text features beyond are padding."""


class Batch(NamedTuple):
    """Clips of one length."""

    clip_ids: list[str]
    audio_mean: Tensor
    """(B, L_aud, C_aud)."""
    audio_std: Tensor
    """(B, L_aud, C_aud)."""
    conditions: Conditions

    def to(self, device: torch.device) -> Batch:
        """On `device`; features as float32, the mask as it is."""

        def move(x: Tensor) -> Tensor:
            moved = x.to(device, non_blocking=True)
            return moved if moved.dtype == torch.bool else moved.float()

        return Batch(self.clip_ids, move(self.audio_mean), move(self.audio_std), self.conditions.map(move))


class FeatureDataset(Dataset[Clip]):
    """Clips by index, read from their feature files without copying.

    `null_text` (L, C_txt) is the encoded empty caption, for networks whose null condition it is.
    """

    def __init__(self, entries: Sequence[Entry], *, null_text: np.ndarray | None = None) -> None:
        self.entries = list(entries)
        self.null_text = null_text
        self._files: dict[str, FeatureFile] = {}

    @classmethod
    def from_rows(cls, av: Mapping[str, Row], text: Mapping[str, Row]) -> Self:
        """Dataset of the clips that have both kinds of features by clip id, in the order of `av`.

        The text of `EMPTY_CAPTION_ID` becomes `null_text`.

        Raises:
            ValueError: the file of the empty caption is not a feature file.
        """
        entries = [Entry(clip_id, row, text[clip_id]) for clip_id, row in av.items() if clip_id in text]
        empty = text.get(EMPTY_CAPTION_ID)
        return cls(entries, null_text=None if empty is None else FeatureFile(empty.path).array("text", empty.row))

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Clip:
        entry = self.entries[index]
        av, text = self._file(entry.av, entry.clip_id), self._file(entry.text, entry.clip_id)
        mean = av.array("audio_mean", entry.av.row)
        codes = av.array("audio_std", entry.av.row)
        std = decode_std(codes) if len(codes) else np.zeros_like(mean)
        sync = av.array("sync", entry.av.row) if "sync" in av.channels else None
        return Clip(
            entry.clip_id, av.array("visual", entry.av.row), mean, std, sync,
            text=text.array("text", entry.text.row), n_tokens=text.n_tokens(entry.text.row),
        )  # fmt: skip

    def require_fit(self, config: NetworkConfig, duration_s: float) -> None:
        """Checks that every clip fits a network and is long enough; by shapes only, in seconds for 200,000 clips.

        Raises:
            ValueError: no clips, wrong channels or rates, clips too short, captions too long; naming the first ones.
        """
        if not self.entries:
            raise ValueError("no clips, wanted at least one")
        wanted = wanted_shapes(config, duration_s)
        faults = []
        for entry in self.entries:
            av, text = self._file(entry.av, entry.clip_id), self._file(entry.text, entry.clip_id)
            found = {name: av.array(name, entry.av.row).shape for name in av.channels}
            found["text"] = text.array("text", entry.text.row).shape
            if fault := shape_fault(entry.clip_id, found, config, wanted):
                faults.append(fault)
        if faults:
            count = f"{len(faults)} of {len(self)} clips do not fit: " if len(faults) > 1 else ""
            raise ValueError(count + "; ".join(faults[:3]))
        tokens = 0 if self.null_text is None else len(self.null_text)
        if tokens > config.max_text_tokens:
            raise ValueError(f"the empty caption has {tokens} features, wanted at most {config.max_text_tokens}")

    def _file(self, where: Row, clip_id: str) -> FeatureFile:
        if where.path not in self._files:
            self._files[where.path] = FeatureFile(where.path)
        file = self._files[where.path]
        found = file.clip_id(where.row) if where.row < len(file) else "nothing"
        if found != clip_id:
            raise ValueError(
                f"{Path(where.path).name} row {where.row} holds {found!r}, wanted clip {clip_id!r}: "
                "the list of features does not belong to these files"
            )
        return file

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}  # loader processes map the files themselves


def wanted_shapes(config: NetworkConfig, duration_s: float) -> Shapes:
    """Least length and channels of every feature that a network takes of a clip, by column of the feature files."""
    L_aud, L_vis = config.lengths(duration_s)
    shapes = {
        "visual": (L_vis, config.visual_dim), "audio_mean": (L_aud, config.latent_dim), "text": (0, config.text_dim),
    }  # fmt: skip
    return shapes | ({"sync": (config.sync_length(duration_s), config.sync_dim)} if config.sync_dim else {})


def shape_fault(
    clip_id: str, found: Mapping[str, tuple[int, ...]], config: NetworkConfig, wanted: Shapes
) -> str | None:
    """Error message about the shapes of a clip's features; None if they fit the network."""
    for name, (_, channels) in wanted.items():
        if found.get(name, (0, 0))[1] != channels:
            return (
                f"clip {clip_id!r} has {name} features of {found.get(name, (0, 0))[1]} channels, the network takes "
                f"{channels}: extract features with its encoders and codec, or configure it for these"
            )
    L_aud, L_vis, L_txt = (found[name][0] for name in ("audio_mean", "visual", "text"))
    audio_s, video_s = L_aud / config.r_a, L_vis / config.r_v
    if abs(audio_s - video_s) > 1 / config.r_a + 1 / config.r_v:
        return (
            f"clip {clip_id!r} has {L_vis} video and {L_aud} audio latent frames, at the network's "
            f"{float(config.r_v):g} and {float(config.r_a):g} Hz {float(video_s):.2f} and {float(audio_s):.2f} s: "
            "extract features at its rates, or configure r_v and r_a for these"
        )
    for name, (least, _) in wanted.items():
        if found[name][0] < least:
            return (
                f"clip {clip_id!r} has {found[name][0]} {name} frames, wanted {least}: shorten duration_s, or leave "
                "the clip out"
            )
    if L_txt > config.max_text_tokens:
        return (
            f"clip {clip_id!r} has a caption of {L_txt} features, the network takes at most "
            f"{config.max_text_tokens}: shorten it, or configure max_text_tokens"
        )
    return None


def collate(clips: Sequence[Clip], config: NetworkConfig, duration_s: float, *, L_txt: int | None = None) -> Batch:
    """Batch of one or more clips cut to `duration_s` seconds, as a network takes them.

    Captions are padded to `L_txt` tokens, or to the longest caption's.

    Raises:
        ValueError: a clip's features do not fit the network or are too short; the message names the clip.
    """
    wanted = wanted_shapes(config, duration_s)
    for clip in clips:
        found = {name: x.shape for name in wanted if (x := getattr(clip, name)) is not None}
        if fault := shape_fault(clip.clip_id, found, config, wanted):
            raise ValueError(fault)

    def stacked(name: str, cut_like: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(clip, name)[: wanted[cut_like][0]] for clip in clips]))

    text, mask = pad_captions([clip.text for clip in clips], [clip.n_tokens for clip in clips], L_txt=L_txt)
    sync = stacked("sync", "sync") if config.sync_dim else None
    conditions = Conditions(stacked("visual", "visual"), text, mask, sync)
    mean, std = stacked("audio_mean", "audio_mean"), stacked("audio_std", "audio_mean")
    return Batch([clip.clip_id for clip in clips], mean, std, conditions)


def pad_captions(
    features: Sequence[np.ndarray], n_tokens: Sequence[int], *, L_txt: int | None = None
) -> tuple[Tensor, Tensor]:
    """Captions' features (L_i, C) as (B, L, C) float16, and the mask (B, L) of their tokens.

    L is the longest caption's, or `L_txt` where that is more.
    """
    width = max(*map(len, features), L_txt or 0)
    text = np.zeros((len(features), width, features[0].shape[1]), np.float16)
    for row, caption in zip(text, features, strict=True):
        row[: len(caption)] = caption
    return torch.from_numpy(text), torch.arange(width) < torch.tensor(n_tokens)[:, None]


def latent_statistics(dataset: FeatureDataset, *, max_clips: int = 10_000) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel of latents mean + std * eps; each (C_aud,) float32.

    Over all clips, or over `max_clips` evenly spaced ones of a larger corpus.

    Raises:
        ValueError: a clip's latents are not finite; the message names it.
    """
    picked = np.unique(np.linspace(0, len(dataset) - 1, min(max_clips, len(dataset))).round().astype(int))
    n, total, squares = 0, np.zeros(()), np.zeros(())
    for index in picked:
        clip = dataset[int(index)]
        mean, std = clip.audio_mean.astype(np.float64), clip.audio_std.astype(np.float64)
        if not np.isfinite(mean).all():
            raise ValueError(f"clip {clip.clip_id!r} has audio latents that are not finite: extract its features again")
        n, total = n + len(mean), total + mean.sum(0)
        squares = squares + (mean**2 + std**2).sum(0)
    average = total / n
    deviation = np.sqrt(np.maximum(squares / n - average**2, 0)).clip(min=1e-3)
    return torch.from_numpy(average).float(), torch.from_numpy(deviation).float()
