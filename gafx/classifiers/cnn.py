"""A small convolutional network over the map: the classifier for little data."""

from typing import Literal

import torch
from torch import Tensor, nn

from gafx.classifiers.base import Classifier, Shape, check_rates
from gafx.errors import UsageError
from gafx.nn.conv import ConvNorms, Norm, norm_layer
from gafx.registry import CLASSIFIERS


class ConvBlock(nn.Module):
    """Two 3 x 3 convolutions, each with a norm and ReLU, then max pooling by 2 along both axes.

    `(batch, in_channels, frequency, time)` -> `(batch, out_channels, frequency // 2, time // 2)`.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Norm):
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [
                nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
                norm_layer(norm, out_channels),
                nn.ReLU(inplace=True),
            ]
        self.layers = ConvNorms(*layers)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        if torch.compiler.is_exporting():  # max_pool2d would fix whether a dynamic length is even
            return x.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(-1, -2))
        return self.pool(x)


@CLASSIFIERS.register
class CNN(Classifier):
    """A 5 x 5 convolution of stride 2, blocks of two 3 x 3 convolutions with max pooling, pooling over the map, linear.

    The last block's output is averaged over frequency; the embedding is its mean and its maximum over time. 0.30
    million parameters by default. Any length from `min_frames` on is accepted: nothing depends on the position in time.

    Args:
        map_shape: (channels, frequency, time) of the maps.
        num_classes: number of outputs.
        stem: channels of the first convolution.
        widths: channels of the blocks, one number a block; each block halves both axes.
        dropout: on the embedding, in training.
        norm: `batch`, or `group`, which makes results independent of batch size and number of processes.

    Raises:
        UsageError: no block, a width below 1 (a multiple of 8 for `group`), `dropout` outside [0, 1), or a map that is
            smaller than the blocks halve.
    """

    def __init__(
        self,
        map_shape: Shape,
        num_classes: int,
        /,
        *,
        stem: int = 32,
        widths: tuple[int, ...] = (32, 64, 128),
        dropout: float = 0.3,
        norm: Literal["batch", "group"] = "batch",
    ):
        super().__init__()
        if not widths:
            raise UsageError("classifier.widths=[] must name the channels of at least one block, e.g. [32, 64, 128]")
        step = 8 if norm == "group" else 1
        for key, width in (("stem", stem), *(("widths", width) for width in widths)):
            if width < step or width % step:
                raise UsageError(
                    f"classifier.{key}: {width} channels must be a positive multiple of {step} (norm={norm})"
                )
        check_rates(dropout=dropout)
        self.map_shape, self.num_classes, self.width = map_shape, num_classes, 2 * widths[-1]
        # The stem halves an odd length upwards, the blocks downwards.
        self.min_frames = 2 ** (len(widths) + 1) - 1
        least = self.min_frames
        if min(map_shape[1:]) < least:
            raise UsageError(
                f"a map of {map_shape[1]} x {map_shape[2]} (frequency x time) is too small for {len(widths)} blocks, "
                f"which need {least} x {least}; use fewer classifier.widths, longer clips or a front-end with more bins"
            )
        self.stem = ConvNorms(
            nn.Conv2d(map_shape[0], stem, 5, 2, 2, bias=False), norm_layer(norm, stem), nn.ReLU(inplace=True)
        )
        channels = (stem, *widths)
        self.blocks = nn.Sequential(*(ConvBlock(channels[i], channels[i + 1], norm) for i in range(len(widths))))
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(self.width, num_classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs

    def embed(self, feature_map: Tensor) -> Tensor:
        """Compute the embedding of a map. `(batch, channels, frequency, time)` -> `(batch, 2 * widths[-1])`."""
        self.check_input(feature_map)
        if not torch.compiler.is_exporting():  # the memory format would depend on whether the batch size is 1
            feature_map = feature_map.contiguous(memory_format=torch.channels_last)
        x = self.blocks(self.stem(feature_map))
        x = x.to(torch.promote_types(x.dtype, torch.float32)).mean(dim=2)
        return torch.cat([x.mean(dim=-1), x.amax(dim=-1)], dim=1)

    def head(self, embedding: Tensor) -> Tensor:
        """Compute logits from an embedding. `(batch, 2 * widths[-1])` -> `(batch, classes)`."""
        return self.output(self.dropout(embedding))

    def head_names(self) -> tuple[str, ...]:
        """Return the name prefixes of the parameters of the output layer."""
        return ("output.",)
