"""Answers of a judge, by hand, and its prompt."""

from pathlib import Path

import pytest

from soundcap.judging import judge_prompt, judged_true
from soundcap.prompts import Instruction, PromptSet, load_prompts

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Yes", True),
        ("yes.", True),
        (" YES!\n", True),
        ("**Yes**", True),
        ("__Yes__, it is", True),
        ('"Yes"', True),
        ("Yes, the dog barks, and no music plays.", True),
        ("Yes the text says only what is heard", True),
        ("Yes, nothing is made up", True),
        ("yes yes", True),
        ("No", False),
        ("no.", False),
        ("**No**, a bell rings", False),
        ("No, but the dog is there", False),
        ("No: there is no dog", False),
        ("No\nThe dog is not there", False),
        ("No, nobody speaks", False),
        ("No (the dog is silent)", False),
        ("No, no howl.", False),
        ("", None),
        ("   ", None),
        ("...", None),
        ("The text is true", None),
        ("Answer: yes", None),
        ("I hear no dog", None),
        ("Not sure", None),
        ("None", None),
        ("Nothing", None),
        ("Yesterday", None),
        ("yes2", None),
        ("y", None),
        ("Yes and no", None),
        ("Yes, no", None),
        ("yes/no", None),
        ("Yes or no", None),
        ("No, yes", None),
        ("No and yes", None),
        ("**Yes** but **no**", None),
        ("No music is heard", None),
        ("No-one speaks", None),
        ("No *music* plays", None),
        ("Да", None),
    ],
)
def test_an_answer_is_its_first_word_where_that_is_clear(answer: str, verdict: bool | None) -> None:
    assert judged_true(answer) is verdict


def test_the_caption_stands_in_quotation_marks_behind_the_instruction() -> None:
    prompts = PromptSet(Instruction("Is it heard?\nSay yes or no.", "i.yaml"))
    assert judge_prompt(prompts, " A dog\nbarks {twice}. ") == 'Is it heard?\nSay yes or no.\n"A dog barks {twice}."'


def test_the_projects_own_instruction_asks_for_the_words_that_are_read() -> None:
    prompts = load_prompts(ROOT / "prompts" / "judge.yaml", None)
    *_, asked, caption = judge_prompt(prompts, "A dog barks.").split("\n")
    assert (asked, caption) == ("Answer with one word, yes or no.", '"A dog barks."')
