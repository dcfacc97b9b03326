"""data.group_by=segment: the same segments as otherwise, split at random, and every output reports that."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from runs import MEL, SMALL

from gafx.compose import compose_train
from gafx.config import EvaluateConfig, TrainConfig, build, run_id, what_counts
from gafx.data.manifest import make_manifest
from gafx.data.open import open_split
from gafx.data.readers import FileReader
from gafx.data.segments import NOTE, by_segment, training_segments
from gafx.data.sources.base import load_manifest
from gafx.errors import UsageError
from gafx.evaluation.evaluate import evaluate_runs
from gafx.evaluation.runs import Run, check_comparable
from gafx.report.evaluation import write_reports

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.fixture(scope="module")
def odd_files(tmp_path_factory):
    """Files of two rates and awkward lengths, one shorter than a segment, one that begins inside its file."""
    import soundfile

    root = tmp_path_factory.mktemp("odd")
    rng = np.random.default_rng(0)
    rates, frames = [22050, 44100, 22050, 48000], [50000, 77777, 6000, 60001]
    for index, (rate, count) in enumerate(zip(rates, frames, strict=True)):
        soundfile.write(root / f"{index}.wav", rng.uniform(-0.5, 0.5, count).astype(np.float32), rate, subtype="FLOAT")
    durations = [count / rate for count, rate in zip(frames, rates, strict=True)]
    starts = [0.0, 0.0, 0.0, 12345 / 48000]
    durations[3] -= starts[3]
    paths = [f"{index}.wav" for index in range(4)]
    return make_manifest(root, ["a", "b"], paths, [[0], [1], [0], [1]], durations, rates, starts=starts)


def test_segments_are_those_that_training_cuts(odd_files):
    cut = by_segment(odd_files, 0.5)
    for rate in (22050, 16000):
        segment_length = round(0.5 * rate)
        segments = training_segments(odd_files, np.arange(4), rate, segment_length)
        whole, parted = FileReader(odd_files, rate, 1), FileReader(cut, rate, 1)
        assert len(cut) == len(segments)
        for row in range(len(cut)):
            of = int(segments.row[row])
            assert cut.relative_path(row) == odd_files.relative_path(of)
            assert cut.labels[row].tolist() == odd_files.labels[of].tolist()
            ours, theirs = parted.read(row, 0, segment_length), whole.read(of, int(segments.start[row]), segment_length)
            length = min(ours.shape[1], theirs.shape[1])
            assert (
                length >= min(segment_length, theirs.shape[1]) - 3
            )  # a start snaps by less than a step of the rate ratio
            if rate == 22050 and odd_files.sample_rate[of] == 22050:
                np.testing.assert_array_equal(ours, theirs)
            else:
                np.testing.assert_allclose(ours[:, 50:length - 50], theirs[:, 50:length - 50], atol=1e-5)  # fmt: skip


def test_segments_begin_and_end_on_samples_and_lie_side_by_side(odd_files):
    cut = by_segment(odd_files, 0.5)
    for times in (cut.start, cut.duration):
        frames = times * cut.sample_rate
        np.testing.assert_allclose(frames, np.rint(frames), atol=1e-6)
    assert len(np.unique(cut.group)) == len(cut) > len(odd_files)
    begin, end = (np.rint(times * cut.sample_rate) for times in (cut.start, cut.start + cut.duration))
    names = np.array([cut.relative_path(row) for row in range(len(cut))])
    same = names[1:] == names[:-1]
    # A clip that lacks a hair of its last segment gives it all the same, moved back by as much.
    assert (begin[1:][same] >= end[:-1][same] - 0.02 * 0.5 * cut.sample_rate[1:][same]).all()
    assert cut.duration.max() == pytest.approx(0.5)
    assert cut.duration.min() == pytest.approx(6000 / 22050)  # shorter than a segment, and whole
    assert cut.notes == (NOTE,)
    assert cut.fingerprint() != odd_files.fingerprint()


def config(root, *more):
    common = [
        *SMALL,
        *MEL,
        f"data.root={root}",
        "data.segment_seconds=0.4",
        "data.crop=segments",
        "data.protocol=kfold",
    ]
    return compose_train([*common, "data.folds=2", *more], CONFIGS)


def parts_of(root, *more):
    manifest, parts = open_split(config(root, *more).data, multi_label=False, objective="classify")
    sides = ({manifest.relative_path(row) for row in rows.tolist()} for rows in (parts.train, parts.test))
    return manifest, parts, set.intersection(*sides)


def test_only_this_grouping_puts_a_track_on_both_sides(synthetic_root):
    *_, shared = parts_of(synthetic_root)
    assert not shared
    manifest, parts, shared = parts_of(synthetic_root, "data.group_by=segment")
    assert len(manifest) == 3 * len(
        load_manifest("synthetic", synthetic_root, tracks=4, seconds=1.5)
    )  # 1.5 s in segments of 0.4 s
    assert len(shared) > 20
    assert len(parts.train) + len(parts.test) == len(manifest)


def test_runs_that_do_not_use_it_keep_their_names():
    plain = build(TrainConfig, {"frontend": {"name": "mel"}})
    assert "group_by" not in what_counts(plain)["data"]
    same = build(TrainConfig, {"frontend": {"name": "mel"}, "data": {"group_by": "recording"}})
    other = build(TrainConfig, {"frontend": {"name": "mel"}, "data": {"group_by": "segment"}})
    assert run_id(same) == run_id(plain) != run_id(other)
    assert what_counts(other)["data"]["group_by"] == "segment"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"protocol": "official"}, "data.group_by=segment with data.protocol=official"),
        ({"protocol": "official_val"}, "keeps its recordings whole"),
        ({"protocol": "fault_filtered", "name": "gtzan"}, "paper or kfold"),
        ({"cache": "somewhere"}, "leave data.cache out"),
        ({"group_by": "artist"}, "data.group_by"),
    ],
)
def test_what_it_does_not_go_with(more, message):
    with pytest.raises(UsageError, match=message):
        build(TrainConfig, {"data": {"group_by": "segment", **more}})


def test_it_never_stands_beside_other_numbers(synthetic_root):
    record = {"data": {"fingerprint": "same"}}
    ways = ("recording", "segment")
    plain, segments = (Run(Path(way), config(synthetic_root, f"data.group_by={way}"), record) for way in ways)
    with pytest.raises(UsageError, match=r"different recordings \(data.group_by\) \(recording and segment\)"):
        check_comparable([plain, segments])


def test_a_run_says_what_it_is(synthetic_root, tmp_path):
    """Record, table, result, predictions, report and card of a run name the grouping."""
    from gafx.training.trainer import Trainer

    small = ["max_steps=2", "epochs=1", f"output_dir={tmp_path}", "data.group_by=segment", "device=cpu"]
    folder = Trainer(config(synthetic_root, *small)).fit()
    assert NOTE in json.loads((folder / "run.json").read_text())["data"]["notes"]
    config_of_evaluation = EvaluateConfig(resamples=20, workers=0, pictures=0, device="cpu")
    table = write_reports(evaluate_runs([folder], config_of_evaluation))
    assert f"data.group_by=segment: {NOTE}" in table
    assert "60 segments taken for recordings" in table
    result = json.loads((folder / "result.json").read_text())
    assert result["group_by"] == "segment"
    assert NOTE in result["notes"]
    assert result["tracks"] == result["groups"] == result["segments"] == 60
    assert NOTE in (folder / "report.html").read_text()
    assert "segments of tracks taken for recordings" in (folder / "model" / "README.md").read_text()
    for name in ("predictions.csv", "segments.csv"):
        with open(folder / name, newline="") as file:
            rows = list(csv.DictReader(file))
        assert len({(row["clip"], row["start_seconds"]) for row in rows}) == 60
        assert {row["start_seconds"] for row in rows} == {"0.000", "0.400", "0.800"}
        assert all(os.path.exists(synthetic_root / row["track"]) for row in rows)
