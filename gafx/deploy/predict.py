"""Files to shares of labels: reading, computing and answering at the same time, in memory that no length fills."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.audio import AudioFile
from gafx.inference import Probabilities

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Prediction:
    """What a model says of one file.

    Attributes:
        file: as it was given.
        seconds: its length; None where it could not be read.
        classes: the model's labels.
        shares: `(classes,)` mean over the windows; they sum to 1 with one label a clip. None where the file could not
            be read.
        windows: `(windows, 2)` begin and end of each window in seconds; empty unless `over_time` was asked for.
        window_shares: `(windows, classes)`, likewise.
        error: why the file could not be read, or None.
    """

    file: str
    classes: tuple[str, ...]
    seconds: float | None = None
    shares: Array | None = None
    windows: Array | None = None
    window_shares: Array | None = None
    error: str | None = None

    def top(self, count: int | None = None) -> list[tuple[str, float]]:
        """The labels with the largest shares, largest first; all of them without a `count`."""
        if self.shares is None:
            return []
        order = np.argsort(-self.shares, kind="stable")[:count]
        return [(self.classes[index], float(self.shares[index])) for index in order]


def predict_files(
    model: Probabilities,
    files: Iterable[AudioFile],
    *,
    overlap: float = 0.5,
    window_seconds: float | None = None,
    batch_size: int = 16,
    over_time: bool = False,
    device: str = "auto",
    precision: str = "fp32",
    readers: int = 1,
    progress: Callable[[float], object] | None = None,
) -> Iterator[Prediction]:
    """Label files; answers come in the order of the files, one as soon as it is known.

    Args:
        model: calibrated probabilities of a loaded model: `Probabilities(gafx.load(...))`.
        files: paths; any number of any length.
        overlap: share of a window that the next one repeats, in [0, 1).
        window_seconds: length of a window; default: the length of the clips that the model was built for.
        batch_size: windows computed at once, of several files together.
        over_time: keep every window's shares.
        device, precision: where and how to compute.
        readers: threads that read and resample.
        progress: called with the seconds of audio that each batch adds.
    """
    raise NotImplementedError
