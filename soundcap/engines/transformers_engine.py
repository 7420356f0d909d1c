"""The transformers engine: runs wherever torch runs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from soundcap.checkpoint import CaptionProcessor, load_model
from soundcap.engines import EngineError, EngineOptions, EngineSettings
from soundcap.engines.isolate import answer_or_isolate
from soundcap.inputs import END_OF_TURN, prepare_inputs
from soundcap.request import CaptionRequest

if TYPE_CHECKING:
    from torch import Tensor


class TransformersEngine:
    """See `soundcap.engines.CaptionEngine`."""

    def __init__(self, processor: CaptionProcessor, settings: EngineSettings, options: EngineOptions) -> None:
        import torch

        if settings.device.startswith("cuda") and not torch.cuda.is_available():
            raise EngineError(f"device: got {settings.device!r}, but torch sees no GPU; use 'cpu' or mend the driver")
        self._processor = processor
        self._settings = settings
        self._batch_size = options.batch_size
        model = load_model(settings.model, settings.revision, dtype=settings.dtype, adapter=settings.adapter)
        self._model: Any = model.to(settings.device).eval()
        self._model.generation_config = self._generation_config()

    def caption(self, requests: Sequence[CaptionRequest]) -> list[str | Exception]:
        answers: list[str | Exception] = []
        for first in range(0, len(requests), self._batch_size):
            answers += answer_or_isolate(self._answer, requests[first : first + self._batch_size])
        return answers

    def close(self) -> None:
        import torch

        del self._model
        torch.cuda.empty_cache()

    def _generation_config(self) -> Any:
        """Ours in place of the checkpoint's, whose sampling defaults would fill in whatever is left unset."""
        from transformers import GenerationConfig

        tokenizer = self._processor.hf.tokenizer
        own = self._model.generation_config.eos_token_id
        own_ends = [own] if isinstance(own, int) else own or []
        return GenerationConfig(
            max_new_tokens=self._settings.sampling.max_new_tokens,
            do_sample=False,
            eos_token_id=sorted({*own_ends, tokenizer.convert_tokens_to_ids(END_OF_TURN)}),
            pad_token_id=tokenizer.pad_token_id,
        )

    def _answer(self, requests: Sequence[CaptionRequest]) -> list[str | Exception]:
        import torch

        from soundcap.engines.sampling import logits_processors

        sampling, settings = self._settings.sampling, self._settings
        inputs = prepare_inputs(
            self._processor,
            requests,
            answers=None,
            min_frame_px=settings.min_frame_px,
            max_frame_px=settings.max_frame_px,
            max_tokens=self._processor.max_tokens - sampling.max_new_tokens,
        )
        batch = {name: self._place(tensor) for name, tensor in inputs.items()}
        try:
            with torch.inference_mode():
                generated = self._model.generate(
                    **batch, logits_processor=logits_processors(sampling, batch["attention_mask"])
                )
        except torch.AcceleratorError as error:
            # Once a kernel has faulted every later call fails too, whatever the request
            raise EngineError(f"the GPU is lost ({error}); load the engine again in a new process") from error
        answers = generated[:, batch["input_ids"].shape[1] :]
        texts = self._processor.hf.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _place(self, tensor: "Tensor") -> "Tensor":
        return tensor.to(self._model.device, self._model.dtype if tensor.is_floating_point() else None)
