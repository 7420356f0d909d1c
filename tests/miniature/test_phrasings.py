"""Prompts for the teacher: what they forbid is what their words forbid, and held-out phrasings stay held out."""

import re

import numpy as np
import pytest

from miniature.phrasings import (
    ASKING,
    FORBIDDING,
    HELD_OUT_FRAMES,
    NAMES,
    WARNED,
    filled,
    project_prompt,
    project_prompts,
    short_prompt,
)

RNG_DRAWS = 400


def pattern_of(frame: str) -> re.Pattern[str]:
    return re.compile(re.escape(frame).replace(r"\{x\}", ".+").replace(r"\{X\}", ".+"))


def sentences_of(frames, noise):
    return {filled(frame, name) for frame in frames for name in NAMES[noise]}


def test_a_prompt_forbids_what_its_sentences_forbid():
    rng = np.random.default_rng(0)
    forbidden = {noise: sentences_of(FORBIDDING, noise) for noise in NAMES}
    seen = set()
    for _ in range(RNG_DRAWS):
        prompt = short_prompt(rng)
        wanted = {noise for noise in ("music", "narration") if any(s in prompt.text for s in forbidden[noise])}
        if any(sentence in prompt.text for sentence in forbidden["both"]):
            wanted = {"music", "narration"}
        assert prompt.unmentioned == wanted, prompt.text
        seen.add(prompt.unmentioned)
    assert len(seen) == 4, "every combination of noises is forbidden now and then"


def test_held_out_phrasings_are_not_trained_on():
    rng = np.random.default_rng(1)
    held_out = [pattern_of(frame) for frame in HELD_OUT_FRAMES]
    for _ in range(RNG_DRAWS):
        prompt = short_prompt(rng)
        assert not any(pattern.search(prompt.text) for pattern in held_out), prompt.text
    assert not set(HELD_OUT_FRAMES) & {*FORBIDDING, *ASKING}


def test_the_first_words_do_not_tell_the_stance():
    first = [{frame.split()[0] for frame in frames} for frames in (FORBIDDING, ASKING)]
    assert len(first[0] & first[1]) >= 4, "openings that forbid in one sentence and ask in another"


@pytest.mark.parametrize("label", ["bell ringing", "drum beating"])
def test_the_projects_prompts_forbid_by_their_warnings(label):
    rng = np.random.default_rng(2)
    full, bare = project_prompts()
    texts = {WARNED[w.name]: w.text for w in full.warnings if w.name in WARNED}
    for _ in range(60):
        prompt = project_prompt(rng, label)
        assert prompt.text.startswith(bare.render(label))
        assert prompt.unmentioned == {n for n in ("music", "narration") if texts[n] in prompt.text}
    assert full.render(label).count("Warning:") > 3, "no label of the world is exempt from the warnings"
