"""The cells of the study: what is compared with what, and how often."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from pipelines.miniature.caption_scores import caption_scores
from pipelines.miniature.language import claimed_by, heard_in
from pipelines.miniature.study.captions import Source, captions_of
from pipelines.miniature.study.films import Films
from pipelines.miniature.study.networks import STEPS, SoundModel, train_networks
from pipelines.miniature.study.rerun import rerun
from pipelines.miniature.study.sounds import Reference, learning_curve, reference_scores
from pipelines.miniature.world.film import World

Say = Callable[[str], None]
CORE_SEEDS, OTHER_SEEDS = range(5), range(3)
TRAIN_FILMS, TEST_FILMS = 400, 80
FIRST_SEED = 1000
"""Of the films: the shipped models were trained on others."""


SMALL = {"latent_dim": 12, "D": 96, "N1": 2, "N2": 3, "heads": 4}
"""Of every network: as many channels as the codec has, and a width that two cores train in minutes."""
USUAL_WORLD, USUAL_MODEL = World(), SoundModel(changes=SMALL)
TELLING = ("ball", "bell", "tap", "siren")
"""Objects whose moments the encoder sees (checkpoints/models.json); a drum's sticks are too thin for its pixels."""
CLEAN_WORLD = World(
    objects=TELLING, two_sounding=0.3, resting=0.3, place_heard=0.0, music=0.0, narration=0.0, still=0.0
)
"""For questions of time alone."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One column of a comparison."""

    captions: Source = "label"
    model: SoundModel | Reference | Literal["pipeline"] | None = USUAL_MODEL
    """What makes the sounds; None: only captions are scored. pipeline: the whole of it, again and again."""
    world: World = USUAL_WORLD
    train_films: int = TRAIN_FILMS
    test_duration_s: float | None = None
    """Of test films that are longer than those trained on, and as many fewer."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A comparison of settings on the same films and seeds."""

    title: str
    settings: dict[str, Setting]
    seeds: range = field(default=OTHER_SEEDS)


def _flowley(*, steps: int = STEPS, **changes: Any) -> SoundModel:
    return SoundModel(changes=SMALL | changes, steps=steps)


PSCA, PLAIN = _flowley(), _flowley(visual_attention="plain")
MMAUDIO_LIKE = SoundModel(
    "mmaudio_small_16k",
    {
        **SMALL, "visual_dim": 64, "text_dim": 64, "synchformer_dim": 64, "mlp_multiple": 32, "timestep_dim": 64,
        "null_text": "zeros", "mask_text": True, "text_normalisation": "channels",
    },
)  # fmt: skip
"""MMAudio's network at the width of `tiny`; frames at 24 Hz stand in for Synchformer's features."""

ALIKE = replace(CLEAN_WORLD, objects=("bell",), two_sounding=0.0, resting=0.0)
DUBBED = replace(CLEAN_WORLD, moving_silent=1.0, resting=0.6, two_sounding=0.0)
UNSYNCED = replace(CLEAN_WORLD, out_of_sync=0.5)


def _regime(title: str, **setting: Any) -> Claim:
    """PSCA against plain cross-attention where timing is harder."""
    model = setting.pop("model", {})
    setting = {"world": CLEAN_WORLD} | setting
    return Claim(
        title,
        {
            "psca": Setting(model=_flowley(**model), **setting),
            "plain": Setting(model=_flowley(**model, visual_attention="plain"), **setting),
        },
    )


CLAIMS: dict[str, Claim] = {
    "reference": Claim(
        "What can be reached: the films' own sound through the codec, and the sound of another film",
        {
            "codec": Setting(model="codec", world=CLEAN_WORLD),
            "another-film": Setting(model="another-film", world=CLEAN_WORLD),
            "codec-usual": Setting(model="codec"),
            "another-film-usual": Setting(model="another-film"),
        },
        CORE_SEEDS,
    ),
    "alignment": Claim(
        "PSCA aligns sound with frames better than plain cross-attention",
        {"psca": Setting(model=PSCA, world=CLEAN_WORLD), "plain": Setting(model=PLAIN, world=CLEAN_WORLD)},
        CORE_SEEDS,
    ),
    "alignment-longer": Claim(
        "The same in three times as many steps: whether plain cross-attention catches up",
        {
            "psca": Setting(model=_flowley(steps=3 * STEPS), world=CLEAN_WORLD),
            "plain": Setting(model=_flowley(steps=3 * STEPS, visual_attention="plain"), world=CLEAN_WORLD),
        },
    ),
    "captions": Claim(
        "Captions made with warnings condition the sound model better than those without, and than none",
        {
            "warned": Setting("tuned-warned"),
            "unwarned": Setting("tuned-unwarned"),
            "none": Setting("none"),
        },
        CORE_SEEDS,
    ),
    "mask": Claim(
        "The parts of PSCA's mask: beta, window and alignment",
        {
            "psca": Setting(model=PSCA, world=CLEAN_WORLD),
            "no-beta": Setting(model=_flowley(progressive=False), world=CLEAN_WORLD),
            "omega-2-delta-0": Setting(model=_flowley(omega=2, delta=0), world=CLEAN_WORLD),
            "round": Setting(model=_flowley(alignment="round"), world=CLEAN_WORLD),
        },
    ),
    "long": Claim(
        "Films of 8 and 16 s, by networks that were trained on films of 4 s",
        {
            f"{name}-{duration_s:g}-s": Setting(model=model, world=CLEAN_WORLD, test_duration_s=duration_s)
            for duration_s in (8.0, 16.0)
            for name, model in (("psca", PSCA), ("plain", PLAIN))
        },
    ),
    "captions-mmaudio": Claim(
        "Captions help an MMAudio-like network, too",
        {
            "label": Setting("label", MMAUDIO_LIKE),
            "teacher": Setting("teacher-warned", MMAUDIO_LIKE),
            "silent": Setting("tuned-warned", MMAUDIO_LIKE),
        },
    ),
    "captions-flowley": Claim(
        "Captions by the silent captioner come near those by the teacher, who hears",
        {
            "label": Setting("label"),
            "teacher": Setting("teacher-warned"),
            "teacher-unwarned": Setting("teacher-unwarned"),
            "silent": Setting("tuned-warned"),
        },
    ),
    "captioner": Claim(
        "A captioner tuned on sound names what it cannot see, and noise only if it was taught to",
        {
            "base": Setting("base", None),
            "tuned-warned": Setting("tuned-warned", None),
            "tuned-unwarned": Setting("tuned-unwarned", None),
            "teacher-warned": Setting("teacher-warned", None),
            "teacher-unwarned": Setting("teacher-unwarned", None),
        },
        CORE_SEEDS,
    ),
    "prompt-change": Claim(
        "A changed prompt: what is computed again, how long that takes and what it changes",
        {"pipeline": Setting(model="pipeline")},
    ),
    "alike": _regime("Regime: all events alike (bells alone)", world=ALIKE),
    "dubbed": _regime("Regime: motion without sound", world=DUBBED),
    "unsynced": _regime("Regime: half of the films out of sync", world=UNSYNCED),
    "few-films": _regime("Regime: 60 films", train_films=60),
    "one-joint-block": _regime("Regime: one joint block only", model={"N1": 1}),
    "25-fps": _regime("Regime: 25 frames per second", model={"r_v": 25}),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One result of the study."""

    claim: str
    setting: str
    seed: int

    @property
    def name(self) -> str:
        """claim/setting/seed."""
        return f"{self.claim}/{self.setting}/{self.seed}"

    def run(self, work: Path, say: Say) -> dict[str, Any]:
        """The scores."""
        setting = CLAIMS[self.claim].settings[self.setting]
        if setting.model == "pipeline":
            return {"rounds": rerun(work, seed=FIRST_SEED + self.seed, say=say)}
        films = Films(setting.world, FIRST_SEED + self.seed, setting.train_films, TEST_FILMS)
        if setting.model is None:
            captions = captions_of(setting.captions, films, "test", work)
            truths = [heard_in(plan) for plan in films.plans("test")]
            return {"captions": caption_scores(truths, [claimed_by(caption) for caption in captions])}
        if isinstance(setting.model, str):
            return {"curve": [{"steps": 0, **reference_scores(films, setting.model, work)}]}
        train_captions = captions_of(setting.captions, films, "train", work)
        networks = train_networks(setting.model, films, train_captions, work, seed=self.seed, say=say)
        if setting.test_duration_s is not None:
            longer = setting.test_duration_s / setting.world.duration_s
            world = replace(setting.world, duration_s=setting.test_duration_s)
            films = replace(films, world=world, test=round(films.test / longer))
        return {"curve": learning_curve(networks, films, captions_of(setting.captions, films, "test", work), work, say)}


def cells(patterns: list[str]) -> list[Cell]:
    """The cells that a pattern names (`alignment/*`), in the order of the study; all without patterns.

    A setting that two claims share is run once, under the name of the first. Settings follow one another, not seeds:
    cells that run side by side have different films, and those that come later find their features made.
    """
    chosen = [
        cell_of(claim, setting, seed)
        for claim, content in CLAIMS.items()
        for setting in content.settings
        for seed in content.seeds
        if not patterns or any(fnmatch(f"{claim}/{setting}/{seed}", pattern) for pattern in patterns)
    ]
    return list(dict.fromkeys(chosen))


def cell_of(claim: str, setting: str, seed: int) -> Cell:
    """The cell that gives a claim's result: its own, or that of an earlier claim with the same setting."""
    wanted = CLAIMS[claim].settings[setting]
    for first, content in CLAIMS.items():
        for name, one in content.settings.items():
            if one == wanted and seed in content.seeds:
                return Cell(first, name, seed)
    raise AssertionError(f"{claim}/{setting} is a setting of its own claim")


def result_file(cell: Cell, results: Path) -> Path:
    """Where a cell's result lies."""
    return results / f"{cell.name.replace('/', '.')}.json"
