"""Published recipes: how each preset was trained by its authors, as changes to `TrainSettings`' defaults."""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from flowley.presets import PRESETS
from flowley.settings import TrainSettings

_FLOWLEY: dict[str, Any] = {}
"""The defaults: tangent timesteps, squared error and cosine, assigned noise, AdamW 1.5e-4."""
_MMAUDIO: dict[str, Any] = {
    "timesteps": "logit_normal", "cosine_weight": 0.0, "assign_noise": False, "learning_rate": 1e-4,
    "adam_epsilon": 1e-6, "decay_steps": (240_000, 270_000),
}  # fmt: skip
"""MMAudio's training configuration; clip and synchronisation features are dropped together, the caption apart."""

RECIPES: dict[str, dict[str, Any]] = {
    "flowley_169m": _FLOWLEY,
    "flowley_release": _FLOWLEY,
    "mmaudio_small_16k": _MMAUDIO,
    "tiny": _FLOWLEY,
}
"""By the name of the preset; `steps` and `batch_size` are never published for other hardware, so always given."""


def recipe(preset_name: str, **changes: Any) -> TrainSettings:
    """The published recipe of a preset with some fields changed; `steps` and `batch_size` are required.

    Raises:
        ValueError: no such preset or field (the nearest is named), a field that is missing, mistyped or out of range.
    """
    if preset_name not in PRESETS:
        raise ValueError(f"preset {preset_name!r}: wanted one of {', '.join(PRESETS)}")
    known = [f.name for f in fields(TrainSettings)]
    for name in changes:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"wanted one of {', '.join(known)}"
            raise ValueError(f"recipe of {preset_name}: unknown field {name!r}; {hint}")
    missing = [name for name in ("steps", "batch_size") if name not in changes]
    if missing:
        raise ValueError(f"recipe of {preset_name}: {' and '.join(missing)} missing; wanted numbers > 0")
    try:
        return TypeAdapter(TrainSettings).validate_python(RECIPES[preset_name] | changes)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: got {e['input']!r}, {e['msg']}" for e in error.errors())
        raise ValueError(f"recipe of {preset_name}: {wrong}") from error
