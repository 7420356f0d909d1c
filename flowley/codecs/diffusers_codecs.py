"""Codecs through diffusers and transformers: Oobleck, and the mel VAE and vocoder of AudioLDM 2.

Shapes: B batch, T mel frames, M mel bands, L latent frames; AudioLDM 2's latent has c channels of f bins.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from flowley.codecs.audio_codec import PretrainedCodec
from flowley.codecs.log_mel import LogMel
from flowley.weights import CONFIG, DIFFUSERS_WEIGHTS, WEIGHTS, class_of, find_file, load_model

_PARTS = (("vae", "AutoencoderKL", DIFFUSERS_WEIGHTS), ("vocoder", "SpeechT5HifiGan", WEIGHTS))
"""Folder, class and weights of each part of AudioLDM 2."""


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


class AudioLDM2Codec(PretrainedCodec):
    """Wave -> natural-log mel (64 bands, 1024 / 160, 0 to 8 kHz) -> latent, and back.

    As published: 16 kHz, 25 latent frames per second of 8 channels x 16 bins = 128 numbers, channel by channel.
    The latent is multiplied by the VAE's `scaling_factor`, so it is what AudioLDM 2's own network sees. Its
    training scaled every clip to a peak of 0.5; the codec keeps the loudness of its input.
    """

    files: ClassVar = tuple(f"{part}/{name}" for part, _, weights in _PARTS for name in (CONFIG, weights))
    contents: ClassVar = "a folder of AudioLDM 2 with " + " and ".join(
        f"{part}/ ({kind}: {CONFIG}, {weights})" for part, kind, weights in _PARTS
    )

    def __init__(self, vae: Any, vocoder: Any) -> None:
        """Args: vae: a diffusers AutoencoderKL of one channel; vocoder: a transformers SpeechT5HifiGan."""
        super().__init__()
        hop, n_mels = prod(vocoder.config.upsample_rates), int(vocoder.config.model_in_dim)
        shrink = 2 ** (len(vae.config.block_out_channels) - 1)
        if vae.config.in_channels != 1 or vae.config.out_channels != 1 or n_mels % shrink:
            raise ValueError(
                f"VAE of {vae.config.in_channels} channels that divides by {shrink}, vocoder of {n_mels} mel bands: "
                f"wanted {self.contents}"
            )
        self.audio_hz = int(vocoder.config.sampling_rate)
        self.frame_samples = hop * shrink
        self.bins = n_mels // shrink
        self.latent_dim = int(vae.config.latent_channels) * self.bins
        self.scale = float(vae.config.scaling_factor)
        self.mel = LogMel(audio_hz=self.audio_hz, n_fft=1024, hop=hop, n_mels=n_mels, log=torch.log, eps=0.0)
        self.vae, self.vocoder = vae, vocoder

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        models = []
        for part, kind, weights in _PARTS:
            config = find_file(folder, f"{part}/{CONFIG}", wanted=cls.contents)
            if class_of(config) != kind:
                raise ValueError(f"{config} is of a {class_of(config)}: wanted {cls.contents}")
            models.append(load_model(folder / part, kind, weights, wanted=cls.contents))
        return cls(*models)

    def _encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        mel = self.mel(wave).transpose(1, 2)[:, None]  # (B, 1, T, M)
        posterior = self.vae.encode(mel).latent_dist
        mean, std = (x.transpose(1, 2).flatten(2) * self.scale for x in (posterior.mean, posterior.std))
        return mean, std  # (B, c, L, f) -> (B, L, c f)

    def _decode(self, latent: Tensor) -> Tensor:
        B, L, _ = latent.shape
        latent = latent.reshape(B, L, -1, self.bins).transpose(1, 2) / self.scale
        mel = self.vae.decode(latent).sample[:, 0]  # (B, T, M)
        wave: Tensor = self.vocoder(mel)  # as published 32 samples too long, whatever L; AudioLDM 2 cuts the end too
        return wave
