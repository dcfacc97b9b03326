"""Fully connected layers over the whole map: the MFCC paper's multilayer perceptron, the thesis's dense network."""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from gafx.classifiers.base import Classifier, Shape, check_rates
from gafx.errors import UsageError
from gafx.nn.conv import BatchNorm, activation_layer
from gafx.nn.maps import fit_length
from gafx.registry import CLASSIFIERS


@CLASSIFIERS.register
class MLP(Classifier):
    """Hidden layers over the flattened map, each linear, activation and norm in this order, then a linear layer.

    The defaults are the multilayer perceptron of "Music Information Retrieval and Classification using Deep Learning"
    (Jain et al., 2021, section 7.3); configs/classifier/dense.yaml is the thesis's network for a column of features. A
    map of another length than `map_shape`'s is averaged along time to that length (`gafx.nn.maps.fit_length`); with one
    frame, such as features of a window, that is the mean over the windows.

    Args:
        map_shape: (channels, frequency, time) of the maps.
        num_classes: number of outputs.
        widths: units of the hidden layers; the last is the size of an embedding.
        activation: `relu` or `elu`.
        norm: `batch`: batch norm after each activation; `none`.
        dropout: in training, in [0, 1).
        dropout_layers: after which hidden layers: `all`, or `last`.

    Raises:
        UsageError: no hidden layer, a width below 1, or `dropout` out of range.
    """

    fixed_length = "its first layer reads the whole map"

    def __init__(
        self,
        map_shape: Shape,
        num_classes: int,
        /,
        *,
        widths: tuple[int, ...] = (512, 256, 128),
        activation: Literal["relu", "elu"] = "relu",
        norm: Literal["none", "batch"] = "none",
        dropout: float = 0.3,
        dropout_layers: Literal["all", "last"] = "all",
    ):
        super().__init__()
        if not widths or min(widths) < 1:
            raise UsageError(f"classifier.widths={list(widths)} must name at least one layer, e.g. [512, 256, 128]")
        check_rates(dropout=dropout)
        self.map_shape, self.num_classes, self.width = map_shape, num_classes, widths[-1]
        layers: list[nn.Module] = []
        for here, there in pairwise((map_shape[0] * map_shape[1] * map_shape[2], *widths)):
            if layers and dropout_layers == "all":
                layers.append(nn.Dropout(dropout))
            layers += [nn.Linear(here, there), activation_layer(activation)]
            if norm == "batch":
                layers.append(BatchNorm(there))
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(self.width, num_classes)

    def embed(self, feature_map: Tensor) -> Tensor:
        """Compute the last hidden layer. `(batch, channels, frequency, time)` -> `(batch, widths[-1])`."""
        self.check_input(feature_map)
        return self.layers(fit_length(feature_map, self.map_shape[2]).flatten(1))

    def head(self, embedding: Tensor) -> Tensor:
        """Compute logits from an embedding. `(batch, widths[-1])` -> `(batch, classes)`."""
        return self.output(self.dropout(embedding))

    def head_names(self) -> tuple[str, ...]:
        """Return the name prefixes of the parameters of the output layer."""
        return ("output.",)
