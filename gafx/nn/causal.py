"""Transformer over sequences of tokens with rotary positions: causal, also token by token, or over whole clips."""

import torch
from torch import Tensor, nn

from gafx.errors import UsageError
from gafx.nn.attention import rotary_angles, rotate
from gafx.nn.transformer import INIT_STD, LAYER_NORM_EPS, Mlp, dropout_layer

Past = tuple[Tensor, Tensor]  # keys and values of the tokens before, `(batch, heads, tokens, head width)` each


class TokenAttention(nn.Module):
    """Multi-head self-attention with rotary positions (Su et al., 2021): scores depend on distances alone.

    Args:
        width: of a token.
        heads: which share the width; the width of a head must be even.
        dropout: probability that a value of the output is zero in training.
        context: a token attends to itself and the `context - 1` before it; None: to all tokens, before and after it.
    """

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0, context: int | None = None):
        super().__init__()
        self.heads, self.context = heads, context
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dropout = dropout_layer(dropout)

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """Compute all tokens at once.

        Args:
            x: `(batch, tokens, width)`.
            present: bool `(batch, tokens)`, at least one in a row: tokens that are attended to, without a `context`.

        Returns:
            the shape of `x`.
        """
        query, key, value = self._project(x, 0)
        tokens, causal, mask = x.shape[1], self.context is not None, None
        if self.context is None:
            mask = None if present is None else present[:, None, None, :]
        elif tokens > self.context:
            place = torch.arange(tokens, device=x.device)
            distance = place[:, None] - place
            mask, causal = (distance >= 0) & (distance < self.context), False
        return self._mix(nn.functional.scaled_dot_product_attention(query, key, value, mask, is_causal=causal))

    def step(self, x: Tensor, position: int, past: Past | None) -> tuple[Tensor, Past]:
        """Compute one more token, `(batch, 1, width)`, at a position counted from 0; return it, and the next `past`."""
        query, key, value = self._project(x, position)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        if self.context is not None:
            key, value = key[:, :, -self.context :], value[:, :, -self.context :]
        return self._mix(nn.functional.scaled_dot_product_attention(query, key, value)), (key, value)

    def _project(self, x: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, `(batch, heads, tokens, head width)`, of tokens from a position on."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        angles = rotary_angles(position + x.shape[1], value.shape[-1], x.device)[position:]
        return rotate(query, angles).to(value.dtype), rotate(key, angles).to(value.dtype), value

    def _mix(self, mixed: Tensor) -> Tensor:
        return self.dropout(self.proj(mixed.transpose(1, 2).flatten(2)))


class TokenBlock(nn.Module):
    """Pre-norm transformer block: attention, then MLP, each added to the tokens; a unit of FSDP.

    Args:
        width, heads, dropout, context: see `TokenAttention`; dropout also of the MLP.
        latent: size of a vector whose linear image is added to every token before the attention; 0 for none.
    """

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0, context: int | None = None, latent: int = 0):
        super().__init__()
        self.condition = nn.Linear(latent, width) if latent else None
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = TokenAttention(width, heads, dropout=dropout, context=context)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width, 4 * width, dropout)
        for layer in (self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2):
            nn.init.trunc_normal_(layer.weight, std=INIT_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, latent: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """`(batch, tokens, width)` -> the same; `latent` is `(batch, latent)`, `present` as in the attention."""
        x = self._add_latent(x, latent)
        x = x + self.attn(self.norm1(x), present)
        return x + self.mlp(self.norm2(x))

    def step(self, x: Tensor, latent: Tensor | None, position: int, past: Past | None) -> tuple[Tensor, Past]:
        """One more token, as `TokenAttention.step`."""
        x = self._add_latent(x, latent)
        mixed, past = self.attn.step(self.norm1(x), position, past)
        x = x + mixed
        return x + self.mlp(self.norm2(x)), past

    def _add_latent(self, x: Tensor, latent: Tensor | None) -> Tensor:
        return x if self.condition is None else x + self.condition(latent)[:, None]


class TokenTransformer(nn.Module):
    """Blocks and a LayerNorm over embedded tokens.

    The latent vector enters every block, by a linear layer of its own ("in-attention" of MuseMorphose, Wu and Yang,
    2021, arXiv 2105.04090, section III-B), so that no layer has to hand it on.

    Args:
        width: of a token, a multiple of twice `heads`.
        depth: number of blocks.
        heads, dropout, context, latent: see `TokenBlock`.

    Raises:
        UsageError: a width that the heads cannot share.
    """

    def __init__(
        self, width: int, depth: int, heads: int, *, dropout: float = 0.0, context: int | None = None, latent: int = 0
    ):
        super().__init__()
        if width % (2 * heads):
            raise UsageError(f"classifier.width={width} must be a multiple of twice classifier.heads={heads}")
        self.dropout = dropout_layer(dropout)
        self.blocks = nn.ModuleList(
            TokenBlock(width, heads, dropout=dropout, context=context, latent=latent) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, latent: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """`(batch, tokens, width)` -> the same; `latent` is `(batch, latent)`, `present` as in `TokenAttention`."""
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, latent, present)
        return self.norm(x)

    def step(
        self, x: Tensor, latent: Tensor | None, position: int, past: list[Past] | None
    ) -> tuple[Tensor, list[Past]]:
        """Compute one more token, what `forward` computes for the last of `position + 1` tokens.

        Args:
            x: `(batch, 1, width)`.
            latent: `(batch, latent)`.
            position: of the token, counted from 0.
            past: of every block, from the step before; None before the first token.

        Returns:
            output `(batch, 1, width)`, and `past` for the next step.
        """
        kept = []
        for number, block in enumerate(self.blocks):
            assert isinstance(block, TokenBlock)
            x, held = block.step(x, latent, position, None if past is None else past[number])
            kept.append(held)
        return self.norm(x), kept
