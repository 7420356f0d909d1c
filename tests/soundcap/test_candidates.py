"""Choice among several captions of one clip."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundcap.candidates import choose, word_overlap

DOG, DOGS, RAIN = "A dog barks twice.", "a dog barks loudly twice", "Rain falls on a roof"


def test_overlap_is_the_f1_of_the_words() -> None:
    assert word_overlap("a dog barks", "A dog, howls!") == pytest.approx(2 * 2 / 6)  # precision and recall 2 / 3
    assert word_overlap("bark bark bark", "bark") == pytest.approx(2 * (1 / 3) * 1 / (1 / 3 + 1))
    assert word_overlap(DOG, DOG.upper()) == 1 and word_overlap(DOG, "") == word_overlap("", "...") == 0


def test_consensus_leaves_the_odd_one_out() -> None:
    # sums of overlaps: DOG 8/9 + 2/9, DOGS 8/9 + 2/10, RAIN 2/9 + 2/10
    assert choose([RAIN, DOGS, DOG], "consensus") == 2
    assert choose([DOGS, RAIN, DOGS, DOG], "consensus") == 0, "of equal ones the first"
    assert choose([RAIN, DOG], "consensus") == 0, "two are as like each other"


def test_other_rules() -> None:
    assert choose([RAIN, DOGS, DOG], "first") == 0
    assert choose([DOG, DOGS, RAIN], "longest") == 1


@pytest.mark.parametrize("rule", ["consensus", "first", "longest"])
def test_a_caption_without_a_word_is_chosen_only_if_none_has_one(rule: str) -> None:
    assert choose(["", "...", DOG], rule) == 2  # type: ignore[arg-type]
    assert choose(["", "..."], rule) == 0  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got none"):
        choose([], rule)  # type: ignore[arg-type]


@given(st.lists(st.sampled_from([DOG, DOGS, RAIN, "dog", ""]), min_size=1, max_size=6))
def test_consensus_has_the_least_mean_loss(captions: list[str]) -> None:
    chosen = choose(captions, "consensus")
    worded = [place for place, caption in enumerate(captions) if caption]

    def loss(place: int) -> float:
        return sum(1 - word_overlap(captions[place], captions[other]) for other in worded if other != place)

    if worded:
        assert loss(chosen) == pytest.approx(min(map(loss, worded)))
    assert captions.index(captions[chosen]) == chosen
