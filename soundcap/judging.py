"""A judge's prompt for a caption, and the meaning of its answer."""

import re

from soundcap.prompts import PromptSet

_SIGNS, _WORD_END = r"[\W_]*", r"(?![^\W_])"
_BEGINNING = re.compile(rf"{_SIGNS}(yes|no){_WORD_END}", re.IGNORECASE)
_OTHER = re.compile(rf"{_SIGNS}(?:(?:and|or|but){_WORD_END}{_SIGNS})?(yes|no){_WORD_END}", re.IGNORECASE)
_SAME_LINE_WORD = re.compile(r"[-'’\"”*_ \t]*[^\W_]")


def judge_prompt(instruction: PromptSet, caption: str) -> str:
    """Prompt that asks a judge about a caption: the instruction, then the caption in quotation marks, in one line."""
    return f'{instruction.render("")}\n"{" ".join(caption.split())}"'


def judged_true(answer: str) -> bool | None:
    """Verdict of a judge's answer, by the word it begins with, in any case and behind any punctuation.

    True for yes, False for no, None for an unclear answer:

    - it begins with neither (nothing else is searched: "I hear no dog" is no verdict);
    - the other word follows at once, alone or after and, or, but: "yes and no", "Yes/No";
    - the "no" belongs to a word of its line, as in "no music is heard" and "no-one".
    """
    first = _BEGINNING.match(answer)
    if first is None:
        return None
    is_yes, rest = first[1].lower() == "yes", answer[first.end() :]
    following = _OTHER.match(rest)
    if following is not None and (following[1].lower() == "yes") != is_yes:
        return None
    if not is_yes and _SAME_LINE_WORD.match(rest):
        return None
    return is_yes
