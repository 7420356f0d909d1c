"""Near-duplicates among captions: how many others have almost the same words in almost the same order.

Similarity is the Jaccard index of word bigrams, with both ends of the caption: of two captions of 20 different words,
of which one differs, it is 19 / 23. Candidates are found by MinHash (Broder, 1997) in bands, and then compared: of the
pairs just similar enough, one in 1,000 is missed; none is found that is not similar.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

MISSED, BANDS = 1e-3, 40
"""Largest share of the pairs that are missed, and number of bands at most."""
BLOCK = 4096
"""Candidates that are compared at once, about."""
Bigram = tuple[str, str]


def near_copies(captions: Sequence[str], similarity: float, most: int) -> list[int]:
    """Number of captions that each is nearly the same as, itself included; counting ends beyond `most`.

    Args:
        captions: their order changes nothing. Case and punctuation are no difference.
        similarity: least Jaccard index, in [0.2, 1], of nearly the same captions.
        most: number up to which the counts are exact; a larger one is anything above it.
    """
    texts = [" ".join(re.findall(r"\w+", caption.casefold())) for caption in captions]
    copies = Counter(texts)
    distinct = sorted(copies)
    if not distinct:
        return []
    sets = _Sets.of([_bigrams(text) for text in distinct])
    bands = [_Band(values) for values in sets.signatures(*_shape(similarity))]
    is_shared = np.stack([band.sizes() > 1 for band in bands])
    numbers = np.array([copies[text] for text in distinct])
    found, seen = numbers.copy(), np.zeros(len(distinct), bool)
    for place in np.flatnonzero(is_shared.any(axis=0)):
        compared = [np.array([place])]
        seen[place] = True
        for others in _blocks(bands[band].neighbours(place) for band in np.flatnonzero(is_shared[:, place])):
            new = np.unique(others[~seen[others]])
            if not len(new):
                continue
            seen[new] = True
            compared.append(new)
            found[place] += numbers[new[sets.jaccard(place, new) >= similarity]].sum()
            if found[place] > most:
                break
        seen[np.concatenate(compared)] = False
    counts = dict(zip(distinct, found.tolist(), strict=True))
    return [counts[text] for text in texts]


def _blocks(parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same numbers in blocks of fewer than 2 BLOCK."""
    held: list[np.ndarray] = []
    for part in parts:
        for start in range(0, len(part), BLOCK):
            held.append(part[start : start + BLOCK])
            if sum(map(len, held)) >= BLOCK:
                yield np.concatenate(held)
                held = []
    if held:
        yield np.concatenate(held)


@dataclass(frozen=True)
class _Sets:
    """Sets of bigrams, none of them empty.

    Attributes:
        members: numbers of the bigrams, set after set.
        starts: where each set begins in them, and the end.
        hashes: 64 bits of each bigram, the same on every machine.
        mask: a false for each bigram, to work with.
    """

    members: np.ndarray
    starts: np.ndarray
    hashes: np.ndarray
    mask: np.ndarray

    @classmethod
    def of(cls, sets: Sequence[set[Bigram]]) -> "_Sets":
        numbers: dict[Bigram, int] = {}
        members = np.array([numbers.setdefault(one, len(numbers)) for members in sets for one in members], np.int32)
        hashes = b"".join(hashlib.blake2b(" ".join(one).encode(), digest_size=8).digest() for one in numbers)
        starts = np.cumsum([0, *map(len, sets)])
        return cls(members, starts, np.frombuffer(hashes, "<u8"), np.zeros(len(numbers), bool))

    def jaccard(self, place: int, others: np.ndarray) -> np.ndarray:
        """Jaccard indices of the set at a place with those at others, of which there are some."""
        own = self.members[self.starts[place] : self.starts[place + 1]]
        sizes = self.starts[others + 1] - self.starts[others]
        begins = np.cumsum(sizes) - sizes
        compared = self.members[np.repeat(self.starts[others] - begins, sizes) + np.arange(sizes.sum())]
        self.mask[own] = True
        common = np.add.reduceat(self.mask[compared], begins, dtype=np.int64)
        self.mask[own] = False
        found: np.ndarray = common / (len(own) + sizes - common)
        return found

    def signatures(self, bands: int, rows: int) -> Iterator[np.ndarray]:
        """MinHash values (sets, rows) for each band; the same on every machine."""
        flat, starts = self.hashes[self.members], self.starts[:-1]
        for factors in np.random.default_rng(0).integers(0, 2**63, (bands, rows, 2), dtype=np.uint64):
            columns = [np.minimum.reduceat((flat * (2 * a + 1) + b) >> np.uint64(32), starts) for a, b in factors]
            yield np.stack(columns, axis=1).astype(np.uint32)


class _Band:
    """Sets by their values (sets, rows) in one band: those of equal values are candidates."""

    def __init__(self, values: np.ndarray) -> None:
        _, buckets = np.unique(values.view(f"V{values.itemsize * values.shape[1]}").ravel(), return_inverse=True)
        self._buckets = buckets.astype(np.int32)
        self._order = np.argsort(self._buckets, kind="stable").astype(np.int32)
        self._starts = np.searchsorted(self._buckets[self._order], np.arange(self._buckets.max() + 2))

    def sizes(self) -> np.ndarray:
        """Number of sets with the values of each, itself included."""
        return np.diff(self._starts)[self._buckets]

    def neighbours(self, place: int) -> np.ndarray:
        """Places of the sets with the values of one, itself among them."""
        bucket = self._buckets[place]
        return self._order[self._starts[bucket] : self._starts[bucket + 1]]


def _shape(similarity: float) -> tuple[int, int]:
    """Bands and their rows, as many as MISSED and BANDS allow: more rows leave fewer candidates to compare."""
    shapes = [(1, 8)] if similarity >= 1 else []
    for rows in range(1, 9):
        if similarity**rows < 1:
            shapes.append((math.ceil(math.log(MISSED) / math.log1p(-(similarity**rows))), rows))
    return max((shape for shape in shapes if shape[0] <= BANDS), key=lambda one: one[1])


def _bigrams(text: str) -> set[Bigram]:
    """Pairs of neighbouring words, and of both ends with nothing, so that every text has one."""
    words = ["", *text.split(), ""]
    return set(pairwise(words))
