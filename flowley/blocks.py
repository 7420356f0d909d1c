"""The blocks of Figure 1: multi-stream (1b), single-stream with text attention and PSCA (1c), output layer.

Shapes: B batch, L tokens, D width. c is the condition (B, 1, D) that adaLN turns into shift, scale and gate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

from flowley.attention import QKV, CrossAttention, SelfAttention, joint_attention
from flowley.config import FlowleyConfig
from flowley.psca import PSCA


class TokenConv1d(nn.Conv1d):
    """Convolution over time of channel-last tokens: (B, L, C_in) -> (B, L, C_out), same length."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__(in_dim, out_dim, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


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


class AdaLN(nn.Module):
    """`n` modulations of width D from the condition: Linear(silu(c)), each (B, 1, D)."""

    def __init__(self, D: int, n: int) -> None:
        super().__init__()
        self.n = n
        self.linear = nn.Linear(D, n * D)

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = self.linear(silu(c)).chunk(self.n, dim=-1)
        return parts


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm(x) (1 + scale) + shift."""
    return layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


class Stream(nn.Module):
    """One modality's half of a DiT block: adaLN, QKV before the attention; projection, ConvMLP after it."""

    def __init__(self, config: FlowleyConfig, *, kernel: int) -> None:
        super().__init__()
        self.adaln = AdaLN(config.D, 6)
        self.attention = SelfAttention(config.D, config.heads)
        self.out = token_layer(config.D, config.D, kernel)
        self.mlp = ConvMLP(config.D, config.mlp_dim, kernel=kernel, dropout=config.dropout)

    def before(self, x: Tensor, c: Tensor, rotation: Tensor | None) -> tuple[QKV, tuple[Tensor, ...]]:
        """QKV of the modulated stream, and the modulations still to be used."""
        shift, scale, *rest = self.adaln(c)
        return self.attention.project(modulate(x, shift, scale), rotation), tuple(rest)

    def after(self, x: Tensor, attended: Tensor, modulations: tuple[Tensor, ...]) -> Tensor:
        """x + gate out(attended), then x + gate mlp(modulate(x))."""
        gate_attention, shift, scale, gate_mlp = modulations
        x = x + gate_attention * self.out(attended)
        x = x + gate_mlp * self.mlp(modulate(x, shift, scale))
        return x


class MultiStreamBlock(nn.Module):
    """Figure 1b: audio, visual and text streams, each with its own weights, in one joint attention."""

    def __init__(self, config: FlowleyConfig) -> None:
        super().__init__()
        self.audio = Stream(config, kernel=3)
        self.visual = Stream(config, kernel=3)
        self.text = Stream(config, kernel=1)

    def forward(
        self, x_aud: Tensor, x_vis: Tensor, x_txt: Tensor, c: Tensor,
        *, rope_aud: Tensor, rope_vis: Tensor, key_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Three streams (B, L_aud, D), (B, L_vis, D), (B, L_txt, D), updated; key_mask (B, all tokens)."""
        qkv_aud, mod_aud = self.audio.before(x_aud, c, rope_aud)
        qkv_vis, mod_vis = self.visual.before(x_vis, c, rope_vis)
        qkv_txt, mod_txt = self.text.before(x_txt, c, None)
        a_aud, a_vis, a_txt = joint_attention([qkv_aud, qkv_vis, qkv_txt], key_mask)
        return (
            self.audio.after(x_aud, a_aud, mod_aud),
            self.visual.after(x_vis, a_vis, mod_vis),
            self.text.after(x_txt, a_txt, mod_txt),
        )


class SingleStreamBlock(nn.Module):
    """Figure 1c: a DiT block of the audio stream whose cross-attention balances text and video,

    x~ = x + alpha CA(Q_aud, K_txt, V_txt) + (1 - alpha) PSCA_l(Q_aud, K_vis, V_vis),  alpha learnable.
    """

    def __init__(self, config: FlowleyConfig) -> None:
        super().__init__()
        D = config.D
        self.adaln = AdaLN(D, 6)
        self.attention = SelfAttention(D, config.heads)
        self.out = token_layer(D, D, 3)
        self.text_attention = CrossAttention(D, config.heads)
        self.psca = PSCA(D, config.heads, epsilon=config.epsilon)
        self.mlp = ConvMLP(D, config.mlp_dim, kernel=3, dropout=config.dropout)
        self.alpha_in_unit_range = config.alpha == "sigmoid"
        self.alpha_parameter = nn.Parameter(torch.tensor(0.0 if self.alpha_in_unit_range else 0.5))

    @property
    def alpha(self) -> Tensor:
        """Weight of text against video; starts at 1/2."""
        return self.alpha_parameter.sigmoid() if self.alpha_in_unit_range else self.alpha_parameter

    def forward(
        self, x: Tensor, x_vis: Tensor, x_txt: Tensor, c: Tensor,
        *, rope_aud: Tensor, M: Tensor | None, text_mask: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """x (B, L_aud, D), x_vis (B, L_vis, D), x_txt (B, L_txt, D), M (L_aud, L_vis) -> (B, L_aud, D)."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.adaln(c)
        x = x + gate_1 * self.out(self.attention(modulate(x, shift_1, scale_1), rope_aud))
        text, video = self.text_attention(x, x_txt, text_mask), self.psca(x, x_vis, M)
        x = x + self.alpha * text + (1 - self.alpha) * video
        x = x + gate_2 * self.mlp(modulate(x, shift_2, scale_2))
        return x


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
