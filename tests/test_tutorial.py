"""All snippets and commands of docs/tutorial.md, in its order, on shorter tracks and with two training steps."""

import re

import pytest
from pages import ROOT, Shell, commands, run_python

PAGE = ROOT / "docs" / "tutorial.md"


def steps():
    """Return (language, code) of the snippets that can be run, in the order of the page."""
    text = PAGE.read_text("utf-8")
    return re.findall(r"^```(python|sh)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def test_the_tutorial_from_start_to_end(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shell, printed = Shell(capsys), {}
    for language, code in steps():
        if language == "python":
            # Shorter tracks, and fewer.
            code = code.replace("seconds=10.0", "seconds=1.5").replace("range(31)", "range(9)")
            run_python(code.replace("index < 30", "index < 8"), PAGE)
            printed["python"] = capsys.readouterr().out
        else:
            for line in commands(code):
                printed[line] = shell.run(line)
    assert len(list((tmp_path / "my_music").rglob("*.wav"))) == 24
    assert len(list((tmp_path / "new_songs").iterdir())) == 3
    assert "folder, protocol paper_val" in printed["gafx evaluate $run"]
    assert {"ambient_08", "funk_08", "swing_08"} <= set(re.findall(r"\w+_08", printed["python"]))
    lines = (tmp_path / "probabilities.csv").read_text().splitlines()
    assert len(lines) > 3
    assert {"ambient", "funk", "swing"} <= set(lines[0].split(","))
    assert len(list((tmp_path / "plots").glob("*.png"))) == 3
    assert list((tmp_path / "embeddings").rglob("*.npy")) or (tmp_path / "embeddings.npy").is_file()
    assert list(tmp_path.rglob("*.onnx"))
    (run,) = tmp_path.glob("outputs/mel-folder-*")
    for file in ("report.html", "predictions.csv", "run.json", "model/config.json", "model/README.md"):
        assert (run / file).is_file(), file
