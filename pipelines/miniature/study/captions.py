"""Where the captions of a study's films come from: labels, the teacher, or a captioner tuned on the teacher's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from pipelines.fingerprint import digest
from pipelines.miniature.models.shown import FRAMES_FPS, MAX_FRAME_PX, MIN_FRAME_PX, clip_frames, request_of
from pipelines.miniature.phrasings import PROMPTS, project_prompts
from pipelines.miniature.study.films import CHECKPOINTS, Films, kept_captions
from pipelines.miniature.world.film import FilmPlan, Split, World
from pipelines.miniature.world.objects import OBJECTS
from soundcap.engines import EngineOptions, load_engine
from soundcap.finetune import ExecutionSettings, FinetuneSettings, finetune
from soundcap.finetune_data import TrainExample
from soundcap.prompts import PromptSet, load_prompts
from soundcap.request import Sampling

Source = Literal[
    "none", "label", "teacher-warned", "teacher-unwarned", "base", "tuned-warned", "tuned-unwarned"
]  # fmt: skip
MAX_NEW_TOKENS = 64
TUNING = FinetuneSettings(
    rank=16, alpha=32, dropout=0.0, learning_rate=8e-3, batch_size=16, max_steps=150, precision="float32",
    frames_fps=FRAMES_FPS, min_frame_px=MIN_FRAME_PX, max_frame_px=MAX_FRAME_PX,
)  # fmt: skip
_EXECUTION = ExecutionSettings(
    per_device_batch=16, gradient_checkpointing=False, use_gpu=False, loader_processes=0, check_threads=1,
    save_steps=10**6, log_steps=25,
)  # fmt: skip


def captions_of(source: Source, films: Films, split: Split, work: Path) -> list[str]:
    """A caption for each film of a split."""
    plans = films.plans(split)
    if source == "none":
        return [""] * len(plans)
    if source == "label":
        return [label_of(plan) for plan in plans]

    def kept(make: Callable[[list[FilmPlan]], list[str]], model: str, **depends: str) -> list[str]:
        return kept_captions(films, split, work, source, make, model=model, **depends)

    if source == "base":
        return kept(lambda plans: _silent(films.world, plans, None), "vl", prompt=silent_prompt())
    if source in ("teacher-warned", "teacher-unwarned"):
        prompts = project_prompts()[0 if source == "teacher-warned" else 1]
        return kept(lambda plans: _heard(films.world, plans, prompts), "omni", prompt=digest(prompts.meaning()))
    adapter = _adapter("teacher-warned" if source == "tuned-warned" else "teacher-unwarned", films, work)
    return kept(lambda plans: _silent(films.world, plans, adapter), "vl", adapter=adapter.name)


def label_of(plan: FilmPlan) -> str:
    """As the corpus's CSV has it."""
    return OBJECTS[plan.seen[0].kind].LABEL


def _heard(world: World, plans: list[FilmPlan], prompts: PromptSet) -> list[str]:
    """The teacher's captions."""
    return _ask("omni", world, plans, lambda plan: prompts.render(label_of(plan)), hears=True, adapter=None)


def _silent(world: World, plans: list[FilmPlan], adapter: Path | None) -> list[str]:
    """The base's captions of silent films, tuned or not."""
    prompt = silent_prompt()
    return _ask("vl", world, plans, lambda plan: prompt, hears=False, adapter=adapter)


def silent_prompt() -> str:
    """The project's own."""
    return load_prompts(PROMPTS / "silent_caption.yaml", None).render("")


def _ask(
    model: str, world: World, plans: list[FilmPlan], prompt: Callable[[FilmPlan], str], *, hears: bool,
    adapter: Path | None,
) -> list[str]:  # fmt: skip
    engine = load_engine(
        "transformers", model=str(CHECKPOINTS / model), revision=None,
        adapter=None if adapter is None else str(adapter), sampling=Sampling(max_new_tokens=MAX_NEW_TOKENS),
        min_frame_px=MIN_FRAME_PX, max_frame_px=MAX_FRAME_PX, dtype="float32", device="cpu",
        options=EngineOptions(batch_size=16),
    )  # fmt: skip
    answers = engine.caption([request_of(world, plan, prompt(plan), hears=hears) for plan in plans])
    engine.close()
    for answer in answers:
        if not isinstance(answer, str):
            raise answer
    return [str(answer) for answer in answers]


def _adapter(teacher: Source, films: Films, work: Path) -> Path:
    """A LoRA adapter that learnt the teacher's captions of the train split; made once."""
    captions = captions_of(teacher, films, "train", work)
    archive = films.made_once(
        work, f"adapter-{teacher}", lambda file: _tune(captions, films, file),
        models=["vl"], package="soundcap", captions=digest(captions), prompt=silent_prompt(), tuning=TUNING,
    )  # fmt: skip
    folder = work / "adapters" / archive.name
    if not folder.is_dir():
        shutil.unpack_archive(archive, folder, "tar")
    return folder


def _tune(captions: list[str], films: Films, archive: Path) -> None:
    plans = dict(zip(films.ids("train"), films.plans("train"), strict=True))
    prompt = silent_prompt()
    examples = [
        TrainExample(name, prompt, caption, name) for name, caption in zip(plans, captions, strict=True) if caption
    ]

    def read_frames(name: str) -> np.ndarray:
        return clip_frames(films.world, plans[name])

    output = archive.with_suffix(".tuning")
    result = finetune(str(CHECKPOINTS / "vl"), None, examples, read_frames, TUNING, _EXECUTION, output)
    packed = shutil.make_archive(str(output / "adapter"), "tar", result.adapter_dir)
    Path(packed).replace(archive)
    shutil.rmtree(output)
