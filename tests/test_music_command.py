"""`gafx music` on trained runs: the numbers of `gafx evaluate`, the n-gram model on the same tokens, the page."""

import json

import numpy as np
import pytest
import torch

from gafx.cli import main
from gafx.config import read_config
from gafx.data.open import open_split
from gafx.midi.read import read_midi
from gafx.midi.tokens import END, collect, tokenizer
from gafx.midi.write import write_midi
from gafx.model import create_model
from gafx.studies.music.ngram import NGram
from tests.music_models import make_song

pytestmark = pytest.mark.slow

TRAIN = [
    "frontend=tokens", "frontend.scheme=notes", "objective=likelihood", "data=midi", "data.options={scheme: notes}",
    "data.segment_seconds=24", "max_steps=2", "batch_size=4", "workers=0", "precision=fp32", "classifier.width=16",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of two models on 20 songs; their folders, and that of the songs."""
    folder = tmp_path_factory.mktemp("music")
    (folder / "songs").mkdir()
    for seed in range(20):
        write_midi(make_song(seed, 50), folder / "songs" / f"tune-{seed:02}.mid")
    for kind, more in (("decoder", ["classifier.depth=1"]), ("vae_lstm", ["classifier.latent=4"])):
        main([
            "train", *TRAIN, f"data.root={folder / 'songs'}", f"output_dir={folder / 'runs'}", f"name={kind}",
            f"classifier={kind}", *more,
        ])  # fmt: skip
    return sorted((folder / "runs").iterdir()), folder / "songs"


def pieces_of_the_test_part(run):
    """Names of the pieces of a run's test part."""
    config = read_config(run / "config.yaml")
    manifest, parts = open_split(config.data, multi_label=True, objective="likelihood", reads_labels=False)
    return {manifest.relative_path(row) for row in parts.test.tolist()}


def test_the_comparison(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs, songs = trained
    main(["music", *map(str, runs), "--number", "4", "--resamples", "50", "--output", str(tmp_path)])
    out = capsys.readouterr().out
    record = json.loads((tmp_path / "music.json").read_text())
    rows = record["rows"]
    assert [row["name"] for row in rows] == [*(run.name for run in runs), "n-gram", "test part"]
    assert [row["is_bound"] for row in rows] == [False, True, False, False]
    assert "<= " in out
    main(
        ["music", str(runs[1]), "--number", "2", "--resamples", "5", "--samples", "20", "--output", str(tmp_path / "b")]
    )
    tighter = json.loads((tmp_path / "b" / "music.json").read_text())["rows"][0]
    assert "importance-weighted bound of 20 draws" in tighter["about"]
    assert tighter["nll"]["value"] <= rows[1]["nll"]["value"] + 0.02
    main(["evaluate", *map(str, runs), "resamples=50", "workers=0"])
    for run, row in zip(runs, rows, strict=False):
        scores = json.loads((run / "result.json").read_text())["scores"]
        assert row["nll"]["value"] == pytest.approx(scores["track"]["nll"]["value"], abs=1e-6)
        assert row["versus"]["difference"] == pytest.approx(row["nll"]["value"] - rows[2]["nll"]["value"])
    for row in rows[:3]:
        assert set(row["overlaps"]) == set(record["ceilings"])
        assert all(0 <= score["value"] <= 1 for score in row["overlaps"].values())
    assert (tmp_path / "music.html").read_text().count("Training with itself") == 1

    # The n-gram model from the files themselves: the test windows are the pieces cut every 24 tokens, the last moved.
    vocabulary = collect([read_midi(path) for path in sorted(songs.glob("*.mid"))], "notes")
    player = tokenizer("notes", vocabulary)
    pieces = {path.name: np.append(player.encode(read_midi(path)), END) for path in songs.glob("*.mid")}
    names = pieces_of_the_test_part(runs[0])
    assert 0 < len(names) < len(pieces)
    order = int(rows[2]["about"].split("order ")[1].split(",")[0].split(";")[0])
    known = NGram.fit([each for name, each in pieces.items() if name not in names], len(vocabulary), order)
    losses = []
    for name in names:
        tokens = pieces[name]
        starts = [*range(0, len(tokens) - 23, 24)]
        if len(tokens) - 24 - starts[-1] >= 2.4:
            starts.append(len(tokens) - 24)
        windows = [tokens[start : start + 24] for start in starts]
        losses.append(np.mean([-logs.mean() for logs in known.log_probabilities(windows)]))
    # The validation part is not counted by the command: fewer tokens, a somewhat higher loss.
    assert rows[2]["nll"]["value"] == pytest.approx(np.mean(losses), rel=0.1)


def test_runs_of_other_tokens_are_not_compared(trained, tmp_path, capsys):
    runs, songs = trained
    main([
        "train", *TRAIN[:1], *TRAIN[2:4], f"data.root={songs}", *TRAIN[5:], "classifier=decoder", "classifier.depth=1",
        f"output_dir={tmp_path}", "name=events",
    ])  # fmt: skip
    (other,) = tmp_path.iterdir()
    with pytest.raises(SystemExit):
        main(["music", str(runs[0]), str(other), "--output", str(tmp_path / "page")])
    assert "scheme of tokens" in capsys.readouterr().err


def test_real_songs_of_the_test_part_are_heard(trained, tmp_path, capsys):
    runs, _ = trained
    model = create_model("mel", {"name": "cnn"}, classes=["blues", "jazz"], segment_seconds=1.0)
    model.fit_statistics(0.1 * torch.randn(2, 1, model.frontend.sample_rate))
    model.info.objective = "classify"
    model.save(tmp_path / "genre")
    main([
        "generate", str(runs[0]), "--number", "2", "--output", str(tmp_path / "songs"),
        "--predict", str(tmp_path / "genre"), "--compare", "test",
    ])  # fmt: skip
    heard = json.loads((tmp_path / "songs" / "index.json").read_text())["heard"]["real"]
    assert len(heard) == 2
    assert {path.rpartition("/")[2] for path in heard} <= pieces_of_the_test_part(runs[0])
