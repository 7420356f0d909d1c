"""Weights and inputs that follow from names alone, so that two programs make the same without exchanging files.

A tensor's 16-bit numbers are PCG64's stream seeded with the CRC-32 of its name, as u in (-1, 1): a matrix is
u sqrt(3 / fan_in), a vector u / 4, the scale of a norm or of the latent 1 + u / 4.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

FIXTURES = Path(__file__).parent / "fixtures"


def uniform_of(name: str, shape: tuple[int, ...]) -> Tensor:
    n = math.prod(shape)
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(-(-n // 4)).astype("<u8").view("<u2")[:n]
    return torch.from_numpy(raw.astype(np.float32).reshape(shape)).sub_(32767.5).div_(32768)


def weight_of(name: str, shape: tuple[int, ...]) -> Tensor:
    u = uniform_of(name, shape)
    if name.endswith(("norm.weight", "norm.scale", "latent_std")):
        return 1 + u / 4
    if len(shape) < 2 or 1 in shape[:-1]:  # a bias, or a vector with leading axes
        return u / 4
    return u.mul_(math.sqrt(3 / math.prod(shape[1:])))


@pytest.fixture(scope="session")
def uniform() -> Callable[[str, tuple[int, ...]], Tensor]:
    """u in (-1, 1) of a name and a shape."""
    return uniform_of


@pytest.fixture(scope="session")
def weight() -> Callable[[str, tuple[int, ...]], Tensor]:
    """The seeded weight of a name and a shape."""
    return weight_of


@pytest.fixture(scope="session")
def published() -> Callable[[str], dict[str, Any]]:
    """Recorded facts of a published network: its commit, and `shapes` by key."""

    def read(name: str) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((FIXTURES / f"{name}.json").read_text())
        return facts | {"shapes": {key: tuple(shape) for key, shape in facts["shapes"].items()}}

    return read
