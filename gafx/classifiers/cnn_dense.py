"""Convolutions, then a dense layer over the whole map: the MFCC paper's and the thesis's convolutional networks."""

from typing import Literal

from torch import Tensor, nn

from gafx.classifiers.base import Classifier, Shape, check_at_least_one, check_rates
from gafx.nn.conv import PooledConvs, activation_layer
from gafx.nn.maps import fit_length
from gafx.registry import CLASSIFIERS


@CLASSIFIERS.register
class CNNDense(Classifier):
    """Convolutions with max pooling and batch norm, their output flattened, a dense layer, then a linear layer.

    The defaults are the network of "Music Information Retrieval and Classification using Deep Learning" (Jain et al.,
    2021, section 7.5, Table 1); configs/classifier/cnn_thesis.yaml is the thesis's for images of the mel spectrogram.
    Unlike `cnn`, which averages over the map, the dense layer depends on the position in the map. Of a map of another
    length than `map_shape`'s the output of the convolutions is averaged along time to the length that the dense layer
    was built for (`gafx.nn.maps.fit_length`).

    Args:
        map_shape: (channels, frequency, time) of the maps.
        num_classes: number of outputs.
        channels: output channels of the convolutions.
        kernels: sizes of their square kernels.
        pool: size and stride of the pooling windows, which may be partial at the ends.
        activation: `relu` or `elu`.
        dense: units of the dense layer, the size of an embedding.
        dropout: on the embedding in training, in [0, 1).

    Raises:
        UsageError: no convolution, `kernels` and `channels` of different length, a number below 1, or `dropout` out of
            range.
    """

    fixed_length = "its dense layer reads the whole map"

    def __init__(
        self,
        map_shape: Shape,
        num_classes: int,
        /,
        *,
        channels: tuple[int, ...] = (32, 32, 32),
        kernels: tuple[int, ...] = (3, 3, 2),
        pool: int = 3,
        activation: Literal["relu", "elu"] = "relu",
        dense: int = 64,
        dropout: float = 0.3,
    ):
        super().__init__()
        check_at_least_one(dense=dense)
        check_rates(dropout=dropout)
        self.map_shape, self.num_classes, self.width = map_shape, num_classes, dense
        self.convs = PooledConvs(map_shape[0], channels, kernels, pool, activation)
        rows, self.columns = self.convs.sizes(*map_shape[1:])
        self.dense = nn.Sequential(nn.Linear(channels[-1] * rows * self.columns, dense), activation_layer(activation))
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(dense, num_classes)

    def embed(self, feature_map: Tensor) -> Tensor:
        """Compute the dense layer. `(batch, channels, frequency, time)` -> `(batch, dense)`."""
        self.check_input(feature_map)
        return self.dense(fit_length(self.convs(feature_map), self.columns).flatten(1))

    def head(self, embedding: Tensor) -> Tensor:
        """Compute logits from an embedding. `(batch, dense)` -> `(batch, classes)`."""
        return self.output(self.dropout(embedding))

    def head_names(self) -> tuple[str, ...]:
        """Return the name prefixes of the parameters of the output layer."""
        return ("output.",)
