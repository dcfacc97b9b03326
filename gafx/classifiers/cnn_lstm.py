"""Convolutions, then an LSTM over their frames: the thesis's combined network."""

from typing import Literal

from torch import Tensor, nn

from gafx.classifiers.base import Classifier, Shape, check_at_least_one, check_rates
from gafx.nn.conv import PooledConvs
from gafx.nn.recurrent import UNROLLED, last_output
from gafx.registry import CLASSIFIERS


@CLASSIFIERS.register
class CNNLSTM(Classifier):
    """Convolutions with max pooling and batch norm, an LSTM over their output frame by frame, then a linear layer.

    The thesis's convolutional network (section 4.1.3) with an LSTM in place of the dense layer. It states that the LSTM
    of 128 units follows the flattened maps; read as flattened frame by frame, since an LSTM over one vector is a single
    step. Maps of any length are read as they are.

    Args:
        map_shape: (channels, frequency, time) of the maps.
        num_classes: number of outputs.
        channels: output channels of the convolutions.
        kernels: sizes of their square kernels.
        pool: size and stride of the pooling windows, which may be partial at the ends.
        activation: of the convolutions, `relu` or `elu`.
        width: units of the LSTM, the size of an embedding: its output after the last frame.
        dropout: on the embedding in training, in [0, 1).

    Raises:
        UsageError: no convolution, `kernels` and `channels` of different length, a number below 1, or `dropout` out of
            range.
    """

    fixed_length = UNROLLED

    def __init__(
        self,
        map_shape: Shape,
        num_classes: int,
        /,
        *,
        channels: tuple[int, ...] = (32, 64, 64),
        kernels: tuple[int, ...] = (3, 3, 3),
        pool: int = 2,
        activation: Literal["relu", "elu"] = "elu",
        width: int = 128,
        dropout: float = 0.25,
    ):
        super().__init__()
        check_at_least_one(width=width)
        check_rates(dropout=dropout)
        self.map_shape, self.num_classes, self.width = map_shape, num_classes, width
        self.convs = PooledConvs(map_shape[0], channels, kernels, pool, activation)
        rows, _ = self.convs.sizes(*map_shape[1:])
        self.lstm = nn.LSTM(channels[-1] * rows, width, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, num_classes)

    def embed(self, feature_map: Tensor) -> Tensor:
        """Compute the LSTM's last output. `(batch, channels, frequency, time)` -> `(batch, width)`."""
        self.check_input(feature_map)
        return last_output(self.lstm, self.convs(feature_map).flatten(1, 2).transpose(1, 2))

    def head(self, embedding: Tensor) -> Tensor:
        """Compute logits from an embedding. `(batch, width)` -> `(batch, classes)`."""
        return self.output(self.dropout(embedding))

    def head_names(self) -> tuple[str, ...]:
        """Return the name prefixes of the parameters of the output layer."""
        return ("output.",)
