"""Engine on vLLM, for GPUs. Its CPU build serves the tests."""

import os
import threading
from importlib.util import find_spec
from typing import Any

from soundcap.engines import CaptionEngine, EngineError, EngineExecution
from soundcap.inputs import END_OF_TURN, padded_audio_samples, render_chat, video_metadata
from soundcap.pretrained import CaptionProcessor, CheckpointError, read_adapter_config
from soundcap.request import CaptionRequest, FrameSettings, Sampling

_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks for which vLLM reserves room."""


class VllmEngine(CaptionEngine):
    """Engine that schedules by itself: a step is one token of each request inside.

    A request's seed is that of a random generator of its own, so the requests beside it draw nothing from it. vLLM
    promises equal answers for equal seeds only on one kind of device with one version of it, and not even there
    beside other requests: the logits may differ in their last digits, and so an answer, as a greedy one may.
    """

    fills_batches = False

    def __init__(
        self,
        processor: CaptionProcessor,
        model: str,
        revision: str | None,
        adapter: str | None,
        frames: FrameSettings,
        sampling: Sampling,
        execution: EngineExecution,
    ) -> None:
        if find_spec("vllm") is None:
            raise EngineError(
                "engine 'vllm' is not installed: `pip install 'soundcap-flowley[gpu]'`, or use engine 'transformers'"
            )
        self._processor = processor
        self._sampling = sampling
        options = execution.options
        size = {"shortest_edge": frames.min_px, "longest_edge": frames.max_px}
        lora = {} if adapter is None else {"enable_lora": True, "max_lora_rank": _adapter_rank(adapter)}
        _set_environment(execution)
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        # Registers in this process; the worker extension does so in others
        import soundcap.engines.vllm_positions

        self._adapter = None if adapter is None else LoRARequest("adapter", 1, adapter)
        self._llm: Any = LLM(
            model=model,
            revision=revision,
            dtype=execution.dtype,
            max_model_len=options.max_model_len or processor.max_tokens,
            tensor_parallel_size=options.tensor_parallel_size,
            gpu_memory_utilization=options.gpu_memory_utilization,
            enforce_eager=execution.device == "cpu",
            limit_mm_per_prompt={"video": 1, "audio": int(processor.family.hears), "image": 0},
            # Clips of identical audio (silence) would otherwise reuse one another's layout (vLLM issue 44538)
            mm_processor_cache_gb=0,
            # Its keys leave out one of the two media of an interleaved block, so a video with another sound
            # would reuse the prefix that heard the first. Media precedes the text: there is little to reuse
            enable_prefix_caching=False,
            mm_processor_kwargs={"size": size, "cap_pixels_per_frame": False},
            worker_extension_cls=f"{soundcap.engines.vllm_positions.__name__}.WorkerExtension",
            **lora,
        )
        if self._adapter is not None:
            # Left alone vLLM reads the folder at the first request, when a caller may have removed its copy
            self._llm.llm_engine.add_lora(self._adapter)
        self._max_inside: int = self._llm.llm_engine.vllm_config.scheduler_config.max_num_seqs
        self._rendering = threading.Lock()  # vLLM itself renders media in one thread
        self._max_model_len: int = self._llm.llm_engine.model_config.max_model_len

    def prepare(self, request: CaptionRequest) -> Any:
        from vllm.exceptions import VLLMClientError
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        renderer = self._llm.llm_engine.renderer
        prompt = parse_model_prompt(self._llm.llm_engine.model_config, self._prompt(request))
        try:
            with self._rendering:
                [prepared] = renderer.render_cmpl([prompt], renderer.default_cmpl_tok_params)
        except VLLMClientError as error:
            raise ValueError(str(error)) from error
        return prepared, request.seed

    @property
    def has_room(self) -> bool:
        return bool(self._llm.llm_engine.get_num_unfinished_requests() < self._max_inside)

    def add(self, key: str, prepared: Any) -> None:
        from vllm.exceptions import VLLMClientError

        prompt, seed = prepared
        params = self._sampling_params(self._sampling.seed if seed is None else seed)
        try:
            self._llm.llm_engine.add_request(key, prompt, params, lora_request=self._adapter)
        except VLLMClientError as error:
            raise ValueError(str(error)) from error

    def step(self) -> list[tuple[str, str | Exception]]:
        try:
            outputs = self._llm.llm_engine.step()
        except Exception as error:
            raise EngineError(f"vLLM stopped ({error}); load the engine again in a new process") from error
        return [(output.request_id, self._answer(output)) for output in outputs if output.finished]

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm

    def _sampling_params(self, seed: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        tokenizer = self._processor.hf.tokenizer
        return SamplingParams(
            max_tokens=self._sampling.max_new_tokens,
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            repetition_penalty=self._sampling.repetition_penalty,
            seed=seed,
            stop_token_ids=[tokenizer.convert_tokens_to_ids(END_OF_TURN)],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _prompt(self, request: CaptionRequest) -> dict[str, Any]:
        chat = render_chat(self._processor, request)
        media: dict[str, Any] = {"video": [(request.frames, video_metadata(request) | {"do_sample_frames": False})]}
        # Per request: set for the engine as a whole, the audio flag crashes it (vLLM issue 47788)
        kwargs: dict[str, Any] = {"do_sample_frames": False}
        if self._processor.family.hears:
            kwargs |= {"fps": request.frames_fps, "use_audio_in_video": request.audio is not None}
        if request.audio is not None:
            media["audio"] = [(request.audio, request.audio_hz)]
            # vLLM lays out the interleaved block by this and not by fps, and takes 1 s without it
            pair_frames = self._processor.hf.video_processor.temporal_patch_size
            kwargs["second_per_grid_ts"] = [pair_frames / request.frames_fps]
            kwargs["audio_kwargs"] = {"max_length": padded_audio_samples(self._processor, len(request.audio))}
        return {"prompt": chat, "multi_modal_data": media, "mm_processor_kwargs": kwargs}

    def _answer(self, output: Any) -> str | Exception:
        n_prompt, n_new = len(output.prompt_token_ids), self._sampling.max_new_tokens
        if n_prompt + n_new > self._max_model_len:
            return ValueError(
                f"got {n_prompt} tokens of clip and prompt and {n_new} for the answer, wanted at most "
                f"{self._max_model_len}: lower max_px or the frame rate, or shorten the prompt"
            )
        tokenizer = self._processor.hf.tokenizer
        text: str = tokenizer.decode(list(output.outputs[0].token_ids), skip_special_tokens=True)
        return text.strip()


def _set_environment(execution: EngineExecution) -> None:
    """Set the variables that vLLM reads at its import, unless the operator has set them."""
    wanted = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if execution.device == "cpu":
        wanted |= {
            "VLLM_CPU_KVCACHE_SPACE": str(execution.options.cpu_cache_gib),
            # On a GPU a second process overlaps preparing with computing; here it would only start slower
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def _adapter_rank(adapter: str) -> int:
    """Smallest rank that vLLM reserves room for and that holds a LoRA adapter. Raises CheckpointError."""
    rank = int(read_adapter_config(adapter)["r"])
    if rank > _LORA_RANKS[-1]:
        raise CheckpointError(f"{adapter}: rank {rank}; vLLM takes at most {_LORA_RANKS[-1]}")
    return next(room for room in _LORA_RANKS if room >= rank)
