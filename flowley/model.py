"""Flowley (Figure 1a): audio latent, video and text in; flow field v_theta(x_t, t | video, text) out.

Shapes: B batch, L_aud audio latent frames, L_vis video frames, L_txt text tokens, C channels, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from flowley import hub
from flowley.attention import CrossAttention, SelfAttention, rope
from flowley.blocks import AdaLN, ConvMLP, MultiStreamBlock, OutputLayer, SingleStreamBlock, TokenConv1d
from flowley.config import FlowleyConfig
from flowley.psca import progressive_masks


class Conditions(NamedTuple):
    """Features that condition a batch."""

    visual: Tensor
    """(B, L_vis, C_vis), L2-normalised."""
    text: Tensor
    """(B, L_txt, C_txt)."""
    text_mask: Tensor
    """(B, L_txt) bool, False on padding."""


class Embedded(NamedTuple):
    """Conditions inside the network; the same at every step of a sampler, so computed once."""

    x_vis: Tensor
    """(B, L_vis, D)."""
    x_txt: Tensor
    """(B, L_txt, D)."""
    text_mask: Tensor
    """(B, L_txt) bool."""
    c: Tensor
    """(B, D): global condition without the time."""


class TimestepEmbedding(nn.Module):
    """MLP of cos and sin of scale * t * 10000^(-k / (n / 2)): (B,) -> (B, D)."""

    def __init__(self, D: int, n: int, scale: float) -> None:
        super().__init__()
        self.n, self.scale = n, scale
        self.first, self.second = nn.Linear(n, D), nn.Linear(D, D)

    def forward(self, t: Tensor) -> Tensor:
        dtype = torch.promote_types(t.dtype, torch.float32)
        k = torch.arange(self.n // 2, dtype=dtype, device=t.device) / (self.n // 2)
        angle = t.to(dtype)[:, None] * (self.scale * 10_000.0**-k)
        features = torch.cat([angle.cos(), angle.sin()], dim=-1).to(t.dtype)
        out: Tensor = self.second(silu(self.first(features)))
        return out


class Flowley(nn.Module):
    """The network of one `FlowleyConfig`.

    `latent_mean` and `latent_std` (C_aud,) standardise the codec's latents per channel; training sets them
    from its corpus, and they travel with the weights. `null_text` (L, C_txt) is the encoded empty caption.
    """

    latent_mean: Tensor
    latent_std: Tensor
    null_text: Tensor

    def __init__(self, config: FlowleyConfig) -> None:
        super().__init__()
        self.config = config
        D = config.D
        self.embed_audio = nn.Sequential(
            TokenConv1d(config.latent_dim, D, 7), nn.SiLU(), ConvMLP(D, config.mlp_dim, kernel=7)
        )
        self.embed_visual = nn.Sequential(
            nn.Linear(config.visual_dim, D), nn.SiLU(), ConvMLP(D, config.mlp_dim, kernel=3)
        )
        self.embed_text = nn.Sequential(nn.Linear(config.text_dim, D), nn.SiLU(), ConvMLP(D, config.mlp_dim, kernel=1))
        self.pooled_visual = nn.Linear(D, D)
        self.pooled_text = nn.Linear(D, D)
        self.global_condition = ConvMLP(D, config.mlp_dim, kernel=1, dropout=config.dropout)
        self.embed_time = TimestepEmbedding(D, config.timestep_dim, config.timestep_scale)

        self.multi_stream = nn.ModuleList(MultiStreamBlock(config) for _ in range(config.N1))
        self.to_single_visual = _projector(D, config.dropout)
        self.to_single_text = _projector(D, config.dropout)
        distinct = 1 if config.tie_single_blocks else config.N2
        self.single_stream = nn.ModuleList(SingleStreamBlock(config) for _ in range(distinct))
        self.output = OutputLayer(D, config.latent_dim)

        self.register_buffer("latent_mean", torch.zeros(config.latent_dim))
        self.register_buffer("latent_std", torch.ones(config.latent_dim))
        self.register_buffer("null_text", torch.empty(0, config.text_dim))
        self.apply(_initialise)
        for parameter in self.output.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x_t: Tensor, t: Tensor, visual: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """v_theta(x_t, t | visual, text).

        Args:
            x_t: (B, L_aud, C_aud), standardised latent between noise (t = 0) and sound (t = 1).
            t: (B,) in [0, 1].
            visual: (B, L_vis, C_vis).
            text: (B, L_txt, C_txt).
            text_mask: (B, L_txt) bool, False on padding.

        Returns:
            (B, L_aud, C_aud).
        """
        return self.velocity(x_t, t, self.embed(Conditions(visual, text, text_mask)))

    def embed(self, conditions: Conditions) -> Embedded:
        """What does not depend on x_t and t: projected conditions and their pooled sum.

        Raises:
            ValueError: shapes do not fit the configuration.
        """
        visual, text, text_mask = conditions
        self._check_conditions(conditions)
        x_vis, x_txt = self.embed_visual(visual), self.embed_text(text)
        pool_mask = text_mask if self.config.mask_text else torch.ones_like(text_mask)
        c = self.pooled_visual(x_vis.mean(1)) + self.pooled_text(_masked_mean(x_txt, pool_mask))
        return Embedded(x_vis, x_txt, text_mask, self.global_condition(c))

    def velocity(self, x_t: Tensor, t: Tensor, embedded: Embedded) -> Tensor:
        """v_theta for embedded conditions; shapes as in `forward`."""
        x_vis, x_txt, text_mask, c = embedded
        self._check_latent(x_t, x_vis.shape[1])
        config, L_aud, L_vis = self.config, x_t.shape[1], x_vis.shape[1]
        c = (c + self.embed_time(t.to(c.dtype)))[:, None]
        d, r = config.D // config.heads, float(config.r_a / config.r_v)
        rope_aud = rope(L_aud, d, theta=config.rope_theta, device=x_t.device)
        rope_vis = rope(L_vis, d, theta=config.rope_theta, stretch=r, device=x_t.device)

        x = self.embed_audio(x_t)
        key_mask = pad(text_mask, (L_aud + L_vis, 0), value=True)
        for block in self.multi_stream:
            x, x_vis, x_txt = block(x, x_vis, x_txt, c, rope_aud=rope_aud, rope_vis=rope_vis, key_mask=key_mask)

        x_vis, x_txt = self.to_single_visual(x_vis), self.to_single_text(x_txt)
        cross_mask = text_mask if config.mask_text else None
        masks = progressive_masks(config, L_aud, L_vis, device=x_t.device)
        for layer in range(config.N2):
            block = self.single_stream[layer % len(self.single_stream)]
            M = masks[layer] if config.visual_attention == "psca" else None
            x = block(x, x_vis, x_txt, c, rope_aud=rope_aud, M=M, text_mask=cross_mask)
        out: Tensor = self.output(x, c)
        return out

    def standardise(self, latent: Tensor) -> Tensor:
        """Codec latent (..., C_aud) -> zero mean, unit variance per channel over the training corpus."""
        return (latent - self.latent_mean) / self.latent_std

    def unstandardise(self, x: Tensor) -> Tensor:
        """Inverse of `standardise`."""
        return x * self.latent_std + self.latent_mean

    def set_null_text(self, null_text: Tensor) -> None:
        """Keeps the encoded empty caption (L, C_txt), L >= 1, with the weights."""
        if null_text.ndim != 2 or null_text.shape[0] < 1 or null_text.shape[1] != self.config.text_dim:
            raise ValueError(
                f"null text of shape {tuple(null_text.shape)}, wanted (tokens >= 1, {self.config.text_dim}): "
                "encode the empty caption with the text encoder of the features"
            )
        self.null_text = null_text.to(self.latent_mean)

    @property
    def n_parameters(self) -> int:
        """Trainable parameters; a tied block counts once."""
        return sum(p.numel() for p in self.parameters())

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes model.safetensors, config.json and a model card (README.md) into `folder`."""
        hub.save(Path(folder), self.state_dict(), self.config, n_parameters=self.n_parameters)

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path, *, revision: str | None = None) -> Flowley:
        """A network in eval mode from a folder written by `save_pretrained`, or from a hub id.

        Raises:
            ValueError: the folder lacks a file, or its weights do not fit its configuration.
        """
        config, weights = hub.load(path_or_id, revision=revision)
        model = cls(config)
        model.load_weights(weights)
        return model.eval()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Like `load_state_dict`, for null texts of any length, with errors that name the misfits."""
        own = self.state_dict()
        wrong = [f"{name} is missing" for name in own if name not in weights]
        wrong += [f"{name} is not in this network" for name in weights if name not in own]
        wrong += [
            f"{name} is {tuple(weights[name].shape)}, wanted {tuple(own[name].shape)}"
            for name in own
            if name in weights and name != "null_text" and weights[name].shape != own[name].shape
        ]
        if wrong:
            raise ValueError(
                f"weights do not fit this configuration in {len(wrong)} places: {'; '.join(wrong[:3])}; "
                "use the config.json saved with them"
            )
        self.null_text = torch.empty_like(weights["null_text"], device=self.latent_mean.device)
        self.load_state_dict(weights)

    def _check_conditions(self, conditions: Conditions) -> None:
        visual, text, text_mask = conditions
        B = visual.shape[0]
        for name, x, channels in (("visual", visual, self.config.visual_dim),
                                  ("text", text, self.config.text_dim)):  # fmt: skip
            if x.ndim != 3 or x.shape[0] != B or x.shape[1] < 1 or x.shape[2] != channels:
                raise ValueError(
                    f"{name} features of shape {tuple(x.shape)}, wanted ({B}, length >= 1, {channels}): "
                    f"extract features with the encoder this network was trained on, or set {name}_dim"
                )
        if text_mask.shape != text.shape[:2] or text_mask.dtype != torch.bool:
            raise ValueError(
                f"text_mask {text_mask.dtype} of shape {tuple(text_mask.shape)}, "
                f"wanted bool of shape {tuple(text.shape[:2])}, False on padding"
            )

    def _check_latent(self, x_t: Tensor, L_vis: int) -> None:
        config = self.config
        if x_t.ndim != 3 or x_t.shape[2] != config.latent_dim:
            raise ValueError(
                f"latent of shape {tuple(x_t.shape)}, wanted (B, L_aud, {config.latent_dim}): "
                "use the codec this network was trained on, or set latent_dim"
            )
        audio_s, video_s = x_t.shape[1] / config.r_a, L_vis / config.r_v
        if abs(audio_s - video_s) > 1 / config.r_a + 1 / config.r_v:
            raise ValueError(
                f"{x_t.shape[1]} audio frames at r_a = {float(config.r_a):g} Hz last {float(audio_s):.3f} s "
                f"but {L_vis} video frames at r_v = {float(config.r_v):g} Hz last {float(video_s):.3f} s: "
                "wanted the same duration; check the rates of the features"
            )


def _projector(D: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.Linear(D, D), nn.SiLU(), nn.Dropout(dropout), nn.Linear(D, D))


def _masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens where mask (B, L) is True: (B, L, D) -> (B, D)."""
    weight = mask.to(x.dtype)[..., None]
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)


def _initialise(module: nn.Module) -> None:
    """Xavier for linear maps, each part of a fused one by itself; adaLN N(0, 1e-3); convolutions: torch's.

    `Module.apply` visits children first, so what a parent does to its own layers is what stays.
    """
    match module:
        case nn.Linear():
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        case SelfAttention():
            _xavier_parts(module.qkv.weight, 3)
        case CrossAttention():
            _xavier_parts(module.kv.weight, 2)
        case ConvMLP(up=nn.Linear() as up):
            _xavier_parts(up.weight, 2)
        case AdaLN():
            nn.init.normal_(module.linear.weight, std=1e-3)
        case TimestepEmbedding():
            nn.init.normal_(module.first.weight, std=0.02)
            nn.init.normal_(module.second.weight, std=0.02)


def _xavier_parts(weight: Tensor, parts: int) -> None:
    for part in weight.data.chunk(parts):
        nn.init.xavier_uniform_(part)
