"""LSTM layers over frames: the MFCC paper's recurrent network."""

from torch import Tensor, nn

from gafx.classifiers.base import Classifier, Shape, check_at_least_one, check_rates
from gafx.nn.recurrent import UNROLLED, last_output
from gafx.registry import CLASSIFIERS


@CLASSIFIERS.register
class LSTM(Classifier):
    """LSTM layers over the frames of the map, a dense layer with ReLU on the last frame's output, then a linear layer.

    "Music Information Retrieval and Classification using Deep Learning" (Jain et al., 2021, section 7.4). The input of
    a frame is its column of the map, all channels. Maps of any length are read as they are.

    Args:
        map_shape: (channels, frequency, time) of the maps.
        num_classes: number of outputs.
        width: units of each LSTM layer.
        depth: number of LSTM layers.
        dense: units of the dense layer, the size of an embedding.
        dropout: on the embedding in training, in [0, 1).

    Raises:
        UsageError: a number of units or layers below 1, or `dropout` out of range.
    """

    fixed_length = UNROLLED

    def __init__(
        self,
        map_shape: Shape,
        num_classes: int,
        /,
        *,
        width: int = 64,
        depth: int = 2,
        dense: int = 64,
        dropout: float = 0.3,
    ):
        super().__init__()
        check_at_least_one(width=width, depth=depth, dense=dense)
        check_rates(dropout=dropout)
        self.map_shape, self.num_classes, self.width = map_shape, num_classes, dense
        self.lstm = nn.LSTM(map_shape[0] * map_shape[1], width, depth, batch_first=True)
        self.dense = nn.Linear(width, dense)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(dense, num_classes)

    def embed(self, feature_map: Tensor) -> Tensor:
        """Compute the dense layer. `(batch, channels, frequency, time)` -> `(batch, dense)`."""
        self.check_input(feature_map)
        return self.dense(last_output(self.lstm, feature_map.flatten(1, 2).transpose(1, 2))).relu()

    def head(self, embedding: Tensor) -> Tensor:
        """Compute logits from an embedding. `(batch, dense)` -> `(batch, classes)`."""
        return self.output(self.dropout(embedding))

    def head_names(self) -> tuple[str, ...]:
        """Return the name prefixes of the parameters of the output layer."""
        return ("output.",)
