"""Captions of a cell's films: none, labels, the teacher's, or those of a captioner tuned on the teacher's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from miniature.models.captioner_inputs import FRAMES, clip_frames
from miniature.models.captioners import caption_films
from miniature.models.training import CHECKPOINTS
from miniature.phrasings import project_prompts, silent_prompt
from miniature.study.claims import Captions
from miniature.study.film_dataset import FilmDataset
from miniature.world.film import FilmPlan, Split, World
from pipelines.engine.fingerprint import digest
from soundcap.finetune import TrainExample, finetune
from soundcap.finetune_settings import FinetuneExecution, FinetuneSettings
from soundcap.prompts import PromptSet

TUNING = FinetuneSettings(
    rank=16, alpha=32, dropout=0.0, learning_rate=8e-3, batch_size=16, max_steps=150, precision="float32",
    frames=FRAMES,
)  # fmt: skip
_EXECUTION = FinetuneExecution(
    per_device_batch=16, gradient_checkpointing=False, loader_processes=0, check_threads=1,
    save_steps=10**6, log_steps=25,
)  # fmt: skip


def captions_of(source: Captions, films: FilmDataset, split: Split, work: Path) -> list[str]:
    """Caption of each film of a split."""
    plans = films.plans(split)
    if source == "none":
        return [""] * len(plans)
    if source == "label":
        return [plan.label for plan in plans]

    def once(make: Callable[[], list[str]], model: str, **depends: Any) -> list[str]:
        def write(file: Path) -> None:
            file.write_text(json.dumps(make(), indent=0))

        name = f"captions-{source}-{split}"
        file = films.make_once(work, name, write, models=[model], package="soundcap", **depends)
        captions: list[str] = json.loads(file.read_text())
        return captions

    if source == "base":
        return once(lambda: _silent(films.world, plans, None), "vl", prompt=silent_prompt())
    if source in ("teacher-warned", "teacher-unwarned"):
        prompts = project_prompts()[0 if source == "teacher-warned" else 1]
        return once(lambda: _heard(films.world, plans, prompts), "omni", prompt=digest(prompts.meaning()))
    adapter = _adapter("teacher-warned" if source == "tuned-warned" else "teacher-unwarned", films, work)
    return once(lambda: _silent(films.world, plans, adapter), "vl", adapter=adapter.name)


def _heard(world: World, plans: list[FilmPlan], prompts: PromptSet) -> list[str]:
    return caption_films(CHECKPOINTS / "omni", world, plans, [prompts.render(plan.label) for plan in plans], hears=True)


def _silent(world: World, plans: list[FilmPlan], adapter: Path | None) -> list[str]:
    """Captions of silent films by the base, tuned or not."""
    prompts = [silent_prompt()] * len(plans)
    return caption_films(CHECKPOINTS / "vl", world, plans, prompts, hears=False, adapter=adapter)


def _adapter(teacher: Captions, films: FilmDataset, work: Path) -> Path:
    """LoRA adapter tuned on the teacher's captions of the train split; made once."""
    captions = captions_of(teacher, films, "train", work)
    return films.make_once(
        work, f"adapter-{teacher}", lambda folder: _tune(captions, films, folder),
        models=["vl"], package="soundcap", captions=digest(captions), prompt=silent_prompt(), tuning=TUNING,
    )  # fmt: skip


def _tune(captions: list[str], films: FilmDataset, folder: Path) -> None:
    plans = dict(zip(films.ids("train"), films.plans("train"), strict=True))
    prompt = silent_prompt()
    examples = [
        TrainExample(name, prompt, caption, name) for name, caption in zip(plans, captions, strict=True) if caption
    ]

    def read_frames(name: str) -> np.ndarray:
        return clip_frames(films.world, plans[name])

    output = folder.with_suffix(".tuning")
    result = finetune(str(CHECKPOINTS / "vl"), None, examples, read_frames, TUNING, _EXECUTION, output, use_gpu=False)
    Path(result.adapter_dir).rename(folder)
