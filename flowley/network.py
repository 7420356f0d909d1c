"""What every velocity network shares: its conditions, the latent's scale, dropped conditions, saving and loading.

Shapes: B batch, L_aud audio latent frames, L_vis video frames, L_txt text tokens, L_sync frames of
synchronisation features, C channels, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from flowley import hub
from flowley.config import NetworkConfig
from flowley.feature_spec import FeatureSpec


class Conditions(NamedTuple):
    """Features that condition a batch."""

    visual: Tensor
    """(B, L_vis, C_vis), L2-normalised."""
    text: Tensor
    """(B, L_txt, C_txt)."""
    text_mask: Tensor
    """(B, L_txt) bool, False on padding."""
    sync: Tensor | None = None
    """(B, L_sync, C_sync), for networks whose `sync_dim` is not 0; None stands for the network's own null."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditions:
        """The same with every feature changed: moved, sliced, repeated."""
        return Conditions(*(None if x is None else change(x) for x in self))  # type: ignore[arg-type]


class VelocityNetwork(nn.Module, ABC):
    """v_theta(x_t, t | conditions): a network of one `NetworkConfig`.

    `latent_mean` and `latent_std` (C_aud,) standardise the codec's latents per channel; training sets them
    from its corpus, and they travel with the weights. `null_text` (L, C_txt) is the encoded empty caption.
    `features` says what its features are made with, where that is known; it is saved and loaded too.
    """

    config: NetworkConfig
    features: FeatureSpec | None = None
    latent_mean: Tensor
    latent_std: Tensor
    null_text: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("latent_mean", torch.zeros(config.latent_dim))
        self.register_buffer("latent_std", torch.ones(config.latent_dim))
        self.register_buffer("null_text", torch.empty(0, config.text_dim))

    @abstractmethod
    def embed(self, conditions: Conditions) -> Any:
        """What does not depend on x_t and t, so that a sampler computes it once.

        Raises:
            ValueError: shapes do not fit the configuration.
        """

    @abstractmethod
    def velocity(self, x_t: Tensor, t: Tensor, embedded: Any) -> Tensor:
        """v_theta (B, L_aud, C_aud) for embedded conditions; x_t (B, L_aud, C_aud), t (B,) in [0, 1]."""

    @abstractmethod
    def null_visual(self, conditions: Conditions) -> tuple[Tensor, Tensor | None]:
        """What dropped video becomes: visual and sync features, broadcastable to the batch's."""

    def forward(
        self, x_t: Tensor, t: Tensor, conditions: Conditions,
        drop_visual: Tensor | None = None, drop_text: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """v_theta(x_t, t | conditions).

        Args:
            x_t: (B, L_aud, C_aud), standardised latent between noise (t = 0) and sound (t = 1).
            t: (B,) in [0, 1].
            conditions: of B clips.
            drop_visual, drop_text: (B,) bool, True where that condition is replaced by its null; both or none.

        Returns:
            (B, L_aud, C_aud).
        """
        if drop_visual is not None and drop_text is not None:
            conditions = self.without(conditions, visual=drop_visual, text=drop_text)
        return self.velocity(x_t, t, self.embed(conditions))

    def without(
        self, conditions: Conditions, *, visual: Tensor, text: Tensor, null_text: Conditions | None = None
    ) -> Conditions:
        """Conditions with the marked ones replaced by their null.

        Args:
            conditions: of B clips.
            visual, text: (B,) bool, True where that condition is dropped.
            null_text: conditions whose text (B or 1 rows) stands in for a dropped caption instead of the
                network's null: a negative prompt.

        Raises:
            ValueError: the network's null is the encoded empty caption and it has none.
        """
        null_vis, null_sync = self.null_visual(conditions)
        x_vis = torch.where(visual[:, None, None], null_vis.to(conditions.visual.dtype), conditions.visual)
        sync = conditions.sync
        if sync is not None and null_sync is not None:
            sync = torch.where(visual[:, None, None], null_sync.to(sync.dtype), sync)
        if null_text is not None:
            return _with_text(conditions._replace(visual=x_vis, sync=sync), text, null_text.text, null_text.text_mask)
        if self.config.null_text == "zeros":
            x_txt = conditions.text.masked_fill(text[:, None, None], 0)
            return Conditions(x_vis, x_txt, conditions.text_mask, sync)
        own = self.require_null_text()[None]
        everywhere = torch.ones(own.shape[:2], dtype=torch.bool, device=own.device)
        return _with_text(conditions._replace(visual=x_vis, sync=sync), text, own, everywhere)

    def require_null_text(self) -> Tensor:
        """The encoded empty caption (L, C_txt). Raises ValueError where the network has none."""
        if len(self.null_text) == 0:
            raise ValueError(
                "this network's null condition is the encoded empty caption, which it does not have: "
                'give it with set_null_text, or configure null_text = "zeros"'
            )
        return self.null_text

    def set_null_text(self, null_text: Tensor) -> None:
        """Keeps the encoded empty caption (L, C_txt), L >= 1, with the weights."""
        if null_text.ndim != 2 or null_text.shape[0] < 1 or null_text.shape[1] != self.config.text_dim:
            raise ValueError(
                f"null text of shape {tuple(null_text.shape)}, wanted (tokens >= 1, {self.config.text_dim}): "
                "encode the empty caption with the text encoder of the features"
            )
        self.null_text = null_text.to(self.latent_mean)

    def standardise(self, latent: Tensor) -> Tensor:
        """Codec latent (..., C_aud) -> zero mean, unit variance per channel over the training corpus."""
        return (latent - self.latent_mean) / self.latent_std

    def unstandardise(self, x: Tensor) -> Tensor:
        """Inverse of `standardise`."""
        return x * self.latent_std + self.latent_mean

    @property
    def n_parameters(self) -> int:
        """Parameters; a tied block counts once. MMAudio also counts upstream's frozen tensors, as it does itself."""
        return sum(p.numel() for p in self.parameters())

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes model.safetensors, config.json and a model card (README.md) into `folder`."""
        hub.save(Path(folder), self.state_dict(), self.config, n_parameters=self.n_parameters, features=self.features)

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path, *, revision: str | None = None) -> Self:
        """A network in eval mode from a folder written by `save_pretrained`, or from a hub id.

        Raises:
            ValueError: the folder lacks a file, is another kind of network's, or its weights do not fit its
                configuration. `flowley.registry.load_network` takes every kind.
        """
        from flowley.registry import load_network

        network = load_network(path_or_id, revision=revision)
        if not isinstance(network, cls):
            raise ValueError(
                f"{path_or_id} is a {network.config.model_type!r} checkpoint, wanted one of {cls.__name__}: "
                f"use {type(network).__name__}.from_pretrained"
            )
        return network

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

    def check_conditions(self, conditions: Conditions) -> None:
        """Raises ValueError where shapes do not fit the configuration."""
        visual, text, text_mask, sync = conditions
        B = visual.shape[0]
        named = [("visual", visual, self.config.visual_dim), ("text", text, self.config.text_dim)]
        if sync is not None:
            named.append(("sync", sync, self.config.sync_dim))
        for name, x, channels in named:
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

    def check_latent(self, x_t: Tensor, L_vis: int) -> None:
        """Raises ValueError where the latent does not fit the configuration or lasts longer than the video."""
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


def _with_text(conditions: Conditions, dropped: Tensor, null: Tensor, null_mask: Tensor) -> Conditions:
    """Captions replaced, where dropped, by null (B or 1, L, C_txt); both padded to the longer."""
    L = max(conditions.text.shape[1], null.shape[1])
    x = pad(conditions.text, (0, 0, 0, L - conditions.text.shape[1]))
    mask = pad(conditions.text_mask, (0, L - conditions.text_mask.shape[1]))
    null = pad(null, (0, 0, 0, L - null.shape[1])).to(x.dtype)
    null_mask = pad(null_mask, (0, L - null_mask.shape[1]))
    x = torch.where(dropped[:, None, None], null, x)
    return conditions._replace(text=x, text_mask=torch.where(dropped[:, None], null_mask, mask))
