"""Captioners of the miniature: a teacher, which hears and obeys warnings, and a silent base.

Both are trained on films of the train split, whose sound alone was encoded, and scored on test films. The teacher
is a Qwen2.5-Omni. The base is a Qwen2.5-VL that describes what is visible, until LoRA tunes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from miniature.language import caption_scores, claimed_by, heard_in, sound_caption, visible_caption
from miniature.models.captioner_inputs import FRAMES, FilmInputs, caption_request, collate, prepare_films
from miniature.models.tiny import build_tiny_omni, build_tiny_vl
from miniature.models.training import Say, down_to_a_twentieth, optimise
from miniature.phrasings import (
    ASKING,
    FORBIDDING,
    HELD_OUT_FRAMES,
    project_prompt,
    project_prompts,
    short_prompt,
    silent_prompt,
    warned_prompt,
)
from miniature.world.film import FilmPlan, World, plan_film
from soundcap.engines import EngineExecution, load_engine
from soundcap.inputs import IGNORED_LABEL
from soundcap.pretrained import load_model, load_processor
from soundcap.request import Sampling

Example = tuple[FilmInputs | None, str, str]
"""Film (None: text alone), prompt and answer."""
Scores = dict[str, dict[str, float | None]]
"""Caption scores by way of asking."""

FILMS, TEST_FILMS = 3000, 120
BATCH_SIZE = 16
PEAK_LEARNING_RATE, WEIGHT_DECAY = 1.5e-3, 0.01
PIXEL_NOISE = 0.05
"""Standard deviation, of pixels whose own is about 1: video codecs change pixels by as much."""
LONG_PROMPT_SHARE = 0.1
"""Share of batches: the project's own prompts are five times as long as the short ones."""
MAX_NEW_TOKENS = 64

TEACHER_WORLD = World(odd_place=0.4, music=0.55, narration=0.55, moving_silent=0.2, still=0.1, place_heard=0.7)
"""Neither the off-screen sound nor the silence of what moves can be guessed from the picture here."""
TEACHER_STEPS = 2400

BASE_STEPS = 700
BASE_PROMPTS = (
    "Describe what is visible.", "What does the video show?", "Write a caption of this video.",
    "Describe the picture in one sentence.", "What can be seen?",
)  # fmt: skip
TEXT_SHARE = 0.25
"""Share of the base's examples that are sentences about sound without a clip: tuning then teaches when to say what."""


def train_teacher(folder: Path, *, seed: int, workers: int, say: Say) -> Scores:
    """Train a Qwen2.5-Omni from random weights, save it to `folder`, and return its scores."""
    build_tiny_omni(folder, seed)
    films = prepare_films(folder, TEACHER_WORLD, seed, films=FILMS, workers=workers)
    rng = np.random.default_rng([seed, 10])
    _train(folder, lambda: teacher_examples(films, rng), TEACHER_STEPS, seed, "teacher", say)
    return score_teacher(folder, seed=seed)


def train_base(folder: Path, *, seed: int, workers: int, say: Say) -> Scores:
    """Train a Qwen2.5-VL from random weights, save it to `folder`, and return its scores."""
    build_tiny_vl(folder, seed)
    films = prepare_films(folder, World(), seed, films=FILMS, workers=workers)
    rng = np.random.default_rng([seed, 11])
    _train(folder, lambda: base_examples(films, rng), BASE_STEPS, seed, "base", say)
    return score_base(folder, seed=seed)


def teacher_examples(films: Sequence[FilmInputs], rng: np.random.Generator) -> list[Example]:
    """Random batch: captions of what is heard, without the noise that the prompt forbids."""
    long = rng.random() < LONG_PROMPT_SHARE
    examples: list[Example] = []
    for k in rng.choice(len(films), BATCH_SIZE, replace=False):
        plan = films[k].plan
        prompt = project_prompt(rng, plan.label) if long else short_prompt(rng)
        examples.append((films[k], prompt.text, sound_caption(plan, unmentioned=prompt.unmentioned)))
    return examples


def base_examples(films: Sequence[FilmInputs], rng: np.random.Generator) -> list[Example]:
    """Random batch: captions of what is seen, and some sentences about sound without a film."""
    prompts = [silent_prompt()] if rng.random() < LONG_PROMPT_SHARE else BASE_PROMPTS
    examples: list[Example] = []
    for k in rng.choice(len(films), BATCH_SIZE, replace=False):
        if rng.random() < TEXT_SHARE:
            examples.append((None, "Write a sentence about sounds.", sound_caption(films[k].plan)))
        else:
            examples.append((films[k], str(rng.choice(prompts)), visible_caption(films[k].plan)))
    return examples


def _train(folder: Path, examples: Callable[[], list[Example]], steps: int, seed: int, name: str, say: Say) -> None:
    processor = load_processor(str(folder))
    torch.manual_seed(seed)
    model = load_model(str(folder)).train()

    def loss() -> Tensor:
        inputs = collate(processor, examples())
        pixels = inputs["pixel_values_videos"]
        inputs["pixel_values_videos"] = pixels + PIXEL_NOISE * torch.randn_like(pixels)
        return answer_loss(model, inputs)

    optimise(
        model.parameters(), loss, steps=steps, learning_rate=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY,
        schedule=down_to_a_twentieth, counted=(name, BATCH_SIZE, "clips"), say=say,
    )  # fmt: skip
    save(model, folder)


def answer_loss(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Mean negative log-likelihood of the answers' tokens."""
    inputs = dict(inputs)
    labels = inputs.pop("labels")[:, 1:]
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    kept = labels != IGNORED_LABEL
    return cross_entropy(logits[kept], labels[kept])


def save(model: Any, folder: Path) -> None:
    """Write the trained weights over the random ones, in bfloat16 and in the layout that they were read from."""
    from safetensors.torch import save_file

    model = model.to(torch.bfloat16)
    if not hasattr(model, "audio_tower"):
        model.save_pretrained(folder)
        return
    # The model read is the thinker of a whole Omni checkpoint, and nothing else of it is stored.
    weights = {f"thinker.{name}": weight.contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def score_teacher(folder: Path, *, seed: int, films: int = TEST_FILMS, ways: Sequence[str] = ()) -> Scores:
    """Caption scores of the teacher on test films, for all ways of asking in `teacher_prompts` or some."""
    world, rng = World(music=0.5, narration=0.5), np.random.default_rng([seed, 20])
    plans = [plan_film(world, seed, "test", number) for number in range(films)]
    return {
        name: _scores(folder, plans, [ask(plan, rng) for plan in plans], hears=True)
        for name, ask in teacher_prompts().items()
        if not ways or name in ways
    }


def teacher_prompts() -> dict[str, Callable[[FilmPlan, np.random.Generator], str]]:
    """Ways to ask: without warnings, with warnings in phrasings that were trained on or held out, the project's own."""

    def warned(frames: Sequence[str], *noises: str) -> Callable[[FilmPlan, np.random.Generator], str]:
        return lambda _, rng: warned_prompt(rng, frames, noises)

    full, bare = project_prompts()
    return {
        "unwarned": warned(FORBIDDING),
        "warned": warned(FORBIDDING, "music", "narration"),
        "warned, held-out phrasings": warned(HELD_OUT_FRAMES, "music", "narration"),
        "asked for noise": warned(ASKING, "music", "narration"),
        "warned of music": warned(FORBIDDING, "music"),
        "warned of narration": warned(FORBIDDING, "narration"),
        "warned of music, held-out phrasings": warned(HELD_OUT_FRAMES, "music"),
        "warned of narration, held-out phrasings": warned(HELD_OUT_FRAMES, "narration"),
        "the project's prompt": lambda plan, _: bare.render(plan.label),
        "the project's prompt and warnings": lambda plan, _: full.render(plan.label),
    }


def score_base(folder: Path, *, seed: int, films: int = TEST_FILMS) -> Scores:
    """Caption scores of the base with the project's silent prompt: it names what is visible, heard or not."""
    plans = [plan_film(World(), seed, "test", number) for number in range(films)]
    return {"silent prompt": _scores(folder, plans, [silent_prompt()] * films, hears=False)}


def _scores(folder: Path, plans: Sequence[FilmPlan], prompts: Sequence[str], *, hears: bool) -> dict[str, float | None]:
    captions = caption_films(folder, World(), plans, prompts, hears=hears)
    return caption_scores([heard_in(plan) for plan in plans], [claimed_by(caption) for caption in captions])


def caption_films(
    checkpoint: Path, world: World, plans: Sequence[FilmPlan], prompts: Sequence[str], *, hears: bool,
    adapter: Path | None = None,
) -> list[str]:  # fmt: skip
    """Captions of films by a captioner, one prompt each. Raises the first fault that the engine reports."""
    engine = load_engine(
        str(checkpoint), None, None if adapter is None else str(adapter), frames=FRAMES,
        sampling=Sampling(max_new_tokens=MAX_NEW_TOKENS), execution=EngineExecution("transformers", "cpu", "float32"),
    )  # fmt: skip
    requests = [caption_request(world, plan, prompt, hears=hears) for plan, prompt in zip(plans, prompts, strict=True)]
    answers = engine.caption(requests)
    engine.close()
    for answer in answers:
        if not isinstance(answer, str):
            raise answer
    return [str(answer) for answer in answers]
