"""Standard classifiers of frozen embeddings: logistic regression, k nearest neighbours, a support vector machine.

Each is fitted on standardised features; its setting is chosen in inner folds over the recordings of the training part.
"""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.studies.probes.linear import deal

Array = npt.NDArray[Any]
# Name -> grid of its setting.
GRIDS: dict[str, dict[str, list[Any]]] = {
    "logistic regression": {"C": [1e-3, 1e-2, 1e-1, 1.0, 10.0]},
    "k-NN": {"n_neighbors": [1, 3, 5, 9, 15]},
    "SVM": {"C": [0.1, 1.0, 10.0, 100.0]},
}
NAMES = tuple(GRIDS)
_INNER_FOLDS = 3


def fit_predict(name: str, train: Array, target: Array, group: Array, test: Array, *, seed: int = 0) -> Array:
    """Return predictions `(test rows,)` of one of `NAMES`, fitted and chosen on the training rows alone.

    Args:
        name: of the classifier.
        train: `(rows, width)` features.
        target: `(rows,)` class numbers.
        group: `(rows,)` recordings, none of which is on two sides of an inner fold.
        test: `(test rows, width)` features.
        seed: of the inner folds.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    models = (LogisticRegression(max_iter=1000), KNeighborsClassifier(), SVC(kernel="rbf"))
    model = Pipeline([("scale", StandardScaler()), ("model", dict(zip(NAMES, models, strict=True))[name])])
    inner = _inner_folds(target, group, seed)
    smallest = min((len(fit) for fit, _ in inner), default=len(target))
    [(key, values)] = GRIDS[name].items()
    values = [value for value in values if key != "n_neighbors" or value <= smallest]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # weak penalties need more than 1,000 steps
        if not inner:  # too few recordings to choose: the grid's middle
            return model.set_params(**{f"model__{key}": values[len(values) // 2]}).fit(train, target).predict(test)
        return GridSearchCV(model, {f"model__{key}": values}, cv=inner).fit(train, target).predict(test)


def _inner_folds(target: Array, group: Array, seed: int) -> list[tuple[Array, Array]]:
    """Return the rows to fit and to check of each inner fold with rows to check and two classes to fit."""
    _, first, number = np.unique(group, return_index=True, return_inverse=True)
    fold = deal(target[first], _INNER_FOLDS, seed)[number]
    sides = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(_INNER_FOLDS)]
    return [(fit, check) for fit, check in sides if len(check) and len(np.unique(target[fit])) > 1]
