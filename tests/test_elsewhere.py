"""Results of runs on read-only storage go elsewhere; and full disks."""

import errno
import os
import shutil
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import MEL, SMALL, train

import gafx.deploy.plot
from gafx.cli import main
from gafx.config import EvaluateConfig, build
from gafx.data.shards.write import write_shards
from gafx.data.sources.base import load_manifest
from gafx.errors import UsageError
from gafx.evaluation.calibrate import calibrate_run
from gafx.evaluation.evaluate import evaluate_runs
from gafx.report.evaluation import write_reports
from gafx.saving import hub
from gafx.saving.hub import read_info


@pytest.fixture(scope="module")
def run(synthetic_root, tmp_path_factory):
    out = tmp_path_factory.mktemp("outputs")
    common = [*SMALL, *MEL, f"data.root={synthetic_root}", f"output_dir={out}", "data.leak_check=false", "epochs=1"]
    return train(*common, "data.protocol=paper_val", "data.val_fraction=0.4")


@pytest.fixture
def read_only(run, monkeypatch):
    """The run, nothing in or next to which may be written; its bytes are compared afterwards."""

    def content():
        return {path: path.read_bytes() for path in run.parent.rglob("*") if path.is_file()}

    before, access = content(), os.access
    monkeypatch.setattr(os, "access", lambda path, mode: run.parent not in (path, *path.parents) and access(path, mode))
    yield run
    assert content() == before


def settings(**more):
    return build(EvaluateConfig, {"workers": 0, "resamples": 10, "pictures": 1, "device": "cpu", **more})


def test_a_run_on_read_only_storage_is_evaluated_elsewhere(read_only, tmp_path, monkeypatch):
    evaluations = evaluate_runs([read_only], settings(output=str(tmp_path / "a" / "b")))
    assert [each.folder for each in evaluations] == [tmp_path / "a" / "b"]
    write_reports(evaluations)
    names = {path.name for path in (tmp_path / "a" / "b").iterdir()}
    assert {"result.json", "predictions.npz", "predictions.csv", "segments.csv", "report.html"} <= names
    other = shutil.copytree(read_only, tmp_path / "other-run")
    (other / "config.yaml").write_text((other / "config.yaml").read_text().replace("seed: 0", "seed: 5", 1))
    before = sorted(other.rglob("*"))
    evaluations = evaluate_runs([read_only, other], settings(output=str(tmp_path / "two"), views=2))
    assert [each.folder for each in evaluations] == [
        tmp_path / "two" / read_only.name,
        tmp_path / "two" / "other-run",
        tmp_path / "two",
    ]
    assert sorted(other.rglob("*")) == before
    twin = shutil.copytree(other, tmp_path / "x" / read_only.name)
    with pytest.raises(UsageError, match="two of the runs are called"):
        evaluate_runs([read_only, twin], settings(output=str(tmp_path / "two")))


def test_outputs_keep_out_of_the_data_and_announce_what_they_replace(read_only, synthetic_root, tmp_path, capsys):
    inside = synthetic_root / "tables"
    for place in (synthetic_root, inside):
        with pytest.raises(UsageError, match="is in the folder of the data"):
            evaluate_runs([read_only], settings(output=str(place)))
        with pytest.raises(SystemExit):
            main(["pictures", str(read_only), "--output", str(place)])
    assert not inside.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "predictions.csv").write_text("mine")
    for _ in range(2):  # the second time the files are those of an evaluation
        evaluate_runs([read_only], settings(output=str(tmp_path / "mine")))
    assert capsys.readouterr().err.count("predictions.csv exists and is replaced") == 1


def test_what_cannot_be_written_is_said_before_it_is_computed(read_only, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gafx.evaluation.evaluate.predict_run", lambda *_: pytest.fail("it was computed"))
    monkeypatch.setattr("gafx.evaluation.calibrate.predict_part", lambda *_: pytest.fail("it was computed"))
    monkeypatch.setattr("gafx.studies.pictures.page.picture_run", lambda *_, **__: pytest.fail("it was computed"))
    file = tmp_path / "file"
    file.touch()
    for output in ({}, {"output": str(read_only / "x")}, {"output": str(file / "x")}):
        with pytest.raises(UsageError, match="name another folder with output="):
            evaluate_runs([read_only], settings(**output))
    for command in (["calibrate", read_only], ["pictures", read_only]):
        for more in ([], ["--output", file / "x"]):
            with pytest.raises(SystemExit):
                main([*map(str, command), *map(str, more)])
            assert "name another folder with --output" in capsys.readouterr().err


def test_a_calibrated_copy(read_only, tmp_path):
    found = calibrate_run(read_only, settings(), tmp_path / "a" / "model")
    assert read_info(tmp_path / "a" / "model" / "config.json").calibration["temperature"] == found["temperature"]
    weights = [path / "model.safetensors" for path in (tmp_path / "a" / "model", read_only / "model")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    with pytest.raises(UsageError, match="exists; name a new folder"):
        calibrate_run(read_only, settings(), tmp_path / "a" / "model")


def test_two_processes_change_one_model(run, tmp_path, monkeypatch):
    """A calibration that is written between the reading and the writing of scores is kept."""
    model = shutil.copytree(run / "model", tmp_path / "model")
    read, others = hub.read_info, []
    calibration = {**read(model / "config.json").calibration, "temperature": 3.0}

    def read_info(path):
        found = read(path)
        if not others:
            others.append(threading.Thread(target=hub.write_calibration, args=(model, calibration)))
            others[0].start()
            others[0].join(timeout=0.3)
        return found

    monkeypatch.setattr(hub, "read_info", read_info)
    hub.write_scores(model, {}, {"part": "test"})
    others[0].join()
    info = read(model / "config.json")
    assert (info.calibration["temperature"], info.evaluated_on["part"]) == (3.0, "test")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_shards_without_room_say_so_and_continue(synthetic_root, tmp_path, monkeypatch):
    manifest = load_manifest("synthetic", synthetic_root, tracks=4, seconds=1.5)
    whole = write_shards(manifest, tmp_path / "whole", workers=1, rows_per_shard=20)
    real, calls = pq.ParquetWriter.write_table, []

    def write_table(writer, *arguments, **options):
        calls.append(writer)
        return full() if len(calls) == 4 else real(writer, *arguments, **options)  # the second of the second shard

    def close(writer):
        if len(calls) >= 4:
            raise pa.ArrowInvalid("the row group is not complete")
        return real_close(writer)

    real_close = pq.ParquetWriter.close
    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", write_table)
        patch.setattr(pq.ParquetWriter, "close", close)
        with pytest.raises(UsageError, match="no room for the shards.*No space left"):
            write_shards(manifest, tmp_path / "full", workers=1, rows_per_shard=20)
    unfinished = tmp_path / ".full.packing"
    assert {path.suffix for path in unfinished.iterdir()} == {".json", ".parquet"}
    assert len(list(unfinished.glob("*.parquet"))) == 1
    write_shards(manifest, tmp_path / "full", workers=1, rows_per_shard=20)
    for path in whole.folder.iterdir():
        assert (tmp_path / "full" / path.name).read_bytes() == path.read_bytes()
    assert not unfinished.exists()


def test_plots_without_room_give_an_error_status(run, tmp_path, monkeypatch, capsys, wav_factory):
    clip = wav_factory("a.wav", np.random.default_rng(0).normal(0, 0.1, 30_000))
    monkeypatch.setattr(gafx.deploy.plot, "write_bytes", full)
    arguments = ["predict", clip, "--model", run, "--plot", tmp_path / "plots", "--csv", "--output", tmp_path / "a.csv"]
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    assert ended.value.code == 1
    assert "1 file could not be plotted" in capsys.readouterr().err
    assert list((tmp_path / "plots").iterdir()) == []
    assert (tmp_path / "a.csv").read_text().count("\n") == 2


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_features_without_room_leave_nothing_half_written(run, tmp_path, monkeypatch, capsys, wav_factory, form):
    clip = wav_factory("a.wav", np.random.default_rng(0).normal(0, 0.1, 30_000))
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr("gafx.deploy.features._GrowingArray.add", full)
    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    target = out if form == "npy" else out / "a.parquet"
    with pytest.raises(SystemExit) as ended:
        main(["features", str(clip), "--model", str(run), "--output", str(target)])
    assert ended.value.code == 2
    assert "No space left on device" in capsys.readouterr().err
    assert list(out.iterdir()) == []
