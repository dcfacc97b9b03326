"""`gafx fit`: heads on frozen models, against scikit-learn's own pipelines; what small folders need."""

import json
import shutil
import warnings
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import gafx
from gafx.classifiers.base import probe_features
from gafx.cli import main
from gafx.config import DataConfig
from gafx.data.sources.base import load_manifest
from gafx.deploy.export import export
from gafx.errors import UsageError
from gafx.evaluation.predictions import PredictionTable
from gafx.evaluation.result import Result
from gafx.fitting.folds import inner_folds
from gafx.fitting.head import attach_head
from gafx.fitting.run import FitConfig, fit_head
from gafx.fitting.scaling import Scaling
from gafx.fitting.table import Table
from gafx.fitting.tune import METHODS, fit, fit_predict, tune
from gafx.stats.scores import calibration_error
from tests.crnn_weights import MEL, published_like

RATE = 22050
SECONDS = 0.5


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """A small model with random weights of the published layout, saved."""
    folder = tmp_path_factory.mktemp("frozen")
    torch.save(published_like(), folder / "weights.pth")
    model = gafx.create_model(
        MEL, {"name": "crnn", "pretrained": str(folder / "weights.pth")}, classes=list("abcde"), segment_seconds=SECONDS
    )
    model.info.objective, model.info.license = "tag", "cc0-1.0"
    return model.save(folder / "model")


def tone(frequency, seconds=SECONDS, seed=0):
    rng = np.random.default_rng([seed, int(frequency)])
    time = np.arange(round(seconds * RATE)) / RATE
    return 0.3 * np.sin(2 * np.pi * frequency * rng.uniform(0.9, 1.1) * time) + 0.05 * rng.normal(size=len(time))


@pytest.fixture
def tones(wav_factory, tmp_path):
    """`tones({"low": 8, ...})` writes so many clips of each class; classes differ in pitch, lengths in seconds."""

    def write(counts, seconds=lambda number: SECONDS):
        for order, (label, count) in enumerate(counts.items()):
            for number in range(count):
                wav_factory(
                    f"set/{label}/{number}.wav", tone(200 * 3**order, seconds(number), 100 * order + number), RATE
                )
        return tmp_path / "set"

    return write


def run_fit(root, frozen, output, *more):
    main(["fit", str(root), "--model", str(frozen), "--output", str(output), *more])
    return output


def embedded(frozen, root):
    """Features of whole clips, computed one by one, without gafx's windows and batches."""
    model, manifest = gafx.load(frozen), load_manifest("folder", root)
    from gafx.audio.read import read_segment

    rows = []
    with torch.inference_mode():
        for row in range(len(manifest)):
            samples = round(manifest.duration[row] * RATE)
            wave = torch.from_numpy(read_segment(manifest.file(row), 0, samples, sample_rate=RATE, channels=1))[None]
            feature_map = model.features(wave)
            rows.append(torch.cat([model.classifier(feature_map), model.classifier.embed(feature_map)], dim=1)[0])
    return torch.stack(rows).double().numpy(), manifest


@pytest.mark.parametrize("head", ["logistic", "svm"])
def test_the_saved_model_is_scikit_learns_pipeline(head, frozen, tones, tmp_path, capsys):
    root = tones({"low": 8, "middle": 6, "high": 7})
    folder = run_fit(root, frozen, tmp_path / "fit", "--head", head)
    record = json.loads((folder / "fit.json").read_text())
    values, manifest = embedded(frozen, root)
    label = manifest.first_label()
    (stored,) = (np.load(path)["values"][:, :-1] for path in (folder / "features").glob("*.npz"))  # last: levels
    np.testing.assert_allclose(stored, values, atol=1e-4)
    estimator = {
        "logistic": LogisticRegression(C=record["saved"], tol=1e-10, max_iter=10_000),
        "svm": LinearSVC(C=record["saved"], random_state=0, max_iter=5000),
    }[head]
    pipeline = make_pipeline(StandardScaler(), estimator).fit(stored, label)
    temperature = record["calibration"]["temperature"]
    assert temperature != 1.0
    outputs = pipeline.decision_function(stored) / temperature
    expected = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    model = gafx.load(folder)
    assert model.info.classes == ["high", "low", "middle"]
    assert model.info.temperature == temperature
    files = [str(root / manifest.relative_path(row)) for row in range(len(manifest))]
    got = np.stack([found.probabilities for found in gafx.predict(files, model)])
    with torch.inference_mode():
        of_same_features = model.classifier.head(torch.from_numpy(stored).float()) / temperature
    np.testing.assert_allclose(of_same_features.softmax(dim=1), expected, atol={"logistic": 1e-5, "svm": 1e-3}[head])
    # Single-precision features of other batches differ in their last bits, which narrow features amplify.
    np.testing.assert_allclose(got, expected, atol=1e-3)
    assert (got.argmax(axis=1) == label).all()
    assert "accuracy" in capsys.readouterr().out


def test_every_clip_is_predicted_by_a_head_of_other_recordings(frozen, tones, tmp_path):
    root = tones({"low": 6, "high": 6})
    folder = run_fit(root, frozen, tmp_path / "fit", "--folds", "3")
    table, result = PredictionTable.read(folder), Result.read(folder)
    values, manifest = embedded(frozen, root)
    assert (np.sort(table.row) == np.arange(12)).all()
    assert result.tracks == 12
    assert result.scores["track"]["accuracy"].interval == "Wilson 95 %"
    fold = np.empty(12, np.int64)
    fold[table.row] = table.fold
    chosen = json.loads((folder / "fit.json").read_text())["chosen"]
    for number in (1, 2, 3):
        train, test = fold != number, fold == number
        head = LogisticRegression(C=chosen[f"fold {number}"], tol=1e-10, max_iter=10_000)
        model = make_pipeline(StandardScaler(), head).fit(values[train], manifest.first_label()[train])
        own = {int(row): number for number, row in enumerate(table.row)}
        got = np.stack([table.values[own[row]] for row in np.flatnonzero(test)])
        np.testing.assert_allclose(got, model.predict_proba(values[test]), atol=1e-5)


def test_the_same_seed_gives_the_same_bytes_and_a_fit_replaces_the_former(frozen, tones, tmp_path, capsys):
    root = tones({"low": 4, "high": 4})
    names = ("model/model.safetensors", "model/config.json", "predictions.csv", "result.json")
    folders = [run_fit(root, frozen, tmp_path / name / "fit") for name in ("one", "two")]
    for name in ("model/model.safetensors", "predictions.csv"):
        first, second = ((folder / name).read_bytes() for folder in folders)
        assert first == second
    before = (folders[0] / names[0]).read_bytes()
    again = run_fit(root, frozen, folders[0], "--features", "outputs")
    assert (again / names[0]).read_bytes() != before
    assert gafx.load(again).info.classifier["features"] == "outputs"
    assert len(list((again / "features").iterdir())) == 1  # the second fit read the features of the first
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(SystemExit):
        run_fit(root, frozen, tmp_path / "other")
    assert "holds other things (thesis.txt)" in capsys.readouterr().err


def test_long_files_are_averaged_over_their_windows(frozen, tones, tmp_path):
    root = tones({"low": 4, "high": 4}, seconds=lambda number: SECONDS * (1 + number % 3))
    folder = run_fit(root, frozen, tmp_path / "fit", "--folds", "2")
    result, table = Result.read(folder), PredictionTable.read(folder)
    assert (result.tracks, result.segments) == (8, 2 * (1 + 3 + 5 + 1))  # windows that overlap by half
    assert len(table) == 8
    model = gafx.load(folder)
    assert model.info.segment_seconds == SECONDS
    (found,) = gafx.predict(str(root / "low" / "2.wav"), model, over_time=True)
    assert len(found.windows) == 5
    np.testing.assert_allclose(found.window_probabilities.mean(axis=0), found.probabilities, atol=1e-6)


def test_clips_count_alike_however_many_windows_they_have(rng):
    values, label = rng.normal(size=(30, 4)), rng.integers(0, 2, 30)
    repeats = rng.integers(1, 5, 30)
    once = Table(values, np.arange(30), label, np.arange(30), 2)
    often = once.take(np.repeat(np.arange(30), repeats))
    one, other = (fit(METHODS["logistic regression"], table, {"C": 0.1}).linear() for table in (once, often))
    np.testing.assert_allclose(other[0], one[0], atol=1e-3)
    np.testing.assert_allclose(other[1], one[1], atol=1e-3)


def test_copies_are_one_recording_and_reported(frozen, tones, tmp_path, capsys):
    root = tones({"low": 5, "high": 5})
    for number in range(5):
        shutil.copy(root / "low" / f"{number}.wav", root / "low" / f"copy {number}.wav")
    shutil.copy(root / "low" / "0.wav", root / "high" / "other label.wav")
    folder = run_fit(root, frozen, tmp_path / "fit")
    result, table = Result.read(folder), PredictionTable.read(folder)
    assert (result.tracks, result.groups) == (16, 10)
    fold = dict(zip(table.clip, table.fold, strict=True))
    assert all(fold[f"low/{number}.wav"] == fold[f"low/copy {number}.wav"] for number in range(5))
    assert fold["low/0.wav"] == fold["high/other label.wav"]
    out = capsys.readouterr().out
    assert "6 clips have the same bytes as another" in out
    assert "2 copies under another label" in out
    assert "leak check: nothing found" in out


def test_silent_and_short_clips_are_noted(frozen, tones, wav_factory, tmp_path, capsys):
    root = tones({"low": 4, "high": 4})
    wav_factory("set/low/zeros.wav", np.zeros(RATE), RATE)
    wav_factory("set/high/click.wav", tone(600)[:50], RATE)
    run_fit(root, frozen, tmp_path / "fit")
    out = capsys.readouterr().out
    assert "1 clip is silent (below -70 dBFS), for which gafx predict gives no label, e.g. low/zeros.wav" in out
    assert "1 clip is shorter than" in out
    assert "e.g. high/click.wav" in out


def test_what_the_card_demo_and_commands_say(frozen, tones, tmp_path, capsys):
    root = tones({"low": 4, "high": 4})
    folder = run_fit(root, frozen, tmp_path / "fit")
    card = (folder / "model" / "README.md").read_text()
    assert "license: cc0-1.0" in card
    assert "Not evaluated yet" not in card
    assert "of heads fitted on the other folds" in card.partition("## Scores")[2]
    page = (folder / "report.html").read_text()
    assert page.count(f">{folder}<") == 1
    assert "Training steps" not in page
    for more, message in (
        (("--option", "csv=no.csv"), "--option csv='no.csv'"),
        (("--option", "foo=1"), "--option"),
        (("--folds", "9"), "--folds=9"),
    ):
        with pytest.raises(SystemExit):
            run_fit(root, frozen, folder, *more)
        err = capsys.readouterr().err
        assert message in err
        assert "data." not in err
    few = run_fit(tones({"low": 1, "high": 1, "middle": 1}), frozen, tmp_path / "few")
    if not gafx.load(few).info.calibration:
        main(["predict", str(root / "low" / "0.wav"), "--model", str(few)])
        assert "gafx fit needs more recordings" in capsys.readouterr().err


def test_another_fit_in_the_folder_is_refused_and_an_interrupted_one_goes_on(
    frozen, tones, tmp_path, capsys, monkeypatch
):
    root = tones({"low": 4, "high": 4})
    folder = run_fit(root, frozen, tmp_path / "fit")
    speed = Result.read(folder).cost.clips_per_second
    (tmp_path / "set").rename(tmp_path / "moved")
    with pytest.raises(SystemExit):
        run_fit(tmp_path / "moved", frozen, folder)
    assert "holds a fit of frozen" in capsys.readouterr().err
    (tmp_path / "moved").rename(tmp_path / "set")
    with pytest.raises(SystemExit):
        run_fit(root, frozen, root / "fit")
    assert "is inside the data" in capsys.readouterr().err
    data = DataConfig(name="folder", root=str(root), protocol="")
    monkeypatch.setattr("gafx.fitting.run._save", Mock(side_effect=OSError("full")))
    with pytest.raises(OSError, match="full"):
        fit_head(gafx.load(frozen), "another name", data, tmp_path / "new")
    monkeypatch.undo()
    assert (tmp_path / "new" / "result.json").is_file()
    run_fit(root, frozen, tmp_path / "new")
    again = run_fit(root, frozen, folder)  # from the cache: the speed is that of the computation
    assert Result.read(again).cost.clips_per_second == speed


@pytest.mark.parametrize(
    ("values", "message"),
    [({"head": "rbf"}, "logistic, svm"), ({"class_weights": "Balanced"}, "none, balanced"), ({"batch_size": 0}, "1")],
)
def test_settings_are_checked(values, message):
    with pytest.raises(UsageError, match=message):
        FitConfig(**values)


def test_small_folders(frozen, tones, tmp_path, capsys):
    folder = run_fit(tones({"low": 2, "high": 2}), frozen, tmp_path / "two")
    assert Result.read(folder).tracks == 4
    folder = run_fit(tones({"low": 5, "high": 4, "single": 1}), frozen, tmp_path / "single")
    out = capsys.readouterr().out
    assert "'single': one recording each" in out
    assert gafx.load(folder).info.classes == ["high", "low", "single"]
    row = next(entry for entry in Result.read(folder).per_class if entry.name == "single")
    assert (row.tracks, row.scores["recall"]) == (1, 0.0)


def test_broken_files_are_skipped_counted_and_listed(frozen, tones, tmp_path, capsys):
    root = tones({"low": 4, "high": 4})
    (root / "low" / "broken.wav").write_bytes(b"RIFF no sound")
    with pytest.raises(SystemExit):
        run_fit(root, frozen, tmp_path / "fit")
    assert "1 of 9 files" in capsys.readouterr().err
    folder = run_fit(root, frozen, tmp_path / "fit", "--max-unreadable", "0.2")
    out = capsys.readouterr().out
    assert "1 unreadable file skipped" in out
    assert "low/broken.wav" in out
    assert [clip.path for clip in Result.read(folder).skipped] == ["low/broken.wav"]


@pytest.mark.parametrize(
    ("counts", "more", "message"),
    [
        ({"low": 3}, (), "holds a single class"),
        ({"low": 3, "high": 3}, ("--folds", "9"), "more than the number of recordings"),
        ({"low": 3, "high": 3}, ("--protocol", "kfolds"), "did you mean 'kfold'"),
        ({"low": 3, "high": 3}, ("--protocol", "official"), "has no official folds"),
    ],
)
def test_mistakes_are_sentences(counts, more, message, frozen, tones, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_fit(tones(counts), frozen, tmp_path / "fit", *more)
    assert message in capsys.readouterr().err


def test_several_labels_a_clip_are_refused(frozen, tones, tmp_path, capsys):
    root = tones({"low": 3, "high": 3})
    (root / "list.csv").write_text("path,label\nlow/0.wav,low;high\nhigh/0.wav,high\nlow/1.wav,low\n")
    with pytest.raises(SystemExit):
        run_fit(root, frozen, tmp_path / "fit", "--option", "csv=list.csv")
    assert "2 labels, and gafx fit takes exactly one" in capsys.readouterr().err


def test_a_test_part_is_scored_by_the_saved_weights(frozen, tones, tmp_path):
    root = tones({"low": 8, "high": 8}, seconds=lambda number: SECONDS * (1 + number % 3))
    folder = run_fit(root, frozen, tmp_path / "fit", "--protocol", "paper")
    result, model = Result.read(folder), gafx.load(folder)
    assert result.folds == []
    assert model.info.scores["accuracy"]["value"] == result.track_scores["accuracy"].value
    table = PredictionTable.read(folder)
    files = [str(root / name) for name in table.clip]
    got = np.stack([found.probabilities for found in gafx.predict(files, model)])
    np.testing.assert_allclose(got, table.predicted, atol=1e-5)
    published = calibration_error(got, table.targets.argmax(axis=1))
    assert published != pytest.approx(calibration_error(table.values, table.targets.argmax(axis=1)), abs=1e-3)
    assert model.info.scores["calibration_error"]["value"] == pytest.approx(published, abs=1e-4)
    assert result.calibration.temperatures == [model.info.temperature]
    page = (folder / "report.html").read_text()
    assert "fitted on out-of-fold tracks" in page
    assert "Not checked" not in page
    model.info.calibration = {}
    got = np.stack([found.probabilities for found in gafx.predict(files, model)])
    np.testing.assert_allclose(got, table.values, atol=1e-5)


def test_a_validation_part_chooses_the_penalty(frozen, tones, tmp_path):
    folder = run_fit(tones({"low": 10, "high": 10}), frozen, tmp_path / "fit", "--protocol", "paper_val")
    assert gafx.load(folder).info.calibration["part"] == "validation"


def test_a_fitted_model_exports_and_can_be_fitted_again(frozen, tones, tmp_path):
    root = tones({"low": 4, "high": 4})
    folder = run_fit(root, frozen, tmp_path / "fit")
    assert export(gafx.load(folder), tmp_path / "fit.pt2", format="torch_export").difference < 1e-5
    again = gafx.load(run_fit(root, folder, tmp_path / "again"))
    assert again.info.classifier["base"]["base"]["name"] == "crnn"
    assert again.info.license == "cc0-1.0"
    assert len(list(gafx.predict(str(root), again))) == 8


def test_a_head_gives_the_outputs_of_its_estimator(frozen, rng):
    model = gafx.load(frozen)
    wave = torch.from_numpy(rng.normal(size=(6, 1, RATE // 2)).astype(np.float32)) * 0.1
    for features in ("outputs", "embedding", "both"):
        with torch.inference_mode():
            values = probe_features(model.classifier, model.features(wave), features).double().numpy()
            label = np.array([0, 1, 0, 1, 0, 1])
            head = fit(METHODS["linear SVM"], Table(values, np.arange(6), label, np.arange(6), 2), {"C": 0.01})
            probe = attach_head(model, head, ["a", "b"], features)
            np.testing.assert_allclose(probe(wave).numpy(), head.outputs(values), atol=1e-4)
            assert torch.equal(probe.features(wave), model.features(wave))


def test_a_model_without_labels_is_refused(frozen, tones, tmp_path, capsys):
    model = gafx.load(frozen)
    model.info.objective = "mel_regression"
    with pytest.raises(SystemExit):
        run_fit(tones({"low": 2, "high": 2}), model.save(tmp_path / "pretrained"), tmp_path / "fit")
    assert "was not trained on labels" in capsys.readouterr().err


def test_warnings_come_without_source_lines():
    with pytest.raises(SystemExit):
        main(["--version"])
    assert warnings.formatwarning("of a library", UserWarning, "library.py", 3) == "warning: of a library\n"


# --- tables, folds and tuning -----------------------------------------------------------------------------------------


def test_settings_are_chosen_on_training_recordings_alone(rng):
    # Two clips of each recording with equal features and another label than most: their neighbour in another fold is
    # that of the other clip of the pair.
    group = np.repeat(np.arange(30), 2)
    train, target = rng.normal(size=(30, 4))[group], rng.integers(0, 2, 30)[group]
    for fitted, check in inner_folds(target, group, 3, 0):
        assert not set(group[fitted]) & set(group[check])
    table = Table(train, np.arange(60), target, group, 2)
    for name in METHODS:
        assert set(fit_predict(name, table, rng.normal(size=(5, 4)))) <= {0, 1}
    few = table.take(np.array([0, 2, 4, 6]))
    few = Table(few.values, few.clip, np.array([0, 1, 0, 1]), few.group, 2)
    assert len(fit_predict("k-NN", few, train[:2])) == 2


def test_held_out_outputs_are_those_of_cross_validation(rng):
    group = np.repeat(np.arange(20), 2)
    label = rng.integers(0, 3, 20)[group]
    values = rng.normal(size=(40, 6)) + np.eye(3)[label] @ rng.normal(size=(3, 6))
    table = Table(values, np.arange(40), label, group, 3)
    tuned = tune(METHODS["logistic regression"], table, folds=5)
    fold = np.empty(40, np.int64)
    for number, (_, check) in enumerate(inner_folds(label, group, 5, 0)):
        fold[check] = number
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=tuned.fitted.settings["C"], max_iter=1000))
    expected = cross_val_predict(
        pipeline, values, label, groups=fold, cv=LeaveOneGroupOut(), method="decision_function"
    )
    found = tuned.outputs[np.argsort(tuned.checked)]
    centred = (each - each.mean(axis=1, keepdims=True) for each in (found, expected))
    np.testing.assert_allclose(*centred, atol=1e-3)


def test_balanced_weights_are_scikit_learns(rng):
    label = np.repeat([0, 1, 2], [30, 6, 4])
    values = rng.normal(size=(40, 5))
    ours = fit(
        METHODS["logistic regression"], Table(values, np.arange(40), label, np.arange(40), 3), {"C": 1.0}, balanced=True
    )
    theirs = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", tol=1e-9, max_iter=1000))
    np.testing.assert_allclose(ours.outputs(values), theirs.fit(values, label).decision_function(values), atol=1e-3)


def test_a_class_without_training_rows_is_never_predicted(rng):
    values = rng.normal(size=(12, 3))
    for label in (np.repeat([0, 2], 6), np.full(12, 2)):
        for name in ("logistic regression", "linear SVM", "k-NN"):
            head = fit(METHODS[name], Table(values, np.arange(12), label, np.arange(12), 4), METHODS[name].grid[0])
            assert set(head.outputs(rng.normal(size=(50, 3))).argmax(axis=1)) <= set(label)


def test_scaling_is_scikit_learns_and_leaves_constant_features_out(rng):
    values, weight = rng.normal(3, 2, size=(9, 5)), rng.uniform(0.1, 1, 9)
    values[:, 2] = 7.0
    scaling = Scaling.fit(values, weight)
    scaler = StandardScaler().fit(values, sample_weight=weight)
    np.testing.assert_allclose(scaling.apply(values), np.delete(scaler.transform(values), 2, axis=1), atol=1e-10)
    wide = rng.normal(size=(6, 40))
    turned = Scaling.fit(wide)
    assert turned.apply(wide).shape == (6, 6)
    weight, bias = turned.unscale(np.eye(6), np.zeros(6))
    np.testing.assert_allclose(wide @ weight.T + bias, turned.apply(wide), atol=1e-10)


def test_broken_classifiers_are_refused_before_they_are_built():
    with pytest.raises(UsageError, match="classifier.base.dropout"):
        gafx.create_model(
            MEL, {"name": "linear_probe", "base": {"name": "crnn", "dropout": "much"}}, num_classes=2,
            segment_seconds=0.5,
        )  # fmt: skip
    with pytest.raises(UsageError, match="unknown classifier 'crn'"):
        gafx.create_model(MEL, {"name": "linear_probe", "base": {"name": "crn"}}, num_classes=2, segment_seconds=0.5)
