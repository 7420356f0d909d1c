"""Agreement of texts with sounds: cosines of their embeddings by CLAP (Wu et al. 2023, arXiv:2211.06687).

Loads any CLAP checkpoint of transformers. Shapes: N sounds or texts, D channels of the common space.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from flowley.features.encoders import load_frozen
from flowley.features.model_types import CLAP_CLASSES
from flowley.hub import one_line
from flowley.metrics.spectral import checked_wave
from flowley.weights import UNREADABLE


class Clap:
    """CLAP model: sounds of any length and texts to vectors of norm 1 in one space.

    The model hears `window_s` seconds at `hz`. A shorter sound is repeated and padded as the checkpoint's extractor
    says. A longer one is cut into as few windows as cover it, evenly from its start to its end, and has the mean of
    their embeddings: the extractor alone would take a random part of it. A text is cut at the encoder's limit.

    Args:
        model: folder or hub id of a CLAP checkpoint.
        revision: of a hub id.
        device: cpu, cuda or cuda:N.

    Raises:
        ValueError: not a CLAP checkpoint with its processor, or one that lacks weights.
    """

    def __init__(self, model: str, *, revision: str | None = None, device: str = "cpu") -> None:
        try:
            self.model, processor = load_frozen(
                "CLAP model", model, revision, CLAP_CLASSES, "AutoProcessor", "float32", "cpu"
            )
            self.extractor, self.tokenizer = processor.feature_extractor, processor.tokenizer
        except (*UNREADABLE, AttributeError) as error:
            why = one_line(error)
            raise ValueError(
                f"{model} is not a CLAP checkpoint ({why}): give a folder or a hub id of a ClapModel"
            ) from error
        self.device = torch.device(device)
        self.model.to(self.device)  # not above, where a GPU that is not there would be the checkpoint's fault
        text = self.model.config.text_config
        positions = text.max_position_embeddings - text.pad_token_id - 1  # RoBERTa counts from behind the padding's
        self.max_tokens = min(int(self.tokenizer.model_max_length), positions)
        self.hz, self.window = int(self.extractor.sampling_rate), int(self.extractor.nb_max_samples)

    @property
    def window_s(self) -> float:
        """Seconds of sound that the model hears at once."""
        return self.window / self.hz

    def embed_sounds(self, waves: Sequence[np.ndarray], hz: int, *, batch_size: int = 16) -> np.ndarray:
        """Mono waveforms (N_i,) at hz -> (N, D) float32, each of norm 1; resampled to the model's rate.

        Raises:
            ValueError: there are none; one is empty, not mono or not finite; hz is below 8 kHz.
        """
        if len(waves) == 0:
            raise ValueError("no sounds to listen to: wanted at least one")
        windows = [self._windows(wave, hz) for wave in waves]
        flat = [window for of_one in windows for window in of_one]
        parts = [self._embed_windows(flat[start : start + batch_size]) for start in range(0, len(flat), batch_size)]
        of_each = torch.split(torch.cat(parts), [len(of_one) for of_one in windows])
        return normalize(torch.stack([one.mean(0) for one in of_each]), dim=-1).cpu().numpy()

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Texts -> (N, D) float32, each of norm 1.

        Raises:
            ValueError: there are none.
        """
        if len(texts) == 0:
            raise ValueError("no texts to read: wanted at least one")
        parts = []
        for start in range(0, len(texts), batch_size):
            inputs = self.tokenizer(
                list(texts[start : start + batch_size]),
                padding=True,
                truncation=True,
                max_length=self.max_tokens,
                return_tensors="pt",
            ).to(self.device)
            found = self.model.get_text_features(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
            parts.append(found.pooler_output.cpu().numpy())
        return np.concatenate(parts)

    def agreement(self, waves: Sequence[np.ndarray], hz: int, texts: Sequence[str]) -> np.ndarray:
        """Cosine (N,) float32, -1 to 1, of each sound's embedding with that of its text.

        Raises:
            ValueError: as `embed_sounds`, or the counts differ.
        """
        if len(waves) != len(texts):
            raise ValueError(f"{len(waves)} sounds and {len(texts)} texts: wanted as many of each")
        cosines: np.ndarray = np.einsum("nd,nd->n", self.embed_sounds(waves, hz), self.embed_texts(texts))
        return cosines

    def _windows(self, wave: np.ndarray, hz: int) -> list[np.ndarray]:
        """Windows (W_i,) of a sound at the model's rate, W_i at most `window`."""
        from torchaudio.functional import resample

        samples = resample(torch.from_numpy(checked_wave(wave, hz)).float(), hz, self.hz).numpy()
        count = -(-len(samples) // self.window)
        starts = np.linspace(0, max(0, len(samples) - self.window), count).round().astype(int)
        return [samples[start : start + self.window] for start in starts]

    @torch.inference_mode()
    def _embed_windows(self, windows: Sequence[np.ndarray]) -> Tensor:
        mels = self.extractor(list(windows), sampling_rate=self.hz, return_tensors="pt")["input_features"]
        # The extractor calls one window of a batch longer by chance, where none is; a model with fusion would hear it.
        is_longer = torch.zeros(len(windows), 1, dtype=torch.bool)
        found: Tensor = self.model.get_audio_features(
            input_features=mels.to(self.device, self.model.dtype), is_longer=is_longer.to(self.device)
        ).pooler_output
        return found
