"""Oobleck, the waveform autoencoder of Stable Audio and ACE-Step 1.5, through diffusers."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from flowley.codecs.pretrained_codec import PretrainedCodec
from flowley.weights import CONFIG, DIFFUSERS_WEIGHTS, class_of, find_file, load_model


class OobleckCodec(PretrainedCodec):
    """Wave -> latent -> wave at the rates of the checkpoint's own config.

    ACE-Step 1.5: 48 kHz, 64 channels at 25 Hz; Stable Audio Open: 44.1 kHz, 64 channels at 21.53 Hz. A stereo
    checkpoint hears the mono wave in both channels, and what it decodes is averaged over them.
    """

    files: ClassVar = tuple(f"{sub}{name}" for sub in ("", "vae/") for name in (CONFIG, DIFFUSERS_WEIGHTS))
    contents: ClassVar = f"a folder with an AutoencoderOobleck's {CONFIG} and {DIFFUSERS_WEIGHTS} (also under vae/)"

    def __init__(self, model: Any) -> None:
        """Args: model: a diffusers AutoencoderOobleck."""
        super().__init__()
        self.model = model
        self.audio_hz = int(model.config.sampling_rate)
        self.latent_dim = int(model.config.decoder_input_channels)
        self.frame_samples = prod(model.config.downsampling_ratios)
        self.n_channels = int(model.config.audio_channels)

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """See `PretrainedCodec.from_folder`."""
        for candidate in (folder, folder / "vae"):
            config = candidate / CONFIG
            if config.is_file() and class_of(config) == "AutoencoderOobleck":
                return cls(load_model(candidate, "AutoencoderOobleck", DIFFUSERS_WEIGHTS, wanted=cls.contents))
        found = find_file(folder, CONFIG, below=("vae",), wanted=cls.contents)
        raise ValueError(f"{found} is of a {class_of(found)}: wanted {cls.contents}")

    def _encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.model.encode(wave[:, None].expand(-1, self.n_channels, -1)).latent_dist
        return posterior.mean.transpose(1, 2), posterior.std.transpose(1, 2)

    def _decode(self, latent: Tensor) -> Tensor:
        wave: Tensor = self.model.decode(latent.transpose(1, 2)).sample  # an odd ratio r gives r - 1 at the end
        return wave.mean(1)
