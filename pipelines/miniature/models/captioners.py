"""The teacher, which hears and sees and obeys warnings, and the base, which describes what is visible.

Both are trained on films of the train split, whose sound alone was encoded, and judged on test films.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipelines.miniature.language import sound_caption, visible_caption
from pipelines.miniature.models.shown import ShownFilm, batch, show_films
from pipelines.miniature.models.training import descend, down_to_a_twentieth
from pipelines.miniature.phrasings import PROMPTS, project_prompt, short_prompt
from pipelines.miniature.world.film import World
from pipelines.miniature.world.objects import OBJECTS
from pipelines.progress import Progress
from soundcap.checkpoint import CaptionProcessor, load_model, load_processor
from soundcap.inputs import IGNORED_LABEL
from soundcap.prompts import load_prompts
from soundcap.tiny import build_tiny_omni, build_tiny_vl

Say = Callable[[str], None]
Asked = tuple[ShownFilm | None, str, str]

FILMS = 3000
BATCH_SIZE = 16
PEAK_LEARNING_RATE, WEIGHT_DECAY = 1.5e-3, 0.01
PIXEL_NOISE = 0.05
"""Standard deviation, of pixels whose own is about 1: video codecs change pixels by as much."""

TEACHER_WORLD = World(odd_place=0.4, music=0.55, narration=0.55, moving_silent=0.2, still=0.1, place_heard=0.7)
"""What is heard off screen, and whether what moves is heard, cannot be guessed from the picture here."""
TEACHER_STEPS = 2400
LONG_PROMPT_SHARE = 0.1
"""Of the batches: the project's own prompts are five times as long as the short ones."""

BASE_WORLD = World()
BASE_STEPS = 700
BASE_PROMPTS = (
    "Describe what is visible.", "What does the video show?", "Write a caption of this video.",
    "Describe the picture in one sentence.", "What can be seen?",
)  # fmt: skip
TEXT_SHARE = 0.25
"""Of the base's examples: sentences about sound without a clip, so that tuning teaches when to say what, not how."""


def train_teacher(folder: Path, *, seed: int, workers: int, say: Say, steps: int = TEACHER_STEPS) -> None:
    """Train a Qwen2.5-Omni from random weights and save it."""
    build_tiny_omni(folder, seed)
    processor = load_processor(str(folder))
    films = show_films(str(folder), TEACHER_WORLD, seed, range(FILMS), workers=workers)
    _train(folder, processor, _teacher_batches(processor, films, seed), steps, seed, "teacher", say)


def _teacher_batches(processor: CaptionProcessor, films: list[ShownFilm], seed: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng([seed, 10])
    while True:
        long = rng.random() < LONG_PROMPT_SHARE
        asked: list[Asked] = []
        for k in rng.choice(len(films), BATCH_SIZE, replace=False):
            plan = films[k].plan
            label = OBJECTS[plan.seen[0].kind].LABEL
            prompt = project_prompt(rng, label) if long else short_prompt(rng)
            asked.append((films[k], prompt.text, sound_caption(plan, unmentioned=prompt.unmentioned)))
        yield batch(processor, asked)


def train_base(folder: Path, *, seed: int, workers: int, say: Say, steps: int = BASE_STEPS) -> None:
    """Train a Qwen2.5-VL from random weights and save it."""
    build_tiny_vl(folder, seed)
    processor = load_processor(str(folder))
    films = show_films(str(folder), BASE_WORLD, seed, range(FILMS), workers=workers)
    _train(folder, processor, _base_batches(processor, films, seed), steps, seed, "base", say)


def _base_batches(processor: CaptionProcessor, films: list[ShownFilm], seed: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng([seed, 11])
    silent = load_prompts(PROMPTS / "silent_caption.yaml", None).render("")
    while True:
        prompts = [silent] if rng.random() < LONG_PROMPT_SHARE else BASE_PROMPTS
        asked: list[Asked] = []
        for k in rng.choice(len(films), BATCH_SIZE, replace=False):
            if rng.random() < TEXT_SHARE:
                asked.append((None, "Write a sentence about sounds.", sound_caption(films[k].plan)))
            else:
                asked.append((films[k], str(rng.choice(prompts)), visible_caption(films[k].plan)))
        yield batch(processor, asked)


def _train(
    folder: Path, processor: CaptionProcessor, batches: Iterator[dict[str, Any]], steps: int, seed: int,
    name: str, say: Say,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    model = load_model(str(folder)).train()

    def loss() -> Tensor:
        inputs = next(batches)
        pixels = inputs["pixel_values_videos"]
        inputs["pixel_values_videos"] = pixels + PIXEL_NOISE * torch.randn_like(pixels)
        return answer_loss(model, inputs)

    progress = Progress(f"{name}: training", steps * BATCH_SIZE, "clips", say)
    descend(
        model.parameters(), loss, steps=steps, learning_rate=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY,
        schedule=down_to_a_twentieth, progress=progress, batch_size=BATCH_SIZE,
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
    """The trained weights in place of the random ones, in bfloat16, in the layout that they were read from."""
    from safetensors.torch import save_file

    model = model.to(torch.bfloat16)
    if not hasattr(model, "audio_tower"):
        model.save_pretrained(folder)
        return
    # What was read is the thinker of a whole Omni checkpoint, and nothing else of it is stored.
    weights = {f"thinker.{name}": weight.contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
