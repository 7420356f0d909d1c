"""Silent video and a caption in, sound out: network, encoders and codec as one.

Shapes: B clips, T video frames, H W pixels, L tokens, N samples, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from flowley.codecs import AudioCodec
from flowley.encoders import TextEncoder, VisualEncoder
from flowley.feature_spec import FeatureSpec
from flowley.network import Conditions, VelocityNetwork
from flowley.parts import open_codec, open_text, open_visual
from flowley.registry import load_network
from flowley.sample import SampleSettings, sample
from flowley.upstream import load_upstream

UPSTREAM_SUFFIXES = (".pth", ".pt", ".safetensors")


@dataclass(frozen=True, slots=True, eq=False)
class SilentVideo:
    """Frames of one clip and what should be heard."""

    frames: np.ndarray
    """(T, H, W, 3) uint8 RGB at the network's r_v; frame k is shown at k / r_v seconds."""
    caption: str
    """May be empty: the sound then follows the picture alone."""
    seed: int
    """Decides the noise, so that a clip sounds the same whatever it is batched with."""
    duration_s: float | None = None
    """Of the sound; None: T / r_v. One frame of the video may be missing at its end, it is then held."""


class Generator:
    """Makes sound for silent video. Encoders and codec load when they are first needed.

    Args:
        network: in eval mode. It moves to `device`, and encodes the empty caption where its null is that and it
            has none.
        features: what its features are made with.
        device: of everything.
    """

    def __init__(self, network: VelocityNetwork, features: FeatureSpec, *, device: str = "cpu") -> None:
        self.network = network.to(device).eval()
        self.features, self.device = features, device

    @classmethod
    def load(
        cls, checkpoint: str | Path, *, revision: str | None = None, features: FeatureSpec | None = None,
        device: str = "cpu",
    ) -> Self:  # fmt: skip
        """From a folder that `save_pretrained` wrote, a hub id, or a file of `flowley.upstream`.

        Args:
            checkpoint, revision: of the network.
            features: instead of what the checkpoint records.

        Raises:
            ValueError: the checkpoint does not load, or does not say what its features are made with.
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
            videos: at least one.
            settings: how sounds are drawn.
            video_hz: rate of the frames, to be the network's r_v.
            negative: what no sound should be; instead of the empty caption.

        Raises:
            ValueError: frames at another rate or too few of them, a caption longer than the encoder takes, or
                encoders and codec that are not those of the network.
        """
        r_v = self.network.config.r_v
        if abs(video_hz - float(r_v)) > 1e-3:
            raise ValueError(f"frames at {video_hz:g} Hz, this network sees r_v = {float(r_v):g} Hz: sample them so")
        for video in videos:
            self._check_frames(video)
        captions = self.encode_text([video.caption for video in videos])
        unwanted = None if negative is None else self.encode_text([negative])
        visual = [self._encode_frames(video) for video in videos]
        self._require_null_text()
        waves: dict[int, Tensor] = {}
        for (L_aud, _), rows in self._grouped(videos).items():
            seen = torch.stack([visual[row] for row in rows])
            made = make_sounds(
                self.network, self.codec, _rows(captions, rows)._replace(visual=seen), L_aud=L_aud,
                seeds=[videos[row].seed for row in rows], settings=settings, negative=unwanted,
            )  # fmt: skip
            waves |= dict(zip(rows, made, strict=True))
        n_samples = [round(self.duration_s(video) * self.codec.audio_hz) for video in videos]
        return [waves[row][:n] for row, n in enumerate(n_samples)]

    def duration_s(self, video: SilentVideo) -> float:
        """Of the sound that the video gets."""
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
        encoded = self.text.encode(captions)
        limit = self.text.max_tokens
        for caption, one in zip(captions, encoded, strict=True):
            if one.tokens_cut:
                raise ValueError(
                    f"caption {_shortened(caption)!r} has {limit + one.tokens_cut} tokens, this network takes {limit}: "
                    f"shorten it by {one.tokens_cut}"
                )
        width = max(len(one.features) for one in encoded)
        text = torch.zeros(len(encoded), width, self.text.dim)
        for row, one in zip(text, encoded, strict=True):
            row[: len(one.features)] = torch.from_numpy(one.features.astype(np.float32))
        n_tokens = torch.tensor([one.n_tokens for one in encoded])
        return Conditions(
            torch.zeros(1, 1, self.network.config.visual_dim), text, torch.arange(width) < n_tokens[:, None]
        )

    def load_parts(self) -> None:
        """Loads encoders and codec now instead of when they are first needed. Raises ValueError as they do."""
        _ = self.visual, self.text, self.codec

    @cached_property
    def visual(self) -> VisualEncoder:
        """See `flowley.parts.open_visual`."""
        return open_visual(self.features, self.network.config, device=self.device)

    @cached_property
    def text(self) -> TextEncoder:
        """See `flowley.parts.open_text`."""
        return open_text(self.features, self.network.config, device=self.device)

    @cached_property
    def codec(self) -> AudioCodec:
        """See `flowley.parts.open_codec`."""
        return open_codec(self.features, self.network.config, device=self.device)

    def _encode_frames(self, video: SilentVideo) -> Tensor:
        """(L_vis, C_vis)."""
        _, L_vis = self.network.config.lengths(self.duration_s(video))
        features = torch.from_numpy(self.visual.encode(video.frames))
        return torch.cat([features, features[-1:].expand(L_vis - len(features), -1)])

    def _grouped(self, videos: Sequence[SilentVideo]) -> dict[tuple[int, int], list[int]]:
        """Rows of equal (L_aud, L_vis)."""
        groups: dict[tuple[int, int], list[int]] = {}
        for row, video in enumerate(videos):
            groups.setdefault(self.network.config.lengths(self.duration_s(video)), []).append(row)
        return groups

    def _require_null_text(self) -> None:
        if self.network.config.null_text == "empty_caption" and len(self.network.null_text) == 0:
            [empty] = self.text.encode([""])
            self.network.set_null_text(torch.from_numpy(empty.features.astype(np.float32)))


def make_sounds(
    network: VelocityNetwork, codec: AudioCodec, conditions: Conditions, *, L_aud: int, seeds: Sequence[int],
    settings: SampleSettings, negative: Conditions | None = None,
) -> Tensor:  # fmt: skip
    """Sounds of B clips whose features are given; (B, N) float32 in [-1, 1] on the CPU. See `flowley.sample.sample`.

    Raises:
        ValueError: features that are not finite or do not fit the network.
    """
    device = network.latent_mean.device

    def moved(given: Conditions) -> Conditions:
        for name, x in given._asdict().items():
            if x is not None and not torch.isfinite(x).all():
                raise ValueError(f"{name} features are not finite: extract them again")
        return given.map(lambda x: x.to(device, x.dtype if x.dtype == torch.bool else torch.float32))

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
    if path.is_file() or path.suffix in UPSTREAM_SUFFIXES:
        return load_upstream(path)
    return load_network(checkpoint, revision=revision)


def _rows(conditions: Conditions, rows: list[int]) -> Conditions:
    """Captions of some clips; visual is left to be replaced."""
    return conditions._replace(text=conditions.text[rows], text_mask=conditions.text_mask[rows])


def _shortened(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
