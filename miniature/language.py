"""Captions of the world: true captions of a film, what a caption claims is heard, and scores of captions."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from miniature.world.film import FilmPlan, Seen, split_noise

PHRASES = {
    "ball": "a rubber ball bounces with dull thuds",
    "bell": "a metal bell rings with a bright lingering clang",
    "tap": "drops of water drip with short wet plops",
    "engine": "an engine hums and revs with a deep growl",
    "siren": "a siren wails loudly in two tones",
    "drum": "a drum is hit with sharp rattling strokes",
}
"""Sound of each object."""

SURROUNDINGS = {
    "birds": "birds chirp off screen",
    "waves": "waves wash ashore off screen",
    "traffic": "traffic rumbles off screen",
    "clock": "a clock ticks off screen",
}
"""Sounds from outside the picture."""

NOISES = {"music": "music plays in the background", "narration": "a narrator speaks over the scene"}
"""Noise that was added to a film."""

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

_HEARD_AS = {name: rf"\b{name}" for name in (*PHRASES, *SURROUNDINGS, *NOISES)}
_HEARD_AS |= {"tap": r"\b(water|drip|drops?)\b", "birds": r"\bbird", "narration": r"\bnarrator"}
"""Pattern of the words that claim each sound."""


def sound_caption(plan: FilmPlan, *, unmentioned: Container[str] = ()) -> str:
    """Caption of all that is heard, objects in the order in which they begin; `unmentioned` noises are left out."""
    parts = [", then ".join(PHRASES[kind] for kind in plan.sounding)]
    if plan.off_screen is not None:
        parts.append(SURROUNDINGS[plan.off_screen])
    parts += [NOISES[noise] for noise in plan.noises if noise not in unmentioned]
    return _sentence("; ".join(parts))


def visible_caption(plan: FilmPlan) -> str:
    """Caption of all that is seen, from left to right; nothing of what is heard."""
    objects = [f"{_LOOKS[one.kind]} {motion_in_words(plan, one)}" for one in sorted(plan.seen, key=lambda one: one.x)]
    return _sentence(f"{' next to '.join(objects)} {_PLACES[plan.place]}")


def motion_in_words(plan: FilmPlan, one: Seen) -> str:
    """Motion of an object of a film, as captions have it."""
    return "in motion" if plan.moves(one) else "at rest"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


@dataclass(frozen=True, slots=True)
class Heard:
    """Sounds of a film, by its ground truth or by a caption's claim."""

    objects: tuple[str, ...]
    """Kinds in the picture, in order."""
    surroundings: frozenset[str]
    noises: frozenset[str]


def heard_in(plan: FilmPlan) -> Heard:
    """Sounds of a planned film."""
    return heard_by_truth(asdict(plan))


def heard_by_truth(clip: Mapping[str, Any]) -> Heard:
    """Sounds of a film of a corpus, by its record in truth.json."""
    kinds = dict.fromkeys(one["kind"] for one in clip["seen"] if one["heard"])
    surroundings = frozenset({clip["off_screen"]} - {None})
    return Heard(tuple(kinds), surroundings, frozenset(split_noise(clip["noise"])))


def claimed_by(caption: str) -> Heard:
    """Sounds that a caption claims, by words that name no other sound."""
    text = caption.lower()
    found = {kind: match.start() for kind, words in _HEARD_AS.items() if (match := re.search(words, text))}
    return Heard(
        tuple(sorted((kind for kind in found if kind in PHRASES), key=found.__getitem__)),
        frozenset(found.keys() & SURROUNDINGS.keys()),
        frozenset(found.keys() & NOISES.keys()),
    )


TABLED_SCORES = {
    "true": ("all true", "↑"),
    "on_screen_recall": ("on screen", "↑"),
    "off_screen_recall": ("off screen", "↑"),
    "false_on_screen": ("false on screen", "↓"),
    "false_off_screen": ("false off screen", "↓"),
    "order": ("in order", "↑"),
    "noise_mentioned": ("noise mentioned", "↓"),
}
"""Scores of `caption_scores` that tables have: heading, and the better direction where noise is to be left out."""


def caption_scores(truths: Sequence[Heard], claims: Sequence[Heard]) -> dict[str, float | None]:
    """Shares in [0, 1] over all films, of what their captions claim; None where there is nothing to count.

    true                  captions that name every object heard, in order, and the surroundings, and none besides
    on_screen_recall      objects heard that are named
    off_screen_recall     sounds from outside the picture that are named
    false_on_screen       captions that name an object that is not heard
    false_off_screen      captions that name a sound from outside the picture that is not heard
    order                 pairs of objects, both named, that are named in the order in which they begin
    music_mentioned       films with music whose captions mention it
    narration_mentioned   films with a narrator whose captions mention it
    noise_mentioned       of both
    false_noise           captions that mention noise that is not there
    """
    pairs = list(zip(truths, claims, strict=True))
    mentioned = {noise: [noise in said.noises for true, said in pairs if noise in true.noises] for noise in NOISES}
    counted: dict[str, list[bool]] = {
        "true": [(true.objects, true.surroundings) == (said.objects, said.surroundings) for true, said in pairs],
        "on_screen_recall": [kind in said.objects for true, said in pairs for kind in true.objects],
        "off_screen_recall": [kind in said.surroundings for true, said in pairs for kind in true.surroundings],
        "false_on_screen": [not set(said.objects) <= set(true.objects) for true, said in pairs],
        "false_off_screen": [not said.surroundings <= true.surroundings for true, said in pairs],
        "order": [
            said.objects.index(true.objects[0]) < said.objects.index(true.objects[1])
            for true, said in pairs
            if len(true.objects) == 2 and set(true.objects) <= set(said.objects)
        ],
        "music_mentioned": mentioned["music"],
        "narration_mentioned": mentioned["narration"],
        "noise_mentioned": mentioned["music"] + mentioned["narration"],
        "false_noise": [not said.noises <= true.noises for true, said in pairs],
    }
    return {name: float(np.mean(values)) if values else None for name, values in counted.items()}
