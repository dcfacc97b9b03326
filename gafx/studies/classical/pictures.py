"""Pictures of a table of features and of a model that reads it: they describe both, and nothing is chosen by them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.errors import UsageError, require
from gafx.fitting.table import Table
from gafx.io import write_csv
from gafx.report.figures import confusion_matrix
from gafx.report.format import fraction, plural
from gafx.report.html import write_figure
from gafx.studies.classical import figures
from gafx.studies.pictures import embedding
from gafx.studies.pictures.figures import scatter

Array = npt.NDArray[Any]
_MOST_RANKED, _MOST_EXPLAINED = 30, 20  # features in the ranking, and in the pictures of a model
_MOST_NAMED = 80  # features whose names fit beside a heatmap
_MOST_POINTS, _MOST_ROWS = 2000, 150  # rows of the table that are projected, and that a model is explained on
_REPEATS = 5  # permutations of each feature
_DESCRIBES = "Computed on all rows of the table: it describes the data, and nothing was chosen by it."


@dataclass(frozen=True)
class Picture:
    """A picture with its caption.

    Attributes:
        name: of its file, without the suffix.
        title: heading.
        caption: what is shown, of how many rows, with which seed; without a picture, the reason.
        svg: the figure for a page; empty where there is none.
        path: of the same figure as a file; None where there is none.
    """

    name: str
    title: str
    caption: str
    svg: str = ""
    path: Path | None = None


@dataclass(frozen=True)
class Explained:
    """SHAP values of a model's outputs.

    Attributes:
        values: `(rows, features, classes)`; with `expected` they sum to the outputs.
        expected: `(classes,)` expectation of the outputs.
        unit: of the outputs: `probability`, or `log-odds` for the raw outputs of boosted trees.
    """

    values: Array
    expected: Array
    unit: str


def write_pictures(
    table: Table, names: Sequence[str], classes: Sequence[str], folder: Path, *, model: Any = None,
    present: Array | None = None, held_out: Table | None = None, confusions: Mapping[str, Array] | None = None,
    seed: int = 0,
) -> list[Picture]:  # fmt: skip
    """Draw a table of features, and a model that reads it, into SVG files.

    The F-scores of all features and the SHAP values by class are also written, as `f_scores.csv` and `shap.csv`.

    Args:
        table: features, a row for each window.
        names: of its columns.
        classes: names.
        folder: for the files; created where it is missing.
        model: fitted estimator of scikit-learn on raw features, e.g. a pipeline; explained if it is made of trees.
        present: `(outputs,)` number of the class that each of the model's outputs is of; by default `model.classes_`.
        held_out: rows that the model was not fitted on; it is explained on these instead of the table's.
        confusions: counts `(classes, classes)` of true and predicted classes by the name of the model.
        seed: of the projections, and of which rows are drawn where there are many.

    Returns:
        the pictures in the order of a page. One that cannot be drawn has no figure, and a caption that says why.

    Raises:
        UsageError: a name is missing or left over.
    """
    if len(names) != table.values.shape[1]:
        raise UsageError(
            f"{plural(len(names), 'name')} for {plural(table.values.shape[1], 'feature')}: pass one name per column"
        )
    table = replace(table, values=table.values.astype(np.float64))
    pictures = [_f_scores(table, names, folder), _correlations(table, names), *_projections(table, classes, seed)]
    if model is not None:
        known = np.asarray(model.classes_ if present is None else present)
        pictures += _model_pictures(model, known, table, held_out, names, classes, folder, seed)
    for name, counts in (confusions or {}).items():
        count = plural(int(counts.sum()), "prediction")
        caption = f"Rows: true classes, columns: predicted ones; {count}. Shading: fraction of the row."
        figure = confusion_matrix(counts, classes)
        pictures.append(
            Picture(f"confusion_{name.lower().replace(' ', '_')}", f"Confusions of {name}", caption, figure)
        )
    return [_written(picture, folder) for picture in pictures]


def f_scores(table: Table) -> Array:
    """`(features,)`: F of a one-way analysis of variance of each feature over the classes.

    It is the variance between the classes' means divided by the variance within the classes, and infinite where there
    is none within; NaN for constant features, and where there are not two classes and more rows than classes.
    """
    from sklearn.feature_selection import f_classif

    found = np.full(table.values.shape[1], np.nan)
    scaled = embedding.standardised(table.values)  # F is the same, and the sums of squares lose no digits
    varies = scaled.any(axis=0)
    if varies.any() and 1 < len(np.unique(table.label)) < len(table):
        with np.errstate(divide="ignore"):
            found[varies] = f_classif(scaled[:, varies], table.label)[0]
    return found


def explain(model: Any, values: Array) -> Explained | None:
    """Compute SHAP values of a model of trees (Lundberg et al., 2020: path-dependent TreeSHAP).

    Args:
        model: fitted estimator or pipeline of scikit-learn.
        values: `(rows, features)`, raw.

    Returns:
        the values; None if the model is not made of trees.

    Raises:
        UsageError: shap is not installed.
    """
    shap = require("shap", "the picture of SHAP values")
    steps = getattr(model, "steps", None)
    estimator = steps[-1][1] if steps else model
    if steps and len(steps) > 1:
        values = model[:-1].transform(values)
    try:
        explainer = shap.TreeExplainer(estimator)
    except shap.utils._exceptions.InvalidModelError:
        return None
    found, expected = np.asarray(explainer.shap_values(values)), np.atleast_1d(explainer.expected_value)
    if found.ndim == 2:  # two classes with one output, that of the second
        found, expected = np.stack([-found, found], axis=2), np.concatenate([-expected, expected])
    chances = estimator.predict_proba(values)
    is_probability = np.allclose(found.sum(axis=1) + expected, chances, atol=1e-3)
    return Explained(found, expected, "probability" if is_probability else "log-odds")


def _written(picture: Picture, folder: Path) -> Picture:
    """The picture with its file."""
    if not picture.svg:
        return picture
    path = folder / f"{picture.name}.svg"
    return replace(picture, path=write_figure(path, picture.svg, title=picture.title, caption=picture.caption))


def _counts(table: Table, noun: str = "window") -> str:
    return f"{plural(len(table), noun)} of {plural(len(np.unique(table.group)), 'recording')}"


def _drawn(table: Table, most: int, seed: int) -> Table:
    """At most so many rows of the table, drawn at random."""
    if len(table) <= most:
        return table
    return table.take(np.sort(np.random.default_rng(seed).choice(len(table), most, replace=False)))


def _f_scores(table: Table, names: Sequence[str], folder: Path) -> Picture:
    scores = f_scores(table)
    order = np.argsort(-np.nan_to_num(scores, nan=-1.0, posinf=np.inf), kind="stable")
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "f_scores.csv", [{"feature": names[i], "f_score": float(scores[i])} for i in order])
    ranked = order[np.isfinite(scores[order])][:_MOST_RANKED]
    title, present = "F-scores of the features", len(np.unique(table.label))
    if not len(ranked):
        reason = f"no F-scores: {_counts(table)} of {plural(present, 'class', 'classes')}"
        return Picture(
            "f_scores", title, f"{reason}; they need two classes, more rows, and features that vary within them"
        )
    left_out = int((~np.isfinite(scores)).sum())
    caption = (
        f"The {len(ranked)} highest of {plural(len(names), 'feature')}"
        + f" ({left_out} without a finite F-score left out)" * bool(left_out)
        + f": F of a one-way analysis of variance over {present} classes, {_counts(table)}. It is the variance between "
        "the classes' means over that within the classes; what XGBoost calls F score is a number of splits. Windows "
        f"of one recording are not independent, so that F ranks features and gives no p-value. {_DESCRIBES}"
    )
    figure = figures.bars([names[i] for i in ranked], scores[ranked, None], "F-score (ANOVA)", form="{:.1f}")
    return Picture("f_scores", title, caption, figure)


def _correlations(table: Table, names: Sequence[str]) -> Picture:
    varies = np.flatnonzero(embedding.standardised(table.values).any(axis=0))
    title = "Correlations of the features"
    if len(varies) < 2:
        return Picture("correlations", title, f"no correlations: {_counts(table)}; they need two features that vary")
    matrix = embedding.correlation(table.values[:, varies])
    if len(varies) <= _MOST_NAMED:
        order = embedding.clustered(matrix)
        named = [(names[i], 1) for i in varies[order].tolist()]
        said = "Features are ordered by average linkage on 1 - |r|, so that correlated ones are neighbours."
    else:
        kinds, statistics = zip(*(figures.feature_group(names[i]) for i in varies.tolist()), strict=True)
        order = np.lexsort([_appearance(statistics), _appearance(kinds)])
        named = figures.spans([kinds[i] for i in order])
        said = "Features of one kind are neighbours, ordered by statistic; lines divide the kinds."
    constant = len(names) - len(varies)
    caption = (
        f"Pearson's r of {len(varies)} features over {_counts(table)}"
        + f" ({plural(constant, 'constant feature')} left out)" * bool(constant)
        + f". {said} Effective dimensions, the squared sum of the covariance's eigenvalues over the sum of their "
        f"squares: {embedding.effective_dimensions(table.values):.1f}. {_DESCRIBES}"
    )
    figure = figures.heatmap(matrix[np.ix_(order, order)], named, named, title, "correlation", 1.0)
    return Picture("correlations", title, caption, figure)


def _appearance(names: Sequence[str]) -> list[int]:
    """For each name, the position of the first that is equal."""
    return [names.index(name) for name in names]


def _projections(table: Table, classes: Sequence[str], seed: int) -> list[Picture]:
    drawn = _drawn(table, _MOST_POINTS, seed)
    layouts = embedding.layouts(drawn.values, seed)
    if not layouts:
        reason = f"{_counts(table)} and {plural(table.values.shape[1], 'feature')}"
        need = f"a projection needs {embedding.LEAST} rows and two features that vary"
        return [Picture("projections", "Projections of the features", f"no projections: {reason}; {need}")]
    clips = [f"recording {group}" for group in drawn.group.tolist()]
    some = f" ({len(drawn)} of {len(table)}, drawn with seed {seed})" if len(drawn) < len(table) else ""
    caption = f". {_counts(drawn)}{some}, each feature standardised; labels give the colours alone. {_DESCRIBES}"
    return [
        Picture(
            layout.name.lower().replace("-", ""), f"{layout.name} of the features", f"{layout.description}{caption}",
            scatter(layout, drawn.label, classes, clips, size=440, legend=True),
        ) for layout in layouts
    ]  # fmt: skip


def _model_pictures(
    model: Any, present: Array, table: Table, held_out: Table | None, names: Sequence[str], classes: Sequence[str],
    folder: Path, seed: int,
) -> list[Picture]:  # fmt: skip
    """SHAP values of a model of trees, or the permutation importance of another one."""
    kind = type(model.steps[-1][1] if hasattr(model, "steps") else model).__name__
    table = table if held_out is None else held_out
    drawn = _drawn(table, _MOST_ROWS, seed)
    rows = f"{_counts(drawn)}{f', drawn with seed {seed},' if len(drawn) < len(table) else ''} "
    rows += "that the model may have been fitted on" if held_out is None else "that the model was not fitted on"
    try:
        explained = explain(model, drawn.values)
    except UsageError as error:
        return [Picture("shap", "SHAP importance of the features", f"no SHAP values: {error}")]
    if explained is None:
        return [_permutation(model, present, kind, drawn, rows, names, seed)]
    importance = np.abs(explained.values).mean(axis=0)
    order = np.argsort(-importance.sum(axis=1), kind="stable")
    labels = [classes[number] for number in present]
    write_csv(
        folder / "shap.csv",
        [{"feature": names[i], **dict(zip(labels, importance[i].tolist(), strict=True))} for i in order],
    )
    top = order[:_MOST_EXPLAINED]
    # Colours are those of the classes in the other pictures, whichever of them the model knows.
    weight = np.zeros(len(classes))
    weight[present] = importance.sum(axis=0)
    shown = np.zeros((len(top), len(classes)))
    shown[:, present] = importance[top]
    parts, sums = figures.class_styles(classes, weight)
    known = [i for i in range(len(parts)) if i >= len(classes) or parts[i][0] in labels]
    share = float(importance[top].sum() / (importance.sum() or 1.0))
    about = f"the {len(top)} most important of {plural(len(names), 'feature')}"
    stacked = Picture(
        "shap", "SHAP importance of the features",
        f"Mean |SHAP value| of {about} ({fraction(share, 0)} of the sum over all) in a fitted {kind}, stacked over the "
        f"classes, in {explained.unit} of each; path-dependent TreeSHAP on {rows}. It describes this model, and "
        "correlated features share their importance.",
        figures.bars(
            [names[i] for i in top], (shown @ sums)[:, known], f"mean |SHAP value|, {explained.unit}",
            parts=[parts[i] for i in known], form="{:.3f}",
        ),
    )  # fmt: skip
    signed = importance[top] * np.sign(_directions(drawn.values[:, top], explained.values[:, top]))
    directions = Picture(
        "shap_directions", "Direction of the features' effects",
        f"Mean |SHAP value| of {about} for each class, with the sign of the correlation between the feature and its "
        "SHAP values: red where large values of the feature raise the class's output, blue where they lower it. "
        f"{kind}, {rows}.",
        figures.heatmap(
            signed, [(names[i], 1) for i in top], [(label, 1) for label in labels], "Signed SHAP importances",
            f"signed mean |SHAP value|, {explained.unit}", float(np.abs(signed).max()) or 1.0,
        ),
    )  # fmt: skip
    return [stacked, directions]


def _directions(values: Array, shap: Array) -> Array:
    """`(features, classes)`: covariance of features `(rows, features)` and their SHAP values over the rows."""
    return np.einsum("rf,rfc->fc", values - values.mean(axis=0), shap) / len(values)


def _permutation(
    model: Any, present: Array, kind: str, table: Table, rows: str, names: Sequence[str], seed: int
) -> Picture:
    """How far the accuracy falls without each feature."""
    from sklearn.inspection import permutation_importance

    numbers = {label: own for label, own in zip(present.tolist(), model.classes_, strict=True)}
    known = table.take(np.flatnonzero(np.isin(table.label, present)))
    own = [numbers[label] for label in known.label.tolist()]
    found = permutation_importance(
        model, known.values, own, scoring="accuracy", n_repeats=_REPEATS, random_state=seed
    ).importances_mean
    top = np.argsort(-found, kind="stable")[:_MOST_EXPLAINED]
    caption = (
        f"No SHAP values: {kind} is not made of trees. Instead, the fall of the accuracy of windows when the values of "
        f"a feature are permuted, mean of {_REPEATS} permutations, seed {seed}, on {rows}; the {len(top)} largest of "
        f"{plural(len(names), 'feature')}. Of correlated features each may be replaced by the others, and falls little."
    )
    figure = figures.bars([names[i] for i in top], np.maximum(found[top, None], 0), "fall of accuracy", form="{:.3f}")
    return Picture("permutation", "Permutation importance of the features", caption, figure)
