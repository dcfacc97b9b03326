"""Estimators with a grid of settings, fitted on a table and tuned in inner folds over its recordings."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gafx.fitting.folds import Sides, inner_folds
from gafx.fitting.scaling import Scaling
from gafx.fitting.table import Table

Array = npt.NDArray[Any]


Settings = Mapping[str, Any]  # keywords of an estimator's `set_params`


@dataclass(frozen=True)
class Method:
    """An estimator of scikit-learn with a grid of settings.

    Attributes:
        build: returns the unfitted estimator for a seed.
        grid: settings to choose from, from the strongest regularisation on.
        output: its method that is read: `decision_function` (logits or distances), `predict_proba`, or `predict`, whose
            classes count as votes.
        standardised: whether it is given standardised features, see `Scaling`; otherwise it scales them itself.
        weighted: whether rows have weights, so that clips count alike; otherwise rows do.
    """

    build: Callable[[int], Any]
    grid: tuple[Settings, ...]
    output: Literal["decision_function", "predict_proba", "predict"] = "predict"
    standardised: bool = True
    weighted: bool = False


def grid(**values: Sequence[Any]) -> tuple[Settings, ...]:
    """Return all combinations of the values of some settings; the last one varies fastest."""
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


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
    "logistic regression": Method(_logistic, grid(C=(1e-3, 1e-2, 1e-1, 1.0, 10.0)), "decision_function", weighted=True),
    "linear SVM": Method(_linear_svm, grid(C=(1e-4, 1e-3, 1e-2, 1e-1, 1.0)), "decision_function", weighted=True),
    "k-NN": Method(_neighbours, grid(n_neighbors=(1, 3, 5, 9, 15))),
    "SVM": Method(_svm, grid(C=(0.1, 1.0, 10.0, 100.0))),
}
LEAST = 1e-12  # probability in a logarithm


@dataclass(frozen=True)
class Fitted:
    """A fitted estimator.

    Attributes:
        method: that it is of.
        settings: its tuned keywords.
        scaling: of its training rows; None where the estimator reads the features as they are.
        estimator: of scikit-learn, fitted on the positions in `present`; None if all training rows have one class.
        present: `(classes with a training row,)` their numbers.
        classes: number of all classes.
    """

    method: Method
    settings: Settings
    scaling: Scaling | None
    estimator: Any
    present: Array
    classes: int

    def outputs(self, values: Array) -> Array:
        """Outputs `(rows, classes)` for features `(rows, width)`; the largest is the prediction.

        Logits of a logistic regression, distances of an SVM, logarithms of probabilities, or 1 for the predicted class
        and 0 for the others. A class without a training row gets half the odds of the least likely one.
        """
        columns = self.present
        if self.estimator is None:
            own = np.zeros((len(values), 1))
        else:
            own = getattr(self.estimator, self.method.output)(self.scaling.apply(values) if self.scaling else values)
            if self.method.output == "predict":
                own = (np.arange(len(self.present)) == own[:, None]).astype(float)
            elif self.method.output == "predict_proba":
                own = np.log(np.maximum(own.astype(np.float64), LEAST))
                columns = self.present[self.estimator.classes_]
            elif own.ndim == 1:  # two classes
                own = np.stack([-own / 2, own / 2], axis=1)
        found = np.repeat(own.min(axis=1, keepdims=True) - np.log(2), self.classes, axis=1)
        found[:, columns] = own
        return found

    def linear(self) -> tuple[Array, Array]:
        """Weight `(classes, width)` and bias `(classes,)` of `outputs`, of a linear method with all classes present."""
        assert self.scaling is not None
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


def fit(method: Method, table: Table, settings: Settings, *, balanced: bool = False, seed: int = 0) -> Fitted:
    """Fit an estimator on a table.

    Args:
        method: the estimator.
        table: each of its clips counts alike, however many rows it has, where the method has weights.
        settings: values of the tuned keywords.
        balanced: weight the clips so that each class counts alike (methods with weights only).
        seed: of the estimator.
    """
    return _fit(method, table, [settings], balanced, seed)[0]


def _fit(method: Method, table: Table, tried: Sequence[Settings], balanced: bool, seed: int) -> list[Fitted]:
    """Fit an estimator for each of some settings."""
    from sklearn.exceptions import ConvergenceWarning

    scaling = Scaling.fit(table.values, table.weight) if method.standardised else None
    present, position = np.unique(table.label, return_inverse=True)
    rows, weight = scaling.apply(table.values) if scaling else table.values, table.weight
    if balanced:
        sums = np.bincount(table.label, weight, minlength=table.classes)
        weight = weight * weight.sum() / (len(present) * sums[table.label])
    fitted, estimator = [], method.build(seed) if len(present) > 1 else None
    for settings in tried:  # each fit of a logistic regression starts from the one before
        if estimator is not None:
            estimator = deepcopy(estimator).set_params(**settings)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # weak penalties need more steps
                warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # 24 keys, few tracks
                estimator.fit(rows, position, **({"sample_weight": weight} if method.weighted else {}))
        fitted.append(Fitted(method, settings, scaling, estimator, present, table.classes))
    return fitted


def tune(
    method: Method, table: Table, *, folds: int = 3, sides: Sides | None = None, balanced: bool = False, seed: int = 0
) -> Tuned:
    """Choose the settings with the best accuracy over inner folds, and fit an estimator with them on the whole table.

    The accuracy is that of clips (the mean of the outputs over their rows, or of the probabilities where those are the
    output), averaged over the folds. Among equal ones the first of the grid is chosen, i.e. the strongest
    regularisation, and with too few recordings for a fold the middle of the grid.

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
    tried = [settings for settings in method.grid if _neighbours_of(settings) <= smallest]
    rows = [check[np.isin(table.label[check], table.label[train])] for train, check in sides]
    checked = np.concatenate([np.zeros(0, np.int64), *rows])
    best, outputs = len(tried) // 2, np.zeros((0, table.classes))
    if len(checked):
        found: list[list[Array]] = [[] for _ in tried]
        accuracy: list[list[float]] = [[] for _ in tried]
        for (train, _), check in zip(sides, rows, strict=True):
            part = table.take(check)
            for column, each in enumerate(_fit(method, table.take(train), tried, balanced, seed) if len(check) else []):
                found[column].append(each.outputs(part.values))
                first, means = part.by_clip(_averaged(method, found[column][-1]))
                accuracy[column].append((means.argmax(axis=1) == part.label[first]).mean())
        best = int(np.argmax(np.mean(accuracy, axis=1)))
        outputs = np.concatenate(found[best])
    return Tuned(fit(method, table, tried[best], balanced=balanced, seed=seed), checked, outputs)


def _neighbours_of(settings: Settings) -> int:
    return next((value for key, value in settings.items() if key.endswith("n_neighbors")), 1)


def _averaged(method: Method, outputs: Array) -> Array:
    """Convert outputs to what is averaged over the rows of a clip: of log-probabilities the probabilities."""
    return np.exp(outputs) if method.output == "predict_proba" else outputs


def fit_predict(name: str, train: Table, test: Array, *, seed: int = 0) -> Array:
    """Return predictions `(test rows,)` of one of `METHODS`, fitted and tuned on the training table alone.

    Args:
        name: of the method.
        train: training rows.
        test: `(test rows, width)` features.
        seed: of the inner folds.
    """
    return np.asarray(tune(METHODS[name], train, seed=seed).fitted.outputs(test).argmax(axis=1))
