"""Analytic FLOP counts of the networks, for utilisation against a GPU's peak.

A multiply-add of a linear layer, a convolution or an attention product counts as two FLOPs. Attention counts as
dense, masked or not, PSCA too. Norms, activations and the like, below 1%, are left out, as usual.

Shapes: L_aud audio latent frames, L_vis video frames, L_txt text tokens, L_sync synchronisation features, D width.
"""

from __future__ import annotations

from typing import NamedTuple

from flowley.network.config import FlowleyConfig, MMAudioConfig, NetworkConfig


class Flops(NamedTuple):
    """FLOPs of one clip."""

    embed: int
    """FLOPs of embedding the conditions, spent once per sample."""
    velocity: int
    """FLOPs of the rest of the network, spent at every evaluation."""

    @property
    def forward(self) -> int:
        return self.embed + self.velocity

    @property
    def training(self) -> int:
        """Forward and backward FLOPs: each product has two gradients, each as costly as itself."""
        return 3 * self.forward


def flops_of(config: NetworkConfig, *, duration_s: float, L_txt: int) -> Flops:
    """FLOPs of one clip of `duration_s` seconds with a caption padded to L_txt tokens."""
    L_aud, L_vis = config.lengths(duration_s)
    match config:
        case FlowleyConfig():
            return _flowley(config, L_aud, L_vis, L_txt)
        case MMAudioConfig():
            return _mmaudio(config, L_aud, L_vis, L_txt, config.sync_length(duration_s))
    raise TypeError(f"no count for {type(config).__name__}")


def sampling_flops(config: NetworkConfig, *, duration_s: float, L_txt: int, evaluations: int, guided: bool) -> int:
    """FLOPs to sample one clip's latent; guidance (`guided`) doubles them."""
    flops = flops_of(config, duration_s=duration_s, L_txt=L_txt)
    return (2 if guided else 1) * (flops.embed + evaluations * flops.velocity)


def _flowley(config: FlowleyConfig, L_aud: int, L_vis: int, L_txt: int) -> Flops:
    D = config.D
    embed = (
        _linear(L_vis, config.visual_dim, D) + _mlp(config, L_vis, 3)
        + _linear(L_txt, config.text_dim, D) + _mlp(config, L_txt, 1)
        + _pooled(config)
    )  # fmt: skip
    multi = _stream(config, L_aud, 3) + _stream(config, L_vis, 3) + _stream(config, L_txt, 1)
    multi += _attention(D, L_aud + L_vis + L_txt, L_aud + L_vis + L_txt)
    single = _stream(config, L_aud, 3) + _attention(D, L_aud, L_aud)
    for L in (L_txt, L_vis):
        single += _linear(L_aud, D, D) + _linear(L, D, 2 * D) + _attention(D, L_aud, L)
    projectors = 2 * _linear(L_vis + L_txt, D, D)
    return Flops(embed, _ends(config, L_aud) + config.N1 * multi + projectors + config.N2 * single)


def _mmaudio(config: MMAudioConfig, L_aud: int, L_vis: int, L_txt: int, L_sync: int) -> Flops:
    D = config.D
    embed = (
        _linear(L_vis, config.visual_dim, D) + _mlp(config, L_vis, 3)
        + _linear(L_txt, config.text_dim, D) + _mlp(config, L_txt, 1)
        + _linear(L_sync, config.synchformer_dim, D, 7) + _mlp(config, L_sync, 3)
        + _pooled(config)
    )  # fmt: skip
    audio = _stream(config, L_aud, 3, conditions=L_aud)
    multi = audio + _attention(D, L_aud + L_vis + L_txt, L_aud + L_vis + L_txt)
    sides = _stream(config, L_vis, 3) + _stream(config, L_txt, 1)
    last_sides = sum(_linear(1, D, 2 * D) + _linear(L, D, 3 * D) for L in (L_vis, L_txt))  # attended to, not updated
    single = audio + _attention(D, L_aud, L_aud)
    velocity = _ends(config, L_aud) + config.N1 * multi + (config.N1 - 1) * sides + last_sides + config.N2 * single
    return Flops(embed, velocity)


def _linear(L: int, in_dim: int, out_dim: int, kernel: int = 1) -> int:
    """FLOPs of a linear layer or a convolution over L tokens."""
    return 2 * L * in_dim * out_dim * kernel


def _mlp(config: NetworkConfig, L: int, kernel: int) -> int:
    return _linear(L, config.D, 2 * config.mlp_dim, kernel) + _linear(L, config.mlp_dim, config.D, kernel)


def _attention(D: int, L_q: int, L_k: int) -> int:
    """FLOPs of Q K^T and of the weighted sum of V, all heads together."""
    return 2 * _linear(L_q, D, L_k)


def _stream(config: NetworkConfig, L: int, kernel: int, *, conditions: int = 1) -> int:
    """FLOPs of one stream of a block, attention excluded; `conditions` tokens modulate it."""
    D = config.D
    return _linear(conditions, D, 6 * D) + _linear(L, D, 3 * D) + _linear(L, D, D, kernel) + _mlp(config, L, kernel)


def _pooled(config: NetworkConfig) -> int:
    """FLOPs of the pooled global condition."""
    return 2 * _linear(1, config.D, config.D) + _mlp(config, 1, 1)


def _ends(config: NetworkConfig, L_aud: int) -> int:
    """FLOPs of the x_t and t embeddings and of the output layer."""
    D = config.D
    time = _linear(1, config.timestep_dim, D) + _linear(1, D, D)
    x_t = _linear(L_aud, config.latent_dim, D, 7) + _mlp(config, L_aud, 7)
    return time + x_t + _linear(1, D, 2 * D) + _linear(L_aud, D, config.latent_dim, 7)
