"""`gafx.Embedder`: a frozen model as a transformer of scikit-learn, files to rows of features."""

import glob
import os
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gafx.classifiers.base import ProbeFeatures, probe_width
from gafx.deploy.inputs import Inputs
from gafx.deploy.windows import layout_for, on_device
from gafx.errors import UsageError, require
from gafx.fitting.features import probe_run, sound_features
from gafx.loading import load
from gafx.model import GAFX
from gafx.nn.precision import pick_device
from gafx.saving import catalogue

require("sklearn", "gafx.Embedder")
from sklearn.base import BaseEstimator, TransformerMixin  # noqa: E402


class Embedder(TransformerMixin, BaseEstimator):
    """Rows of features of audio files, computed by a frozen model: a first step of a scikit-learn `Pipeline`.

    `make_pipeline(Embedder("audioset-crnn"), StandardScaler(), LogisticRegression())` is fitted on paths and labels. A
    file's row is the mean over its windows. Nothing is learned from `fit`. A search over the settings of a later step
    computes the features of each fold anew; give the pipeline a `memory` folder, or transform once and search then.

    Args:
        model: name, run, folder or hub id as for `gafx.load`, or a loaded model, which is set to eval mode and moved to
            `device`.
        what: `outputs` (logits), `embedding`, or `both`, concatenated in this order.
        sample_rate: of arrays, in Hz; files state their own.
        overlap: of consecutive windows, as a fraction of a window in [0, 1).
        batch_size: windows per batch.
        device: `auto`, `cpu`, `cuda`, `cuda:<index>` or `mps`.

    Attributes:
        n_features_out_: number of columns; set by `fit`.
    """

    def __init__(
        self, model: str | os.PathLike[str] | GAFX = catalogue.DEFAULT, what: ProbeFeatures = "both", *,
        sample_rate: int | None = None, overlap: float = 0.0, batch_size: int = 16, device: str = "auto",
    ):  # fmt: skip
        self.model = model
        self.what = what
        self.sample_rate = sample_rate
        self.overlap = overlap
        self.batch_size = batch_size
        self.device = device

    def fit(self, X: Inputs, y: object = None) -> Self:
        """Load the model; the files are not read.

        Raises:
            UsageError: no model there, or another value of `what`.
        """
        model = self._model()
        self.n_features_out_ = probe_width(model.classifier, self.what)
        return self

    def transform(self, X: Inputs) -> npt.NDArray[np.float32]:
        """Compute the features of files or other sounds, `(sounds, columns)`.

        Args:
            X: files, or other sounds as for `gafx.predict` (arrays with `sample_rate` set, and so on); paths may also
                be the only column of a table. Each is a row, in this order, however often it occurs.

        Raises:
            UsageError: a sound cannot be read, the message names it: rows belong to labels, so none can be left out. Or
                there is none, or a path is a folder or a pattern, which may be several files.
        """
        model = self._model()
        found = sound_features(
            on_device(probe_run(model, self.what), self.device, "fp32"), _one_by_one(X),
            layout_for(model, overlap=self.overlap), sample_rate=self.sample_rate, batch_size=self.batch_size,
        )  # fmt: skip
        if found.skipped:
            listed = "; ".join(f"{clip.path}: {clip.reason}" for clip in found.skipped[:5])
            raise UsageError(
                f"{len(found.skipped)} of the sounds cannot be read ({listed}), and each row belongs to a label: leave "
                "them out together with their labels"
            )
        return found.values.astype(np.float32)

    def get_feature_names_out(self, input_features: object = None) -> npt.NDArray[Any]:
        """Names of the columns: the model's labels, and `embedding0`, `embedding1` and so on."""
        model = self._model()
        labels = [] if self.what == "embedding" or model.info is None else model.info.classes
        width = probe_width(model.classifier, self.what) - len(labels)
        return np.array([*labels, *(f"embedding{number}" for number in range(width))], object)

    def _model(self) -> GAFX:
        """The model, on its device and in eval mode; loaded once for each `model`."""
        if self.what not in ("outputs", "embedding", "both"):
            raise UsageError(f"what={self.what!r} must be outputs, embedding or both")
        if isinstance(self.model, GAFX):
            model = self.model
        else:
            if getattr(self, "_loaded", (None, None))[0] != self.model:
                self._loaded = self.model, load(self.model)
            model = self._loaded[1]
        return model.eval().to(pick_device(self.device))

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the settings alone: a named model is loaded again."""
        return {key: value for key, value in super().__getstate__().items() if key != "_loaded"}

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags


def _one_by_one(X: Inputs) -> Iterator[Any]:
    """The sounds of a collection; a path is one file.

    Raises:
        UsageError: no collection, an empty one, a table of several columns, or a path of possibly several files.
    """
    if isinstance(X, (str, bytes, os.PathLike)):
        raise UsageError(f"{X!r} is one file: transform takes a list of files, e.g. [{X!r}]")
    if hasattr(X, "columns"):  # of pandas
        X = X.to_numpy()
    if isinstance(X, np.ndarray) and X.dtype.kind in "OUT" and X.ndim == 2:
        if X.shape[1] != 1:
            raise UsageError(f"a table of {X.shape[1]} columns is given: select the column of the paths")
        X = X[:, 0]
    if X is None or (hasattr(X, "__len__") and not len(X)):
        raise UsageError(f"there are no sounds in {X!r}: give a list of paths of audio files")
    for item in X:
        if isinstance(item, (str, os.PathLike)):
            path = os.fsdecode(item)
            if os.path.isdir(path) or (glob.has_magic(path) and not os.path.exists(path)):
                raise UsageError(f"{path!r} may be several files, and each row belongs to a label: list the files")
        yield item
