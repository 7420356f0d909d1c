"""Near-duplicates among captions: how many others have almost the same words in almost the same order.

Similarity is the Jaccard index of word bigrams, with both ends of the caption: of two captions of 20 different words,
of which one differs, it is 19 / 23. Candidates are found by MinHash (Broder, 1997) in bands, and then compared: of the
pairs just similar enough, one in 1,000 is missed; none is found that is not similar.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise

import numpy as np

MISSED, BANDS = 1e-3, 40
"""Largest share of the pairs that are missed, and number of bands at most."""
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
    sets = [_bigrams(text) for text in distinct]
    bands = [_Band(values) for values in _signatures(sets, *_shape(similarity))] if sets else []
    counts = {}
    for place, text in enumerate(distinct):
        found, seen = copies[text], {place}
        for other in chain.from_iterable(band.neighbours(place) for band in bands):
            if found > most:
                break
            if other not in seen:
                seen.add(other)
                found += copies[distinct[other]] * (_jaccard(sets[place], sets[other]) >= similarity)
        counts[text] = found
    return [counts[text] for text in texts]


class _Band:
    """Texts by their values (texts, rows) in one band: those of equal values are candidates."""

    def __init__(self, values: np.ndarray) -> None:
        _, buckets = np.unique(values.view(f"V{values.itemsize * values.shape[1]}").ravel(), return_inverse=True)
        self._buckets = buckets.astype(np.int32)
        self._order = np.argsort(self._buckets, kind="stable").astype(np.int32)
        self._starts = np.searchsorted(self._buckets[self._order], np.arange(self._buckets.max() + 2))

    def neighbours(self, place: int) -> list[int]:
        bucket = self._buckets[place]
        found: list[int] = self._order[self._starts[bucket] : self._starts[bucket + 1]].tolist()
        return found


def _shape(similarity: float) -> tuple[int, int]:
    """Bands and their rows, as many as MISSED and BANDS allow: more rows leave fewer candidates to compare."""
    shapes = [(1, 8)] if similarity >= 1 else []
    for rows in range(1, 9):
        if similarity**rows < 1:
            shapes.append((math.ceil(math.log(MISSED) / math.log1p(-(similarity**rows))), rows))
    return max((shape for shape in shapes if shape[0] <= BANDS), key=lambda one: one[1])


def _signatures(sets: Sequence[set[Bigram]], bands: int, rows: int) -> Iterator[np.ndarray]:
    """MinHash values (texts, rows) of sets that are not empty, for each band; the same on every machine."""
    hashes = {
        member: int.from_bytes(hashlib.blake2b(" ".join(member).encode(), digest_size=8).digest(), "little")
        for member in set().union(*sets)
    }
    flat = np.array([hashes[member] for members in sets for member in members], np.uint64)
    starts = np.cumsum([0, *(len(members) for members in sets[:-1])])
    for factors in np.random.default_rng(0).integers(0, 2**63, (bands, rows, 2), dtype=np.uint64):
        columns = [np.minimum.reduceat((flat * (2 * a + 1) + b) >> np.uint64(32), starts) for a, b in factors]
        yield np.stack(columns, axis=1).astype(np.uint32)


def _bigrams(text: str) -> set[Bigram]:
    """Pairs of neighbouring words, and of both ends with nothing, so that every text has one."""
    words = ["", *text.split(), ""]
    return set(pairwise(words))


def _jaccard(a: set[Bigram], b: set[Bigram]) -> float:
    common = len(a & b)
    return common / (len(a) + len(b) - common)
