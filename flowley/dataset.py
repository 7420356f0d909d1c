"""Feature files as a torch dataset, batches of it, and which clips each training step sees.

Shapes: B batch, L_vis video frames, L_aud latent frames, L_txt tokens, C channels of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from flowley.features import FeatureFile, decode_std
from flowley.model import Conditions


@dataclass(frozen=True, slots=True)
class Row:
    """Where a clip's features are."""

    path: str
    row: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A clip of the dataset. Several entries may share picture and sound and differ in their caption."""

    clip_id: str
    av: Row
    text: Row


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Features of one clip; float16 views of memory-mapped files."""

    clip_id: str
    visual: np.ndarray
    """(L_vis, C_vis)."""
    audio_mean: np.ndarray
    """(L_aud, C_aud)."""
    audio_std: np.ndarray
    """(L_aud, C_aud)."""
    text: np.ndarray
    """(L_txt, C_txt)."""


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
        mean, std, visual, text = (
            x.to(device, non_blocking=True).float()
            for x in (self.audio_mean, self.audio_std, self.conditions.visual, self.conditions.text)
        )
        mask = self.conditions.text_mask.to(device, non_blocking=True)
        return Batch(self.clip_ids, mean, std, Conditions(visual, text, mask))


class FeatureDataset(Dataset[Clip]):
    """Clips by index, read from their files without copying.

    Args:
        entries: one per training example.
        null_text: (L, C_txt), the encoded empty caption, where the network wants it.
    """

    def __init__(self, entries: Sequence[Entry], *, null_text: np.ndarray | None = None) -> None:
        self.entries = list(entries)
        self.null_text = null_text
        self._files: dict[str, FeatureFile] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Clip:
        entry = self.entries[index]
        av, text = self._file(entry.av, entry.clip_id), self._file(entry.text, entry.clip_id)
        mean = av.array("audio_mean", entry.av.row)
        codes = av.array("audio_std", entry.av.row)
        std = decode_std(codes) if len(codes) else np.zeros_like(mean)
        return Clip(entry.clip_id, av.array("visual", entry.av.row), mean, std, text.array("text", entry.text.row))

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


def collate(clips: Sequence[Clip], *, L_aud: int, L_vis: int, L_txt: int | None) -> Batch:
    """Clips cut to the same lengths, captions padded with zeros to L_txt or, if None, to the longest.

    Raises:
        ValueError: a clip is shorter than wanted; the message names it.
    """
    for clip in clips:
        if len(clip.visual) < L_vis or len(clip.audio_mean) < L_aud:
            raise ValueError(
                f"clip {clip.clip_id!r} has {len(clip.visual)} video and {len(clip.audio_mean)} audio latent "
                f"frames, wanted {L_vis} and {L_aud}: shorten duration_s, or leave the clip out"
            )
    lengths = torch.tensor([len(clip.text) for clip in clips])
    width = max(int(lengths.max()), L_txt or 0)
    text = np.zeros((len(clips), width, clips[0].text.shape[1]), np.float16)
    for row, clip in zip(text, clips, strict=True):
        row[: len(clip.text)] = clip.text
    conditions = Conditions(
        torch.from_numpy(np.stack([clip.visual[:L_vis] for clip in clips])),
        torch.from_numpy(text),
        torch.arange(width) < lengths[:, None],
    )
    return Batch(
        [clip.clip_id for clip in clips],
        torch.from_numpy(np.stack([clip.audio_mean[:L_aud] for clip in clips])),
        torch.from_numpy(np.stack([clip.audio_std[:L_aud] for clip in clips])),
        conditions,
    )


class StepSampler(Sampler[list[int]]):
    """The clips of every training step, a function of (seed, step) alone, so that any step can be resumed.

    Epoch e is a permutation of the clips drawn from (seed, e); steps cut the row of epochs into batches, and
    each of `world_size` ranks takes its share of every batch.
    """

    def __init__(
        self, n_clips: int, *, batch_size: int, seed: int, start_step: int, end_step: int,
        rank: int = 0, world_size: int = 1,
    ) -> None:  # fmt: skip
        if n_clips < 1:
            raise ValueError("no clips to train on, wanted at least one")
        if batch_size % world_size:
            raise ValueError(f"batch_size = {batch_size} over {world_size} workers, wanted a multiple of the workers")
        self.n_clips, self.batch_size, self.seed = n_clips, batch_size, seed
        self.start_step, self.end_step, self.rank, self.world_size = start_step, end_step, rank, world_size
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return self.end_step - self.start_step

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // self.world_size
        for step in range(self.start_step, self.end_step):
            first = step * self.batch_size + self.rank * share
            yield [self._clip(position) for position in range(first, first + share)]

    def _clip(self, position: int) -> int:
        epoch, place = divmod(position, self.n_clips)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.n_clips)
        return int(self._order[place])


def latent_statistics(dataset: FeatureDataset, *, max_clips: int = 10_000) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel of latents mean + std * eps; each (C_aud,) float32.

    Over all clips, or over `max_clips` evenly spaced ones of a larger corpus.
    """
    picked = np.unique(np.linspace(0, len(dataset) - 1, min(max_clips, len(dataset))).round().astype(int))
    n, total, squares = 0, np.zeros(()), np.zeros(())
    for index in picked:
        clip = dataset[int(index)]
        mean, std = clip.audio_mean.astype(np.float64), clip.audio_std.astype(np.float64)
        n, total = n + len(mean), total + mean.sum(0)
        squares = squares + (mean**2 + std**2).sum(0)
    average = total / n
    deviation = np.sqrt(np.maximum(squares / n - average**2, 0)).clip(min=1e-3)
    return torch.from_numpy(average).float(), torch.from_numpy(deviation).float()
