"""Self-attention over the frames of a map (GAFX section 3.1.3), finite in half precision."""

from typing import Literal

import torch
from torch import Tensor, nn

from gafx.nn.cpu import attend, linear

LayerNorms = Literal["pre", "post", "none"]
_BASE = 10_000.0
_EPSILON = 1e-5
# Initial gain of the branches. Adam moves every weight by about the learning rate whatever its gradient: without gains
# the branches soon dominate the residual path (docs/gafx_a.md).
_START = 0.1


def rotary_angles(frames: int, size: int, device: torch.device) -> Tensor:
    """Return the angles of rotary position embeddings (Su et al., 2021) in radians, float32 `(frames, size / 2)`."""
    speeds = _BASE ** -(torch.arange(0, size, 2, device=device, dtype=torch.float32) / size)
    return torch.outer(torch.arange(frames, device=device, dtype=torch.float32), speeds)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate the pairs (i, i + size / 2) of `(..., frames, size)` by `angles`: products then depend on distances."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class SelfAttention(nn.Module):
    """Multi-head self-attention over the frames: `(batch, frames, width)` -> the same shape.

    It uses `scaled_dot_product_attention`, whose fused kernels need memory linear in the number of frames.

    Args:
        width: of a frame.
        heads: number of heads; they share the width.
        bounded: normalise queries and keys to RMS 1 (times a learned gain, initially 1) and apply rotary positions,
            both in float32. Products are then at most sqrt(width / heads) times the gains, which float16 can represent;
            otherwise they grow with the square of the input. `False`: neither, as in `torch.nn.MultiheadAttention`.
    """

    def __init__(self, width: int, heads: int, *, bounded: bool):
        super().__init__()
        self.heads, self.bounded = heads, bounded
        self.inward, self.outward = nn.Linear(width, 3 * width), nn.Linear(width, width)
        if bounded:
            self.query_gain = nn.Parameter(torch.ones(width // heads))
            self.key_gain = nn.Parameter(torch.ones(width // heads))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = linear(self.inward, x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.bounded:
            angles = rotary_angles(x.shape[1], value.shape[-1], x.device)
            query = self._bound(query, self.query_gain, angles).to(value.dtype)
            key = self._bound(key, self.key_gain, angles).to(value.dtype)
        mixed = attend(query, key, value)
        return linear(self.outward, mixed.transpose(1, 2).flatten(2))

    @staticmethod
    def _bound(x: Tensor, gain: Tensor, angles: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            x = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + _EPSILON)
            return rotate(x * gain, angles)


class AttentionLayer(nn.Module):
    """Attention and a two-layer perceptron of four times the width, each with a residual connection.

    `(batch, frames, width)` -> the same shape.

    Args:
        width: of a frame.
        heads: of the attention.
        norm: `pre`: LayerNorm before each branch, GELU, bounded attention with rotary positions, and a learned gain per
            channel after each branch, initially 0.1 (LayerScale, Touvron et al., 2021), so that a layer starts close to
            the identity. `post`: LayerNorm after each sum, ReLU, plain attention without positions, PyTorch's default
            initialisation: `torch.nn.TransformerEncoderLayer` without dropout. `none`: `post` without LayerNorm.
    """

    def __init__(self, width: int, heads: int, norm: LayerNorms):
        super().__init__()
        self.norm = norm
        self.attention = SelfAttention(width, heads, bounded=norm == "pre")
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.activation: nn.Module = nn.GELU() if norm == "pre" else nn.ReLU()
        self.norm1, self.norm2 = (nn.Identity() if norm == "none" else nn.LayerNorm(width) for _ in range(2))
        inward, outward = self.attention.inward, self.attention.outward
        if norm == "pre":
            self.gain1, self.gain2 = (nn.Parameter(torch.full((width,), _START)) for _ in range(2))
            for layer in (inward, outward, self.wide, self.narrow):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        else:  # the initialisation of torch.nn.MultiheadAttention; the perceptron keeps that of nn.Linear
            nn.init.xavier_uniform_(inward.weight)
            nn.init.zeros_(inward.bias)
            nn.init.zeros_(outward.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm == "pre":
            x = x + self.gain1 * self.attention(self.norm1(x))
            return x + self.gain2 * self._perceptron(self.norm2(x))
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self._perceptron(x))

    def _perceptron(self, x: Tensor) -> Tensor:
        return self.narrow(self.activation(self.wide(x)))
