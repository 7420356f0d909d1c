"""Captioning engines. They differ in speed, not in what a model sees and hears."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from soundcap.pretrained import load_processor
from soundcap.request import CaptionRequest, FrameSettings, Sampling, check_fields


class EngineError(RuntimeError):
    """An engine that cannot be started, or that is lost and must be loaded again."""


class CaptionEngine(Protocol):
    """Loaded model, ready to caption."""

    def caption(self, requests: Sequence[CaptionRequest]) -> list[str | Exception]:
        """Caption clips; one bad request costs only itself.

        Args:
            requests: Any number of clips. A clip's prompt, media and `max_new_tokens` together must fit the
                model; a clip that does not fit is an error and never cut.

        Returns:
            One answer per request, in order: its text (special tokens removed, stripped) or its own error.

        Raises:
            EngineError: The engine itself is lost.
        """
        ...

    def close(self) -> None:
        """Free the model's memory. The engine answers no more."""
        ...


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
    """What runs the model; vllm is meant for GPUs."""
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
