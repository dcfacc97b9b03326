"""The thesis's eight models: six estimators with grids of settings, soft voting and stacking of them.

Features are scaled to [0, 1] by the training rows, except for trees, which do not depend on the scale.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from scipy.special import softmax

from gafx.errors import UsageError, did_you_mean
from gafx.fitting.head import fit_calibration
from gafx.fitting.table import Table
from gafx.fitting.tune import LEAST, METHODS, Fitted, Method, Settings, Tuned, grid, tune

FOLDS = 5  # inner folds over recordings
_TREES = 200  # of a random forest
_ROUNDS, _BINS = 100, 32  # of boosting, and of its histograms: a fifth of the time of 256, for some hundred rows
_STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # the thesis's range of C and gamma


def _scaled(kind: Callable[[int], Any], seed: int) -> Any:
    """A pipeline of min-max scaling and an estimator."""
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import MinMaxScaler

    return Pipeline([("scale", MinMaxScaler()), ("model", kind(seed))])


def _forest(seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(_TREES, random_state=seed, n_jobs=1)


def _logistic(seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=1000)


def _naive_bayes(seed: int) -> Any:
    from sklearn.naive_bayes import GaussianNB

    return GaussianNB()


def _xgboost(seed: int) -> Any:
    from xgboost import XGBClassifier

    return XGBClassifier(n_estimators=_ROUNDS, max_bin=_BINS, tree_method="hist", random_state=seed, n_jobs=1)


_by_probability = partial(Method, output="predict_proba", standardised=False)
_LOGISTIC = _by_probability(partial(_scaled, _logistic), grid(model__C=(0.01, *_STRENGTHS, 1000.0)))
MEMBERS: dict[str, Method] = {
    "knn": _by_probability(
        partial(_scaled, METHODS["k-NN"].build),
        grid(model__n_neighbors=(15, 9, 7, 5, 3, 1), model__weights=("uniform", "distance"), model__p=(2, 1)),
    ),
    "svm": Method(
        partial(_scaled, METHODS["SVM"].build),
        (
            *grid(model__kernel=("linear",), model__C=_STRENGTHS),
            *grid(model__kernel=("rbf", "poly"), model__C=_STRENGTHS, model__gamma=_STRENGTHS),
        ),
        "decision_function", standardised=False,
    ),
    "random_forest": _by_probability(_forest, grid(min_samples_leaf=(3, 1), max_features=("sqrt", 0.2))),
    "logistic_regression": _LOGISTIC,
    "naive_bayes": _by_probability(
        partial(_scaled, _naive_bayes), grid(model__var_smoothing=(1.0, 0.1, 1e-2, 1e-3, 1e-5, 1e-7, 1e-9))
    ),
    "xgboost": _by_probability(_xgboost, grid(max_depth=(3, 6), learning_rate=(0.1, 0.3))),
}  # fmt: skip
TITLES = {
    "knn": "k-NN", "svm": "SVM", "random_forest": "random forest", "logistic_regression": "logistic regression",
    "naive_bayes": "naive Bayes", "xgboost": "XGBoost", "voting": "soft voting", "stacking": "stacking",
}  # fmt: skip
ENSEMBLES = ("voting", "stacking")


def check_models(names: tuple[str, ...]) -> None:
    """Raise `UsageError` for an unknown or repeated model, or an ensemble of fewer than two members."""
    for name in names:
        if name not in TITLES:
            raise UsageError(f"model {name!r} is none of {', '.join(TITLES)}{did_you_mean(name, TITLES)}")
    if not names or len(set(names)) < len(names):
        raise UsageError(f"models {', '.join(names) or 'none'}: name each at most once, and at least one")
    members = [name for name in names if name in MEMBERS]
    if len(members) < 2 and (wanted := [name for name in names if name in ENSEMBLES]):
        raise UsageError(
            f"{wanted[0]} combines the other models that are named, and there {'is' if members else 'are'} "
            f"{len(members)}: name at least two of {', '.join(MEMBERS)}"
        )


def tune_member(name: str, table: Table, sides: Any, seed: int) -> Tuned:
    """Tune one of the six estimators on a training part; the estimator of the result has `predict_proba`.

    An SVM's probabilities are the softmax of its decision values, divided by the temperature that fits those of the
    inner folds.

    Args:
        name: key of `MEMBERS`.
        table: training rows.
        sides: rows to fit and to check, of a validation part; None draws inner folds over recordings.
        seed: of folds and estimator.
    """
    tuned = tune(MEMBERS[name], table, folds=FOLDS, sides=sides, seed=seed)
    return _with_probabilities(tuned, table) if name == "svm" else tuned


def _with_probabilities(tuned: Tuned, table: Table) -> Tuned:
    from sklearn.ensemble import StackingClassifier
    from sklearn.frozen import FrozenEstimator

    fitted, temperature = tuned.fitted, fit_calibration(tuned, table).get("temperature", 1.0)
    if fitted.estimator is None:
        return tuned
    # scikit-learn has no classifier that scales decision values by a given temperature; this is its multinomial one.
    scale = _logistic(0)
    count = len(fitted.present)
    scale.coef_ = np.eye(count) / temperature if count > 2 else np.full((1, 1), 1 / temperature)
    scale.intercept_, scale.classes_ = np.zeros(len(scale.coef_)), np.arange(count)
    scale.n_features_in_ = len(scale.coef_)
    whole = StackingClassifier(
        [("svm", FrozenEstimator(fitted.estimator))], FrozenEstimator(scale), cv="prefit",
        stack_method="decision_function",
    )  # fmt: skip
    return Tuned(_probabilities(whole, table, fitted.settings), tuned.checked, tuned.outputs / temperature)


def _probabilities(estimator: Any, table: Table, settings: Settings) -> Fitted:
    """An ensemble of estimators that are fitted: here it only learns its classes."""
    present, position = np.unique(table.label, return_inverse=True)
    estimator.fit(table.values, position)
    method = _by_probability(partial(_given, estimator), (settings,))
    return Fitted(method, settings, None, estimator, present, table.classes)


def _given(estimator: Any, seed: int) -> Any:
    return estimator


def combine(name: str, members: Mapping[str, Tuned], table: Table, seed: int) -> Tuned:
    """Combine tuned members by soft voting (the mean of their probabilities) or stacking.

    Stacking is a logistic regression on the probabilities that the members gave in the inner folds, with the members'
    settings; its C is chosen in inner folds over the same recordings. A class that no inner fold could predict (one
    recording) is unknown to it.

    Args:
        name: `voting` or `stacking`.
        members: of `tune_member`, on the same table and folds.
        table: that they were tuned on.
        seed: of the folds.

    Raises:
        UsageError: no recording is left for an inner fold, and stacking has nothing to learn from.
    """
    from sklearn.ensemble import StackingClassifier, VotingClassifier
    from sklearn.frozen import FrozenEstimator

    first = next(iter(members.values()))
    named = [(key, FrozenEstimator(tuned.fitted.estimator)) for key, tuned in members.items()]
    held_out = [softmax(tuned.outputs, axis=1) for tuned in members.values()]
    if first.fitted.estimator is None:
        return first
    if name == "voting":
        votes = np.log(np.maximum(np.mean(held_out, axis=0), LEAST))
        return Tuned(_probabilities(VotingClassifier(named, voting="soft"), table, {}), first.checked, votes)
    checked = table.take(first.checked)
    if len(np.unique(checked.label)) < 2:
        raise UsageError("stacking needs two recordings of each of two classes in the training part: leave it out")
    # Of two classes scikit-learn's stacking reads the second alone.
    columns = first.fitted.present[1 if len(np.unique(checked.label)) == 2 else 0 :]
    read = np.concatenate([values[:, columns] for values in held_out], axis=1)
    final = tune(_LOGISTIC, replace(checked, values=read), folds=FOLDS, seed=seed)
    whole = StackingClassifier(named, FrozenEstimator(final.fitted.estimator), cv="prefit")
    fitted = _probabilities(whole, checked, final.fitted.settings)
    return Tuned(fitted, first.checked[final.checked], final.outputs)


def short(settings: Settings) -> dict[str, Any]:
    """Settings by the names of the estimator's own keywords."""
    return {key.rpartition("__")[2]: value for key, value in settings.items()}


def parameters(estimator: Any) -> int:
    """Count the numbers that a fitted model predicts from: coefficients, stored rows, or nodes of trees.

    Those of an ensemble are its members' and its own.
    """
    if hasattr(estimator, "steps"):
        return parameters(estimator.steps[-1][1])
    if hasattr(estimator, "get_booster"):
        return sum(len(tree.splitlines()) for tree in estimator.get_booster().get_dump())
    if hasattr(estimator, "tree_"):
        return int(estimator.tree_.node_count)
    inside = [getattr(estimator, "estimator", None), getattr(estimator, "final_estimator_", None)]
    found = [each for each in (*inside, *getattr(estimator, "estimators_", ())) if hasattr(each, "classes_")]
    if found:
        return sum(map(parameters, found))
    stored = "support_vectors_" if hasattr(estimator, "support_vectors_") else "coef_"
    names = (stored, "dual_coef_", "intercept_", "theta_", "var_", "class_prior_", "_fit_X")
    return sum(int(np.size(getattr(estimator, name))) for name in names if hasattr(estimator, name))
