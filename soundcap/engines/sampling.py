"""Sampling for transformers in which a request's answer does not depend on the requests beside it."""

from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.generation import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from soundcap.request import Sampling

if TYPE_CHECKING:
    from torch import Tensor


def logits_processors(sampling: Sampling, attention_mask: "Tensor") -> LogitsProcessorList:
    """What turns the model's logits (B, V) into scores whose argmax is the next token.

    `attention_mask` (B, L) is the prompts'. Drawing is by Gumbel-max: the argmax of log-probabilities plus
    Gumbel noise is a sample, and each row has a random generator of its own.
    """
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(_PenaltyIgnoringPadding(sampling.repetition_penalty, attention_mask))
    if sampling.temperature > 0:
        processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_p < 1:
            processors.append(TopPLogitsWarper(sampling.top_p))
        processors.append(_GumbelNoise(sampling.seed, n_rows=len(attention_mask)))
    return processors


class _GumbelNoise(LogitsProcessor):
    def __init__(self, seed: int, n_rows: int) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for _ in range(n_rows)]

    def __call__(self, input_ids: "Tensor", scores: "Tensor") -> "Tensor":
        rows = [torch.empty(scores.shape[-1]).exponential_(generator=row) for row in self._generators]
        return scores - torch.stack(rows).log().to(scores.device)


class _PenaltyIgnoringPadding(RepetitionPenaltyLogitsProcessor):
    """Penalises what a request's own prompt and answer hold, as vLLM does; not the padding of its batch."""

    def __init__(self, penalty: float, attention_mask: "Tensor") -> None:
        super().__init__(penalty)
        self._is_padding = attention_mask == 0

    def __call__(self, input_ids: "Tensor", scores: "Tensor") -> "Tensor":
        length = self._is_padding.shape[1]
        prompt_end = input_ids[:, length - 1 : length]
        prompt = torch.where(self._is_padding, prompt_end, input_ids[:, :length])
        penalised: Tensor = super().__call__(torch.cat([prompt, input_ids[:, length:]], dim=1), scores)
        return penalised
