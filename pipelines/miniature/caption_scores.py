"""How true captions are to what is heard in their films."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.miniature.language import Heard


def caption_scores(truths: Sequence[Heard], claims: Sequence[Heard]) -> dict[str, float | None]:
    """Shares in [0, 1] over all films; None where there is nothing to count.

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
    mentioned = {
        noise: [noise in said.noises for true, said in pairs if noise in true.noises]
        for noise in ("music", "narration")
    }
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
