"""A table of features: what an estimator of scikit-learn is fitted on."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gafx.data.manifest import Manifest
from gafx.inference import Predictions
from gafx.stats.calibration import track_means

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Table:
    """Features and labels, a row for each clip or for each segment of a clip.

    Attributes:
        values: `(rows, width)` features.
        clip: `(rows,)` number of the clip, equal for its segments.
        label: `(rows,)` class of the clip.
        group: `(rows,)` recording that the clip came from.
        classes: number of classes, of which some may have no row.
    """

    values: Array
    clip: Array
    label: Array
    group: Array
    classes: int

    @classmethod
    def of(cls, found: Predictions, manifest: Manifest) -> Self:
        """Build the table of features that were computed for segments or clips of a data set."""
        label = manifest.first_label()
        return cls(found.values, found.row, label[found.row], manifest.group[found.row], len(manifest.classes))

    def __len__(self) -> int:
        return len(self.clip)

    def take(self, rows: Array) -> Self:
        """Return some of the rows."""
        columns = {name: getattr(self, name)[rows] for name in ("values", "clip", "label", "group")}
        return replace(self, **columns)

    def rows_of(self, clips: Array) -> Array:
        """Return the rows `(any,)` of some clips; those without a row are left out."""
        return np.flatnonzero(np.isin(self.clip, clips))

    @cached_property
    def weight(self) -> Array:
        """`(rows,)`: 1 divided by the number of rows of the clip, so that each clip counts as one."""
        _, number, counts = np.unique(self.clip, return_inverse=True, return_counts=True)
        return 1 / counts[number]

    def by_clip(self, values: Array) -> tuple[Array, Array]:
        """Average values of the rows over each clip.

        Args:
            values: `(rows, columns)`.

        Returns:
            the first row of each clip, `(clips,)`, and the means `(clips, columns)`.
        """
        _, first, number = np.unique(self.clip, return_index=True, return_inverse=True)
        return first, track_means(values, number)
