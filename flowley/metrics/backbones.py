"""Backbones of learned metrics: clip embeddings and classes, and temporal alignment of frames and sound.

Each loads from a checkpoint folder. Waveforms are resampled to `HZ`; shapes: B clips, T video frames, D channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, softmax

from flowley.hub import one_line
from flowley.weights import CONFIG, WEIGHTS, fill, read_json, read_tensors

HZ, DURATION_S = 16_000, 4.0
MEL_BINS, MEL_FRAMES_PER_S = 64, 100
FPS = 16
"""Video frames per second that `AlignmentClassifier` takes."""
MELS_PER_FRAME = 3
"""Log-mel frames for each video frame, averaged from `MEL_FRAMES_PER_S`."""
ALIGNMENT_WIDTH, ALIGNMENT_KERNEL = 48, 7


class Listener:
    """Sound classifier: an audio spectrogram transformer for mono clips of up to `DURATION_S` at any sampling rate.

    Raises:
        ValueError: the folder is not an AST checkpoint of transformers with its feature extractor.
    """

    def __init__(self, folder: str | Path) -> None:
        from transformers import ASTFeatureExtractor, ASTForAudioClassification

        try:
            self.extractor = ASTFeatureExtractor.from_pretrained(folder)
            self.model = ASTForAudioClassification.from_pretrained(folder, dtype=torch.float32).eval()
        except OSError as error:
            why = one_line(error)
            raise ValueError(f"{folder} is not an AST checkpoint ({why}): give a folder with its extractor") from error
        self.classes = tuple(self.model.config.id2label[k] for k in range(self.model.config.num_labels))

    def embed(self, waves: Sequence[np.ndarray], hz: int, *, batch_size: int = 64) -> np.ndarray:
        """Waveforms (N_i,) -> (clips, D) float32, the penultimate layer.

        Raises:
            ValueError: there are no clips, or one is empty, not mono or longer than `DURATION_S`.
        """
        return np.concatenate([pooled.numpy() for pooled, _ in self._outputs(waves, hz, batch_size)])

    def probabilities(self, waves: Sequence[np.ndarray], hz: int, *, batch_size: int = 64) -> np.ndarray:
        """Waveforms (N_i,) -> (clips, classes) float32, each row a distribution over `classes`. Raises as `embed`."""
        return np.concatenate([softmax(logits, dim=-1).numpy() for _, logits in self._outputs(waves, hz, batch_size)])

    @torch.inference_mode()
    def _outputs(self, waves: Sequence[np.ndarray], hz: int, batch_size: int) -> Iterable[tuple[Tensor, Tensor]]:
        if len(waves) == 0:
            raise ValueError("no clips to listen to: wanted at least one")
        for start in range(0, len(waves), batch_size):
            x = log_mels(self.extractor, [resampled(wave, hz) for wave in waves[start : start + batch_size]])
            pooled = self.model.audio_spectrogram_transformer(x).pooler_output
            yield pooled, self.model.classifier(pooled)


def resampled(wave: np.ndarray, hz: int) -> np.ndarray:
    """(N,) at hz -> (M,) float32 at HZ.

    Raises:
        ValueError: the clip is empty, not mono or longer than `DURATION_S`.
    """
    from torchaudio.functional import resample

    if wave.ndim != 1 or not 0 < len(wave) <= 1.01 * DURATION_S * hz:
        raise ValueError(f"a clip of shape {wave.shape} at {hz} Hz, wanted mono (N,) of at most {DURATION_S:g} s")
    samples: np.ndarray = resample(torch.from_numpy(wave.astype(np.float32)), hz, HZ).numpy()
    return samples


def log_mels(extractor: Any, waves: Sequence[np.ndarray]) -> Tensor:
    """Waveforms at HZ -> (clips, frames, MEL_BINS), normalised as the extractor says."""
    mels: Tensor = extractor(list(waves), sampling_rate=HZ, return_tensors="pt")["input_values"]
    return mels


def log_mel_extractor() -> Any:
    """Log-mel feature extractor of both backbones; mean and standard deviation are those of the miniature's sounds."""
    from transformers import ASTFeatureExtractor

    return ASTFeatureExtractor(
        sampling_rate=HZ, num_mel_bins=MEL_BINS, max_length=round(DURATION_S * MEL_FRAMES_PER_S), mean=-4.8, std=3.6
    )


class AlignmentNetwork(nn.Module):
    """Two-branch convolutional network: (B, T, D) and (B, T x MELS_PER_FRAME, MEL_BINS) -> (B,) logits."""

    def __init__(self, visual_dim: int) -> None:
        super().__init__()
        width = ALIGNMENT_WIDTH
        self.visual = _convolutions(visual_dim, width, width)
        self.sound = _convolutions(MEL_BINS, width, width)
        self.both = _convolutions(2 * width, 2 * width, width)
        self.out = nn.Linear(2 * width, 1)

    def forward(self, visual: Tensor, mels: Tensor) -> Tensor:
        heard = self.sound(mels.mT)
        seen = interpolate(self.visual(visual.mT), size=heard.shape[-1], mode="linear")
        together = self.both(torch.cat([seen, heard], 1))
        pooled: Tensor = self.out(torch.cat([together.mean(-1), together.amax(-1)], 1))
        return pooled[:, 0]


def _convolutions(first: int, middle: int, last: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(first, middle, ALIGNMENT_KERNEL, padding="same"), nn.GELU(),
        nn.Conv1d(middle, last, ALIGNMENT_KERNEL, padding="same"), nn.GELU(),
    )  # fmt: skip


class AlignmentClassifier:
    """Classifier of temporal alignment between frames and sound (Diff-Foley's alignment accuracy).

    Raises:
        ValueError: the folder lacks config.json (`visual_dim`) or model.safetensors of an `AlignmentNetwork`.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            self.network = AlignmentNetwork(read_json(Path(folder) / CONFIG)["visual_dim"])
            weights = read_tensors(Path(folder) / WEIGHTS)
            fill(self.network, weights, source=WEIGHTS, what="an alignment classifier")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{folder} is not a checkpoint of the alignment classifier ({one_line(error)}): give the folder "
                f"with its {CONFIG} and {WEIGHTS}"
            ) from error
        self.network.eval()

    @torch.inference_mode()
    def probabilities(self, visual: np.ndarray, waves: Sequence[np.ndarray], hz: int) -> np.ndarray:
        """Probability of alignment (clips,) of features (clips, T, D) at `FPS` and mono sounds of the same length.

        Raises:
            ValueError: a sound is empty, not mono or longer than `DURATION_S`, or the counts differ.
        """
        if len(visual) != len(waves):
            raise ValueError(f"{len(visual)} clips' pictures and {len(waves)} sounds: wanted as many of each")
        mels = aligned_mels([resampled(wave, hz) for wave in waves], visual.shape[1])
        found: np.ndarray = self.network(torch.from_numpy(visual).float(), mels).sigmoid().numpy()
        return found


def aligned_mels(waves: Sequence[np.ndarray], frames: int) -> Tensor:
    """Sounds at HZ -> (clips, frames x MELS_PER_FRAME, MEL_BINS)."""
    mels = log_mels(log_mel_extractor(), waves)
    return interpolate(mels.mT, size=frames * MELS_PER_FRAME, mode="area").mT.contiguous()
