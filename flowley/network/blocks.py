"""The blocks of Figure 1: multi-stream (1b), single-stream with text attention and PSCA (1c), output layer.

Shapes: B batch, L tokens, D width. c is the condition that adaLN turns into shift, scale and gate: (B, 1, D), or
(B, L, D) where each token has its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, pad, scaled_dot_product_attention, silu

from flowley.network.attention import QKV, CrossAttention, SelfAttention, joint_attention, merge_heads
from flowley.network.config import FlowleyConfig, NetworkConfig
from flowley.network.psca import PSCA, Mask


class TokenConv1d(nn.Conv1d):
    """Convolution over time of channel-last tokens: (B, L, C_in) -> (B, L, C_out), same length.

    One matrix product over each token's neighbours side by side or, where C_out is the smaller, to the outputs of all
    taps, which are then shifted and added. A training step takes 144 ms so, and 199 ms with `conv1d` between
    transpositions (docs/benchmarks.md).
    """

    def __init__(self, in_dim: int, out_dim: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__(in_dim, out_dim, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        L, (C_out, C_in, kernel) = x.shape[1], self.weight.shape
        reach = kernel // 2
        if C_in <= C_out:
            x = pad(x, (0, 0, reach, reach))
            neighbours = torch.stack([x[:, tap : tap + L] for tap in range(kernel)], dim=-1)
            return linear(neighbours.flatten(-2), self.weight.flatten(1), self.bias)
        taps = linear(x, self.weight.permute(2, 0, 1).flatten(0, 1)).chunk(kernel, dim=-1)
        ahead = {tap - reach: y for tap, y in enumerate(taps) if 0 < abs(tap - reach) < L}
        out = sum((pad(y, (0, 0, -n, n)) for n, y in ahead.items()), start=taps[reach])
        return out if self.bias is None else out + self.bias


def token_layer(in_dim: int, out_dim: int, kernel: int, *, bias: bool = True) -> nn.Module:
    """Linear for kernel 1, convolution over time otherwise."""
    if kernel == 1:
        return nn.Linear(in_dim, out_dim, bias=bias)
    return TokenConv1d(in_dim, out_dim, kernel, bias=bias)


class ConvMLP(nn.Module):
    """SwiGLU over time: W_down(silu(W_gate x) * W_value x), each W a `token_layer` of the same kernel."""

    def __init__(self, D: int, hidden: int, *, kernel: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.up = token_layer(D, 2 * hidden, kernel, bias=False)  # gate and value in one product
        self.down = token_layer(hidden, D, kernel, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        out: Tensor = self.down(self.dropout(silu(gate) * value))
        return out


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


class AdaLN(nn.Module):
    """`n` modulations of width D from the condition: Linear(silu(c)), each of c's shape."""

    def __init__(self, D: int, n: int) -> None:
        super().__init__()
        self.n = n
        self.linear = nn.Linear(D, n * D)

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        modulations: tuple[Tensor, ...] = self.linear(silu(c)).chunk(self.n, dim=-1)
        return modulations


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm(x) (1 + scale) + shift."""
    return torch.addcmul(shift, layer_norm(x, x.shape[-1:]), 1 + scale)


class Stream(nn.Module):
    """One modality's DiT block: adaLN, QKV before the attention; projection, ConvMLP after it.

    A stream that is `pre_only` is attended to and then at its end: it has nothing after the attention.
    """

    def __init__(self, config: NetworkConfig, *, kernel: int, pre_only: bool = False) -> None:
        super().__init__()
        self.adaln = AdaLN(config.D, 2 if pre_only else 6)
        self.attention = SelfAttention(config.D, config.heads)
        if pre_only:
            return
        self.out = token_layer(config.D, config.D, kernel)
        self.mlp = ConvMLP(config.D, config.mlp_dim, kernel=kernel, dropout=config.dropout)

    def before(self, x: Tensor, c: Tensor, rotation: Tensor | None) -> tuple[QKV, tuple[Tensor, ...]]:
        """QKV of the modulated stream, and the modulations still to be used."""
        shift, scale, *rest = self.adaln(c)
        return self.attention.project(modulate(x, shift, scale), rotation), tuple(rest)

    def forward(self, x: Tensor, c: Tensor, rotation: Tensor | None) -> Tensor:
        """The stream attends to itself: (B, L, D) -> (B, L, D)."""
        qkv, modulations = self.before(x, c, rotation)
        return self.after(x, merge_heads(scaled_dot_product_attention(*qkv)), modulations)

    def after(self, x: Tensor, attended: Tensor, modulations: tuple[Tensor, ...]) -> Tensor:
        """Residuals: x + gate out(attended), then x + gate mlp(modulate(x))."""
        gate_attention, shift, scale, gate_mlp = modulations
        x = torch.addcmul(x, gate_attention, self.out(attended))
        return torch.addcmul(x, gate_mlp, self.mlp(modulate(x, shift, scale)))


class MultiStreamBlock(nn.Module):
    """Figure 1b: audio, visual and text streams, each with its own weights, in one joint attention."""

    def __init__(self, config: NetworkConfig, *, pre_only: bool = False) -> None:
        super().__init__()
        self.pre_only = pre_only
        self.audio = Stream(config, kernel=3)
        self.visual = Stream(config, kernel=3, pre_only=pre_only)
        self.text = Stream(config, kernel=1, pre_only=pre_only)

    def forward(
        self, x_aud: Tensor, x_vis: Tensor, x_txt: Tensor, c: Tensor,
        *, c_aud: Tensor, rope_aud: Tensor, rope_vis: Tensor, log_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Three streams (B, L_aud, D), (B, L_vis, D), (B, L_txt, D), updated (`pre_only`: audio alone).

        c_aud is the audio stream's condition, c the others'; log_mask (B, 1, 1, all tokens).
        """
        qkv_aud, mod_aud = self.audio.before(x_aud, c_aud, rope_aud)
        qkv_vis, mod_vis = self.visual.before(x_vis, c, rope_vis)
        qkv_txt, mod_txt = self.text.before(x_txt, c, None)
        a_aud, a_vis, a_txt = joint_attention([qkv_aud, qkv_vis, qkv_txt], log_mask)
        x_aud = self.audio.after(x_aud, a_aud, mod_aud)
        if self.pre_only:
            return x_aud, x_vis, x_txt
        return x_aud, self.visual.after(x_vis, a_vis, mod_vis), self.text.after(x_txt, a_txt, mod_txt)


class SingleStreamBlock(nn.Module):
    """Figure 1c: a DiT block of the audio stream whose cross-attention balances text and video.

    x~ = x + alpha CA(Q_aud, K_txt, V_txt) + (1 - alpha) PSCA_l(Q_aud, K_vis, V_vis),  alpha learnable.
    """

    def __init__(self, config: FlowleyConfig) -> None:
        super().__init__()
        D = config.D
        self.adaln = AdaLN(D, 6)
        self.attention = SelfAttention(D, config.heads)
        self.out = token_layer(D, D, 3)
        self.text_attention = CrossAttention(D, config.heads)
        self.psca = PSCA(D, config.heads)
        self.mlp = ConvMLP(D, config.mlp_dim, kernel=3, dropout=config.dropout)
        self.alpha_in_unit_range = config.alpha == "sigmoid"
        start = 0.0 if self.alpha_in_unit_range else 0.5
        self.alpha_parameter = nn.Parameter(torch.full((1,), start))  # FSDP shards no scalar without an axis

    @property
    def alpha(self) -> Tensor:
        """Weight of text against video; starts at 1/2."""
        return self.alpha_parameter.sigmoid() if self.alpha_in_unit_range else self.alpha_parameter

    def forward(
        self, x: Tensor, x_vis: Tensor, x_txt: Tensor, c: Tensor,
        *, rope_aud: Tensor, log_M: Mask, text_log_mask: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Audio stream (B, L_aud, D) from x, x_vis (B, L_vis, D), x_txt (B, L_txt, D), log_M of `visual_masks`."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.adaln(c)
        x = torch.addcmul(x, gate_1, self.out(self.attention(modulate(x, shift_1, scale_1), rope_aud)))
        text, video = self.text_attention(x, x_txt, text_log_mask), self.psca(x, x_vis, log_M)
        x = x + video + self.alpha * (text - video)
        return torch.addcmul(x, gate_2, self.mlp(modulate(x, shift_2, scale_2)))


class OutputLayer(nn.Module):
    """adaLN and a convolution of kernel 7 to latent channels; zero at the start, so the first flow is 0."""

    def __init__(self, D: int, latent_dim: int) -> None:
        super().__init__()
        self.adaln = AdaLN(D, 2)
        self.conv = TokenConv1d(D, latent_dim, 7)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaln(c)
        out: Tensor = self.conv(modulate(x, shift, scale))
        return out


def initialise(module: nn.Module) -> None:
    """Xavier for linear maps, gate and value each by itself; N(0, 0.02) for the time; the output layer zero.

    For `Module.apply`, which visits children first, so what a parent does to its own layers is what stays.
    """
    match module:
        case nn.Linear():
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        case ConvMLP(up=nn.Linear() as up):
            xavier_parts(up.weight, 2)
        case TimestepEmbedding():
            normal(module.first.weight, 0.02)
            normal(module.second.weight, 0.02)
        case OutputLayer():
            for parameter in module.parameters():
                nn.init.zeros_(parameter)


def normal(weight: Tensor, std: float) -> None:
    """N(0, std), but nothing on the meta device, where torch takes seconds to do nothing."""
    if not weight.is_meta:
        nn.init.normal_(weight, std=std)


def xavier_parts(weight: Tensor, parts: int) -> None:
    """Xavier for each of the maps that a fused weight holds."""
    for part in weight.data.chunk(parts):
        nn.init.xavier_uniform_(part)
