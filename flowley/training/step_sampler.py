"""Clips of every training step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from flowley.training.settings import clips_per_rank


class StepSampler(Sampler[list[int]]):
    """Batch sampler whose clips at any step are a function of (seed, step) alone, so that any step can be resumed.

    Epoch e is a permutation of the clips seeded by (seed, e). Epochs follow one another without a gap, steps cut
    them into batches, and each of `world_size` ranks takes its share of every batch.
    """

    def __init__(
        self, n_clips: int, *, batch_size: int, seed: int, start_step: int, end_step: int,
        rank: int = 0, world_size: int = 1,
    ) -> None:  # fmt: skip
        if n_clips < 1:
            raise ValueError("no clips to train on, wanted at least one")
        self._share = clips_per_rank(batch_size, world_size)
        self.n_clips, self.batch_size, self.seed = n_clips, batch_size, seed
        self.start_step, self.end_step, self.rank, self.world_size = start_step, end_step, rank, world_size
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return self.end_step - self.start_step

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, self.end_step):
            first = step * self.batch_size + self.rank * self._share
            yield [self._clip(position) for position in range(first, first + self._share)]

    def _clip(self, position: int) -> int:
        epoch, place = divmod(position, self.n_clips)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.n_clips)
        return int(self._order[place])
