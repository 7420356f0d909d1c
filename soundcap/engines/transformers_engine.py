"""Engine on transformers, for any device that torch has."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.generation import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from soundcap.engines import CaptionEngine, EngineError, EngineExecution
from soundcap.inputs import END_OF_TURN, prepare_inputs
from soundcap.pretrained import CaptionProcessor, load_model
from soundcap.request import CaptionRequest, FrameSettings, Sampling


class TransformersEngine(CaptionEngine):
    """Engine that answers a batch in each step.

    Equal requests of equal seeds get equal answers, alone or beside others: each has a random generator of its own.
    """

    fills_batches = True

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
        if execution.device.startswith("cuda") and not torch.cuda.is_available():
            raise EngineError(f"device: got {execution.device!r}, but torch sees no GPU; use 'cpu' or mend the driver")
        self._processor, self._frames, self._sampling = processor, frames, sampling
        self._batch_size = execution.options.batch_size
        self._added: dict[str, CaptionRequest] = {}
        loaded = load_model(model, revision, dtype=execution.dtype, adapter=adapter)
        self._model: Any = loaded.to(execution.device).eval()
        self._model.generation_config = self._generation_config()

    def prepare(self, request: CaptionRequest) -> CaptionRequest:
        return request  # a batch is prepared together: its padding is the longest request's

    @property
    def has_room(self) -> bool:
        return len(self._added) < self._batch_size

    def add(self, key: str, prepared: CaptionRequest) -> None:
        self._added[key] = prepared

    def step(self) -> list[tuple[str, str | Exception]]:
        batch, self._added = self._added, {}
        return list(zip(batch, self._answers_or_errors(list(batch.values())), strict=True)) if batch else []

    def close(self) -> None:
        del self._model
        torch.cuda.empty_cache()

    def _generation_config(self) -> GenerationConfig:
        """Generation settings in place of the checkpoint's, whose sampling defaults would fill in what is unset."""
        tokenizer = self._processor.hf.tokenizer
        own = self._model.generation_config.eos_token_id
        own_ends = [own] if isinstance(own, int) else own or []
        return GenerationConfig(
            max_new_tokens=self._sampling.max_new_tokens,
            do_sample=False,
            eos_token_id=sorted({*own_ends, tokenizer.convert_tokens_to_ids(END_OF_TURN)}),
            pad_token_id=tokenizer.pad_token_id,
        )

    def _answers_or_errors(self, requests: Sequence[CaptionRequest]) -> list[str | Exception]:
        """Answers of a batch; if it raises, of each request by itself, with its own exception in its slot.

        EngineError passes through: it is not about a request.
        """
        try:
            return self._answer(requests)
        except EngineError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a request raises is its answer
            if len(requests) == 1:
                return [error]
        return [one for request in requests for one in self._answers_or_errors([request])]

    def _answer(self, requests: Sequence[CaptionRequest]) -> list[str | Exception]:
        max_tokens = self._processor.max_tokens - self._sampling.max_new_tokens
        inputs = prepare_inputs(self._processor, requests, answers=None, frames=self._frames, max_tokens=max_tokens)
        device, dtype = self._model.device, self._model.dtype
        seeds = [self._sampling.seed if request.seed is None else request.seed for request in requests]
        batch = {name: x.to(device, dtype if x.is_floating_point() else None) for name, x in inputs.items()}
        try:
            with torch.inference_mode():
                generated = self._model.generate(
                    **batch, logits_processor=logits_processors(self._sampling, batch["attention_mask"], seeds)
                )
        except torch.AcceleratorError as error:
            # Once a kernel has faulted every later call fails too, whatever the request
            raise EngineError(f"the GPU is lost ({error}); load the engine again in a new process") from error
        answers = generated[:, batch["input_ids"].shape[1] :]
        texts = self._processor.hf.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [text.strip() for text in texts]


def logits_processors(sampling: Sampling, attention_mask: Tensor, seeds: Sequence[int]) -> LogitsProcessorList:
    """Transforms from logits (B, V) to scores whose argmax is the next token, each row independent of its batch.

    `attention_mask` (B, L) is the prompts', `seeds` (B) are the rows', in place of the sampling's. Sampling is by
    Gumbel-max: the argmax of log-probabilities plus Gumbel noise is a sample, and each row has a random generator of
    its own.
    """
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(_PenaltyIgnoringPadding(sampling.repetition_penalty, attention_mask))
    if sampling.temperature > 0:
        processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_p < 1:
            processors.append(TopPLogitsWarper(sampling.top_p))
        processors.append(_GumbelNoise(seeds))
    return processors


class _GumbelNoise(LogitsProcessor):
    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = [torch.empty(scores.shape[-1]).exponential_(generator=row) for row in self._generators]
        return scores - torch.stack(rows).log().to(scores.device)


class _PenaltyIgnoringPadding(RepetitionPenaltyLogitsProcessor):
    """Repetition penalty over a request's own prompt and answer, as in vLLM, without its batch's padding."""

    def __init__(self, penalty: float, attention_mask: Tensor) -> None:
        super().__init__(penalty)
        self._is_padding = attention_mask == 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        length = self._is_padding.shape[1]
        prompt_end = input_ids[:, length - 1 : length]
        prompt = torch.where(self._is_padding, prompt_end, input_ids[:, :length])
        penalised: Tensor = super().__call__(torch.cat([prompt, input_ids[:, length:]], dim=1), scores)
        return penalised
