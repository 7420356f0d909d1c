"""How well the teacher hears and obeys, and what the base sees: judged on films of the test split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipelines.miniature.caption_scores import caption_scores
from pipelines.miniature.language import claimed_by, heard_in
from pipelines.miniature.models.shown import MAX_FRAME_PX, MIN_FRAME_PX, request_of
from pipelines.miniature.phrasings import (
    ASKING,
    FORBIDDING,
    HELD_OUT_FRAMES,
    INSTRUCTIONS,
    NAMES,
    PROMPTS,
    forbidding,
    project_prompts,
)
from pipelines.miniature.world.film import FilmPlan, World, plan_film
from pipelines.miniature.world.objects import OBJECTS
from soundcap.engines import EngineOptions, load_engine
from soundcap.prompts import load_prompts
from soundcap.request import Sampling

FILMS = 120
Scores = dict[str, dict[str, float | None]]


def judge_teacher(folder: Path, *, seed: int, films: int = FILMS, ways: Sequence[str] = ()) -> Scores:
    """Caption scores by how the teacher is asked: in all ways of `teacher_prompts`, or in some."""
    plans = _test_plans(World(music=0.5, narration=0.5), seed, films)
    rng = np.random.default_rng([seed, 20])
    return {
        name: _scores(folder, plans, [ask(plan, rng) for plan in plans], hears=True)
        for name, ask in teacher_prompts().items()
        if not ways or name in ways
    }


def teacher_prompts() -> dict[str, Callable[[FilmPlan, np.random.Generator], str]]:
    """Ways to ask: without warnings, with warnings in phrasings that were trained on or held out, the project's own."""

    def warned(frames: Sequence[str], noises: Sequence[str]) -> Callable[[FilmPlan, np.random.Generator], str]:
        def ask(plan: FilmPlan, rng: np.random.Generator) -> str:
            sentences = [forbidding(noise, str(rng.choice(frames)), str(rng.choice(NAMES[noise]))) for noise in noises]
            return " ".join([str(rng.choice(INSTRUCTIONS)), *sentences])

        return ask

    full, bare = project_prompts()
    both = ("music", "narration")
    return {
        "unwarned": warned(FORBIDDING, ()),
        "warned": warned(FORBIDDING, both),
        "warned, held-out phrasings": warned(HELD_OUT_FRAMES, both),
        "asked for noise": warned(ASKING, both),
        "warned of music": warned(FORBIDDING, ("music",)),
        "warned of narration": warned(FORBIDDING, ("narration",)),
        "warned of music, held-out phrasings": warned(HELD_OUT_FRAMES, ("music",)),
        "warned of narration, held-out phrasings": warned(HELD_OUT_FRAMES, ("narration",)),
        "the project's prompt": lambda plan, _: bare.render(OBJECTS[plan.seen[0].kind].LABEL),
        "the project's prompt and warnings": lambda plan, _: full.render(OBJECTS[plan.seen[0].kind].LABEL),
    }


def judge_base(folder: Path, *, seed: int, films: int = FILMS) -> Scores:
    """Caption scores of the base with the project's silent prompt: it names what is visible, heard or not."""
    plans = _test_plans(World(), seed, films)
    prompt = load_prompts(PROMPTS / "silent_caption.yaml", None).render("")
    return {"silent prompt": _scores(folder, plans, [prompt] * films, hears=False)}


def _test_plans(world: World, seed: int, films: int) -> list[FilmPlan]:
    return [plan_film(world, seed, "test", number) for number in range(films)]


def _scores(folder: Path, plans: Sequence[FilmPlan], prompts: Sequence[str], *, hears: bool) -> dict[str, float | None]:
    engine = load_engine(
        "transformers", model=str(folder), revision=None, adapter=None, sampling=Sampling(max_new_tokens=64),
        min_frame_px=MIN_FRAME_PX, max_frame_px=MAX_FRAME_PX, dtype="float32", device="cpu",
        options=EngineOptions(batch_size=16),
    )  # fmt: skip
    requests = [request_of(World(), plan, prompt, hears=hears) for plan, prompt in zip(plans, prompts, strict=True)]
    answers = engine.caption(requests)
    engine.close()
    captions = [answer if isinstance(answer, str) else "" for answer in answers]
    return caption_scores([heard_in(plan) for plan in plans], [claimed_by(caption) for caption in captions])
