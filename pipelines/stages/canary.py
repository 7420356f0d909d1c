"""Canary: a sample of the source, alike in its labels, on which prompts are judged before all clips are paid for.

A canary is an ordinary run with `source.sample` set. Its rows lie in the same ledgers, so that the whole run has them.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence


def stratified(labels: Sequence[str], names: Sequence[str], size: int) -> list[int]:
    """Places of a sample in which each label has its share, to one video; sorted.

    A video's place in its label, in the order of its name's digest, becomes a share of the label, shifted by a digest
    of the label; the `size` smallest shares are taken. A larger sample so contains a smaller one, and of labels too
    rare for a video of their own some have one.
    """
    assert 1 <= size <= len(names), f"{size} of {len(names)}"
    of_label: dict[str, list[int]] = defaultdict(list)
    for place in sorted(range(len(names)), key=lambda place: _share(names[place])):
        of_label[labels[place]].append(place)
    shares = {
        place: (rank + _share(label)) / len(places)
        for label, places in of_label.items()
        for rank, place in enumerate(places)
    }
    return sorted(sorted(shares, key=lambda place: (shares[place], names[place]))[:size])


def _share(text: str) -> float:
    """Number in [0, 1) that a text alone determines, like a random one."""
    return int(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:13], 16) / 16**13
