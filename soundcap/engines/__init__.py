"""Captioning engines. They differ in speed, not in what a model sees and hears."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from soundcap.pretrained import load_processor
from soundcap.request import CaptionRequest, FrameSettings, Sampling, check_fields


class EngineError(RuntimeError):
    """An engine that cannot be started, or that is lost and must be loaded again."""


class CaptionEngine(ABC):
    """Loaded model, ready to caption.

    Requests are prepared, added and answered one by one, so that an engine works while others are prepared:
    `soundcap.engines.stream` does so. `caption` is for callers who have all requests at once.

    Attributes:
        fills_batches: a step takes as long for one request as for as many as there is room for.
    """

    fills_batches: bool

    @abstractmethod
    def prepare(self, request: CaptionRequest) -> Any:
        """Request as `add` takes it. Any thread may call this, at any time.

        Raises:
            ValueError: the model cannot take it.
        """

    @property
    @abstractmethod
    def has_room(self) -> bool:
        """Whether another request can be added before the next step."""

    @abstractmethod
    def add(self, key: str, prepared: Any) -> None:
        """Adds a request under a key of its own. Its media and text with `max_new_tokens` must fit the model.

        Raises:
            ValueError: they do not; nothing is ever cut.
        """

    @abstractmethod
    def step(self) -> list[tuple[str, str | Exception]]:
        """Works on what was added. Returns what is finished: key, and text (without special tokens) or error.

        Raises:
            EngineError: the engine itself is lost.
        """

    @abstractmethod
    def close(self) -> None:
        """Frees the model's memory. The engine answers no more."""

    def caption(self, requests: Sequence[CaptionRequest]) -> list[str | Exception]:
        """Answers of clips, in order: text or error of each; one bad request costs only itself.

        Raises:
            EngineError: the engine itself is lost.
        """
        answers: dict[str, str | Exception] = {}
        keys = [f"{id(requests)}-{place}" for place in range(len(requests))]
        waiting = deque(zip(keys, requests, strict=True))
        while len(answers) < len(requests):
            while waiting and self.has_room:
                key, request = waiting.popleft()
                try:
                    self.add(key, self.prepare(request))
                except ValueError as error:
                    answers[key] = error
            if len(answers) + len(waiting) < len(requests):
                answers |= dict(self.step())
        return [answers[key] for key in keys]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Use of the machine, which changes nothing that a model sees. Raises ValueError for a field out of range."""

    batch_size: int = 16
    """transformers: requests per forward pass. vLLM schedules by itself."""
    tensor_parallel_size: int = 1
    """vllm: GPUs over which one model is split."""
    gpu_memory_utilization: float = 0.9
    """vllm: share of each GPU's memory for weights and cache, in (0, 1]."""
    max_model_len: int | None = None
    """vllm: longest sequence in tokens, clip, prompt and answer together; None: the model's own limit, whose
    cache may not fit a small GPU."""
    cpu_cache_gib: int = 1
    """vllm on a CPU: size of its cache, in GiB."""

    def __post_init__(self) -> None:
        ranges = dict.fromkeys(("batch_size", "tensor_parallel_size", "max_model_len", "cpu_cache_gib"), "[1, inf)")
        check_fields(self, **ranges, gpu_memory_utilization="(0, 1]")


@dataclass(frozen=True, slots=True)
class EngineExecution:
    """Engine, device and precision. Stored captions are the record, whichever engine wrote them.

    Raises ValueError for a field out of range.
    """

    engine: Literal["transformers", "vllm"] = "vllm"
    """Library that runs the model; vllm is meant for GPUs."""
    device: str = "cuda"
    """"cpu", "cuda" or "cuda:N"."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Precision of the weights."""
    options: EngineOptions = EngineOptions()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.device.split(":")[0] not in ("cpu", "cuda"):
            raise ValueError(f"device: got {self.device!r}, wanted 'cpu' or 'cuda'")


def load_engine(
    model: str,
    revision: str | None,
    adapter: str | None,
    *,
    frames: FrameSettings,
    sampling: Sampling,
    execution: EngineExecution,
) -> CaptionEngine:
    """Load a checkpoint into an engine.

    Args:
        model: Checkpoint folder or hub id; its class follows from `model_type` in config.json.
        revision: Commit of a hub id, or None.
        adapter: Folder of a LoRA adapter, or None.
        frames: Area within which frames are scaled. Their rate is each request's own.
        sampling: Decoding of the answers.
        execution: Engine, device and precision.

    Raises:
        CheckpointError: The checkpoint or adapter cannot be used.
        EngineError: The engine is not installed, or its device is missing.
    """
    settings = (load_processor(model, revision), model, revision, adapter, frames, sampling, execution)
    if execution.engine == "transformers":
        from soundcap.engines.transformers_engine import TransformersEngine

        return TransformersEngine(*settings)
    from soundcap.engines.vllm_engine import VllmEngine

    return VllmEngine(*settings)
