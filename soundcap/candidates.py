"""Candidates: several captions of one clip, of which one is chosen."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

ChoiceRule = Literal["consensus", "first", "longest"]


def choose(captions: Sequence[str], rule: ChoiceRule) -> int:
    """Place of the caption that a rule chooses among candidates of one clip; of equals the first.

    A caption without a word is chosen only if none has one.

    - `consensus`: the caption most like the others, by its mean `word_overlap` with them: minimum Bayes risk
      (Kumar and Byrne, Minimum Bayes-Risk Decoding for Statistical Machine Translation, 2004), with 1 - overlap as
      the loss and the candidates as the sample. Of two captions that says nothing, and the first is chosen.
    - `first`: the first caption.
    - `longest`: the caption of most words.

    Raises ValueError for no captions.
    """
    if not captions:
        raise ValueError("captions: got none, wanted at least one")
    bags = [_words(caption) for caption in captions]
    places = [place for place, bag in enumerate(bags) if bag] or list(range(len(bags)))
    if rule == "longest":
        return max(places, key=lambda place: bags[place].total())
    if rule == "first" or len(places) <= 2:  # two are as like each other
        return places[0]
    likeness = dict.fromkeys(places, 0.0)
    for number, a in enumerate(places):
        for b in places[number + 1 :]:
            overlap = _overlap(bags[a], bags[b])
            likeness[a] += overlap
            likeness[b] += overlap
    return max(places, key=lambda place: round(likeness[place], 9))


def word_overlap(a: str, b: str) -> float:
    """Overlap of the words of two texts, in [0, 1]: F1 of their common words, each as often as both have it.

    Case, order and punctuation are nothing. Two texts without a word have 0.
    """
    return _overlap(_words(a), _words(b))


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.casefold()))


def _overlap(a: Counter[str], b: Counter[str]) -> float:
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else 0.0
