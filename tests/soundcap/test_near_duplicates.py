"""Near-duplicates: counts against all pairs compared one by one, in any order, and where counting ends."""

import itertools
import random

import pytest

from soundcap.near_duplicates import near_copies

WORDS = "dog cat rain bell drum wind barks rings falls hums slowly loudly twice near far".split()
TWENTY = "one two three four five six seven eight nine ten eleven twelve a b c d e f g h".split()


def _similarity(a: str, b: str) -> float:
    """Jaccard index of word bigrams, with both ends."""
    sets = [set(itertools.pairwise(["<", *text.lower().replace(",", "").split(), ">"])) for text in (a, b)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@pytest.mark.parametrize("similarity", [0.6, 0.8, 1.0])
def test_counts_are_those_of_all_pairs(similarity: float) -> None:
    chance = random.Random(1)
    captions = [" ".join(chance.choices(WORDS, k=12)) for _ in range(60)]
    for caption in captions[:30]:  # each with near ones: a word changed, added or left out
        words = caption.split()
        words[chance.randrange(12)] = chance.choice(WORDS)
        captions += [" ".join(words), f"{caption} again", " ".join(caption.split()[1:])]
    captions += captions[:5]
    wanted = [sum(_similarity(a, b) >= similarity for b in captions) for a in captions]
    assert near_copies(captions, similarity, len(captions)) == wanted
    assert max(wanted) > 1 and min(wanted) == 1

    shuffled = list(enumerate(captions))
    chance.shuffle(shuffled)
    counts = near_copies([caption for _, caption in shuffled], similarity, len(captions))
    assert {place: count for (place, _), count in zip(shuffled, counts, strict=True)} == dict(enumerate(wanted))


def test_one_word_of_twenty_is_near_and_two_are_not() -> None:
    base, one, two = list(TWENTY), list(TWENTY), list(TWENTY)
    one[9] = "x"
    two[9], two[3] = "x", "y"
    captions = [" ".join(words) for words in (base, one, two)]
    assert _similarity(captions[0], captions[1]) == pytest.approx(19 / 23) and _similarity(*captions[::2]) < 0.8
    assert near_copies(captions, 0.8, 9) == [2, 3, 2]  # the second differs by one word from both


def test_case_and_punctuation_are_no_difference() -> None:
    assert near_copies(["A dog barks.", "a dog, barks", "A cat purrs."], 1.0, 9) == [2, 2, 1]


def test_counting_ends_beyond_the_limit_and_empty_captions_are_alike() -> None:
    captions = [f"{' '.join(TWENTY)} {number}" for number in range(50)]
    assert all(3 < count <= 50 for count in near_copies(captions, 0.8, 3))
    assert near_copies(captions, 0.8, 49) == [50] * 50
    assert near_copies([], 0.8, 3) == [] and near_copies(["", "?", "a"], 0.8, 3) == [2, 2, 1]
