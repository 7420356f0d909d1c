"""Training examples of the silent captioner: read, checked before training, and batched."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from soundcap.inputs import prepare_inputs
from soundcap.request import CaptionRequest

if TYPE_CHECKING:
    from torch import Tensor

    from soundcap.checkpoint import CaptionProcessor

ReadFrames = Callable[[str], np.ndarray]
"""Video path -> frames (T, H, W, 3) uint8 at the settings' frames per second."""


@dataclass(frozen=True, slots=True)
class TrainExample:
    """One pair of the paper's section 2.3: silent video V and the caption T_a that describes its sound."""

    clip_id: str
    prompt: str
    """Instruction, already rendered, as it will be at inference."""
    caption: str
    video: str
    """What `read_frames` is given: path or address of the clip."""


@dataclass(frozen=True, slots=True)
class DroppedExample:
    """An example that cannot be trained on, and why."""

    clip_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class FrameSettings:
    """How a clip is shown to the model."""

    frames_fps: float
    min_frame_px: int
    max_frame_px: int
    max_tokens: int


class ExampleLoader:
    """Reads examples and turns batches of them into model inputs with labels."""

    def __init__(
        self,
        examples: Sequence[TrainExample],
        read_frames: ReadFrames,
        processor: "CaptionProcessor",
        settings: FrameSettings,
    ) -> None:
        self.examples = examples
        self.read_frames = read_frames
        self.processor = processor
        self.settings = settings

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[CaptionRequest, str]:
        """The decoded clip and its caption. Raises what `read_frames` raises, or ValueError."""
        example = self.examples[index]
        frames = self.read_frames(example.video)
        return CaptionRequest(example.prompt, frames, self.settings.frames_fps, audio=None), example.caption

    def collate(self, pairs: Sequence[tuple[CaptionRequest, str]]) -> "dict[str, Tensor]":
        """Inputs of a batch; raises ValueError for a row longer than `max_tokens`: nothing is truncated."""
        requests, captions = zip(*pairs, strict=True)
        return prepare_inputs(
            self.processor,
            requests,
            answers=captions,
            min_frame_px=self.settings.min_frame_px,
            max_frame_px=self.settings.max_frame_px,
            max_tokens=self.settings.max_tokens,
        )

    def problem(self, index: int) -> str | None:
        """Why this example cannot be trained on, found by preparing it as training does; None: it can."""
        try:
            self.collate([self[index]])
        except Exception as error:  # noqa: BLE001 - readers fail in many ways; the reason is returned, not hidden
            return f"{type(error).__name__}: {error}"
        return None


def find_problems(loader: ExampleLoader, *, rank: int, world_size: int, threads: int) -> dict[int, str]:
    """Index to problem for this rank's share (every `world_size`-th) of the examples."""
    indices = range(rank, len(loader), world_size)
    problems: dict[int, str] = {}
    with ThreadPoolExecutor(threads) as pool:
        for chunk in _chunks(indices, 4 * threads):
            found = zip(chunk, pool.map(loader.problem, chunk), strict=True)
            problems.update((index, problem) for index, problem in found if problem is not None)
    return problems


def _chunks(indices: Sequence[int], size: int) -> Iterator[list[int]]:
    remaining = iter(indices)
    while chunk := list(islice(remaining, size)):
        yield chunk
