"""result.json and predictions.npz: written, read back without loss, and read from earlier versions."""

import csv
import io
import json

import numpy as np
import pytest
from ablation_runs import write_predictions

from gafx.data.manifest import Skipped
from gafx.deploy.writers import Csv
from gafx.errors import UsageError
from gafx.evaluation.predictions import PredictionTable, concatenate
from gafx.evaluation.result import (
    CalibrationEffect,
    ClassScores,
    Cost,
    FoldScores,
    Result,
    read_results,
    write_results,
)
from gafx.objectives.tag import Tag
from gafx.report.format import column_names
from gafx.stats.scores import CalibrationBin, Score
from gafx.studies.ablation.tracks import pool

COST = Cost(
    parameters=10, frontend_parameters=2, flops_per_clip=1e6, clips_per_second=3.5, peak_memory_bytes=2**30,
    train_seconds=12.5, train_steps=7, device="CPU", precision="fp32",
)  # fmt: skip
RESULT = Result(
    name="m", data="esc", protocol="kfold", classes=["a", "b"], folds=[1, 2], tracks=9, segments=18, groups=9,
    scores={"track": {"accuracy": Score(0.5, 0.2, 0.8, "Wilson 95 %")}, "segment": {"accuracy": Score(0.4)}},
    per_class=[ClassScores("a", {"precision": None, "recall": 0.1}, 4, 0)], confusion=[[1, 2], [3, 3]],
    calibration_bins=[CalibrationBin(0.5, 0.25, 8)], calibration=CalibrationEffect([1.5], {"loss": 1.0}, {"loss": 0.5}),
    per_fold=[FoldScores(1, 4, {"accuracy": 0.5})], cost=COST, skipped=[Skipped("x.wav", "is empty")],
    frontend={"name": "mel"}, leaks={"words": []}, gafx_version="0.0",
)  # fmt: skip


def test_a_result_is_read_as_it_was_written(tmp_path):
    write_results(tmp_path, [RESULT])
    assert Result.read(tmp_path) == RESULT
    write_results(tmp_path, [RESULT, RESULT])
    assert read_results(tmp_path) == [RESULT, RESULT]
    with pytest.raises(UsageError, match="holds several models"):
        Result.read(tmp_path)


def test_a_score_that_is_not_finite_stays_valid_json(tmp_path):
    scores = {"track": {"d_prime": Score(float("inf"), 2.0, float("inf"))}}
    write_results(tmp_path, [Result(name="m", data="d", protocol="p", classes=[], scores=scores)])
    assert "Infinity" not in (tmp_path / "result.json").read_text()
    assert np.isnan(Result.read(tmp_path).track_scores["d_prime"].value)


def test_the_result_of_an_earlier_version_is_read(tmp_path):
    values = RESULT.as_dict()
    values["pieces"], values["piece_seconds"] = values.pop("segments"), values.pop("segment_seconds")
    values["scores"]["piece"] = values["scores"].pop("segment")
    values["group_by"] = "piece"
    del values["provenance"]
    values |= {"imagenet": True, "started_from": {"frontend": "random", "classifier": "ImageNet"}}
    values["a_key_of_a_later_version"] = 1
    (tmp_path / "result.json").write_text(json.dumps(values))
    found = Result.read(tmp_path)
    assert (found.segments, found.by_segment, found.scores) == (18, True, RESULT.scores)
    assert found.provenance.uses_imagenet


@pytest.mark.parametrize(
    "damage",
    [{"scores": None}, {"scores": {"track": {"accuracy": 3}}}, {"cost": {"parameters": 1}}, {"per_class": [3]}],
)
def test_a_damaged_result_names_the_command_that_writes_it_again(tmp_path, damage):
    values = {**RESULT.as_dict(), **damage}
    (tmp_path / "result.json").write_text(
        json.dumps({key: value for key, value in values.items() if value is not None})
    )
    with pytest.raises(UsageError, match=r"result.json is damaged.*gafx evaluate <run folder>"):
        Result.read(tmp_path)


def tagging(rng, count=300, classes=4):
    """Probabilities of a tagger with logits near -15, and rare labels."""
    targets = (rng.random((count, classes)) < 0.1).astype(np.uint8)
    logits = -15 + 0.7 * targets + rng.standard_normal((count, classes))
    return 1 / (1 + np.exp(-logits)), targets


def test_predictions_keep_their_precision(tmp_path, rng):
    """Scores of tagging probabilities near 1e-7 are those of the model, not of six decimals."""
    values, targets = tagging(rng)
    groups = np.arange(len(values))
    exact = Tag.scores(values, targets, groups, resamples=20)
    write_predictions(tmp_path, values, targets, ["a", "b", "c", "d"]).write_csv(tmp_path / "p.csv", predicts=True)
    table = pool([PredictionTable.read(tmp_path)])
    assert Tag.scores(table.values, table.targets, table.group, resamples=20) == exact
    with (tmp_path / "p.csv").open(newline="") as file:
        rounded = np.array([[float(row[name]) for name in "abcd"] for row in csv.DictReader(file)])
    name = "mean_average_precision"
    assert abs(Tag.scores(rounded, targets, groups, resamples=20)[name].value - exact[name].value) > 0.01


def test_folds_are_pooled_in_the_order_of_the_manifest(tmp_path, rng):
    """As evaluation pools them, so that scores and intervals are equal to the last digit."""
    values, targets = tagging(rng, 60)
    whole = write_predictions(tmp_path, values, targets, ["a", "b", "c", "d"])
    odd, even = (whole.take(np.arange(start, 60, 2)) for start in (1, 0))
    pooled = pool([odd, even])
    assert (pooled.values == values).all()
    assert pooled.clip.tolist() == whole.clip.tolist()
    assert len(concatenate([odd, even])) == 60


def test_names_survive(tmp_path, rng):
    """Names that are not valid UTF-8, and classes of any name; no pickled objects."""
    values, targets = tagging(rng, 2, 2)
    clips = ["caf\udce9/\n.wav", "猫.wav"]
    write_predictions(tmp_path, values, targets, ["label", "ü"], clips)
    table = PredictionTable.read(tmp_path)
    assert table.clip.tolist() == clips
    assert (table.classes, table.columns) == (("label", "ü"), ("label", "ü"))
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as file:
        assert file["values"].dtype == np.float64
        assert all(file[name].dtype != object for name in file.files)


def test_missing_and_damaged_predictions(tmp_path):
    with pytest.raises(UsageError, match="does not exist: evaluate the run again"):
        PredictionTable.read(tmp_path)
    (tmp_path / "predictions.npz").write_bytes(b"PK\x03\x04 not a zip file")
    with pytest.raises(UsageError, match="is damaged .* evaluate the run again"):
        PredictionTable.read(tmp_path)


def test_classes_called_like_the_columns_of_the_file(tmp_path, rng):
    classes = ["label", "run", "clip", "track", "prediction", "fold", "rock", "probability:label"]
    values, targets = tagging(rng, 5, len(classes))
    table = write_predictions(tmp_path, values, targets, classes)
    table.write_csv(tmp_path / "p.csv", predicts=True)
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
        header = list(rows[0])
    assert len(set(header)) == len(header) == 5 + len(classes) + 1
    assert "rock" in header
    assert "probability:probability:label" in header
    assert [row["clip"] for row in rows] == table.clip.tolist()
    for index, name in enumerate(column_names(classes, header[:5] + header[-1:])):
        assert [row[name] for row in rows] == [f"{value:.6f}" for value in values[:, index]]


def test_classes_called_like_the_columns_of_labelled_files():
    out = io.StringIO()
    with Csv(out, ["file", "label", "rock"]):
        pass
    assert out.getvalue() == "file,seconds,label,probability:file,probability:label,rock,level_db,silent,error,note\n"
