"""What every metric demands of its inputs, said once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MIN_HZ = 8_000
"""Below this the mel bands have no room."""


def checked_wave(wave: NDArray[np.floating], hz: int, name: str = "wave") -> Floats:
    """The mono waveform (N,) in float64.

    Raises:
        ValueError: not (N >= 1,), a sample that is not finite, or hz below `MIN_HZ`.
    """
    if hz < MIN_HZ:
        raise ValueError(f"{hz} Hz: the metrics need at least {MIN_HZ} Hz; resample first")
    if wave.ndim != 1 or wave.size == 0:
        raise ValueError(f"{name} has shape {wave.shape}, wanted mono (N >= 1,); mix down or drop it")
    bad = np.flatnonzero(~np.isfinite(wave))
    if bad.size:
        raise ValueError(
            f"{name}: {bad.size} of {wave.size} samples are not finite, first at {bad[0]}; generate it anew"
        )
    return wave.astype(np.float64)


def checked_pair(generated: NDArray[np.floating], original: NDArray[np.floating], hz: int) -> tuple[Floats, Floats]:
    """Both waveforms, each (N,): what paired measures compare must cover the same time.

    Raises:
        ValueError: as `checked_wave`, or unequal lengths.
    """
    g, o = checked_wave(generated, hz, "generated"), checked_wave(original, hz, "original")
    if g.size != o.size:
        raise ValueError(f"generated has {g.size} samples, original {o.size}: cut or pad them to one length")
    return g, o


def checked_embeddings(evaluated: NDArray[np.floating], reference: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Both embedding sets, (n, d) and (m, d), in float64.

    Raises:
        ValueError: not two-dimensional, fewer than two rows, other widths, or values that are not finite.
    """
    for name, x in (("evaluated", evaluated), ("reference", reference)):
        if x.ndim != 2 or x.shape[0] < 2 or x.shape[1] < 1:
            raise ValueError(f"{name} embeddings have shape {x.shape}, wanted (n >= 2, d >= 1)")
        if not np.isfinite(x).all():
            row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
            raise ValueError(f"{name} embeddings: row {row} is not finite; drop that clip")
    if evaluated.shape[1] != reference.shape[1]:
        raise ValueError(
            f"evaluated embeddings are {evaluated.shape[1]} wide, reference {reference.shape[1]}: "
            "embed both with the same backbone"
        )
    return evaluated.astype(np.float64), reference.astype(np.float64)
