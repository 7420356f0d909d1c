"""Sampling step: sound for silent video (`Generator`) or for clips whose features are encoded (`sample_clips`).

Shapes: B clips, T video frames, H W pixels, L tokens, N samples, C channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from flowley.codecs import AudioCodec
from flowley.features.dataset import Clip, collate, pad_captions
from flowley.features.encode import Encoders
from flowley.network.base import Conditions, VelocityNetwork
from flowley.network.feature_spec import FeatureSpec
from flowley.network.registry import load_network
from flowley.sampling.sample import sample
from flowley.sampling.solvers import SampleSettings
from flowley.upstream import load_upstream


@dataclass(frozen=True, slots=True, eq=False)
class SilentVideo:
    """Frames and caption of one clip that needs sound."""

    frames: np.ndarray
    """(T, H, W, 3) uint8 RGB at the network's r_v; frame k is at k / r_v seconds."""
    caption: str
    """May be empty: the sound then follows the picture alone."""
    seed: int
    """Seed of the noise: a clip sounds the same in any batch."""
    duration_s: float | None = None
    """Duration of the sound; None: T / r_v. A last frame that the video lacks is held."""


class Generator:
    """Sound for silent video: a network with the encoders and the codec of its features, which load on first use.

    The network is moved to `device` and set to eval mode. Where its null condition is the empty caption and it has
    none, the generator encodes it.
    """

    def __init__(self, network: VelocityNetwork, features: FeatureSpec, *, device: str = "cpu") -> None:
        self.network = network.to(device).eval()
        self.encoders = Encoders(features, self.network.config, device=device)

    @classmethod
    def load(
        cls, checkpoint: str | Path, *, revision: str | None = None, features: FeatureSpec | None = None,
        device: str = "cpu",
    ) -> Self:  # fmt: skip
        """From a folder that `save_pretrained` wrote, a hub id, or a file of `flowley.upstream`.

        `features` take the place of those that the checkpoint records.

        Raises:
            ValueError: the checkpoint does not load, or does not name its encoders and codec.
        """
        network = open_network(checkpoint, revision=revision)
        features = features or network.features
        if features is None:
            raise ValueError(
                f"{checkpoint} does not say which encoders and codec its features are made with: give visual, text "
                "and codec"
            )
        return cls(network, features, device=device)

    def generate(
        self, videos: Sequence[SilentVideo], settings: SampleSettings, *, video_hz: float, negative: str | None = None
    ) -> list[Tensor]:
        """Sounds of a batch of videos; each (round(duration_s * audio_hz),) float32 in [-1, 1], on the CPU.

        Videos of the same length share a batch, and so do all windows of a longer one.

        Args:
            video_hz: rate of the frames, to be the network's r_v.
            negative: description of unwanted sound, instead of the empty caption.

        Raises:
            ValueError: frames at another rate or too few of them, a caption longer than the encoder takes, or
                encoders and codec that are not those of the network.
        """
        r_v = self.network.config.r_v
        if abs(video_hz - float(r_v)) > 1e-3:
            raise ValueError(f"frames at {video_hz:g} Hz, this network sees r_v = {float(r_v):g} Hz: sample them so")
        for video in videos:
            self._check_frames(video)
        conditions = self.encode_text([video.caption for video in videos])
        unwanted = None if negative is None else self.encode_text([negative])
        visual = [self._encode_frames(video) for video in videos]
        self._require_null_text()
        groups: dict[tuple[int, int], list[int]] = {}
        for row, video in enumerate(videos):
            groups.setdefault(self.network.config.lengths(self.duration_s(video)), []).append(row)
        waves: dict[int, Tensor] = {}
        for (L_aud, _), rows in groups.items():
            seen = torch.stack([visual[row] for row in rows])
            made = make_sounds(
                self.network, self.encoders.codec, conditions.captions_of(rows)._replace(visual=seen), L_aud=L_aud,
                seeds=[videos[row].seed for row in rows], settings=settings, negative=unwanted,
            )  # fmt: skip
            waves |= dict(zip(rows, made, strict=True))
        n_samples = [round(self.duration_s(video) * self.encoders.codec.audio_hz) for video in videos]
        return [waves[row][:n] for row, n in enumerate(n_samples)]

    def duration_s(self, video: SilentVideo) -> float:
        """Duration of the sound that the video gets."""
        return len(video.frames) / float(self.network.config.r_v) if video.duration_s is None else video.duration_s

    def check(self, video: SilentVideo) -> None:
        """Raises ValueError where the frames are not those of the sound, or the caption is too long."""
        self._check_frames(video)
        self.encode_text([video.caption])

    def _check_frames(self, video: SilentVideo) -> None:
        frames, config, duration_s = video.frames, self.network.config, self.duration_s(video)
        if len(frames) < 2:
            raise ValueError(
                f"{len(frames)} video frames at r_v = {float(config.r_v):g} Hz, wanted at least 2: one picture shows "
                f"no motion; give a video longer than {2 / float(config.r_v):g} s"
            )
        _, L_vis = config.lengths(duration_s)
        if not L_vis - 1 <= len(frames) <= L_vis:
            raise ValueError(
                f"{len(frames)} video frames for {duration_s:g} s at r_v = {float(config.r_v):g} Hz, wanted {L_vis}: "
                "sample the frames of just that time"
            )

    def encode_text(self, captions: Sequence[str]) -> Conditions:
        """Captions as conditions without video: visual is (1, 1, C_vis) zeros, to be replaced.

        Raises:
            ValueError: a caption is longer than the network takes; the message says by how much.
        """
        encoder = self.encoders.text
        encoded = encoder.encode(captions)
        for caption, one in zip(captions, encoded, strict=True):
            if one.tokens_cut:
                limit, shown = encoder.max_tokens, caption if len(caption) <= 60 else caption[:57] + "..."
                raise ValueError(
                    f"caption {shown!r} has {limit + one.tokens_cut} tokens, this network takes {limit}: "
                    f"shorten it by {one.tokens_cut}"
                )
        text, mask = pad_captions([one.features for one in encoded], [one.n_tokens for one in encoded])
        return Conditions(torch.zeros(1, 1, self.network.config.visual_dim), text, mask)

    def _encode_frames(self, video: SilentVideo) -> Tensor:
        """(L_vis, C_vis)."""
        _, L_vis = self.network.config.lengths(self.duration_s(video))
        features = torch.from_numpy(self.encoders.visual.encode(video.frames))
        return torch.cat([features, features[-1:].expand(L_vis - len(features), -1)])

    def _require_null_text(self) -> None:
        if self.network.config.null_text == "empty_caption" and len(self.network.null_text) == 0:
            [empty] = self.encoders.text.encode([""])
            self.network.set_null_text(torch.from_numpy(empty.features.astype(np.float32)))


def sample_clips(
    network: VelocityNetwork, codec: AudioCodec, clips: Sequence[Clip], *, duration_s: float, seeds: Sequence[int],
    settings: SampleSettings,
) -> Tensor:  # fmt: skip
    """Sounds of clips whose features are encoded already; (B, round(duration_s * audio_hz)), as `make_sounds`.

    The network is in eval mode, the codec on its device; there is one seed per clip (`clip_seed`). The clips' own
    sound is not looked at.

    Raises:
        ValueError: features that are too short, not finite, or do not fit the network.
    """
    batch = collate(clips, network.config, duration_s)
    L_aud = batch.audio_mean.shape[1]
    waves = make_sounds(network, codec, batch.conditions, L_aud=L_aud, seeds=seeds, settings=settings)
    return waves[:, : round(duration_s * codec.audio_hz)]


def clip_seed(clip_id: str, seed: int) -> int:
    """Seed of one clip's noise, so that its sound does not depend on the batch it is in."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{clip_id}".encode()).digest()[:7], "big")


def make_sounds(
    network: VelocityNetwork, codec: AudioCodec, conditions: Conditions, *, L_aud: int, seeds: Sequence[int],
    settings: SampleSettings, negative: Conditions | None = None,
) -> Tensor:  # fmt: skip
    """Sounds of B clips from their conditions; (B, N) float32 in [-1, 1] on the CPU. See `flowley.sampling.sample`.

    Raises:
        ValueError: features that are not finite or do not fit the network.
    """
    device = network.latent_mean.device

    def moved(features: Conditions) -> Conditions:
        for name, x in features._asdict().items():
            if x is not None and not torch.isfinite(x).all():
                raise ValueError(f"{name} features are not finite: extract them again")
        return features.map(lambda x: x.to(device, x.dtype if x.dtype == torch.bool else torch.float32))

    latent = sample(
        network, moved(conditions), L_aud=L_aud, seeds=seeds, settings=settings,
        negative=None if negative is None else moved(negative),
    )  # fmt: skip
    with torch.inference_mode():
        return codec.decode(latent).float().clamp(-1, 1).cpu()


def open_network(checkpoint: str | Path, *, revision: str | None = None) -> VelocityNetwork:
    """A network of this package (folder or hub id) or, from a file, one that others published.

    Raises:
        ValueError: it does not load.
    """
    path = Path(checkpoint)
    if path.is_file() or path.suffix in (".pth", ".pt", ".safetensors"):
        return load_upstream(path)
    return load_network(checkpoint, revision=revision)
