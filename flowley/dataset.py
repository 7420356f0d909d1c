"""Feature files as a torch dataset, batches of it, and which clips each training step sees.

Shapes: B batch, L_vis video frames, L_aud latent frames, L_txt tokens, C channels of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from flowley.config import NetworkConfig
from flowley.features import FeatureFile, decode_std
from flowley.network import Conditions


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
    n_tokens: int
    """Tokens of the caption; text features beyond are padding."""
    sync: np.ndarray | None
    """(L_sync, C_sync), where the file has them."""


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


@dataclass(frozen=True, slots=True)
class Shape:
    """What a network wants of a clip's features."""

    config: NetworkConfig
    channels: dict[str, int]
    """By the column of the feature files."""
    lengths: dict[str, int]
    """Least frames, by column."""

    @classmethod
    def of(cls, config: NetworkConfig, duration_s: float) -> Shape:
        L_aud, L_vis = config.lengths(duration_s)
        channels = {"visual": config.visual_dim, "audio_mean": config.latent_dim, "text": config.text_dim}
        lengths = {"visual": L_vis, "audio_mean": L_aud}
        if config.sync_dim:
            channels["sync"], lengths["sync"] = config.sync_dim, config.sync_length(duration_s)
        return cls(config, channels, lengths)

    def fault(self, clip_id: str, found: Mapping[str, int]) -> str | None:
        """What is wrong with the lengths of a clip's features, by column; None if nothing is."""
        config = self.config
        audio_s, video_s = found["audio_mean"] / config.r_a, found["visual"] / config.r_v
        if abs(audio_s - video_s) > 1 / config.r_a + 1 / config.r_v:
            return (
                f"clip {clip_id!r} has {found['visual']} video and {found['audio_mean']} audio latent frames, at the "
                f"network's {float(config.r_v):g} and {float(config.r_a):g} Hz {float(video_s):.2f} and "
                f"{float(audio_s):.2f} s: extract features at its rates, or configure r_v and r_a for these"
            )
        for name, least in self.lengths.items():
            if found[name] < least:
                return (
                    f"clip {clip_id!r} has {found[name]} {name} frames, wanted {least}: shorten duration_s, or leave "
                    "the clip out"
                )
        if found["text"] > config.max_text_tokens:
            return (
                f"clip {clip_id!r} has a caption of {found['text']} features, the network takes at most "
                f"{config.max_text_tokens}: shorten it, or configure max_text_tokens"
            )
        return None


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
        return Clip(
            entry.clip_id, av.array("visual", entry.av.row), mean, std,
            text.array("text", entry.text.row), text.n_tokens(entry.text.row),
            av.array("sync", entry.av.row) if "sync" in av.channels else None,
        )  # fmt: skip

    def require_fit(self, config: NetworkConfig, duration_s: float) -> None:
        """Every clip fits a network and is long enough; looks at shapes only, so it takes seconds for 200,000 clips.

        Raises:
            ValueError: no clips, wrong channels or rates, clips too short, captions too long; naming the first ones.
        """
        if not self.entries:
            raise ValueError("no clips, wanted at least one")
        wanted = Shape.of(config, duration_s)
        faults = [fault for entry in self.entries if (fault := self._fault(entry, wanted))]
        if faults:
            count = f"{len(faults)} of {len(self)} clips do not fit: " if len(faults) > 1 else ""
            raise ValueError(count + "; ".join(faults[:3]))
        tokens = 0 if self.null_text is None else len(self.null_text)
        if tokens > config.max_text_tokens:
            raise ValueError(f"the empty caption has {tokens} features, wanted at most {config.max_text_tokens}")

    def _fault(self, entry: Entry, wanted: Shape) -> str | None:
        av, text = self._file(entry.av, entry.clip_id), self._file(entry.text, entry.clip_id)
        found = {"visual": av.channels["visual"], "audio_mean": av.channels["audio_mean"],
                 "text": text.channels["text"], "sync": av.channels.get("sync", 0)}  # fmt: skip
        for name, channels in wanted.channels.items():
            if found[name] != channels:
                return (
                    f"clip {entry.clip_id!r} has {name} features of {found[name]} channels, the network takes "
                    f"{channels}: extract features with its encoders and codec, or configure it for these"
                )
        rows = {"visual": (av, entry.av.row), "audio_mean": (av, entry.av.row), "text": (text, entry.text.row),
                "sync": (av, entry.av.row)}  # fmt: skip
        lengths = {name: len(rows[name][0].array(name, rows[name][1])) for name in wanted.channels}
        return wanted.fault(entry.clip_id, lengths)

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


def collate(clips: Sequence[Clip], *, L_aud: int, L_vis: int, L_txt: int | None, L_sync: int = 0) -> Batch:
    """Clips cut to the same lengths, captions padded with zeros to L_txt or, if None, to the longest.

    Raises:
        ValueError: a clip is shorter than wanted, or lacks synchronisation features that L_sync > 0 wants; the
            message names it.
    """
    for clip in clips:
        if len(clip.visual) < L_vis or len(clip.audio_mean) < L_aud:
            raise ValueError(
                f"clip {clip.clip_id!r} has {len(clip.visual)} video and {len(clip.audio_mean)} audio latent "
                f"frames, wanted {L_vis} and {L_aud}: shorten duration_s, or leave the clip out"
            )
        if L_sync and (clip.sync is None or len(clip.sync) < L_sync):
            found = "no" if clip.sync is None else str(len(clip.sync))
            raise ValueError(
                f"clip {clip.clip_id!r} has {found} synchronisation features, wanted {L_sync}: extract features "
                "with features.sync, or train a preset that takes none"
            )
    n_tokens = torch.tensor([clip.n_tokens for clip in clips])
    width = max(max(len(clip.text) for clip in clips), L_txt or 0)
    text = np.zeros((len(clips), width, clips[0].text.shape[1]), np.float16)
    for row, clip in zip(text, clips, strict=True):
        row[: len(clip.text)] = clip.text
    conditions = Conditions(
        torch.from_numpy(np.stack([clip.visual[:L_vis] for clip in clips])),
        torch.from_numpy(text),
        torch.arange(width) < n_tokens[:, None],
        torch.from_numpy(np.stack([clip.sync[:L_sync] for clip in clips if clip.sync is not None])) if L_sync else None,
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
