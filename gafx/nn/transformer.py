"""Transformer encoder of ViT and DeiT: pre-norm blocks (Dosovitskiy et al., 2021; Touvron et al., 2021).

Modules and parameters have the names that timm gives them (`norm1`, `attn.qkv`, `attn.proj`, `norm2`, `mlp.fc1`,
`mlp.fc2`), so weights of a DeiT load by name. https://github.com/huggingface/pytorch-image-models
"""

import math

import torch
from torch import Tensor, nn

from gafx.nn.cpu import attend, calls_forward_alone, linear

LAYER_NORM_EPS = 1e-6
INIT_STD = 0.02


class Attention(nn.Module):
    """Multi-head self-attention: softmax(q k^T / sqrt(head width)) v, with one linear layer for q, k and v.

    `(batch, tokens, width)` -> `(batch, tokens, width)`, or `(batch, first, width)` of the first tokens alone, which
    attend to all.

    Args:
        width: of a token.
        num_heads: heads; must divide `width`.
        dropout: probability that a value of the output is zero in training.
    """

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width={width} is not a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.dropout = dropout_layer(dropout)

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        # Split before the heads, so that an exported model's fused attention takes q, k and v without copies.
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (batch, heads, tokens, head width)
            for part in linear(self.qkv, x).chunk(3, dim=-1)
        )
        x = attend(q[:, :, :first], k, v)
        return self.dropout(linear(self.proj, x.transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    """Linear, GELU, linear, for each token. `(batch, tokens, width)` -> `(batch, tokens, width)`.

    Args:
        width: of a token.
        hidden_width: of the layer in between.
        dropout: probability that a value of the hidden layer or of the output is zero in training.
    """

    def __init__(self, width: int, hidden_width: int, dropout: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)
        self.dropout = dropout_layer(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(linear(self.fc2, self.dropout(linear(self.fc1, x, gelu=True))))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016): in training, each clip's tensor is zero with probability `rate`.

    Kept tensors are divided by `1 - rate`. With rate 0, and in evaluation, the input is returned and no random number
    is drawn. `(batch, ...)` -> `(batch, ...)`.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.rate or not self.training:
            return x
        kept = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * kept.div_(1 - self.rate)


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MLP, each on the normalised tokens and added to them.

    `(batch, tokens, width)` -> `(batch, tokens, width)`, or `(batch, first, width)`: the first tokens alone, where
    nothing else of the last block is read. FSDP shards each instance of this class as one unit
    (`gafx.training.distributed`).

    Args:
        width: of a token.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP divided by `width`.
        dropout: probability that a value of the attention's output, or of the MLP's hidden layer or output, is zero in
            training.
        drop_path: probability that attention or MLP, each for itself, is left out for a clip in training.
    """

    def __init__(
        self, width: int, num_heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0, drop_path: float = 0.0
    ):  # fmt: skip
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = Attention(width, num_heads, dropout)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio), dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        x = x[:, :first] + self.drop_path(self.attn(self.norm1(x), first))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def run_blocks(blocks: nn.Sequential, x: Tensor, first: int) -> Tensor:
    """Run tokens through blocks, of which the last one computes the first tokens alone: no others are wanted.

    `(batch, tokens, width)` -> `(batch, first, width)`. Hooks of `blocks` see all tokens, those of the last block the
    first ones of its output.
    """
    if not (calls_forward_alone(blocks) and isinstance(blocks[-1], Block)):
        return blocks(x)[:, :first]
    output: Tensor = blocks[-1](blocks[:-1](x), first)
    return output


class DeiTEncoder(nn.Module):
    """Tokens, blocks and final norm of a randomly initialised distilled DeiT.

    With the same seed the parameters are bit-identical to those of timm's `deit_*_distilled_patch16_224`, and the
    random generator is left in the same state: this class draws in timm's order, including the patch embedding and
    the positions of a 224 x 224 image, which it then discards.

    Args:
        width: of a token.
        depth: number of blocks.
        num_heads: attention heads of a block.
        mlp_ratio: hidden width of the MLPs divided by `width`.
        dropout: of the blocks, see `Block`.
        drop_path: of the last block; it grows linearly from 0 in the first, so that a single block has none.

    Attributes:
        cls_token: class token, `(1, 1, width)`.
        dist_token: distillation token, `(1, 1, width)`.
        blocks: the blocks, `(batch, tokens, width)` -> `(batch, tokens, width)`.
        norm: LayerNorm behind the last block.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        nn.Conv2d(3, width, 16, 16)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.dist_token = nn.Parameter(torch.empty(1, 1, width))
        rates = (drop_path * block / max(depth - 1, 1) for block in range(depth))
        blocks = (Block(width, num_heads, mlp_ratio, dropout, rate) for rate in rates)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        normal_by_inverse_cdf_(self.dist_token)
        normal_by_inverse_cdf_(torch.empty(1, 14 * 14 + 2, width))
        nn.init.normal_(self.cls_token, std=1e-6)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                normal_by_inverse_cdf_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Run tokens with their positions through blocks and norm. `(batch, tokens, width)` -> the same shape."""
        return self.norm(self.blocks(x))


def dropout_layer(rate: float) -> nn.Module:
    """Return dropout with this probability; nothing at 0, where no random number is to be drawn."""
    return nn.Dropout(rate) if rate else nn.Identity()


@torch.no_grad()
def normal_by_inverse_cdf_(tensor: Tensor) -> None:
    """Fill `tensor` from N(0, `INIT_STD`), truncated at -2 and 2, as timm's `trunc_normal_` does.

    One uniform draw per value goes through the inverse of the normal distribution function; `nn.init.trunc_normal_`
    of newer versions of torch redraws instead, and gives other values from the same seed.
    """
    if tensor.is_meta:  # no values; on this device `erfinv_` would import torch._dynamo, which takes over a second
        return
    tensor.uniform_(-1, 1).erfinv_().mul_(INIT_STD * math.sqrt(2)).clamp_(-2, 2)
