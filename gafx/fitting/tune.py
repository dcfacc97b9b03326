"""Estimators with a grid of their setting, fitted on a table and tuned in inner folds over its recordings."""

import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.fitting.folds import Sides, inner_folds
from gafx.fitting.scaling import Scaling
from gafx.fitting.table import Table

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Method:
    """An estimator of scikit-learn on standardised features.

    Attributes:
        build: returns the unfitted estimator for a seed.
        setting: name of the keyword that is tuned.
        grid: its values, from the strongest regularisation on.
        is_linear: whether the outputs are linear in the features (and rows may have weights); otherwise they are votes.
    """

    build: Callable[[int], Any]
    setting: str
    grid: tuple[float, ...]
    is_linear: bool = False


def _logistic(seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=1000, tol=1e-6, warm_start=True)


def _linear_svm(seed: int) -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(random_state=seed, max_iter=5000)


def _neighbours(seed: int) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier()


def _svm(seed: int) -> Any:
    from sklearn.svm import SVC

    return SVC(kernel="rbf")


METHODS = {
    "logistic regression": Method(_logistic, "C", (1e-3, 1e-2, 1e-1, 1.0, 10.0), is_linear=True),
    "linear SVM": Method(_linear_svm, "C", (1e-4, 1e-3, 1e-2, 1e-1, 1.0), is_linear=True),
    "k-NN": Method(_neighbours, "n_neighbors", (1, 3, 5, 9, 15)),
    "SVM": Method(_svm, "C", (0.1, 1.0, 10.0, 100.0)),
}


@dataclass(frozen=True)
class Fitted:
    """A fitted estimator.

    Attributes:
        method: that it is of.
        setting: value of the tuned keyword.
        scaling: of its training rows.
        estimator: of scikit-learn; None if all training rows have one class.
        present: `(classes with a training row,)` their numbers.
        classes: number of all classes.
    """

    method: Method
    setting: float
    scaling: Scaling
    estimator: Any
    present: Array
    classes: int

    def outputs(self, values: Array) -> Array:
        """Outputs `(rows, classes)` for features `(rows, width)`; the largest is the prediction.

        Logits of a logistic regression, distances of a linear SVM, otherwise 1 for the predicted class and 0 for the
        others. A class without a training row gets half the odds of the least likely one.
        """
        if self.estimator is None:
            own = np.zeros((len(values), 1))
        elif self.method.is_linear:
            own = self.estimator.decision_function(self.scaling.apply(values))
            if own.ndim == 1:  # two classes
                own = np.stack([-own / 2, own / 2], axis=1)
        else:
            own = self.present == self.estimator.predict(self.scaling.apply(values))[:, None]
        found = np.repeat(own.min(axis=1, keepdims=True) - np.log(2), self.classes, axis=1)
        found[:, self.present] = own
        return found

    def linear(self) -> tuple[Array, Array]:
        """Weight `(classes, width)` and bias `(classes,)` of `outputs`, of a linear method with all classes present."""
        weight, bias = self.scaling.unscale(self.estimator.coef_, self.estimator.intercept_)
        if len(weight) == 1:
            weight, bias = np.stack([-weight[0] / 2, weight[0] / 2]), np.array([-bias[0] / 2, bias[0] / 2])
        return weight, bias


@dataclass(frozen=True)
class Tuned:
    """An estimator fitted on a whole table, with its setting chosen in inner folds.

    Attributes:
        fitted: the estimator.
        checked: rows of the table that an inner fold predicted, of clips whose class was fitted there.
        outputs: `(checked, classes)` of estimators with the same setting that were not fitted on them.
    """

    fitted: Fitted
    checked: Array
    outputs: Array


def fit(method: Method, table: Table, setting: float, *, balanced: bool = False, seed: int = 0) -> Fitted:
    """Fit an estimator on a table.

    Args:
        method: the estimator.
        table: each of its clips counts alike, however many rows it has.
        setting: value of the tuned keyword.
        balanced: weight the clips so that each class counts alike (linear methods only).
        seed: of the estimator.
    """
    return _fit(method, table, [setting], balanced, seed)[0]


def _fit(method: Method, table: Table, settings: Sequence[float], balanced: bool, seed: int) -> list[Fitted]:
    """Fit an estimator for each setting."""
    from sklearn.exceptions import ConvergenceWarning

    scaling, present = Scaling.fit(table.values, table.weight), np.unique(table.label)
    scaled, weight = scaling.apply(table.values), table.weight
    if balanced:
        sums = np.bincount(table.label, weight, minlength=table.classes)
        weight = weight * weight.sum() / (len(present) * sums[table.label])
    fitted, estimator = [], method.build(seed) if len(present) > 1 else None
    for setting in settings:  # each fit of a logistic regression starts from the one before
        if estimator is not None:
            estimator = deepcopy(estimator).set_params(**{method.setting: setting})
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # weak penalties need more steps
                estimator.fit(scaled, table.label, **({"sample_weight": weight} if method.is_linear else {}))
        fitted.append(Fitted(method, setting, scaling, estimator, present, table.classes))
    return fitted


def tune(
    method: Method, table: Table, *, folds: int = 3, sides: Sides | None = None, balanced: bool = False, seed: int = 0
) -> Tuned:
    """Choose the setting with the best accuracy over inner folds, and fit an estimator with it on the whole table.

    The accuracy is that of clips (the mean of the outputs over their rows), averaged over the folds. Among equal ones
    the strongest regularisation is chosen, and with too few recordings for a fold the middle of the grid.

    Args:
        method: the estimator.
        table: training clips; no recording is on two sides of an inner fold.
        folds: number of inner folds.
        sides: rows to fit and to check of each fold, instead of drawn ones.
        balanced, seed: of `fit`; the seed is also that of the folds.
    """
    if sides is None:
        sides = inner_folds(table.label, table.group, folds, seed)
    smallest = min((len(train) for train, _ in sides), default=len(table))
    grid = [value for value in method.grid if method.setting != "n_neighbors" or value <= smallest]
    rows = [check[np.isin(table.label[check], table.label[train])] for train, check in sides]
    held_out = Tuned(
        fit(method, table, grid[len(grid) // 2], balanced=balanced, seed=seed),
        np.concatenate([np.zeros(0, np.int64), *rows]), np.zeros((0, table.classes)),
    )  # fmt: skip
    if not len(held_out.checked):
        return held_out
    outputs: list[list[Array]] = [[] for _ in grid]
    accuracy: list[list[float]] = [[] for _ in grid]
    for (train, _), check in zip(sides, rows, strict=True):
        checked = table.take(check)
        for column, each in enumerate(_fit(method, table.take(train), grid, balanced, seed) if len(check) else []):
            outputs[column].append(each.outputs(checked.values))
            first, means = checked.by_clip(outputs[column][-1])
            accuracy[column].append((means.argmax(axis=1) == checked.label[first]).mean())
    best = int(np.argmax(np.mean(accuracy, axis=1)))
    fitted = fit(method, table, grid[best], balanced=balanced, seed=seed)
    return replace(held_out, fitted=fitted, outputs=np.concatenate(outputs[best]))


def fit_predict(name: str, train: Table, test: Array, *, seed: int = 0) -> Array:
    """Return predictions `(test rows,)` of one of `METHODS`, fitted and tuned on the training table alone.

    Args:
        name: of the method.
        train: training rows.
        test: `(test rows, width)` features.
        seed: of the inner folds.
    """
    return np.asarray(tune(METHODS[name], train, seed=seed).fitted.outputs(test).argmax(axis=1))
