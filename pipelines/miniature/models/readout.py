"""Linear heads that read each object's state off a frame's embedding: a help in training, thrown away after it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipelines.miniature.models.moments import Moment

ABSENT = -1
SCALE = 8.0
"""Embeddings have norm 1, so that their channels are small: this brings them to about 1."""


class Readout(nn.Module):
    """One head for each thing that an object can be seen doing, such as how high the ball is."""

    def __init__(self, moments: Sequence[Moment], dim: int) -> None:
        super().__init__()
        seen: dict[tuple[str, int], set[str]] = {}
        for now in moments:
            for part in now.parts:
                for k, state in enumerate(part.states):
                    seen.setdefault((part.name, k), set()).add(state)
        self.columns = {of: column for column, of in enumerate(sorted(seen))}
        self.states = {of: {state: k for k, state in enumerate(sorted(seen[of]))} for of in self.columns}
        self.heads = nn.ModuleList([nn.Linear(dim, len(states)) for states in self.states.values()])

    def targets(self, moments: Sequence[Moment]) -> Tensor:
        """(moments, heads): which state each is in, ABSENT where the object is not in the picture."""
        found = torch.full((len(moments), len(self.heads)), ABSENT)
        for row, now in enumerate(moments):
            for part in now.parts:
                for k, state in enumerate(part.states):
                    of = part.name, k
                    found[row, self.columns[of]] = self.states[of][state]
        return found

    def forward(self, embeds: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy per frame of embeds (N, dim), summed over the heads whose object is seen."""
        losses = [
            cross_entropy(head(SCALE * embeds), target, ignore_index=ABSENT, reduction="sum")
            for head, target in zip(self.heads, targets.T, strict=True)
        ]
        return torch.stack(losses).sum() / len(embeds)
