"""The field's standard readers of frozen embeddings: logistic regression, nearest neighbours, a support vector machine.

Each is fitted on standardised features, its setting chosen in inner folds over the recordings of the training part.
"""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.studies.probes.linear import deal

Array = npt.NDArray[Any]
NAMES = ("logistic regression", "k-NN", "SVM")
GRIDS: dict[str, dict[str, list[Any]]] = {
    "logistic regression": {"C": [1e-3, 1e-2, 1e-1, 1.0, 10.0]},
    "k-NN": {"n_neighbors": [1, 3, 5, 9, 15]},
    "SVM": {"C": [0.1, 1.0, 10.0, 100.0]},
}
_INNER_FOLDS = 3


def fit_predict(name: str, train: Array, target: Array, group: Array, test: Array, *, seed: int = 0) -> Array:
    """Predictions `(test rows,)` of one of `NAMES`, fitted and chosen on the training rows alone.

    Args:
        name: of the reader.
        train: `(rows, width)` features.
        target: `(rows,)` class numbers.
        group: `(rows,)` recordings; none is on two sides of an inner fold.
        test: `(test rows, width)` features.
        seed: of the inner folds.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import GridSearchCV

    pipeline, grid = _pipeline(name), {f"read__{key}": list(values) for key, values in GRIDS[name].items()}
    inner = _inner_folds(target, group, seed)
    smallest = min((len(fit) for fit, _ in inner), default=len(target))
    if name == "k-NN":
        grid["read__n_neighbors"] = [k for k in GRIDS[name]["n_neighbors"] if k <= smallest]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a penalty so weak that 1,000 steps do not end it
        if not inner:  # too few recordings to choose: the grid's middle
            middle = {key: values[len(values) // 2] for key, values in grid.items()}
            return pipeline.set_params(**middle).fit(train, target).predict(test)
        return GridSearchCV(pipeline, grid, cv=inner).fit(train, target).predict(test)


def _pipeline(name: str) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    readers = {
        "logistic regression": lambda: LogisticRegression(max_iter=1000),
        "k-NN": KNeighborsClassifier,
        "SVM": lambda: SVC(kernel="rbf"),
    }
    return Pipeline([("scale", StandardScaler()), ("read", readers[name]())])


def _inner_folds(target: Array, group: Array, seed: int) -> list[tuple[Array, Array]]:
    """Rows to fit and to check for each inner fold that can be used: both hold rows, and those to fit two classes."""
    _, first, number = np.unique(group, return_index=True, return_inverse=True)
    fold = deal(target[first], _INNER_FOLDS, seed)[number]
    sides = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(_INNER_FOLDS)]
    return [(fit, check) for fit, check in sides if len(check) and len(np.unique(target[fit])) > 1]
