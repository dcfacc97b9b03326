"""Pictures of a table of features and of a model that reads it."""

import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from gafx.errors import UsageError
from gafx.fitting.table import Table
from gafx.report import svg
from gafx.studies.classical import figures, pictures
from gafx.studies.classical.pictures import explain, f_scores, write_pictures
from gafx.studies.pictures import embedding

CLASSES = ["blues", "jazz", "rock & roll"]


@pytest.fixture(autouse=True)
def no_umap(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)  # slow, and tested by itself


def table_of(values, labels, classes=3):
    rows = np.arange(len(labels))
    return Table(values, rows, np.asarray(labels), rows // 2, classes)


@pytest.fixture
def table(rng):
    """60 windows of 30 recordings, 3 classes, 7 features; the fourth depends on the class, the last is constant."""
    labels = np.repeat([0, 1, 2], 20)
    values = rng.normal(size=(60, 7)) * [1, 1e-6, 1e3, 1, 1, 1, 1] + [0, 1e-6, -1e4, 0, 5, 0, 0]
    values[:, 3] += 3.0 * labels
    values[:, 6] = 0.1
    return table_of(values, labels)


NAMES = ["rms_mean", "rms_var", "centroid_mean", "percussive_var", "mfcc1_mean", "mfcc2_mean", "tempo"]


def by_name(found):
    return {picture.name: picture for picture in found}


def test_f_scores_are_those_of_scipy(table):
    found = f_scores(table)
    for column in range(6):
        groups = [table.values[table.label == label, column] for label in range(3)]
        assert found[column] == pytest.approx(stats.f_oneway(*groups).statistic, rel=1e-6)
    assert np.isnan(found[6])
    assert np.nanargmax(found) == 3


def test_the_ranking_has_the_planted_feature_first_and_says_what_is_missing(table, tmp_path):
    shown = by_name(write_pictures(table, NAMES, CLASSES, tmp_path))["f_scores"]
    assert re.findall(r'class="item"[^>]*>([^<]+)<', shown.svg)[0] == "percussive_var"
    assert "6 highest of 7 features (1 without a finite F-score left out)" in shown.caption
    assert "60 windows of 30 recordings" in shown.caption
    assert "nothing was chosen by it" in shown.caption
    lines = (tmp_path / "f_scores.csv").read_text().splitlines()
    assert lines[0] == "feature,f_score"
    assert lines[1].startswith("percussive_var,")
    assert lines[-1] == "tempo,nan"
    assert len(lines) == 8


def test_correlations_are_those_of_numpy(table, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "heatmap", lambda matrix, rows, *_: drawn.append((matrix, rows)) or "")
    found = by_name(write_pictures(table, NAMES, CLASSES, tmp_path))["correlations"]
    ((matrix, rows),) = drawn
    order = [NAMES.index(name) for name, _ in rows]
    assert sorted(order) == list(range(6))
    np.testing.assert_allclose(matrix, np.corrcoef(table.values[:, order].T), atol=1e-9)
    assert "1 constant feature left out" in found.caption


def test_many_features_are_named_by_kind(rng, tmp_path):
    names = [f"{kind}{number}_{statistic}" for statistic in ("mean", "var") for kind in ("mfcc", "chroma_delta")
             for number in range(1, 31)]  # fmt: skip
    found = by_name(write_pictures(table_of(rng.normal(size=(30, 120)), [0, 1, 2] * 10), names, CLASSES, tmp_path))
    assert re.findall(r'class="item"[^>]*>([^<]+)<', found["correlations"].svg) == ["mfcc", "chroma_delta"] * 2
    assert "Features of one kind are neighbours" in found["correlations"].caption


@pytest.mark.parametrize(
    ("name", "group"),
    [("mfcc12_mean", ("mfcc", "mean")), ("mfcc_delta2_median", ("mfcc_delta", "median")),
     ("mfcc_delta2_1_std", ("mfcc_delta2", "std")),
     ("spectral_centroid_var", ("spectral_centroid", "var")), ("tempo", ("tempo", "")), ("12", ("12", ""))],
)  # fmt: skip
def test_kind_of_a_feature(name, group):
    assert figures.feature_group(name) == group


def test_names_of_a_heatmap_do_not_overlap():
    names = [("long", 200), *[(f"short{i}", 1) for i in range(6)], ("last", 40)]
    at = [position for _, position in figures._spread(names, 3.0)]
    assert np.diff(at).min() >= 12.5 - 1e-9
    assert at[0] == 300.0  # in the middle where there is room
    assert np.mean(at[1:7]) == pytest.approx(609, abs=1)  # around the middle of their rows
    assert [position for _, position in figures._spread([("a", 1)] * 4, 20.0)] == [10, 30, 50, 70]
    crowded = [position for _, position in figures._spread([("a", 1)] * 30 + [("b", 900)], 0.8)]
    assert np.diff(crowded).min() >= 12.5 - 1e-9
    assert crowded[0] >= 0
    assert crowded[-1] <= 744


def test_explained_variance_is_that_of_a_singular_value_decomposition(table):
    layout = embedding.layouts(table.values)[0]
    scaled = stats.zscore(table.values[:, :6])
    part = np.linalg.svd(scaled, compute_uv=False) ** 2
    part = 100 * part / part.sum()
    assert layout.axes == (f"component 1 ({part[0]:.0f} % of the variance)", f"component 2 ({part[1]:.0f} %)")
    np.testing.assert_allclose(layout.positions.var(axis=0) * len(scaled), np.linalg.svd(scaled)[1][:2] ** 2)


def forest(table, **options):
    options = {"n_estimators": 12, "random_state": 0} | options
    return make_pipeline(MinMaxScaler(), RandomForestClassifier(**options)).fit(table.values, table.label)


def test_shap_values_sum_to_the_output_of_a_forest(table):
    pytest.importorskip("shap")
    model = forest(table)
    found = explain(model, table.values)
    assert found.values.shape == (60, 7, 3)
    assert found.unit == "probability"
    np.testing.assert_allclose(found.values.sum(axis=1) + found.expected, model.predict_proba(table.values), atol=1e-9)
    assert np.abs(found.values).mean(axis=(0, 2)).argmax() == 3
    assert not found.values[:, 6].any()


@pytest.mark.parametrize("classes", [2, 3])
def test_shap_values_sum_to_the_output_of_boosted_trees(table, classes):
    pytest.importorskip("shap")
    xgboost = pytest.importorskip("xgboost")
    table = table.take(np.flatnonzero(table.label < classes))
    booster = xgboost.XGBClassifier(n_estimators=8, n_jobs=1)
    model = make_pipeline(MinMaxScaler(), booster).fit(table.values, table.label)
    found = explain(model, table.values)
    raw = booster.predict(model[0].transform(table.values), output_margin=True)
    raw = np.stack([-raw, raw], axis=1) if classes == 2 else raw
    np.testing.assert_allclose(found.values.sum(axis=1) + found.expected, raw, atol=1e-4)
    assert found.unit == "log-odds"
    assert np.abs(found.values).mean(axis=(0, 2)).argmax() == 3


def test_pictures_of_a_forest(table, tmp_path):
    pytest.importorskip("shap")
    held_out = table.take(np.arange(0, 60, 3))
    counts = np.diag([3, 4, 5])
    found = write_pictures(
        table, NAMES, CLASSES, tmp_path, model=forest(table), held_out=held_out, confusions={"random forest": counts}
    )
    assert [picture.name for picture in found] == [
        "f_scores", "correlations", "pca", "tsne", "umap", "shap", "shap_directions", "confusion_random_forest"
    ]  # fmt: skip
    for picture in found:
        assert (picture.path is None) == (picture.name == "umap")
        if picture.path:  # a file of its own, with colours for both schemes
            root = ElementTree.fromstring(picture.path.read_text("utf-8"))
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert root[0].text == picture.title
            assert "prefers-color-scheme: dark" in root[2].text
    shown = by_name(found)
    assert "umap-learn is not installed" in shown["umap"].caption
    assert re.findall(r'class="item"[^>]*>([^<]+)<', shown["shap"].svg)[0] == "percussive_var"
    assert "20 windows of 20 recordings that the model was not fitted on" in shown["shap"].caption
    assert "RandomForestClassifier" in shown["shap"].caption
    assert (tmp_path / "shap.csv").read_text().splitlines()[0] == "feature,blues,jazz,rock & roll"


def test_directions_have_the_sign_of_the_effect(table):
    pytest.importorskip("shap")
    found = explain(forest(table), table.values)
    signs = np.sign(pictures._directions(table.values, found.values))
    assert signs[3, 0] == -1  # large values speak against the first class, and for the last one
    assert signs[3, 2] == 1


def test_a_model_that_is_no_tree_gets_its_permutation_importance(table, tmp_path):
    pytest.importorskip("shap")
    model = make_pipeline(MinMaxScaler(), LogisticRegression())
    known = table.take(np.flatnonzero(table.label != 1))
    model.fit(known.values, known.label // 2)
    shown = by_name(write_pictures(table, NAMES, CLASSES, tmp_path, model=model, present=np.array([0, 2])))
    assert "shap" not in shown
    assert shown["permutation"].caption.startswith("No SHAP values: LogisticRegression is not made of trees.")
    assert "may have been fitted on" in shown["permutation"].caption
    assert re.findall(r'class="item"[^>]*>([^<]+)<', shown["permutation"].svg)[0] == "percussive_var"


def test_without_shap_the_other_pictures_are_drawn(table, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "shap", None)
    shown = by_name(write_pictures(table, NAMES, CLASSES, tmp_path, model=forest(table)))
    assert shown["shap"].svg == ""
    assert "needs shap: pip install 'gafx[classical]'" in shown["shap"].caption
    assert shown["f_scores"].svg


def test_a_class_that_the_model_does_not_know(table, tmp_path):
    pytest.importorskip("shap")
    part = table.take(np.flatnonzero(table.label != 1))
    model = forest(table_of(part.values, part.label // 2))  # which counts the classes that it knows
    shown = by_name(write_pictures(part, NAMES, CLASSES, tmp_path, model=model, present=np.array([0, 2])))
    names = re.findall(r'class="item"[^>]*>([^<]+)<', shown["shap"].svg)
    assert names[-2:] == ["blues", "rock &amp; roll"]
    colours = dict.fromkeys(re.findall(r"<rect [^>]*fill=\"(var\(--model-\d\))", shown["shap"].svg))
    assert list(colours) == [svg.model_colour(0), svg.model_colour(2)]
    assert "over 2 classes" in shown["f_scores"].caption


def test_no_class_is_left_out_of_stacked_bars():
    weight = np.arange(20.0)
    parts, sums = figures.class_styles([f"class {i}" for i in range(20)], weight)
    assert [name for name, _ in parts] == [*(f"class {i}" for i in range(4, 20)), "4 other classes"]
    np.testing.assert_array_equal(weight @ sums, [*range(4, 20), 0 + 1 + 2 + 3])


@pytest.mark.parametrize("labels", [[0, 1, 2], [1, 1, 1], [0, 0, 1]])
def test_three_rows(rng, labels, tmp_path):
    values = rng.normal(size=(3, 4))
    found = by_name(write_pictures(table_of(values, labels), list("abcd"), CLASSES, tmp_path))
    assert "a projection needs 6 rows" in found["projections"].caption
    assert found["correlations"].svg
    assert bool(found["f_scores"].svg) == (labels == [0, 0, 1])
    assert found["f_scores"].svg or "two classes, more rows" in found["f_scores"].caption


def test_constant_features_alone(tmp_path):
    found = write_pictures(table_of(np.full((8, 3), 0.1), [0, 1] * 4), list("abc"), CLASSES, tmp_path)
    assert [picture.name for picture in found if picture.svg] == []
    assert all("vary" in picture.caption for picture in found)


def test_a_feature_without_a_name(table, tmp_path):
    with pytest.raises(UsageError, match="6 names for 7 features"):
        write_pictures(table, NAMES[:-1], CLASSES, tmp_path)


def test_rows_are_drawn_by_the_seed(table, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_MOST_POINTS", 10)
    first, again, other = (by_name(write_pictures(table, NAMES, CLASSES, tmp_path, seed=s))["pca"] for s in (0, 0, 1))
    assert first.svg == again.svg != other.svg
    assert "(10 of 60, drawn with seed 1)" in other.caption


def test_signed_maps_are_blue_and_red():
    import base64
    import zlib

    png = base64.b64decode(svg.png(np.array([[-1.0, 0.0, 1.0]]), (-1, 1), signed=True).partition(",")[2])
    palette, alpha = png[png.index(b"PLTE") + 4 :][:768], png[png.index(b"tRNS") + 4 :][:256]
    _, low, middle, high = zlib.decompress(png[png.index(b"IDAT") + 4 : png.index(b"IEND") - 8])
    assert palette[3 * low + 2] > palette[3 * low]  # bluer than red
    assert palette[3 * high] > palette[3 * high + 2]
    assert [alpha[low], alpha[high]] == [255, 255]
    assert alpha[middle] <= 1
