"""The seam between maps and labels."""

from torch import Tensor

from gafx.nn.part import Part

Shape = tuple[int, int, int]


class Classifier(Part):
    """Reads maps `(batch, channels, frequency, time)` and answers `(batch, classes)` logits.

    A subclass registers itself (`@CLASSIFIERS.register`) under its module's name; its constructor takes the map's shape
    (channels, frequency, time), the number of classes and, third, the number of planes by position and its
    configuration as keyword-only arguments. Planes are equal parts that lie one after another along the map's time
    (`FrontEnd.planes`); what depends on the place in time applies within a plane, never across. Of one plane the
    argument is left out, so a classifier that knows of no planes has only two. Channels must fit; shorter maps and
    longer ones are accepted.

    Attributes:
        map_shape: the shape it was built for.
        num_classes: number of labels.
        width: size of an embedding.
        min_frames: frames of the shortest map that it can read.
    """

    map_shape: Shape
    num_classes: int
    width: int
    min_frames: int = 1

    def embed(self, feature_map: Tensor) -> Tensor:
        """`(batch, channels, frequency, time)` -> `(batch, width)`."""
        raise NotImplementedError

    def head(self, embedding: Tensor) -> Tensor:
        """`(batch, width)` -> `(batch, classes)`."""
        raise NotImplementedError

    def forward(self, feature_map: Tensor) -> Tensor:
        return self.head(self.embed(feature_map))

    def head_names(self) -> tuple[str, ...]:
        """Prefixes of the parameters that depend on the number of classes."""
        raise NotImplementedError
