"""The mel VAE and the HiFi-GAN vocoder of AudioLDM 2 (Liu et al., 2023), through diffusers and transformers.

Shapes: B batch, T mel frames, M mel bands, L latent frames; the VAE's latent has c channels of f bins.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from flowley.codecs.mel import LogMel
from flowley.codecs.pretrained_codec import PretrainedCodec
from flowley.weights import CONFIG, DIFFUSERS_WEIGHTS, WEIGHTS, class_of, find_file, load_model

_PARTS = (("vae", "AutoencoderKL", DIFFUSERS_WEIGHTS), ("vocoder", "SpeechT5HifiGan", WEIGHTS))


class AudioLDM2Codec(PretrainedCodec):
    """Wave -> natural-log mel (64 bands, 1024 / 160, 0 to 8 kHz) -> latent, and back.

    As published: 16 kHz, 25 latent frames per second of 8 channels x 16 bins = 128 numbers, channel by channel.
    The latent is multiplied by the VAE's `scaling_factor`, so it is what AudioLDM 2's own network sees. Its
    training scaled every clip to a peak of 0.5; the codec keeps the loudness it is given.
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
        """See `PretrainedCodec.from_folder`."""
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
