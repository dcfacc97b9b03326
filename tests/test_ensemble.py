"""Ensembles of models and test-time averaging, in labelling files and in evaluation."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from runs import MEL, SMALL, command, train

import gafx
from gafx.audio.views import average_views
from gafx.config import EvaluateConfig, build
from gafx.data.manifest import Skipped
from gafx.deploy.predict import predict_files, probabilities
from gafx.errors import UsageError
from gafx.evaluation.ensemble import average
from gafx.evaluation.evaluate import evaluate_runs
from gafx.evaluation.predictions import PredictionTable
from gafx.evaluation.result import Result, read_results
from gafx.evaluation.runs import open_run, predict_run
from gafx.inference import Ensemble, Predictions, Probabilities
from gafx.objectives.classify import Classify
from gafx.report.evaluation import write_reports
from gafx.stats.compare import compare_correct, holm

CLASSES = ["blues", "hip-hop", "pop"]


def build_model(seed, classes=CLASSES, seconds=0.5, objective="classify", name="mel", **frontend):
    torch.manual_seed(seed)
    model = gafx.create_model(
        gafx.create_frontend(name, **frontend), {"name": "ast", "depth": 1}, classes=classes, segment_seconds=seconds
    )
    model.info.objective = objective
    if name == "mel":
        model.fit_statistics(torch.rand(4, model.frontend.channels, round(seconds * model.frontend.sample_rate)) - 0.5)
    with torch.no_grad():  # a new head gives nearly equal probabilities
        model.classifier.output.weight.mul_(30)
    model.info.calibration = {"temperature": 1.0 + seed}
    return model.eval()


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("songs")
    rng = np.random.default_rng(0)
    for name, seconds, rate, channels in (
        ("a.wav", 1.7, 44100, 2),
        ("b.flac", 0.3, 22050, 1),
        ("c.wav", 1.0, 16000, 1),
    ):
        time = np.arange(round(seconds * rate))[:, None] / rate
        wave = 0.3 * np.sin(2 * np.pi * (300 + 500 * time) * time) + 0.05 * rng.standard_normal((len(time), channels))
        soundfile.write(folder / name, wave, rate)
    (folder / "broken.wav").write_bytes(b"RIFF of nothing")
    return folder


def labelled(folder, model, **options):
    return list(gafx.predict(folder, model, device="cpu", **options))


def assert_mean(found, singles, orders):
    """Predictions are the mean of those of single models, whose columns are `orders`."""
    for ensemble, *each in zip(found, *singles, strict=True):
        if ensemble.file.endswith("broken.wav"):
            assert ensemble.error == each[0].error
            continue
        mean = np.mean([one.probabilities[order] for one, order in zip(each, orders, strict=True)], axis=0)
        np.testing.assert_allclose(ensemble.probabilities, mean, atol=1e-6)
        assert max(abs(one.probabilities[order] - mean).max() for one, order in zip(each, orders, strict=True)) > 1e-3


# --- labelling --------------------------------------------------------------------------------------------------------


def test_two_models_are_averaged_and_labels_are_matched_by_name(songs):
    first, second = build_model(0), build_model(1, ["pop", "blues", "hip-hop"])
    found = labelled(songs, [first, second], over_time=True)
    assert [len(each.file) > 0 and each.classes for each in found] == [tuple(CLASSES)] * 4
    singles = [labelled(songs, model, over_time=True) for model in (first, second)]
    order = [1, 2, 0]
    assert_mean(found, singles, [slice(None), order])
    for ensemble, one, other in zip(found, *singles, strict=True):
        if ensemble.error is None:
            np.testing.assert_array_equal(ensemble.windows, one.windows)
            mean = (one.window_probabilities + other.window_probabilities[:, order]) / 2
            np.testing.assert_allclose(ensemble.window_probabilities, mean, atol=1e-6)


def test_one_model_in_a_list_is_that_model(songs):
    model = build_model(0)
    for alone, listed in zip(labelled(songs, model), labelled(songs, [model]), strict=True):
        np.testing.assert_array_equal(alone.probabilities, listed.probabilities)


def test_models_of_other_rates_channels_and_lengths(songs):
    """Three readings of the files, one of which two models share; each model counts once."""
    models = [
        build_model(0),
        build_model(1, name="gafx_u", width=16),
        build_model(2, seconds=0.4),
        build_model(3),
    ]
    found = labelled(songs, models)
    assert_mean(found, [labelled(songs, model) for model in models], [slice(None)] * 4)
    assert [each.seconds for each in found] == [each.seconds for each in labelled(songs, models[0])]
    # Windows of one length are averaged by their time, whatever the rate.
    models = [models[0], build_model(1, sample_rate=16000)]
    over_time = labelled(songs, models, over_time=True)
    singles = [labelled(songs, model, over_time=True) for model in models]
    for ensemble, one, other in zip(over_time, *singles, strict=True):
        if ensemble.error is None:
            mean = (one.window_probabilities + other.window_probabilities) / 2
            np.testing.assert_allclose(ensemble.window_probabilities, mean, atol=1e-6)
    with pytest.raises(UsageError, match=r"model 1 are 0.5 s long and those of model 2 0.4 s.*--window 0.5"):
        labelled(songs, [models[0], build_model(2, seconds=0.4)], over_time=True)
    cured = labelled(songs, [models[0], build_model(2, seconds=0.4)], over_time=True, window_seconds=0.5)
    assert len(next(each for each in cured if each.file.endswith("c.wav")).windows) == 3


def test_windows_whose_starts_drift_are_matched_by_time(songs):
    """Half a window of 0.2003 s is no whole number of samples at either rate."""
    models = [build_model(0), build_model(1, sample_rate=16000)]
    options = {"over_time": True, "window_seconds": 0.2003}
    found = labelled(songs, models, **options)
    for ensemble, one, other in zip(found, *(labelled(songs, model, **options) for model in models), strict=True):
        if ensemble.error is None:
            for (start, _), values in zip(ensemble.windows, ensemble.window_probabilities, strict=True):
                here = np.abs(one.windows[:, 0] - start).argmin()
                there = np.abs(other.windows[:, 0] - start).argmin()
                mean = (one.window_probabilities[here] + other.window_probabilities[there]) / 2
                np.testing.assert_allclose(values, mean, atol=1e-6)


SAME = build_model(0)


@pytest.mark.parametrize(
    ("models", "parts"),
    [
        ([], "at least one model"),
        ([build_model(0), build_model(1, ["blues", "rock", "pop"])], "first: hip-hop; only in the second: rock"),
        ([build_model(0), build_model(1, CLASSES[:2])], "only in the first: pop; only in the second: none"),
        ([build_model(0), build_model(1, objective="tag")], "model 1 is a single-label model and model 2 a tagging"),
        (["some/run", "some/run"], "some/run is given twice"),
        (["some/run", "some/run/"], "some/run/ is given twice"),
        ([SAME, SAME], "model 2 is given twice"),
        ([Ensemble([Probabilities(SAME)]), build_model(1)], "an ensemble cannot be a member"),
    ],
    ids=["none", "other labels", "fewer labels", "mixed", "twice", "other spelling", "same object", "nested"],
)
def test_models_that_form_no_ensemble(models, parts):
    with pytest.raises(UsageError, match=parts):
        probabilities(models)


def test_labelling_can_end_early(songs):
    """The threads of all readings end with the generator."""
    models = [build_model(0), build_model(1, sample_rate=16000)]
    answers = gafx.predict([songs / "a.wav"] * 300, models, device="cpu")
    next(answers)
    answers.close()


def test_views_are_the_mean_over_rolled_waves(songs):
    model = build_model(0)
    single = Probabilities(model)
    wave = torch.rand(2, 1, 11025) - 0.5
    with torch.inference_mode():
        rolled = [single(torch.cat([wave[..., -shift:], wave[..., :-shift]], dim=-1)) for shift in (3675, 7350)]
        np.testing.assert_allclose(
            average_views(single, 3)(wave), torch.stack([single(wave), *rolled]).mean(dim=0), atol=1e-6
        )
    assert average_views(single, 1) is single
    # A file that is one window: the mean of the model over shifted copies of the file.
    samples, rate = soundfile.read(songs / "b.flac", dtype="float32")
    copies = [np.roll(samples, view * len(samples) // 4) for view in range(4)]
    for number, copy in enumerate(copies):
        soundfile.write(songs.parent / f"{number}.wav", copy, rate, subtype="FLOAT")
    each = [labelled(songs.parent / f"{number}.wav", model)[0].probabilities for number in range(4)]
    (found,) = labelled(songs / "b.flac", model, views=4)
    np.testing.assert_allclose(found.probabilities, np.mean(each, axis=0), atol=1e-6)
    assert np.ptp(each, axis=0).max() > 1e-4
    ensemble = [model, build_model(1)]
    mean = np.mean([labelled(songs / "b.flac", one, views=2)[0].probabilities for one in ensemble], axis=0)
    np.testing.assert_allclose(labelled(songs / "b.flac", ensemble, views=2)[0].probabilities, mean, atol=1e-6)
    with pytest.raises(UsageError, match="views=0 must be at least 1"):
        predict_files(single, [], views=0)


def test_the_command(songs, tmp_path):
    models = [build_model(seed) for seed in (0, 1)]
    for model in models:
        model.info.calibration = {}
    folders = [model.save(tmp_path / f"model-{seed}") for seed, model in enumerate(models)]
    done = command("predict", songs / "a.wav", "--model", folders[0], "--model", folders[1], "--views", 2, "--json")
    assert done.returncode == 0, done.stderr
    assert "mean of 2 models, mean over 2 views" in done.stderr
    assert "model-0 and " in done.stderr  # neither has a temperature
    (found,) = labelled(songs / "a.wav", folders, views=2)
    written = json.loads(done.stdout)[0]["probabilities"]
    assert written == pytest.approx(dict(zip(CLASSES, found.probabilities, strict=True)), abs=1e-6)
    assert command("predict", songs, "--model", folders[0], "--views", 0).returncode == 2


# --- evaluation -------------------------------------------------------------------------------------------------------


LOW = [*MEL, "frontend.sample_rate=16000", "data.segment_seconds=0.4"]
CONFIG = {"workers": 0, "resamples": 30, "pictures": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def folders(synthetic_root, tmp_path_factory):
    """Folds 1 and 2 of two mels, of other rates and lengths of segments, and fold 1 of another seed of the first."""
    out = tmp_path_factory.mktemp("outputs")
    common = [*SMALL, f"data.root={synthetic_root}", f"output_dir={out}", "data.protocol=kfold_val", "data.folds=2"]
    common += ["data.val_fraction=0.4", "data.leak_check=false"]
    common += ["epochs=1"]
    return [
        train(*common, *MEL, "data.fold=1", "name=mel"),
        train(*common, *MEL, "data.fold=2", "name=mel"),
        train(*common, *LOW, "data.fold=1", "name=low"),
        train(*common, *LOW, "data.fold=2", "name=low"),
        train(*common, *MEL, "data.fold=1", "name=mel", "seed=1"),
    ]


def evaluate(folders, output=None, **more):
    config = build(EvaluateConfig, {**CONFIG, **more, **({"output": str(output)} if output else {})})
    evaluations = evaluate_runs(folders, config)
    return evaluations, write_reports(evaluations)


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".npz", ".csv")}


def test_the_ensemble_of_two_configurations_over_two_folds(folders, tmp_path):
    evaluations, table = evaluate(folders[:4], tmp_path, ensemble=True)
    assert [each.folder for each in evaluations] == [
        *(tmp_path / run.name for run in folders[:4]),
        tmp_path / "ensemble",
        tmp_path,
    ]
    mel, low = ([PredictionTable.read(tmp_path / run.name) for run in pair] for pair in (folders[:2], folders[2:4]))
    values, targets, rows = [], [], []
    for one, other in zip(mel, low, strict=True):
        assert one.clip.tolist() == other.clip.tolist()
        values.append((one.values + other.values) / 2)
        targets.append(one.targets)
        rows.append(one.row)
    rows = np.concatenate(rows)
    values, targets = np.concatenate(values)[rows.argsort()], np.concatenate(targets)[rows.argsort()]
    plain, _, found = read_results(tmp_path)
    assert (found.name, found.members, found.tracks, found.folds) == (
        "ensemble of mel, low",
        ["mel", "low"],
        40,
        [1, 2],
    )
    expected = Classify.scores(values, targets, np.arange(40), resamples=30)
    assert found.track_scores["accuracy"] == expected["accuracy"]
    assert found.track_scores["macro_f1"].value == pytest.approx(expected["macro_f1"].value)
    assert list(found.scores) == ["track"]  # segments of 0.8 and 0.4 s
    saved = PredictionTable.read(tmp_path / "ensemble")
    np.testing.assert_allclose(saved.values[saved.row.argsort()], values, atol=1e-12)
    assert Result.read(tmp_path / "ensemble") == found
    assert found.cost.parameters == sum(result.cost.parameters for result in read_results(tmp_path)[:2])
    # Tests against the members, by hand.
    right = values.argmax(axis=1) == targets.argmax(axis=1)
    tests = []
    for tables in (mel, low):
        correct = np.concatenate([each.correct() for each in tables])[rows.argsort()]
        tests.append(compare_correct(right, correct, np.arange(40)))
    assert [entry.other for entry in found.comparisons] == ["mel", "low"]
    assert [entry.paired.p_value for entry in found.comparisons] == [each.p_value for each in tests]
    assert [entry.paired.difference for entry in found.comparisons] == [each.difference for each in tests]
    assert [entry.adjusted for entry in found.comparisons] == holm([each.p_value for each in tests])
    row = next(line for line in table.splitlines() if line.startswith("ensemble of mel, low ("))
    assert " 40 " in row
    assert " to " in row
    assert "minus low: accuracy" in table
    assert "minus low" in (tmp_path / "report.html").read_text()
    # The runs' own results and the rows of the joint predictions are those without an ensemble.
    assert len(PredictionTable.read(tmp_path)) == 80
    assert plain.name == "mel"
    evaluate(folders[:4], tmp_path / "plain")
    for run in folders[:4]:
        before, after = files_of(tmp_path / run.name), files_of(tmp_path / "plain" / run.name)
        for name in ("predictions.csv", "segments.csv"):
            assert after[name] == before[name]
        assert not {"views", "members", "comparisons"} & json.loads(after["result.json"]).keys()


def test_an_incomplete_fold_is_named_and_seeds_are_members(folders, tmp_path, caplog):
    """Two seeds of one configuration on segments of one length; the second has no fold 2."""
    runs = [folders[0], folders[1], folders[4], folders[3]]
    evaluations, table = evaluate(runs, tmp_path, ensemble=True)
    found = read_results(tmp_path)[-1]
    assert found.members == ["mel (seed 0)", "mel (seed 1)", "low"]
    assert "at fold 1 the ensemble lacks low: it averages mel (seed 0), mel (seed 1)" in table
    assert "at fold 2 the ensemble lacks mel (seed 1)" in caplog.text
    assert [entry.paired.count for entry in found.comparisons] == [
        40 if name == "mel (seed 0)" else 20 for name in found.members
    ]
    # Fold 1 alone: equal segments are averaged as such, and the effect of all temperatures is that of the mean.
    evaluations, table = evaluate([folders[0], folders[4]], tmp_path / "one", ensemble=True)
    section = evaluations[-1].sections[-1].result
    tables = [PredictionTable.read(tmp_path / "one" / run.name) for run in (folders[0], folders[4])]
    mean = np.mean([each.values for each in tables], axis=0)
    saved = PredictionTable.read(tmp_path / "one" / "ensemble")
    np.testing.assert_allclose(saved.values, mean, atol=1e-12)
    assert list(section.scores) == ["track", "segment"]
    assert section.segments == 40
    assert len(section.calibration.temperatures) == 2
    # The mean of what `gafx predict` averages: calibrated probabilities of overlapping windows.
    loss = -np.log((calibrated_mean([folders[0], folders[4]], saved) * saved.targets).sum(axis=1)).mean()
    assert section.calibration.after["loss"] == pytest.approx(loss, abs=1e-4)
    # A fold of one run is left out, and said.
    _, table = evaluate([folders[0], folders[4], folders[1]], tmp_path / "left", ensemble=True)
    assert "leaves out fold 2, of which there is one run: mel (seed 0)" in table
    assert read_results(tmp_path / "left")[-1].tracks == 20


def calibrated_mean(folders, table):
    root = json.loads((folders[0] / "run.json").read_text())["data"]["root"]
    files = [f"{root}/{clip}" for clip in table.clip]
    answers = list(gafx.predict(files, folders, device="cpu"))
    by_file = {answer.file: answer.probabilities for answer in answers}
    return np.stack([by_file[file] for file in files])


def test_views_are_kept_apart_from_the_run_as_it_is(folders):
    run = folders[0]
    evaluate([run])
    before, config = files_of(run), (run / "model" / "config.json").read_bytes()
    evaluations, table = evaluate([run], views=3)
    assert evaluations[0].folder == run / "views-3"
    assert files_of(run) == before
    assert (run / "model" / "config.json").read_bytes() == config
    assert "mean over 3 views (circular shifts) of each segment" in table
    assert "3 views" in (run / "views-3" / "report.html").read_text()
    found, plain = Result.read(run / "views-3"), Result.read(run)
    assert (found.views, plain.views) == (3, 1)
    assert found.calibration is None
    assert found.cost.flops_per_clip == 3 * plain.cost.flops_per_clip
    several = PredictionTable.read(run / "views-3").values
    assert np.abs(several - PredictionTable.read(run).values).max() > 1e-5
    # By hand: the mean of the model over rolled segments of the first track.
    model, table = gafx.load(run), PredictionTable.read(run / "views-3")
    root = json.loads((run / "run.json").read_text())["data"]["root"]
    length, rate = round(0.8 * model.frontend.sample_rate), model.frontend.sample_rate
    from gafx.audio.read import read_segment

    total = round(soundfile.info(f"{root}/{table.clip[0]}").duration * rate)
    values = []
    for start in (0, total - length):
        wave = read_segment(f"{root}/{table.clip[0]}", start, length, sample_rate=rate)
        for view in range(3):
            rolled = torch.from_numpy(np.roll(wave, view * length // 3, axis=1))[None]
            with torch.inference_mode():
                values.append(model(rolled).double().softmax(dim=1)[0].numpy())
    np.testing.assert_allclose(several[0], np.mean(values, axis=0), atol=1e-4)


def test_an_ablation_takes_no_result_of_views(folders, tmp_path):
    from gafx.evaluation.result import write_results
    from gafx.studies.ablation.collect import _read
    from gafx.studies.ablation.plan import Job

    run = folders[0]
    evaluate([run])
    job = Job("mel", "mel", [], 0, folder=run)
    result = _read(job)[0].result
    text = (run / "result.json").read_text()
    for changed in ({"views": 2}, {"members": ["mel", "low"]}):
        write_results(run, [replace(result, **changed)])
        with pytest.raises(UsageError, match="of an ensemble or of several views"):
            _read(job)
    (run / "result.json").write_text(text)


def test_tracks_that_a_member_could_not_read_are_left_out(folders, tmp_path):
    config = build(EvaluateConfig, CONFIG)
    first, second = (predict_run(open_run(folder), config) for folder in (folders[0], folders[2]))
    gone = first.segments.row[0]
    keep = first.segments.row != gone
    fewer = Predictions(*(getattr(first.segments, name)[keep] for name in ("row", "start", "values")))
    with pytest.raises(UsageError, match=r"tested different tracks \(1 not in common\)"):
        average([replace(first, segments=fewer), second], tmp_path)
    skipped = replace(first, segments=replace(fewer, skipped=(Skipped("x.wav", "is empty"),)))
    averaged, lost = average([skipped, second], tmp_path)
    assert lost == 1
    assert gone not in averaged.segments.row
    assert len(averaged.table()) == 19
    with pytest.raises(UsageError, match="tested different tracks"):  # none in common
        average([replace(first, segments=replace(fewer, row=fewer.row + 1000)), second], tmp_path)


def test_runs_that_form_no_ensemble(folders, tmp_path):
    with pytest.raises(UsageError, match="no two of these runs test the same fold"):
        evaluate(folders[:2], tmp_path, ensemble=True)
    with pytest.raises(UsageError, match=r"views=0 must be at least 1"):
        build(EvaluateConfig, {"views": 0})


def test_the_command_evaluate(folders):
    done = command(
        "evaluate", folders[0], folders[2], "ensemble=true", "views=2", "workers=0", "resamples=20", "pictures=0"
    )
    assert done.returncode == 0, done.stderr
    assert "ensemble of mel, low (mean of 2 models)" in done.stdout
    assert "mean over 2 views" in done.stdout
    (joint,) = folders[0].parent.glob("evaluation-*-ensemble-views-2")
    assert {result.views for result in read_results(joint)} == {2}
    assert Result.read(joint / "ensemble").members == ["mel", "low"]
