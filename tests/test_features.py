"""Embeddings and maps of a library of files: all formats contain the model's output."""

import csv

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from runs import run

import gafx
from gafx.audio.read import read_segment
from gafx.deploy.features import Extractor, extract, write_npy
from gafx.deploy.windows import Computed, FileDone, Layout
from gafx.errors import UsageError

RATE = 22050


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    built = gafx.create_model("mel", {"name": "ast", "depth": 1}, classes=["a", "b"], segment_seconds=0.5).eval()
    built.fit_statistics(torch.rand(4, 1, 11025) - 0.5)
    return built


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    return model.save(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def album(rng, wav_factory, tmp_path):
    for name, seconds in (("a.wav", 1.7), ("sub/a.wav", 0.3), ("z.flac", 0.5)):
        wav_factory(f"album/{name}", 0.3 * rng.standard_normal(round(seconds * RATE)), RATE)
    (tmp_path / "album/broken.wav").write_bytes(b"RIFF of nothing")
    return tmp_path / "album"


def expected(model, album, what):
    """File -> values of its windows, computed one by one."""
    found = {}
    for name in ("a.wav", "sub/a.wav", "z.flac"):
        wave = torch.from_numpy(read_segment(album / name, 0, 10**9, sample_rate=RATE))[None]
        length = wave.shape[2]
        starts = [0] if length < 11025 else [*range(0, length - 11024, 11025)]
        if length - starts[-1] - 11025 >= 1103:
            starts.append(length - 11025)
        compute = model.embed if what == "embeddings" else model.features
        with torch.inference_mode():
            values = [compute(wave[:, :, start : start + 11025])[0].numpy() for start in starts]
        found[str(album / name)] = np.stack(values)
    return found


@pytest.mark.parametrize("what", ["embeddings", "maps"])
def test_python(what, model, album):
    answers = {found.file: found for found in extract(album, model, what)}
    assert "cannot be decoded" in answers.pop(str(album / "broken.wav")).error
    wanted = expected(model, album, what)
    assert set(answers) == set(wanted)
    for file, values in wanted.items():
        np.testing.assert_allclose(answers[file].values, values, atol=1e-4)
        assert len(answers[file].windows) == len(values)
    np.testing.assert_allclose(answers[str(album / "a.wav")].windows[-1], [1.2, 1.7], atol=1e-4)


@pytest.mark.parametrize("what", ["embeddings", "maps"])
def test_npy(what, model, saved, album, tmp_path):
    assert run("features", album, "--model", saved, "--what", what, "--output", tmp_path / "out") == 1
    rows = {row["file"]: row for row in csv.DictReader((tmp_path / "out/index.csv").open())}
    assert list(rows) == [str(album / name) for name in ("a.wav", "broken.wav", "sub/a.wav", "z.flac")]
    assert "cannot be decoded" in rows.pop(str(album / "broken.wav"))["error"]
    for file, values in expected(model, album, what).items():
        read = np.load(tmp_path / "out" / rows[file]["npy"], allow_pickle=False)
        assert read.dtype == np.float32
        np.testing.assert_allclose(read, values, atol=1e-4)
        assert int(rows[file]["windows"]) == len(values)
    assert rows[str(album / "sub/a.wav")]["npy"] == "a-2.npy"
    assert float(rows[str(album / "a.wav")]["last_start"]) == pytest.approx(1.2, abs=1e-4)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a-2.npy", "a.npy", "index.csv", "z.npy"]


@pytest.mark.parametrize("what", ["embeddings", "maps"])
def test_parquet(what, model, saved, album, tmp_path):
    target = tmp_path / "out.parquet"
    assert run("features", album, "--model", saved, "--what", what, "--output", target) == 1
    rows = pq.read_table(target).to_pylist()
    assert [row["file"] for row in rows if row["error"]] == [str(album / "broken.wav")]
    for file, values in expected(model, album, what).items():
        mine = [row for row in rows if row["file"] == file]
        read = np.stack([np.reshape(row["values"], row["shape"]) for row in mine])
        np.testing.assert_allclose(read, values, atol=1e-4)
        assert [row["start"] for row in mine] == sorted(row["start"] for row in mine)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_a_row_group_does_not_grow(model, album, tmp_path, monkeypatch):
    from gafx.deploy import features

    monkeypatch.setattr(features, "_ROW_GROUP", 3000)
    features.write_parquet(Extractor(model, "embeddings"), [str(album / "a.wav")], tmp_path / "a.parquet")
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 2  # of two windows each, 768 bytes a window


class _Library(Extractor):
    """As if computed: embeddings of two numbers, every tenth file unreadable, and `after` called with each number."""

    def __init__(self, after=lambda number: None):
        self.layout, self.dtype, self.after = Layout(8000, 1, 8000, 8000, 1), np.dtype(np.float32), after

    def __call__(self, files):
        for number, file in enumerate(files):
            if number % 10:
                yield Computed(number, file, 0, 8000, np.full(2, number, np.float32))
            yield FileDone(number, file, 8000, None if number % 10 else "is empty")
            self.after(number)

    def settings(self, *, pool):
        return {}


def test_narrow_embeddings_and_errors_do_not_pile_up(tmp_path, monkeypatch):
    from gafx.deploy import features

    monkeypatch.setattr(features, "_ROW_GROUP", 2**15)
    files = [f"{number}.wav" for number in range(200)]
    assert len(features.write_parquet(_Library(), files, tmp_path / "a.parquet")) == 20
    written = pq.ParquetFile(tmp_path / "a.parquet")
    assert written.read()["file"].to_pylist() == files
    assert max(written.metadata.row_group(n).num_rows for n in range(written.num_row_groups)) <= 32
    # A row of the index is written once its file and those before it are done.
    sizes = []
    library = _Library(lambda number: sizes.append(sum(path.stat().st_size for path in (tmp_path / "out").iterdir())))
    files = [f"{number}.wav" for number in range(2000)]
    write_npy(library, files, tmp_path / "out", pool=True)
    whole = (tmp_path / "out/index.csv").stat().st_size
    assert [row["file"] for row in csv.DictReader((tmp_path / "out/index.csv").open())] == files
    assert max(sizes) > whole - 20_000  # the rest, and the array of 14,400 bytes, may be in buffers


def test_pooled(model, saved, album, tmp_path):
    wanted = {file: values.mean(axis=0) for file, values in expected(model, album, "embeddings").items()}
    assert run("features", album, "--model", saved, "--pool", "--output", tmp_path / "out") == 1
    rows = {row["file"]: row for row in csv.DictReader((tmp_path / "out/index.csv").open())}
    matrix = np.load(tmp_path / "out/embeddings.npy")
    assert matrix.shape == (3, 192)
    for file, values in wanted.items():
        np.testing.assert_allclose(matrix[int(rows[file]["row"])], values, atol=1e-5)
    assert run("features", album, "--model", saved, "--pool", "--output", tmp_path / "p.parquet") == 1
    read = {row["file"]: row["values"] for row in pq.read_table(tmp_path / "p.parquet").to_pylist()}
    for file, values in wanted.items():
        np.testing.assert_allclose(read[file], values, atol=1e-5)


def test_a_front_end_alone(album, tmp_path):
    assert run("features", album / "z.flac", "--frontend", "mel", "--output", tmp_path / "out", "--window", 1) == 0
    wave = torch.from_numpy(read_segment(album / "z.flac", 0, 10**9, sample_rate=RATE))[None]
    mel = gafx.create_frontend("mel")(wave).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "out/z.npy"), mel, atol=1e-4)


def test_earlier_files_are_kept_on_failure(model, album, tmp_path):
    files = [str(album / "a.wav")]
    write_npy(Extractor(model), files, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    extractor = Extractor(model, batch_size=1)
    run_once, calls = extractor.run, []

    def fail(wave):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("no memory, say")
        return run_once(wave)

    extractor.run = fail
    with pytest.raises(RuntimeError, match="no memory"):
        write_npy(extractor, files, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frontend", "mel", "--what", "embeddings"], "no embeddings"),
        (["--frontend", "mel", "--pool"], "--pool is for embeddings"),
        (["--frontend", "nel"], "did you mean"),
        (["--frontend", "mel", "--overlap", "1"], "overlap"),
        (["--frontend", "mel", "--window", "nan"], "a window of nan s"),
        (["--frontend", "mel", "--window", "0"], "a window of 0 s"),
        (["--frontend", "mel", "--window", "1e9"], "a window of 1e"),
    ],
)
def test_refused(arguments, message, album, tmp_path, capsys):
    assert run("features", album / "z.flac", *arguments, "--output", tmp_path / "out") == 2
    assert message in capsys.readouterr().err


def test_an_output_of_the_other_kind(saved, album, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run("features", album / "z.flac", "--model", saved, "--output", tmp_path / "file") == 2
    assert run("features", album / "z.flac", "--model", saved, "--output", album, "--format", "parquet") == 2
    with pytest.raises(UsageError, match="must be one of embeddings, maps, codes"):
        Extractor("nowhere", "labels")
