"""Engines that answer captioning requests. They differ in speed, not in what a model is shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from soundcap.request import CaptionRequest, Sampling

EngineName = Literal["transformers", "vllm"]


class EngineError(RuntimeError):
    """An engine that cannot be started, or that is lost and must be loaded again."""


class CaptionEngine(Protocol):
    """A loaded model, ready to caption."""

    def caption(self, requests: Sequence[CaptionRequest]) -> list[str | Exception]:
        """One answer per request, in order: its text (special tokens removed, stripped) or its own error.

        Prompt, clip and `max_new_tokens` together must fit the model; what does not fit is an error, never
        cut. Raises EngineError if the engine itself is lost.
        """
        ...

    def close(self) -> None:
        """Free the model's memory. The engine answers no more."""
        ...


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine uses its machine. None of it changes what a request is shown."""

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


def load_engine(
    name: EngineName,
    *,
    model: str,
    revision: str | None,
    adapter: str | None,
    sampling: Sampling,
    min_frame_px: int,
    max_frame_px: int,
    dtype: str,
    device: str,
    options: EngineOptions | None = None,
) -> CaptionEngine:
    """Load a checkpoint into an engine.

    `model` is a checkpoint folder, or a hub id at `revision`; its class follows from `model_type` in
    config.json. `adapter` is the folder of a LoRA adapter or None. Frames are scaled to an area within
    `min_frame_px` and `max_frame_px` (pixels per frame). `dtype` is "float32", "bfloat16" or "float16";
    `device` is "cpu" or "cuda".

    Raises CheckpointError for an unusable checkpoint or adapter, EngineError for an engine that is not
    installed, ValueError for an unknown engine, dtype or device.
    """
    if name not in get_args(EngineName):
        raise ValueError(f"engine: got {name!r}, wanted one of {', '.join(get_args(EngineName))}")
    if dtype not in (dtypes := ("float32", "bfloat16", "float16")):
        raise ValueError(f"dtype: got {dtype!r}, wanted one of {', '.join(dtypes)}")
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"device: got {device!r}, wanted 'cpu' or 'cuda'")
    if not 0 < min_frame_px <= max_frame_px:
        raise ValueError(
            f"min_frame_px, max_frame_px: got {min_frame_px} and {max_frame_px}, "
            "wanted 0 < min_frame_px <= max_frame_px"
        )
    from soundcap.checkpoint import load_processor

    processor = load_processor(model, revision)
    given = EngineSettings(model, revision, adapter, sampling, min_frame_px, max_frame_px, dtype, device)
    if name == "transformers":
        from soundcap.engines.transformers_engine import TransformersEngine

        return TransformersEngine(processor, given, options or EngineOptions())
    from soundcap.engines.vllm_engine import VllmEngine

    return VllmEngine(processor, given, options or EngineOptions())


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The arguments of `load_engine`, as the engines take them."""

    model: str
    revision: str | None
    adapter: str | None
    sampling: Sampling
    min_frame_px: int
    max_frame_px: int
    dtype: str
    device: str
