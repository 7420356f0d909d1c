"""Base class of the velocity networks: conditions, the latent's scale, dropped conditions, saving and loading.

Shapes: B batch, L_aud audio latent frames, L_vis video frames, L_txt text tokens, L_sync frames of
synchronisation features, C channels, D width.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from flowley.hub import find_folder
from flowley.network.config import CONFIGS, NetworkConfig
from flowley.network.feature_spec import FeatureSpec
from flowley.weights import CONFIG, WEIGHTS, find_file, read_json, read_tensors, require_fit, shapes

FILES = (CONFIG, WEIGHTS)
FOLDER = "a folder written by save_pretrained"
CARD = """---
{{ card_data }}
---
# {{ model_type }}, {{ millions }} M parameters

Sound for silent video by flow matching. Each field of `config.json` is explained in its `about`.

| field | value |
|---|---|
{% for name, value in fields.items() %}| `{{ name }}` | `{{ value }}` |
{% endfor %}
```python
from flowley.network.registry import load_network
network = load_network("path or id")
```
"""


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

    def captions_of(self, clips: list[int]) -> Conditions:
        """The captions of these clips beside unchanged video; a single caption serves any clip."""
        rows = clips if len(self.text) > 1 else [0] * len(clips)
        return self._replace(text=self.text[rows], text_mask=self.text_mask[rows])


class VelocityNetwork(
    nn.Module, PyTorchModelHubMixin, ABC,
    library_name="flowley", pipeline_tag="video-to-audio", tags=["flow-matching"], model_card_template=CARD,
):  # fmt: skip
    """v_theta(x_t, t | conditions): a network of one `NetworkConfig`, with the hub's `push_to_hub`.

    `latent_mean` and `latent_std` (C_aud,) standardise the codec's latents per channel; training sets them
    from its corpus, and they travel with the weights. `null_text` (L, C_txt) is the encoded empty caption.
    `features` names the encoders and the codec of its features, where known; it is saved and loaded too.
    """

    config_type: ClassVar[type[NetworkConfig]]
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
    def embed(self, conditions: Conditions, L_aud: int) -> Any:
        """All that does not depend on x_t and t, for latents of L_aud frames; a sampler computes it once.

        Raises:
            ValueError: shapes do not fit the configuration.
        """

    @abstractmethod
    def velocity(self, x_t: Tensor, t: Tensor, embedded: Any) -> Tensor:
        """v_theta (B, L_aud, C_aud) for embedded conditions; x_t (B, L_aud, C_aud), t (B,) in [0, 1]."""

    @abstractmethod
    def null_visual(self, conditions: Conditions) -> tuple[Tensor, Tensor | None]:
        """Null of dropped video: visual and sync features, broadcastable to the batch's."""

    def forward(
        self, x_t: Tensor, t: Tensor, conditions: Conditions,
        drop_visual: Tensor | None = None, drop_text: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """v_theta(x_t, t | conditions), (B, L_aud, C_aud).

        Args:
            x_t: (B, L_aud, C_aud), standardised latent between noise (t = 0) and sound (t = 1).
            t: (B,) in [0, 1].
            drop_visual: (B,) bool, True where the video is replaced by its null.
            drop_text: (B,) bool, True where the caption is; both or none are passed.
        """
        if drop_visual is not None and drop_text is not None:
            conditions = self.without(conditions, visual=drop_visual, text=drop_text)
        return self.velocity(x_t, t, self.embed(conditions, x_t.shape[1]))

    def without(
        self, conditions: Conditions, *, visual: Tensor, text: Tensor, null_text: Conditions | None = None
    ) -> Conditions:
        """Conditions with the marked ones replaced by their null.

        Args:
            visual: (B,) bool, True where the video is dropped, with its synchronisation features.
            text: (B,) bool, True where the caption is dropped.
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
        conditions = conditions._replace(visual=x_vis, sync=sync)
        if null_text is not None:
            return _with_text(conditions, text, null_text.text, null_text.text_mask)
        if self.config.null_text == "zeros":
            return conditions._replace(text=conditions.text.masked_fill(text[:, None, None], 0))
        if len(self.null_text) == 0:
            raise ValueError(
                "this network's null condition is the encoded empty caption, which it does not have: "
                'give it with set_null_text, or configure null_text = "zeros"'
            )
        own = self.null_text[None]
        everywhere = torch.ones(own.shape[:2], dtype=torch.bool, device=own.device)
        return _with_text(conditions, text, own, everywhere)

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

    def compile_blocks(self, *, backend: str = "inductor") -> None:
        """Compiles each block and each embedding in place, for batches of one shape.

        Blocks of a kind share their code, so a network of 12 blocks compiles as fast as one of 2, and what happens
        between blocks is a few additions. Names of weights do not change.
        """
        for part in self.children():
            for module in part if isinstance(part, nn.ModuleList) else [part]:
                if not isinstance(module, nn.Linear):
                    module.compile(dynamic=False, backend=backend)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Weights and config.json; `save_pretrained` adds a model card (README.md)."""
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, save_directory / WEIGHTS)
        config = self.config
        described = {"model_type": config.model_type, "n_parameters": self.n_parameters, **config.to_dict()}
        if self.features is not None:
            described["features"] = self.features.to_dict()
        text = json.dumps({**described, "about": config.field_docs()}, indent=2)
        (save_directory / CONFIG).write_text(text + "\n")

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card with the fields of the configuration."""
        about = {"model_type": self.config.model_type, "millions": f"{self.n_parameters / 1e6:.1f}"}
        return super().generate_model_card(*args, fields=self.config.to_dict(), **about, **kwargs)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, *, revision: str | None = None, **download: Any
    ) -> Self:
        """A network in eval mode from a folder written by `save_pretrained`, or from a hub id at a revision.

        Stricter than `PyTorchModelHubMixin`, which ignores unknown fields and missing weights. `download` are further
        arguments of `huggingface_hub.snapshot_download`: token, cache_dir ...

        Raises:
            ValueError: the folder lacks a file, is another kind of network's, has unknown or missing fields, or
                weights that do not fit them. `flowley.network.registry.load_network` takes every kind.
        """
        folder = find_folder(pretrained_model_name_or_path, FILES, revision=revision, wanted=FOLDER, **download)
        config, features = read_config(folder)
        if not isinstance(config, cls.config_type):
            raise ValueError(
                f"{folder} is a {config.model_type!r} checkpoint, wanted one of {cls.__name__}: load it with "
                "flowley.network.registry.load_network"
            )
        network = cls(config)
        network.load_weights(read_tensors(find_file(folder, WEIGHTS, wanted=FOLDER)), source=str(folder / WEIGHTS))
        network.features = features
        return network.eval()

    def load_weights(self, weights: dict[str, Tensor], *, source: str = "the state dict") -> None:
        """Like `load_state_dict`, for null texts of any length; `source` is the weights' name for the error.

        Raises:
            ValueError: weights are missing, superfluous or misshapen; the message names them.
        """
        found, wanted = shapes(weights), shapes(self.state_dict())
        if "null_text" in found:
            wanted["null_text"] = (found["null_text"][0], self.config.text_dim)
        require_fit(found, wanted, source=source, what="of the network in its config.json")
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


def read_config(folder: Path) -> tuple[NetworkConfig, FeatureSpec | None]:
    """The configuration in a folder written by `save_pretrained`, and the encoders and codec of the features.

    Raises:
        ValueError: config.json is missing, damaged, of no network of this package, or has unknown or missing fields.
    """
    file = find_file(folder, CONFIG, wanted=FOLDER)
    values = read_json(file)
    model_type = values.pop("model_type", None)
    if model_type not in CONFIGS:
        raise ValueError(f"{file}: model_type {model_type!r}, wanted one of {', '.join(CONFIGS)}")
    features = values.pop("features", None)
    values = {name: value for name, value in values.items() if name not in ("n_parameters", "about")}
    config = CONFIGS[model_type].from_dict(values)
    return config, None if features is None else FeatureSpec.from_dict(features)
