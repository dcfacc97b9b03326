"""Temperature scaling: against a planted truth, a search by hand, and what becomes of it in files."""

import json
import warnings

import numpy as np
import pytest
import runs
import torch
from scipy.special import expit, log_softmax, softmax

import gafx
from gafx.cli import main
from gafx.errors import UsageError
from gafx.evaluation.predictions import PredictionTable
from gafx.registry import OBJECTIVES
from gafx.saving import card, hub
from gafx.stats.calibration import fit_temperature, loss, temper, track_means
from gafx.stats.scores import calibration_error


def drawn(rng, tracks, classes, temperature):
    """Overconfident outputs: labels are drawn from softmax(logits / temperature)."""
    logits = rng.normal(scale=3.0, size=(tracks, classes))
    truth = np.array([rng.choice(classes, p=p) for p in softmax(logits / temperature, axis=1)])
    return logits, np.eye(classes)[truth]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_a_planted_temperature_is_found(temperature, rng):
    logits, targets = drawn(rng, 4000, 5, temperature)
    found = fit_temperature(softmax(logits, axis=1), np.arange(4000), targets, multi_label=False)
    assert found["temperature"] == pytest.approx(temperature, rel=0.06)
    assert found["tracks"] == 4000
    assert found["after"]["loss"] <= found["before"]["loss"]
    assert found["after"]["calibration_error"] < 0.03


def test_of_several_labels(rng):
    logits = rng.normal(scale=3.0, size=(3000, 4))
    targets = (rng.random((3000, 4)) < expit(logits / 2)).astype(float)
    found = fit_temperature(expit(logits), np.arange(3000), targets, multi_label=True)
    assert found["temperature"] == pytest.approx(2, rel=0.06)
    assert "calibration_error" not in found["after"]


@pytest.mark.parametrize("scale", [3.0, 10.0, 18.0])
def test_of_models_that_are_all_too_sure(scale, rng):
    """As objectives give them: float64 from float32 outputs, in which no output is lost."""
    logits = rng.normal(scale=2.0, size=(4000, 10))
    targets = np.eye(10)[[rng.choice(10, p=p) for p in softmax(logits, axis=1)]]
    probabilities = OBJECTIVES.get("classify").probabilities(torch.from_numpy(scale * logits).float().double()).numpy()
    found = fit_temperature(probabilities, np.arange(4000), targets, multi_label=False)
    assert found["temperature"] == pytest.approx(scale, rel=0.05)
    targets = (rng.random((4000, 10)) < expit(logits)).astype(float)
    probabilities = OBJECTIVES.get("tag").probabilities(torch.from_numpy(scale / 2 * logits).float().double()).numpy()
    found = fit_temperature(probabilities, np.arange(4000), targets, multi_label=True)
    assert found["temperature"] == pytest.approx(scale / 2, rel=0.1)


def test_it_is_the_least_loss_of_tracks_not_of_segments(rng):
    logits, targets = drawn(rng, 60, 3, 2.0)
    track = np.repeat(np.arange(60), 3)
    segments = softmax(logits[track] + rng.normal(size=(180, 3)), axis=1)
    found = fit_temperature(segments, track, targets, multi_label=False)

    def tracks_loss(temperature):
        probabilities = softmax(np.log(segments) / temperature, axis=1).reshape(60, 3, 3).mean(axis=1)
        smoothed = (60 * targets + 1 / 3) / 61
        return -(smoothed * np.log(probabilities)).sum(axis=1).mean()

    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 4001))
    best = grid[np.argmin([tracks_loss(t) for t in grid])]
    assert found["temperature"] == pytest.approx(best, rel=3e-3)
    probabilities = segments.reshape(60, 3, 3).mean(axis=1)
    assert found["before"]["loss"] == pytest.approx(-np.log((probabilities * targets).sum(axis=1)).mean(), abs=1e-6)


def test_temper_is_division_of_the_outputs(rng):
    logits = rng.normal(scale=4, size=(50, 6))
    np.testing.assert_allclose(
        temper(softmax(logits, axis=1), 1.7, multi_label=False), softmax(logits / 1.7, axis=1), atol=1e-9
    )
    np.testing.assert_allclose(temper(expit(logits), 1.7, multi_label=True), expit(logits / 1.7), atol=1e-9)
    sure = np.array([[1.0, 0.0]])
    for multi_label in (False, True):
        assert np.isfinite(temper(sure, 3.0, multi_label=multi_label)).all()


@pytest.mark.parametrize("tracks", [5, 18, 500])
def test_a_few_tracks_that_are_all_right_make_nobody_sure(tracks):
    """After n of n of two labels: as sure as n + 1/2 of n + 1."""
    sure = np.tile([[0.9, 0.1]], (tracks, 1))
    found = fit_temperature(sure, np.arange(tracks), np.tile([[1.0, 0.0]], (tracks, 1)), multi_label=False)
    probabilities = temper(sure, found["temperature"], multi_label=False)
    assert probabilities[0, 0] == pytest.approx((tracks + 0.5) / (tracks + 1), abs=1e-3)
    wrong = fit_temperature(sure, np.arange(tracks), np.tile([[0.0, 1.0]], (tracks, 1)), multi_label=False)
    assert 15 < wrong["temperature"] <= 20


def test_losses_and_means_by_hand(rng):
    logits, targets = drawn(rng, 30, 4, 1.0)
    by_hand = -(log_softmax(logits, axis=1) * targets).sum(axis=1).mean()
    assert loss(softmax(logits, axis=1), targets, multi_label=False) == pytest.approx(by_hand)
    np.testing.assert_allclose(track_means(np.array([[1.0], [3.0], [5.0]]), np.array([1, 0, 1])), [[3.0], [3.0]])
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    assert calibration_error(probabilities, np.array([0, 1, 0, 0])) == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)


# --- in files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    model = gafx.create_model("mel", {"name": "ast", "depth": 1}, classes=["a", "b"], segment_seconds=0.5)
    model.fit_statistics(torch.rand(2, 1, 11025) - 0.5)
    return model.save(tmp_path / "model")


FITTED = {
    "temperature": 1.5, "tracks": 12, "part": "validation", "recordings": 12,
    "before": {"loss": 0.9, "calibration_error": 0.2}, "after": {"loss": 0.7, "calibration_error": 0.1},
}  # fmt: skip


def test_it_travels_with_its_weights_and_no_others(saved, tmp_path):
    hub.write_calibration(saved, FITTED)
    model = gafx.load(saved)
    assert model.info.temperature == 1.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = gafx.load(model.save(tmp_path / "again"))
    assert again.info.calibration == model.info.calibration
    with torch.no_grad():
        model.classifier.output.bias.add_(1)
    with pytest.warns(UserWarning, match="calibration is that of other weights"):
        assert gafx.load(model.save(tmp_path / "other")).info.calibration == {}
    assert gafx.load(saved, classes=["x", "y"]).info.calibration == {}


def test_other_weights_under_an_old_calibration(saved, tmp_path):
    hub.write_calibration(saved, FITTED)
    other = gafx.create_model("mel", {"name": "ast", "depth": 1}, classes=["a", "b"], segment_seconds=0.5)
    folder = other.save(tmp_path / "other")
    (saved / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.warns(UserWarning, match="calibration is that of other weights; it is left out of what is loaded"):
        assert gafx.load(saved).info.temperature == 1.0


def test_the_card_tells_of_it(saved):
    assert (
        "None: probabilities are computed from the outputs without a temperature." in (saved / "README.md").read_text()
    )
    hub.write_calibration(saved, FITTED)
    text = (saved / "README.md").read_text()
    assert "Temperature 1.5, fitted on 12 validation tracks (loss 0.900 -> 0.700" in text
    assert "calibration error 0.200 -> 0.100" in card.describe_calibration(FITTED)


@pytest.mark.parametrize(
    "calibration",
    [{"temperature": 0}, {"temperature": -1.0}, {"temperature": "2"}, {"temperature": True}, {},
     {**FITTED, "tracks": "12"}, {**FITTED, "part": 3}, {**FITTED, "before": {"loss": "x"}},
     {**FITTED, "temperature": float("nan")}, {**FITTED, "temperature": 0.001}, {**FITTED, "tracks": True},
     {**FITTED, "weights": 5}],
)  # fmt: skip
def test_damaged_calibration_is_refused(calibration, saved):
    values = json.loads((saved / "config.json").read_text())
    values["calibration"] = {"weights": "0", **calibration}
    (saved / "config.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match="calibration"):
        gafx.load(saved)


def test_a_run_with_a_validation_part_fits_one(tmp_path, synthetic_root, capsys):
    """Trained, evaluated, fitted again by the command, and refused without a validation part."""
    common = [*runs.SMALL, *runs.MEL, f"data.root={synthetic_root}", f"output_dir={tmp_path}", "epochs=2"]
    run = fit([*common, "data.protocol=paper_val", "data.val_fraction=0.2"])
    config = json.loads((run / "model/config.json").read_text())
    fitted = config["calibration"]
    assert fitted["part"] == "validation"
    assert 0 < fitted["tracks"] < 40
    assert set(fitted["after"]) == set(fitted["before"]) == {"loss", "calibration_error"}
    from gafx.config import EvaluateConfig, build
    from gafx.evaluation.evaluate import evaluate_runs
    from gafx.report.evaluation import write_reports

    write_reports(evaluate_runs([run], build(EvaluateConfig, {"workers": 0, "resamples": 10, "pictures": 0})))
    result = json.loads((run / "result.json").read_text())
    assert result["calibration"]["temperatures"] == [fitted["temperature"]]
    assert "fitted on validation tracks" in (run / "report.html").read_text()
    # The published figures are those of `gafx predict` with its default options: overlapping windows, calibrated.
    table = PredictionTable.read(run)
    files = [f"{synthetic_root}/{clip}" for clip in table.clip]
    found = {answer.file: answer.probabilities for answer in gafx.predict(files, run, device="cpu")}
    predicted = np.stack([found[file] for file in files])
    assert np.abs(predicted - table.values).max() > 1e-3
    np.testing.assert_allclose(table.predicted, predicted, atol=1e-5)
    error = calibration_error(table.predicted, table.targets.argmax(axis=1))
    assert result["scores"]["track"]["calibration_error"]["value"] == pytest.approx(error, abs=1e-9)
    assert result["calibration"]["after"]["calibration_error"] == pytest.approx(error, abs=1e-6)
    bins = result["calibration_bins"]
    assert sum(entry["tracks"] for entry in bins) == len(table)
    confidence = sum(entry["tracks"] * entry["confidence"] for entry in bins) / len(table)
    assert confidence == pytest.approx(predicted.max(axis=1).mean(), abs=1e-5)
    (run / "model/config.json").write_text(json.dumps({**config, "calibration": {}}))
    main(["calibrate", str(run)])
    assert "temperature" in capsys.readouterr().out
    again = json.loads((run / "model/config.json").read_text())["calibration"]
    assert again["temperature"] == pytest.approx(fitted["temperature"], rel=1e-3)
    assert again["weights"] == fitted["weights"]
    plain = fit([*common, "max_steps=1"])
    assert "calibration" not in {
        key for key, value in json.loads((plain / "model/config.json").read_text()).items() if value
    }
    with pytest.raises(SystemExit):
        main(["calibrate", str(plain)])
    assert "has no validation part" in capsys.readouterr().err


def fit(overrides):
    from gafx.compose import compose_train
    from gafx.training.trainer import Trainer

    return Trainer(compose_train(overrides, runs.ROOT / "configs")).fit()
