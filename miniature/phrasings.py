"""Prompts that the teacher is trained on: an instruction, and warnings in many phrasings.

A prompt is an instruction and sentences in any order. A sentence forbids to mention some noise, asks for it, or has
nothing to do with it. Sentence frames and names of noise are combined, so that the teacher must read the whole
sentence. `HELD_OUT_FRAMES` are never trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from soundcap.prompts import PromptSet, load_prompts

PROMPTS = Path(__file__).parents[1] / "prompts"

NAMES = {
    "music": ("music", "background music", "the music", "a soundtrack", "any melody", "added music", "songs"),
    "narration": ("narration", "the narrator", "speech", "a voice", "spoken words", "anyone talking", "commentary"),
    "both": ("noise that was added", "music and speech", "music or a narrator", "anything added to the video"),
}
FORBIDDING = (
    "Do not mention {x}.", "Ignore {x}.", "Leave out {x}.", "Leave {x} out of it.", "Say nothing about {x}.",
    "Skip {x}.", "Warning: there may be {x}; it is not part of the scene.", "Never write about {x}.", "Omit {x}.",
    "Describe everything but {x}.", "Exclude {x} from your answer.", "Be silent about {x}.",
    "If you hear {x}, do not write it down.", "Please pass over {x}.", "Nobody wants to read about {x}.",
    "Write as if {x} were not there.", "Answer without {x}.", "{X} must not appear in the answer.",
    "{X} does not belong to the scene, so drop it.", "Do not say that there is {x}.", "Take no notice of {x}.",
)  # fmt: skip
ASKING = (
    "Mention {x} as well.", "Do not forget {x}.", "{X} is part of the scene.", "Include {x}.", "Also write about {x}.",
    "Say whether there is {x}.", "If you hear {x}, write it down.", "Do not leave out {x}.", "{X} may appear.",
    "Please report {x} too.", "Name {x} if it is there.", "Do not ignore {x}.",
)  # fmt: skip
UNRELATED = (
    "Write only what can be heard.", "Warning: many things in the picture make no sound.",
    "Do not list silent objects.", "Ignore hiss and hum of the recording.", "Do not mention colours.",
    "Warning: the picture may be a photograph.", "Say nothing about the quality of the recording.",
    "Name sounds in the order in which they occur.", "Leave out wind in the microphone.", "Answer in plain words.",
    "Include sounds from outside the picture.", "No lists and no introduction.", "Please be brief.",
)  # fmt: skip
HELD_OUT_FRAMES = (
    "Please leave {x} out.", "Keep {x} out of the caption.", "{X} is not wanted here.", "Avoid any mention of {x}.",
)  # fmt: skip
"""Ways to forbid that are only tested."""

WARNED = {"music": "music", "speech": "narration"}
"""Kind of noise that a warning of `prompts/` forbids."""

INSTRUCTIONS = (
    "Describe the sounds of this video.", "Write a caption of what you hear.", "What can be heard in this clip?",
    "Name each sound and what makes it.", "Listen to the video and describe its sound in one sentence.",
    "You see a short video and hear its sound. Describe what is heard.", "Describe what is heard, in order.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prompt:
    """Prompt, and the kinds of noise that it forbids to mention."""

    text: str
    unmentioned: frozenset[str]


def filled(frame: str, name: str) -> str:
    """Sentence of a frame about a noise of that name."""
    return frame.format(x=name, X=name[0].upper() + name[1:])


def short_prompt(rng: np.random.Generator) -> Prompt:
    """Random instruction with some warnings, some of their opposites and some sentences that change nothing."""
    sentences, unmentioned = [], set()
    if rng.random() < 0.15:
        sentences.append(_sentence(rng, "both", FORBIDDING))
        unmentioned |= {"music", "narration"}
    else:
        for noise in ("music", "narration"):
            stance = rng.random()
            if stance < 0.45:
                sentences.append(_sentence(rng, noise, FORBIDDING))
                unmentioned.add(noise)
            elif stance < 0.65:
                sentences.append(_sentence(rng, noise, ASKING))
    sentences += [str(one) for one in rng.choice(UNRELATED, rng.integers(0, 3), replace=False)]
    ordered = [str(rng.choice(INSTRUCTIONS)), *(sentences[k] for k in rng.permutation(len(sentences)))]
    return Prompt(" ".join(ordered), frozenset(unmentioned))


def _sentence(rng: np.random.Generator, noise: str, frames: Sequence[str]) -> str:
    return filled(str(rng.choice(frames)), str(rng.choice(NAMES[noise])))


def warned_prompt(rng: np.random.Generator, frames: Sequence[str], noises: Sequence[str]) -> str:
    """Random instruction with a sentence about each of the noises, in one of the frames."""
    sentences = [_sentence(rng, noise, frames) for noise in noises]
    return " ".join([str(rng.choice(INSTRUCTIONS)), *sentences])


def silent_prompt() -> str:
    """Prompt of `prompts/` for silent video."""
    return load_prompts(PROMPTS / "silent_caption.yaml", None).render("")


@cache
def project_prompts() -> tuple[PromptSet, PromptSet]:
    """Prompt of `prompts/` with its warnings, and without."""
    instruction = PROMPTS / "av_caption.yaml"
    return load_prompts(instruction, PROMPTS / "warnings.yaml"), load_prompts(instruction, None)


def project_prompt(rng: np.random.Generator, label: str) -> Prompt:
    """Instruction of `prompts/` with all of its warnings, some of them or none."""
    full, bare = project_prompts()
    choice = rng.random()
    if choice < 0.4:
        return Prompt(bare.render(label), frozenset())
    kept = [warning for warning in full.warnings if choice < 0.7 or rng.random() < 0.5]
    unmentioned = {WARNED[one.name] for one in kept if one.name in WARNED and one.reaches(label)}
    return Prompt(PromptSet(full.instruction, tuple(kept)).render(label), frozenset(unmentioned))
