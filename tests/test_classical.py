"""`gafx classical`: tuning against scikit-learn's, nothing of the test part in a fit, models that predict files."""

import json
import re
import shutil

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_predict
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.svm import SVC

import gafx
from gafx.cli import main
from gafx.config import DataConfig
from gafx.errors import UsageError
from gafx.evaluation.predictions import PredictionTable
from gafx.evaluation.result import read_results
from gafx.fitting.table import Table
from gafx.stats.calibration import temper
from gafx.studies.classical import run as study
from gafx.studies.classical.models import MEMBERS, TITLES, combine, parameters, short, tune_member
from gafx.studies.classical.pictures import Picture
from gafx.studies.classical.run import FLAG, ClassicalConfig, run_classical

RATE, SECONDS = 22050, 0.6
FAST = ("naive_bayes", "knn")


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr("gafx.studies.classical.page.write_pictures", lambda *_, **__: [])


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """Six clips of two windows of each of three classes, which differ in pitch."""
    import soundfile

    root = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    for order, label in enumerate(("low", "middle", "high")):
        (root / label).mkdir()
        for number in range(6):
            time = np.arange(round(2 * SECONDS * RATE)) / RATE
            wave = 0.3 * np.sin(2 * np.pi * 200 * 3**order * rng.uniform(0.7, 1.4) * time)
            soundfile.write(root / label / f"{number}.wav", wave + rng.uniform(0.01, 0.3) * rng.normal(size=len(time)),
                            RATE)  # fmt: skip
    return root


@pytest.fixture(scope="module")
def computed(tones, tmp_path_factory):
    """An output folder of which only the cache of features is used: copied into each test's."""
    folder = tmp_path_factory.mktemp("computed") / "out"
    run_classical(DataConfig(name="folder", root=str(tones), protocol="kfold", folds=3, leak_check=False), folder,
                  ClassicalConfig(("naive_bayes",), SECONDS, "thesis"), asked_folds=True)  # fmt: skip
    return folder / "features"


@pytest.fixture
def output(computed, tmp_path):
    shutil.copytree(computed, tmp_path / "out" / "features")
    return tmp_path / "out"


def classical(root, output, *more, models=FAST):
    main(["classical", "folder", str(root), "--seconds", str(SECONDS), "--features", "thesis", "--folds", "3", "--jobs",
          "1", "--models", *models, "--output", str(output), *more])  # fmt: skip
    return json.loads((output / "classical.json").read_text())


def features(output):
    (path,) = (output / "features").glob("*.npz")
    return np.load(path)["row"], np.load(path)["values"][:, :-1].astype(float)


def clusters(rng, rows=60, classes=3, width=5, spread=2.0):
    label = np.arange(rows) % classes
    return rng.normal(size=(rows, width)) + spread * rng.normal(size=(classes, width))[label], label


# --- tuning -----------------------------------------------------------------------------------------------------------

REFERENCES = {
    "knn": KNeighborsClassifier(), "svm": SVC(), "logistic_regression": LogisticRegression(max_iter=1000),
    "naive_bayes": GaussianNB(),
}  # fmt: skip


@pytest.mark.parametrize("name", REFERENCES)
def test_the_chosen_settings_are_those_of_grid_search(name, rng):
    values, label = clusters(rng, spread=0.7)
    group = np.arange(60) // 2  # two clips of each recording
    values[:, 0] *= 1e4
    sides = list(GroupKFold(5).split(values, label, group))
    tuned = tune_member(name, Table(values, np.arange(60), label, group, 3), sides, 0)
    grid = [{f"{type(REFERENCES[name]).__name__.lower()}__{key}": [value] for key, value in short(settings).items()}
            for settings in MEMBERS[name].grid]  # fmt: skip
    pipeline = make_pipeline(MinMaxScaler(), REFERENCES[name])
    search = GridSearchCV(pipeline, grid, scoring="accuracy", cv=sides).fit(values, label)
    assert short(tuned.fitted.settings) == {
        key.rpartition("__")[2]: value for key, value in search.best_params_.items()
    }
    assert search.best_score_ < 1.0
    tested = rng.normal(size=(20, 5)) * values.std(axis=0)
    if name == "svm":  # its probabilities: decision values at one temperature
        found, expected = tuned.fitted.outputs(tested), search.decision_function(tested)
        steps = [np.diff(each, axis=1).ravel() for each in (found, expected)]
        np.testing.assert_allclose(steps[0], steps[1] * (steps[0] @ steps[1]) / (steps[1] @ steps[1]), atol=1e-6)
    else:
        np.testing.assert_allclose(
            softmax(tuned.fitted.outputs(tested), axis=1), search.predict_proba(tested), atol=1e-6
        )
    assert parameters(tuned.fitted.estimator) > 0


def test_trees_and_ensembles_read_the_members(rng, monkeypatch):
    for name in ("random_forest", "xgboost"):
        monkeypatch.setitem(MEMBERS, name, study.replace(MEMBERS[name], grid=MEMBERS[name].grid[:1]))
    values, label = clusters(rng, rows=45, spread=1.0)
    table = Table(values, np.arange(45), label, np.arange(45), 3)
    members = {name: tune_member(name, table, None, 0) for name in ("random_forest", "xgboost", "naive_bayes")}
    tested = rng.normal(size=(10, 5))
    each = [softmax(tuned.fitted.outputs(tested), axis=1) for tuned in members.values()]
    voting = combine("voting", members, table, 0)
    np.testing.assert_allclose(softmax(voting.fitted.outputs(tested), axis=1), np.mean(each, axis=0), atol=1e-6)
    stacking = combine("stacking", members, table, 0)
    # The same by hand: a logistic regression on what the members gave in the inner folds.
    read = np.concatenate([softmax(tuned.outputs, axis=1) for tuned in members.values()], axis=1)
    checked = members["xgboost"].checked
    final = make_pipeline(MinMaxScaler(), LogisticRegression(max_iter=1000, **short(stacking.fitted.settings)))
    expected = final.fit(read, label[checked]).predict_proba(np.concatenate(each, axis=1))
    np.testing.assert_allclose(softmax(stacking.fitted.outputs(tested), axis=1), expected, atol=1e-5)
    assert (np.sort(stacking.checked) == np.arange(45)).all()


def test_held_out_probabilities_of_two_classes_are_those_of_other_recordings(rng):
    values, label = clusters(rng, rows=40, classes=2, spread=0.5)
    group = np.arange(40) // 2
    sides = list(GroupKFold(5).split(values, label, group))
    table = Table(values, np.arange(40), label, group, 2)
    members = {name: tune_member(name, table, sides, 0) for name in ("knn", "svm")}
    knn = members["knn"]
    pipeline = make_pipeline(MinMaxScaler(), KNeighborsClassifier(**short(knn.fitted.settings)))
    expected = cross_val_predict(pipeline, values, label, cv=sides, method="predict_proba")
    np.testing.assert_allclose(softmax(knn.outputs, axis=1), expected[knn.checked], atol=1e-6)
    for name in ("voting", "stacking"):
        found = softmax(combine(name, members, table, 0).fitted.outputs(values), axis=1)
        assert (found.argmax(axis=1) == label).mean() > 0.6


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pictures")
def test_saved_models_predict_files_as_their_pipelines(tones, output, capsys):
    record = classical(tones, output, models=(*FAST, "voting", "stacking"))
    row, values = features(output)
    label = row // 6  # folders in alphabetical order: high, low, middle
    settings = {name: entry["saved"]["settings"] for name, entry in record["results"].items()}
    pipelines = {
        "knn": make_pipeline(MinMaxScaler(), KNeighborsClassifier(**settings["knn"])),
        "naive_bayes": make_pipeline(MinMaxScaler(), GaussianNB(**settings["naive_bayes"])),
    }
    files = [tones / name / f"{number}.wav" for name in ("high", "low", "middle") for number in range(6)]
    members = []
    for name, pipeline in pipelines.items():
        model = gafx.load(output / "models" / name)
        assert model.info.classes == ["high", "low", "middle"]
        assert "of models fitted on the other folds" in model.info.training["cross-validated accuracy"]
        windows = pipeline.fit(values, label).predict_proba(values)
        members.append(windows)
        expected = temper(windows.clip(1e-6), model.info.temperature, multi_label=False).reshape(18, 2, 3).mean(axis=1)
        got = np.stack([each.probabilities for each in gafx.predict(files, model, overlap=0)])
        np.testing.assert_allclose(got, expected, atol=2e-4)
    model = gafx.load(output / "models" / "voting")
    windows = temper(np.mean(members, axis=0).clip(1e-6), model.info.temperature, multi_label=False)
    got = np.stack([each.probabilities for each in gafx.predict(files, model, overlap=0)])
    np.testing.assert_allclose(got, windows.reshape(18, 2, 3).mean(axis=1), atol=2e-4)
    (found,) = gafx.predict(files[:1], gafx.load(output / "models" / "stacking"))
    assert found.probabilities.sum() == pytest.approx(1, abs=1e-5)
    # A result for each model, alone and together; predictions of every clip; a report and a page.
    assert [result.name for result in read_results(output)] == [TITLES[name] for name in record["models"]]
    for name in record["models"]:
        (result,) = read_results(output / "models" / name)
        assert (result.tracks, result.segments, result.groups) == (18, 36, 18)
        table = PredictionTable.read(output / "models" / name)
        assert table.correct().mean() == pytest.approx(result.track_scores["accuracy"].value)
        assert (output / "models" / name / "report.html").is_file()
    said, page = capsys.readouterr().out, (output / "classical.html").read_text()
    for name in record["models"]:
        assert TITLES[name] in said
        assert f"models/{name}/report.html" in page
    assert FLAG not in said
    best = next(result for result in read_results(output) if result.name == TITLES[record["best"]])
    assert [entry.other for entry in best.comparisons] == [TITLES[n] for n in record["models"] if n != record["best"]]


@pytest.mark.usefixtures("no_pictures")
def test_nothing_of_the_test_part_is_in_a_fit(tones, output):
    classical(tones, output, models=("knn",))
    before = PredictionTable.read(output / "models" / "knn")
    row, _ = features(output)
    (path,) = (output / "features").glob("*.npz")
    arrays = dict(np.load(path))
    fold = before.fold[np.argsort(before.row)]
    victim = int(np.flatnonzero(fold == 1)[0])
    arrays["values"][row == victim, :-1] = 1e6  # an outlier in the test part of fold 1
    np.savez(path, **arrays)
    classical(tones, output, models=("knn",))
    after = PredictionTable.read(output / "models" / "knn")
    others = (before.fold == 1) & (before.row != victim)
    np.testing.assert_array_equal(after.values[others], before.values[others])
    others = before.fold != 1  # where it is a training clip, the scaling follows it
    assert not np.array_equal(after.values[others], before.values[others])


@pytest.mark.usefixtures("no_pictures")
def test_random_windows_are_flagged_wherever_a_number_stands(tones, output, monkeypatch, capsys):
    tuned_on = []

    def spy(name, table, sides, seed):
        tuned_on.append(table)
        return tune_member(name, table, sides, seed)

    monkeypatch.setattr(study, "tune_member", spy)
    record = classical(tones, output, "--split", "both", models=("naive_bayes",))
    said, page = capsys.readouterr().out, (output / "classical.html").read_text()
    results, at_random = read_results(output), read_results(output / "random")
    assert [(result.group_by, result.tracks) for result in results] == [("recording", 18)]
    assert [(result.group_by, result.tracks) for result in at_random] == [("segment", 36)]
    assert FLAG in said
    assert FLAG in page
    assert any("accuracy is inflated" in note for note in at_random[0].notes)
    entry = record["results"]["naive_bayes"]
    assert entry["random"]["split"] == entry["random minus track"]["split"] == FLAG
    # By track no recording is on both sides; at random nearly every one is.
    by_track, dealt = PredictionTable.read(output), PredictionTable.read(output / "random")
    assert len(tuned_on) == 7  # three folds each, and everything
    for number in range(3):
        tested = set(by_track.row[by_track.fold == number + 1])
        assert not tested & set(tuned_on[number].clip)
        assert len(tuned_on[number]) == 36 - 2 * len(tested)
        tested = set(dealt.clip[dealt.fold == number + 1])
        assert tested & set(dealt.clip[dealt.fold != number + 1])
    # The difference is that of the same windows.
    paired = entry["random minus track"]
    windows = results[0].scores["segment"]["accuracy"].value
    assert paired["by_track"]["value"] == pytest.approx(windows)
    assert paired["difference"] == pytest.approx(at_random[0].track_scores["accuracy"].value - windows)
    assert paired["groups"] == 18
    classical(tones, output, "--split", "random", models=("naive_bayes",))
    assert FLAG in capsys.readouterr().out
    assert FLAG in gafx.load(output / "models" / "naive_bayes").info.training["cross-validated accuracy"]
    assert not (output / "random").exists()  # of the call before


@pytest.mark.usefixtures("no_pictures")
def test_a_test_part_instead_of_folds(tones, output):
    record = classical(tones, output, "--protocol", "paper", models=("naive_bayes",))
    info = gafx.load(output / "models" / "naive_bayes").info
    (result,) = read_results(output)
    assert result.folds == []
    assert info.scores["accuracy"]["value"] == result.track_scores["accuracy"].value
    assert list(record["results"]["naive_bayes"]["track"]["chosen"]) == ["test"]


@pytest.mark.usefixtures("no_pictures")
def test_a_class_of_one_recording_is_known_to_the_saved_model(tones, tmp_path):
    root = tmp_path / "set"
    for label in ("low", "high"):
        shutil.copytree(tones / label, root / label)
    (root / "single").mkdir()
    shutil.copy(tones / "middle" / "0.wav", root / "single")
    record = classical(root, tmp_path / "out", models=(*FAST, "stacking"))
    assert any("'single': one recording each" in note for note in record["notes"])
    model = gafx.load(tmp_path / "out" / "models" / "naive_bayes")
    file = root / "single" / "0.wav"
    (found,) = gafx.predict([file], model)
    assert model.info.classes[found.probabilities.argmax()] == "single"
    # Stacking has learned from the inner folds, none of which could predict the class.
    stacking = gafx.load(tmp_path / "out" / "models" / "stacking")
    (found,) = gafx.predict([file], stacking)
    assert found.probabilities[stacking.info.classes.index("single")] < 1e-3


@pytest.mark.parametrize(("more", "message"), [
    (["--models", "svn"], "did you mean 'svm'"),
    (["--models", "knn", "knn"], "at most once"),
    (["--models", "knn", "voting"], "name at least two"),
    (["--seconds", "0"], "between 0.1 and 600"),
    (["--jobs", "0"], "at least 1"),
    (["--split", "both", "--protocol", "official"], "official"),
    (["--option", "csv=no.csv"], "--option csv='no.csv'"),
    (["--folds", "99"], "--folds=99"),
])  # fmt: skip
def test_errors(more, message, tones, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["classical", "folder", str(tones), "--output", str(tmp_path / "out"), *more])
    error = capsys.readouterr().err
    assert message in error
    assert not re.search(r"\bdata\.[a-z]", error)  # keys of gafx train


def test_settings_are_checked():
    for values, message in (({"split": "tracks"}, "split='tracks'"), ({"features": "all"}, "features='all'"),
                            ({"models": ()}, "at least one"), ({"seed": -1}, "seed=-1")):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            ClassicalConfig(**values)


def test_the_page_shows_the_pictures(tones, output, monkeypatch):
    asked = {}

    def draw(table, names, classes, folder, **more):
        asked.update(more, table=table, names=names)
        return [Picture("f_scores", "F-scores", "of `all` windows", "<svg></svg>")]

    monkeypatch.setattr("gafx.studies.classical.page.write_pictures", draw)
    monkeypatch.setitem(MEMBERS, "random_forest", study.replace(MEMBERS["random_forest"], grid=({"max_depth": 2},)))
    classical(tones, output, models=("random_forest",))
    assert asked["present"].tolist() == [0, 1, 2]
    page = (output / "classical.html").read_text()
    assert "<h3>F-scores</h3><svg></svg><figcaption>of <code>all</code> windows</figcaption>" in page
    assert len(asked["names"]) == asked["table"].values.shape[1] == asked["model"].n_features_in_ == 63
    # The forest is explained on rows that it was not fitted on: those of the first fold.
    table = PredictionTable.read(output)
    assert set(asked["held_out"].clip) == set(table.row[table.fold == 1])
    assert asked["confusions"]["random forest"].sum() == 18
