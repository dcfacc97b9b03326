"""A fitted estimator of scikit-learn as the classifier of a model: what `gafx classical` fits and saves."""

import io
import json
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gafx.classifiers.base import Classifier, Shape
from gafx.errors import UsageError, first_line, missing_package, require
from gafx.registry import CLASSIFIERS

# Types of fitted classifiers that skops builds beside those that it trusts by itself, which are the estimators of
# scikit-learn and the types of numpy. None of them runs code that a file contains.
TRUSTED = frozenset({
    "sklearn.calibration._CalibratedClassifier", "sklearn.calibration._SigmoidCalibration",
    "sklearn.calibration._TemperatureScaling", "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.metrics._dist_metrics.EuclideanDistance64", "sklearn.metrics._dist_metrics.ManhattanDistance64",
    "sklearn.model_selection._split.KFold", "sklearn.model_selection._split.StratifiedGroupKFold",
    "sklearn.model_selection._split.StratifiedKFold", "sklearn.neighbors._ball_tree.BallTree",
    "sklearn.neighbors._kd_tree.KDTree", "sklearn.tree._tree.Tree", "sklearn.utils._bunch.Bunch",
    "xgboost.core.Booster", "xgboost.sklearn.XGBClassifier",
})  # fmt: skip
LEAST = 1e-6  # probability of a class that the estimator excludes, or did not see
_ABOUT = "gafx.json"  # of the file that skops writes: labels of the outputs and versions
# Bytes that a file may unpack to: this many, and so many times its own. A forest has 8 times.
_SMALL, _RATIO = 2**20, 20
_SCHEMA = "schema.json"  # of skops
_ADDRESS = r'(?<="__id__": )\d+|(?<=")[0-9a-f-]+(?=\.(?:npy|npz|bin)")'
_WHAT = "classifier=estimator"
_DAMAGED = "the estimator in these weights is damaged, or of another format"


@CLASSIFIERS.register
class Estimator(Classifier):
    """A fitted estimator of scikit-learn, usually a `Pipeline`, which reads the columns of a map.

    The columns of `frontend=handcrafted` are the features of windows. Each column of a map, all its channels and rows,
    is a row of the estimator's table; `predict_proba` of the columns is averaged, and the logits are the logarithm of
    the mean, so that the softmax of the logits is that mean. Probabilities below 1e-6, and those of classes that the
    estimator never saw, become 1e-6. The map of a fixed front-end is read as it is, not normalised. An embedding is the
    mean of the columns.

    `set_estimator` takes one that is fitted; `gafx classical` does all of it. It has no parameters that `gafx train`
    could train, computes on the CPU, without gradients, and cannot be exported.

    In a saved model it is a tensor of bytes, a file of skops, which contains no code: a type that is not one of
    scikit-learn's classifiers, numpy's or xgboost's is refused, and nothing is unpickled. Trees and tables in it are
    read by compiled code of scikit-learn and xgboost. It needs skops: pip install 'gafx[classical]'.

    Args:
        map_shape: (channels, frequency, time) of the maps.
        num_classes: number of outputs.
    """

    frame_head = True
    input_scale = (0.0, 0.5)  # by which MapNorm changes nothing
    not_exportable = "scikit-learn computes the probabilities, outside PyTorch"

    def __init__(self, map_shape: Shape, num_classes: int, /):
        super().__init__()
        self.map_shape, self.num_classes = map_shape, num_classes
        self.width = map_shape[0] * map_shape[1]
        self.estimator: Any = None
        self.labels: list[int] = []
        self.file = torch.empty(0, dtype=torch.uint8)

    def set_estimator(self, estimator: Any, labels: Sequence[int] | None = None) -> None:
        """Take a fitted estimator.

        It is packed and read again, so that what predicts is what is saved.

        Args:
            estimator: with `predict_proba`, fitted on float64 rows `(rows, channels * frequency)`.
            labels: number of the class of each of its outputs, in [0, num_classes); default: its `classes_`.

        Raises:
            UsageError: it has no `predict_proba`, was fitted on another number of columns, has other labels, or a part
                of a type that is not loaded again.
        """
        skops = require("skops.io", _WHAT)
        if not hasattr(estimator, "predict_proba"):
            raise UsageError(
                f"{type(estimator).__name__} has no predict_proba: wrap it in CalibratedClassifierCV(..., "
                "ensemble=False) (an SVM), or set voting='soft' (a VotingClassifier)"
            )
        columns = getattr(estimator, "n_features_in_", self.width)
        if columns != self.width:
            raise UsageError(f"the estimator was fitted on {columns} columns, and the map has {self.width} rows")
        found = [int(label) for label in (estimator.classes_ if labels is None else labels)]
        self._check_labels(found, len(estimator.classes_))
        packages = ["scikit-learn", *(["xgboost"] if "xgboost" in _modules(estimator) else [])]
        about = {"labels": found, "versions": {package: metadata.version(package) for package in packages}}
        packed = _pack(skops.dumps(estimator), about)
        self.set_extra_state(torch.frombuffer(bytearray(packed), dtype=torch.uint8))

    def _check_labels(self, labels: Sequence[int], outputs: int) -> None:
        if len(set(labels)) != outputs or len(labels) != outputs or not set(labels) <= set(range(self.num_classes)):
            raise UsageError(
                f"labels={list(labels)} must be {outputs} different numbers from 0 to {self.num_classes - 1}, one for "
                "each output of the estimator"
            )

    def get_extra_state(self) -> Tensor:
        """Return the file of the estimator as bytes, `(bytes,)` uint8; empty if none is set."""
        return self.file

    def set_extra_state(self, state: Tensor) -> None:
        """Read the file of an estimator; errors as of `set_estimator`, and for a damaged file."""
        estimator, labels = _read(state.cpu().numpy().tobytes()) if state.numel() else (None, [])
        if estimator is not None:
            self._check_labels(labels, len(estimator.classes_))
        self.file, self.estimator, self.labels = state, estimator, labels

    def probabilities(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Probabilities of all classes, `(rows, channels * frequency)` -> `(rows, classes)`.

        Raises:
            UsageError: no estimator is set.
        """
        if self.estimator is None:
            raise UsageError(
                f"{_WHAT} holds no fitted estimator: fit one with gafx classical, or give a fitted one to "
                "model.classifier.set_estimator; gafx train cannot train it"
            )
        found = np.zeros((len(rows), self.num_classes))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an estimator that was fitted on a table with names
            found[:, self.labels] = self.estimator.predict_proba(rows.astype(np.float64))
        return found

    def embed(self, feature_map: Tensor) -> Tensor:
        """Compute the mean of the columns. `(batch, channels, frequency, time)` -> `(batch, channels * frequency)`."""
        self.check_input(feature_map)
        return feature_map.flatten(1, 2).mean(dim=-1)

    def head(self, embedding: Tensor) -> Tensor:
        """Compute logarithms of probabilities of rows. `(batch, channels * frequency)` -> `(batch, classes)`."""
        return _logits(self.probabilities(embedding.detach().cpu().numpy()), embedding)

    def forward(self, feature_map: Tensor) -> Tensor:
        self.check_input(feature_map)
        columns = feature_map.detach().flatten(1, 2).transpose(1, 2).cpu().numpy()
        found = self.probabilities(columns.reshape(-1, self.width))
        return _logits(found.reshape(*columns.shape[:2], -1).mean(axis=1), feature_map)

    def check_input(self, feature_map: Tensor) -> None:
        super().check_input(feature_map)
        if feature_map.shape[2] != self.map_shape[1]:
            raise ValueError(
                f"a map of shape {tuple(feature_map.shape)} does not fit: this estimator reads "
                f"{self.map_shape[1]} rows, (batch, {self.map_shape[0]}, {self.map_shape[1]}, time)"
            )

    def head_names(self) -> tuple[str, ...]:
        """Return the name of the tensor of the whole estimator."""
        return ("_extra_state",)


def _logits(probabilities: npt.NDArray[np.float64], like: Tensor) -> Tensor:
    values = torch.from_numpy(np.log(probabilities.clip(min=LEAST)))
    return values.to(like.device, torch.promote_types(like.dtype, torch.float32))


def _modules(estimator: Any) -> set[str]:
    """Names of the packages that the parts of an estimator come from."""
    parts = estimator.get_params(deep=True).values() if hasattr(estimator, "get_params") else ()
    return {type(part).__module__.partition(".")[0] for part in (estimator, *parts)}


def _pack(data: bytes, about: Mapping[str, Any]) -> bytes:
    """Compress a file of skops and add `about`; the same estimator gives the same bytes.

    skops names parts by their addresses in memory or at random, and a zip file has the time. Here they are numbered.
    """
    numbers: dict[str, str] = {}

    def numbered(text: str) -> str:
        return re.sub(_ADDRESS, lambda found: numbers.setdefault(found[0], str(len(numbers))), text)

    with zipfile.ZipFile(io.BytesIO(data)) as file:
        schema = numbered(file.read(_SCHEMA).decode())
        members = {numbered(f'"{name}"')[1:-1]: file.read(name) for name in file.namelist() if name != _SCHEMA}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in ({_SCHEMA: schema, _ABOUT: json.dumps(about)} | dict(sorted(members.items()))).items():
            file.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _read(data: bytes) -> tuple[Any, list[int]]:
    """Read the file that `set_estimator` made.

    Raises:
        UsageError: a type in it is not trusted, nothing of it was built then; or it is damaged, or of another version.
    """
    skops = require("skops.io", _WHAT)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            size = sum(member.file_size for member in file.infolist())
            if size > _SMALL + _RATIO * len(data):
                raise UsageError(f"{_DAMAGED} ({len(data):,} bytes that unpack to {size:,})")
            about = json.loads(file.read(_ABOUT))
        labels, versions = [int(label) for label in about["labels"]], dict(about["versions"])
        unknown = skops.get_untrusted_types(data=data)
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, RecursionError, OSError) as error:
        raise error if isinstance(error, UsageError) else UsageError(f"{_DAMAGED} ({first_line(error)})") from error
    if refused := sorted(set(unknown) - TRUSTED):
        raise UsageError(
            f"the estimator in these weights contains {', '.join(refused[:5])}, and only classifiers of scikit-learn "
            "and xgboost are loaded; nothing of it was run"
        )
    change = _versions(versions)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one for each part; here is one for all
            estimator = skops.loads(data, trusted=list(unknown))
            estimator.classes_, estimator.predict_proba  # noqa: B018 - of a file of something else
    except ModuleNotFoundError as error:
        raise missing_package(error, _WHAT) from error
    except Exception as error:  # of any part's own reading
        raise UsageError(f"{_DAMAGED} ({first_line(error)}){f'; {change}' if change else ''}") from error
    if change:
        warnings.warn(f"{change}: its probabilities may differ. Fit it again with these versions", stacklevel=2)
    return estimator, labels


def _versions(versions: Mapping[str, str]) -> str:
    """Name the versions that an estimator was fitted with and that differ from those installed; empty if none does."""
    differ = []
    for package in ("scikit-learn", "xgboost"):
        if package in versions:
            try:
                here = metadata.version(package)
            except metadata.PackageNotFoundError:
                continue  # the import says what is missing
            if here != versions[package]:
                differ.append(f"{package} {versions[package]} (here is {here})")
    return f"the estimator was fitted with {' and '.join(differ)}" if differ else ""
