"""MMAudio (Cheng et al., CVPR 2025, arXiv 2412.15322): the peer that gets synchrony as features instead of by PSCA.

Joint blocks over audio latent, CLIP frames and CLIP text, then audio-only blocks. Synchformer features, resampled
to the latent's frames, are added to the condition of each audio token. The path is Flowley's: x_t runs from noise
at t = 0 to sound at t = 1, v = x_1 - x_0 (upstream's `min_sigma` is 0).

Captions are not masked: CLIP's text features keep their padding, and pooling and attention see all of it.

Shapes: B batch, L_aud audio latent frames, L_vis video frames, L_txt text tokens, L_sync synchronisation
features, C channels, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from flowley.network.attention import rope
from flowley.network.base import Conditions, VelocityNetwork
from flowley.network.blocks import (
    AdaLN,
    ConvMLP,
    MultiStreamBlock,
    OutputLayer,
    Stream,
    TimestepEmbedding,
    TokenConv1d,
    initialise,
)
from flowley.network.config import MMAudioConfig


class Embedded(NamedTuple):
    """Conditions inside the network and rotations; the same at every step of a sampler, so computed once."""

    x_vis: Tensor
    """(B, L_vis, D)."""
    x_txt: Tensor
    """(B, L_txt, D)."""
    x_sync: Tensor
    """(B, L_aud, D), resampled to the latent's frames."""
    c: Tensor
    """(B, D): global condition without the time."""
    rope_aud: Tensor
    """(2, L_aud, d)."""
    rope_vis: Tensor
    """(2, L_vis, d)."""


class MMAudio(VelocityNetwork):
    """The network of one `MMAudioConfig`."""

    config_type = MMAudioConfig
    config: MMAudioConfig

    def __init__(self, config: MMAudioConfig) -> None:
        super().__init__(config)
        D, hidden = config.D, config.mlp_dim
        self.embed_audio = nn.Sequential(TokenConv1d(config.latent_dim, D, 7), nn.SELU(), ConvMLP(D, hidden, kernel=7))
        self.embed_visual = nn.Sequential(nn.Linear(config.visual_dim, D), ConvMLP(D, hidden, kernel=3))
        self.embed_sync = nn.Sequential(
            TokenConv1d(config.synchformer_dim, D, 7), nn.SELU(), ConvMLP(D, hidden, kernel=3)
        )
        self.embed_text = nn.Sequential(nn.Linear(config.text_dim, D), ConvMLP(D, hidden, kernel=1))
        self.pooled_visual = nn.Linear(D, D)
        self.pooled_text = nn.Linear(D, D)
        self.global_condition = ConvMLP(D, hidden, kernel=1)
        self.embed_time = TimestepEmbedding(D, config.timestep_dim, config.timestep_scale)
        self.sync_position = nn.Parameter(torch.zeros(config.synchformer_segment, config.synchformer_dim))
        self.empty_visual = nn.Parameter(torch.zeros(config.visual_dim))
        self.empty_sync = nn.Parameter(torch.zeros(config.synchformer_dim))

        last = config.N1 - 1
        self.multi_stream = nn.ModuleList(MultiStreamBlock(config, pre_only=i == last) for i in range(config.N1))
        self.single_stream = nn.ModuleList(Stream(config, kernel=3) for _ in range(config.N2))
        self.output = OutputLayer(D, config.latent_dim)

        self.apply(_initialise)

    @property
    def n_parameters(self) -> int:
        """As upstream counts: with its frozen parameters, the empty caption and the latent's statistics."""
        frozen = self.config.max_text_tokens * self.config.text_dim + 2 * self.config.latent_dim
        return super().n_parameters + frozen

    def embed(self, conditions: Conditions, L_aud: int) -> Embedded:
        """Projected conditions, their pooled sum, and rotations. See `VelocityNetwork.embed`."""
        self.check_conditions(conditions)
        visual, text, _, sync = conditions
        config, L_vis = self.config, visual.shape[1]
        if sync is None:
            sync = self.empty_sync.expand(len(visual), config.sync_length(L_vis / config.r_v), -1)
        x_vis, x_txt = self.embed_visual(visual), self.embed_text(text)
        x_sync = self.embed_sync(sync + self.sync_position.repeat(sync.shape[1] // len(self.sync_position), 1))
        x_sync = interpolate(x_sync.transpose(1, 2), size=L_aud, mode="nearest-exact").transpose(1, 2)
        c = self.global_condition(self.pooled_visual(x_vis.mean(1)) + self.pooled_text(x_txt.mean(1)))
        d = config.D // config.heads
        rope_aud = rope(L_aud, d, config.rope_theta, 1.0, visual.device)
        rope_vis = rope(L_vis, d, config.rope_theta, L_aud / L_vis, visual.device)
        return Embedded(x_vis, x_txt, x_sync, c, rope_aud, rope_vis)

    def velocity(self, x_t: Tensor, t: Tensor, embedded: Embedded) -> Tensor:
        """See `VelocityNetwork.velocity`."""
        x_vis, x_txt, x_sync, c, rope_aud, rope_vis = embedded
        self.check_latent(x_t, x_vis.shape[1])
        c = (c + self.embed_time(t.to(c.dtype)))[:, None]
        c_aud = c + x_sync

        x = self.embed_audio(x_t)
        for block in self.multi_stream:
            x, x_vis, x_txt = block(
                x, x_vis, x_txt, c, c_aud=c_aud, rope_aud=rope_aud, rope_vis=rope_vis, log_mask=None
            )
        for block in self.single_stream:
            x = block(x, c_aud, rope_aud)
        out: Tensor = self.output(x, c)  # c, not c_aud, as the published weights were trained (upstream's issue 55)
        return out

    def null_visual(self, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """The learned empty frame and the learned empty synchronisation feature."""
        return self.empty_visual[None, None], self.empty_sync[None, None]

    def check_conditions(self, conditions: Conditions) -> None:
        """Also raises ValueError where synchronisation features are not whole segments of the video's time."""
        super().check_conditions(conditions)
        if conditions.sync is None:
            return
        config, L_sync, L_vis = self.config, conditions.sync.shape[1], conditions.visual.shape[1]
        segment, wanted = config.synchformer_segment, config.sync_length(L_vis / config.r_v)
        if L_sync % segment != 0 or abs(L_sync - wanted) > segment:
            raise ValueError(
                f"{L_sync} sync features beside {L_vis} video frames at r_v = {float(config.r_v):g} Hz, wanted "
                f"{wanted}: segments of {segment} at {float(config.synchformer_hz):g} Hz over the same time"
            )


def _initialise(module: nn.Module) -> None:
    """Also adaLN zero, so that blocks start as identities."""
    initialise(module)
    if isinstance(module, AdaLN):
        nn.init.zeros_(module.linear.weight)
