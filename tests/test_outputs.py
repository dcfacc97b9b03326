"""Outputs of a command never replace a file that it reads, a recording, or a part of a model or a run."""

import json
import os

import numpy as np
import pytest
import soundfile
import torch

import gafx
from gafx.cli import main
from gafx.errors import UsageError
from gafx.outputs import Outputs


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    built = gafx.create_model("mel", {"name": "ast", "depth": 1}, classes=["a", "b"], segment_seconds=0.5).eval()
    built.fit_statistics(torch.rand(4, 1, 11025) - 0.5)
    return built


@pytest.fixture
def place(model, tmp_path, rng, monkeypatch):
    """A working directory with a run, two recordings and files of other kinds."""
    monkeypatch.chdir(tmp_path)
    model.save("run/model")
    for name in ("run/run.json", "run/result.json", "run/checkpoints/step-1/state.pt", "table.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    for name in ("a.wav", "other.flac"):
        soundfile.write(name, 0.1 * rng.standard_normal(12_000), 22050)
    os.rename("other.flac", "no_suffix")
    soundfile.write("other.flac", 0.1 * rng.standard_normal(12_000), 22050)
    os.symlink("a.wav", "link.csv")
    os.link("table.csv", "again.csv")
    return tmp_path


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


REFUSED = [
    (["predict", "a.wav", "--csv", "--output", "a.wav"], "audio file"),
    (["predict", "a.wav", "--json", "--output", "./x/../a.wav"], "audio file"),
    (["predict", "a.wav", "--csv", "--output", "link.csv"], "audio file"),
    (["predict", "a.wav", "--csv", "--output", "other.flac"], "audio file"),
    (["predict", "a.wav", "--csv", "--output", "no_suffix"], "audio file"),
    (["predict", "a.wav", "--csv", "--output", "run/model/config.json"], "saved model"),
    (["predict", "a.wav", "--csv", "--output", "run/model/new.csv"], "saved model"),
    (["predict", "a.wav", "--csv", "--output", "run/result.json"], "belongs to a run"),
    (["predict", "a.wav", "--csv", "--output", "run/checkpoints/step-1/state.pt"], "belongs to a run"),
    (["predict", "a.wav", "--csv", "--output", "run/checkpoints/new.csv"], "belongs to a run"),
    (["predict", "a.wav", "--csv", "--output", "run/model/sub/new.csv"], "saved model"),
    (["predict", "a.wav", "--audacity", "--output", "run/model"], "saved model"),
    (["predict", "a.wav", "--audacity", "--output", "a.wav"], "is a file"),
    (["features", "a.wav", "--output", "a.wav", "--format", "parquet"], "audio file"),
    (["features", "a.wav", "--output", "other.flac", "--format", "parquet"], "audio file"),
    (["features", "a.wav", "--output", "run/model"], "saved model"),
    (["features", "a.wav", "--output", "run/model/x.parquet"], "saved model"),
    (["export", "--output", "run/model", "--format", "torch_export"], "saved model"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "reason"), REFUSED)
def test_outputs_that_would_destroy_something_are_refused(arguments, reason, place, capsys):
    before = contents(place)
    run = ["run"] if arguments[0] == "export" else ["--model", "run"]
    with pytest.raises(SystemExit) as ended:
        main([arguments[0], *run, *arguments[1:]])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err
    assert contents(place) == before


def test_replacing_another_file_is_announced_once(place, capsys):
    main(["predict", "a.wav", "--model", "run", "--json", "--output", "table.csv"])
    assert capsys.readouterr().err.count("table.csv exists and is replaced") == 1
    assert json.loads((place / "table.csv").read_text())[0]["file"] == "a.wav"
    assert (place / "again.csv").read_text() == "{}"  # the other name of the old file
    for _ in range(2):
        main(["features", "a.wav", "other.flac", "--model", "run", "--output", "out"])
    assert "3 files in out existed and were replaced" in capsys.readouterr().err
    assert np.load("out/a.npy").shape == (1, 192)
    main(["predict", "a.wav", "--model", "run", "--csv", "--output", "new.csv"])
    assert "replaced" not in capsys.readouterr().err


def test_pipes_are_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    outputs = Outputs()
    assert outputs.claim(tmp_path / "pipe", "--output") == tmp_path / "pipe"
    assert outputs.replaced == 0
    (tmp_path / "empty.wav").touch()  # nothing is lost
    outputs.claim(tmp_path / "empty.wav", "--output")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        outputs.claim(tmp_path / "empty.wav" / "x" / "y.csv", "--output")


def test_an_input_that_is_no_audio_is_not_replaced_either(place, capsys):
    (place / "list.txt").write_text("not audio")
    with pytest.raises(SystemExit):
        main(["predict", "list.txt", "--model", "run", "--csv", "--output", "list.txt"])
    assert "one of the files that are read" in capsys.readouterr().err
    assert (place / "list.txt").read_text() == "not audio"
