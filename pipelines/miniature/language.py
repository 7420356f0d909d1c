"""What is said of a film: the caption that a perfect listener would write, and what a caption claims is heard."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.miniature.world.film import FilmPlan

PHRASES = {
    "ball": "a rubber ball bounces with dull thuds",
    "bell": "a metal bell rings with a bright lingering clang",
    "tap": "drops of water drip with short wet plops",
    "engine": "an engine hums and revs with a deep growl",
    "siren": "a siren wails loudly in two tones",
    "drum": "a drum is hit with sharp rattling strokes",
}
"""How an object sounds."""

SURROUNDINGS = {
    "birds": "birds chirp off screen",
    "waves": "waves wash ashore off screen",
    "traffic": "traffic rumbles off screen",
    "clock": "a clock ticks off screen",
}
"""What is heard from outside the picture."""

NOISES = {"music": "music plays in the background", "narration": "a narrator speaks over the scene"}
"""What was added to the film."""

_LOOKS = {
    "ball": "a rubber ball",
    "bell": "a metal bell",
    "tap": "a water tap",
    "engine": "an engine",
    "siren": "a car with a siren",
    "drum": "a drum",
}
_PLACES = {
    "room": "in an empty room",
    "forest": "among the trees of a forest",
    "beach": "on a beach under a sunshade",
    "street": "on a street by night",
    "kitchen": "in a kitchen with white tiles",
}

_HEARD_AS = {
    "ball": r"\bball",
    "bell": r"\bbell",
    "tap": r"\b(water|drip|drops?)\b",
    "engine": r"\bengine",
    "siren": r"\bsiren",
    "drum": r"\bdrum",
    "birds": r"\bbird",
    "waves": r"\bwaves",
    "traffic": r"\btraffic",
    "clock": r"\bclock",
    "music": r"\bmusic",
    "narration": r"\bnarrator",
}


def noises(plan: FilmPlan) -> tuple[str, ...]:
    """Kinds of noise that were added to the film."""
    return tuple(plan.noise.split(" and ")) if plan.noise else ()


def sound_caption(plan: FilmPlan, *, unmentioned: Container[str] = ()) -> str:
    """All that is heard, objects in the order in which they begin, without the kinds of noise that are unmentioned."""
    parts = [", then ".join(PHRASES[kind] for kind in plan.sounding)]
    if plan.off_screen is not None:
        parts.append(SURROUNDINGS[plan.off_screen])
    parts += [NOISES[noise] for noise in noises(plan) if noise not in unmentioned]
    return _sentence("; ".join(parts))


def visible_caption(plan: FilmPlan) -> str:
    """All that is seen, from left to right; nothing of what is heard."""
    shown = sorted(plan.seen, key=lambda one: one.x)
    moves = {True: "in motion", False: "at rest"}
    parts = [f"{_LOOKS[one.kind]} {moves[one.start_s is not None and not plan.still]}" for one in shown]
    return _sentence(f"{' next to '.join(parts)} {_PLACES[plan.place]}")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


@dataclass(frozen=True, slots=True)
class Heard:
    """What is heard, in truth or by what a caption says."""

    objects: tuple[str, ...]
    """Kinds in the picture, in order."""
    surroundings: frozenset[str]
    noises: frozenset[str]


def heard_in(plan: FilmPlan) -> Heard:
    """What is heard in a film."""
    off_screen = frozenset() if plan.off_screen is None else frozenset({plan.off_screen})
    return Heard(tuple(dict.fromkeys(plan.sounding)), off_screen, frozenset(noises(plan)))


def claimed_by(caption: str) -> Heard:
    """What a caption says is heard, by the words that only that sound is called by."""
    text = caption.lower()
    found = {kind: match.start() for kind, words in _HEARD_AS.items() if (match := re.search(words, text))}
    return Heard(
        tuple(sorted((kind for kind in found if kind in PHRASES), key=found.__getitem__)),
        frozenset(found.keys() & SURROUNDINGS.keys()),
        frozenset(found.keys() & NOISES.keys()),
    )


def heard_by_truth(clip: Mapping[str, Any]) -> Heard:
    """What is heard in a film, by its entry in truth.json."""
    off_screen = frozenset() if clip["off_screen"] is None else frozenset({clip["off_screen"]})
    added = frozenset(clip["noise"].split(" and ")) if clip["noise"] else frozenset()
    return Heard(tuple(dict.fromkeys(one["kind"] for one in clip["seen"] if one["heard"])), off_screen, added)
