"""Bidirectional transformer over the frames of a map, after BERT and MusiCoder (the Jukebox study, section IV)."""

import math

import torch
from torch import Tensor, nn

from gafx.classifiers.base import Classifier, Shape, check_at_least_one, check_rates
from gafx.errors import UsageError
from gafx.nn.transformer import INIT_STD, LAYER_NORM_EPS, Block, dropout_layer
from gafx.registry import CLASSIFIERS

_BASE = 10_000.0


@CLASSIFIERS.register
class BERT(Classifier):
    """Transformer encoder over frames, in which every frame attends to all others before and after it.

    A frame is a column of the map: all channels and bins at one time. A linear layer and a LayerNorm make it a token,
    fixed sinusoidal positions (Vaswani et al., 2017; as in MusiCoder) are added, which exist for any number of frames,
    and `depth` transformer blocks and a LayerNorm follow. An embedding is the mean of the outputs of all frames; the
    head is a linear layer. `gafx.objectives.masked` pretrains all of it but the head.

    The study says four layers and otherwise "the same hyper-parameters, shaped by BERT and MusiCoder". Read here: width
    768, 12 heads and dropout 0.1 of BERT-Base. Ours: normalisation before attention and perceptron instead of after
    their sums (which trains from random weights at more learning rates), and the mean over the frames in place of a
    class token, of whose choice the study says nothing.

    Args:
        map_shape: (channels, frequency, time) of the maps; other lengths are accepted.
        num_classes: number of outputs.
        width: of a token.
        depth: number of blocks.
        heads: attention heads; they share the width.
        dropout: probability in training that a value is set to zero, in [0, 1): of the tokens with their positions, and
            in each block of the attention's output, of the perceptron's hidden layer and of its output.
        patch: frames that are joined into one token, for long maps: attention takes time quadratic in the tokens. 30 s
            in the study's setting are 10,336 frames. The last token is filled with zeros.

    Raises:
        UsageError: an argument out of range, or a width that is odd or no multiple of `heads`.
    """

    fsdp_units = (Block,)

    def __init__(
        self,
        map_shape: Shape,
        num_classes: int,
        /,
        *,
        width: int = 768,
        depth: int = 4,
        heads: int = 12,
        dropout: float = 0.1,
        patch: int = 1,
    ):
        super().__init__()
        check_at_least_one(width=width, depth=depth, heads=heads, patch=patch)
        check_rates(dropout=dropout)
        if width % heads or width % 2:
            raise UsageError(f"classifier.width={width} must be even and a multiple of classifier.heads={heads}")
        channels, frequency, frames = map_shape
        self.map_shape, self.num_classes, self.width, self.patch = map_shape, num_classes, width, patch
        self.tokens = -(-frames // patch)
        self.project = nn.Linear(channels * frequency * patch, width)
        self.project_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = dropout_layer(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout=dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.output = nn.Linear(width, num_classes)
        for module in (*self.blocks.modules(), self.output):
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)

    def frames(self, feature_map: Tensor) -> Tensor:
        """Compute the output of every token: of every frame, unless `patch` joins several.

        `(batch, channels, frequency, frames)` -> `(batch, ceil(frames / patch), width)`.
        """
        self.check_input(feature_map)
        x = feature_map.flatten(1, 2).transpose(1, 2)  # (batch, frames, channels * frequency)
        if self.patch > 1:
            x = nn.functional.pad(x, (0, 0, 0, (self.patch - 1) - (x.shape[1] - 1) % self.patch))
            x = x.unflatten(1, (-1, self.patch)).flatten(2)
        x = self.project_norm(self.project(x))
        x = self.dropout(x + sinusoids(x.shape[1], self.width, x.device).to(x.dtype))
        return self.norm(self.blocks(x))

    def embed(self, feature_map: Tensor) -> Tensor:
        """Compute the mean output of the frames. `(batch, channels, frequency, time)` -> `(batch, width)`."""
        return self.frames(feature_map).mean(dim=1)

    def head(self, embedding: Tensor) -> Tensor:
        """Compute logits from an embedding. `(batch, width)` -> `(batch, classes)`."""
        return self.output(embedding)

    def head_names(self) -> tuple[str, ...]:
        """Return the name prefixes of the parameters of the output layer."""
        return ("output.",)


def sinusoids(frames: int, width: int, device: torch.device) -> Tensor:
    """Return sinusoidal positions, float32 `(frames, width)`: sines in the first half, cosines in the second."""
    speeds = torch.exp(torch.arange(0, width, 2, device=device, dtype=torch.float32) * (-math.log(_BASE) / width))
    angles = torch.outer(torch.arange(frames, device=device, dtype=torch.float32), speeds)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
