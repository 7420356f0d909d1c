"""Claims of the study as tables of settings, and the cells (claim, setting, seed) that test them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from flowley.network.config import NetworkConfig
from flowley.network.presets import preset
from miniature.world.film import World

Captions = Literal[
    "none", "label", "teacher-warned", "teacher-unwarned", "base", "tuned-warned", "tuned-unwarned"
]  # fmt: skip
Reference = Literal["codec", "another-film"]
"""Sounds that no network made: the films' own through the codec, and the own sound of the next film."""

CORE_SEEDS, OTHER_SEEDS = range(5), range(3)
TRAIN_FILMS, TEST_FILMS = 400, 80
STEPS = 400
"""Length of the networks' training."""


@dataclass(frozen=True, slots=True)
class SoundModel:
    """Network to train, and number of steps."""

    preset: str = "tiny"
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of the preset that differ."""
    steps: int = STEPS

    def config(self) -> NetworkConfig:
        return preset(self.preset, **self.changes)


SMALL = {"latent_dim": 12, "D": 96, "N1": 2, "N2": 3, "heads": 4}
"""Size of every network: as many channels as the codec has, and a width that two cores train in minutes."""
USUAL_WORLD, USUAL_MODEL = World(), SoundModel(changes=SMALL)
TELLING = ("ball", "bell", "tap", "siren")
"""Objects whose events the encoder sees (checkpoints/models.json); a drum's sticks are too thin for its pixels."""
CLEAN_WORLD = World(
    objects=TELLING, two_sounding=0.3, resting=0.3, place_heard=0.0, music=0.0, narration=0.0, still=0.0
)
"""Films for questions of time alone."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Column of a comparison."""

    captions: Captions = "label"
    model: SoundModel | Reference | Literal["pipeline"] | None = USUAL_MODEL
    """Source of the sounds; None: only captions are scored. pipeline: rounds of `miniature.study.prompt_change`."""
    world: World = USUAL_WORLD
    train_films: int = TRAIN_FILMS
    test_duration_s: float | None = None
    """Duration of test films that are longer than those trained on, and as many fewer."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Comparison of settings on the same films and seeds."""

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


def _psca_against_plain(title: str, *, seeds: range = OTHER_SEEDS, steps: int = STEPS, **setting: Any) -> Claim:
    """Claim that compares PSCA with plain cross-attention; `model` has changes of both networks."""
    model, setting = setting.pop("model", {}), {"world": CLEAN_WORLD} | setting
    psca, plain = _flowley(steps=steps, **model), _flowley(steps=steps, **model, visual_attention="plain")
    return Claim(title, {"psca": Setting(model=psca, **setting), "plain": Setting(model=plain, **setting)}, seeds)


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
    "alignment": _psca_against_plain(
        "PSCA aligns sound with frames better than plain cross-attention", seeds=CORE_SEEDS
    ),
    "alignment-longer": _psca_against_plain(
        "In three times as many steps plain cross-attention begins to catch up, and is still behind", steps=3 * STEPS
    ),
    "captions": Claim(
        "Captions made with warnings, without, or none: no difference in the sounds",
        {"warned": Setting("tuned-warned"), "unwarned": Setting("tuned-unwarned"), "none": Setting("none")},
        CORE_SEEDS,
    ),
    "mask": Claim(
        "What makes PSCA's mask work is a layer that sees one frame; the rule of alignment makes no difference",
        {
            "psca": Setting(model=PSCA, world=CLEAN_WORLD),
            "no-beta": Setting(model=_flowley(progressive=False), world=CLEAN_WORLD),
            "omega-2-delta-0": Setting(model=_flowley(omega=2, delta=0), world=CLEAN_WORLD),
            "round": Setting(model=_flowley(alignment="round"), world=CLEAN_WORLD),
        },
    ),
    "long": Claim(
        "In films of 8 and 16 s PSCA keeps its lead, though trained on films of 4 s",
        {
            f"{name}-{duration_s:g}-s": Setting(model=model, world=CLEAN_WORLD, test_duration_s=duration_s)
            for duration_s in (8.0, 16.0)
            for name, model in (("psca", PSCA), ("plain", PLAIN))
        },
    ),
    "captions-mmaudio": Claim(
        "What captions add to an MMAudio-like network is within chance",
        {
            "label": Setting("label", MMAUDIO_LIKE),
            "teacher": Setting("teacher-warned", MMAUDIO_LIKE),
            "silent": Setting("tuned-warned", MMAUDIO_LIKE),
        },
    ),
    "captions-flowley": Claim(
        "The teacher's captions help against labels, those of the silent captioner hardly do",
        {
            "label": Setting("label"),
            "teacher": Setting("teacher-warned"),
            "teacher-unwarned": Setting("teacher-unwarned"),
            "silent": Setting("tuned-warned"),
        },
    ),
    "captioner": Claim(
        "A captioner tuned on sound names what it cannot see, and hardly any noise, warned or not",
        {
            source: Setting(source, None)
            for source in ("base", "tuned-warned", "tuned-unwarned", "teacher-warned", "teacher-unwarned")
        },
        CORE_SEEDS,
    ),
    "prompt-change": Claim(
        "A changed prompt: what is computed again, how long that takes and what it changes",
        {"pipeline": Setting(model="pipeline")},
    ),
    "alike": _psca_against_plain("Regime: all events alike (bells alone); PSCA leads", world=ALIKE),
    "dubbed": _psca_against_plain("Regime: motion without sound; PSCA leads", world=DUBBED),
    "unsynced": _psca_against_plain("Regime: half of the films out of sync; neither learns timing", world=UNSYNCED),
    "few-films": _psca_against_plain("Regime: 60 films; PSCA leads", train_films=60),
    "one-joint-block": _psca_against_plain("Regime: one joint block only; PSCA leads", model={"N1": 1}),
    "25-fps": _psca_against_plain("Regime: 25 frames per second; PSCA leads", model={"r_v": 25}),
}


@dataclass(frozen=True, slots=True)
class Cell:
    claim: str
    setting: str
    seed: int

    @property
    def name(self) -> str:
        """claim/setting/seed."""
        return f"{self.claim}/{self.setting}/{self.seed}"


def cells(patterns: list[str]) -> list[Cell]:
    """Cells whose names match a pattern (`alignment/*`), in the order of the study; all without patterns.

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
    """Cell of a claim's result: its own, or that of an earlier claim with the same setting."""
    wanted = CLAIMS[claim].settings[setting]
    return next(
        Cell(first, name, seed)
        for first, content in CLAIMS.items()
        for name, one in content.settings.items()
        if one == wanted and seed in content.seeds
    )


def result_file(cell: Cell, results: Path) -> Path:
    return results / f"{cell.name.replace('/', '.')}.json"
