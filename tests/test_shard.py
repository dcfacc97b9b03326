"""--shard and gafx merge: the merged parts are what the command writes without shards, and no part is lost silently."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from pages import ROOT
from runs import run

import gafx
from gafx.data.packing.cache import Cache, CacheReader
from gafx.data.readers import FileReader
from gafx.data.sharding import Shard, merge_order
from gafx.data.sources.base import load_manifest
from gafx.deploy.merge import merge
from gafx.errors import UsageError

RATE = 22050
NAMES = ["a.wav", "b.wav", "broken.wav", "sub/a.wav", "sub/b.wav", "sub/z/a.wav", "z.wav"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = gafx.create_model("mel", {"name": "ast", "depth": 1}, classes=["x", "y"], segment_seconds=0.4).eval()
    model.fit_statistics(torch.rand(4, 1, 8820) - 0.5)
    return model.save(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """Seven files of several lengths, one of them broken, some with the same name in other folders."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("files") / "album"
    for number, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, 0.3 * rng.standard_normal(round((0.3 + 0.2 * (number % 3)) * RATE)), RATE)
    (root / "broken.wav").write_bytes(b"RIFF of nothing")
    return root


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("total", [0, 1, 5, 16, 103])
@pytest.mark.parametrize("count", [1, 2, 16])
def test_parts_in_order_are_the_whole(total, count):
    items = list(range(total))
    parts = [Shard(number, count).of(items) for number in range(1, count + 1)]
    assert [item for part in parts for item in part] == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["0/16", "17/16", "3", "3/", "a/b", "-1/4", "1.0/2", "1/0", "", "٣/16"])
def test_what_is_no_shard(text):
    with pytest.raises(UsageError, match="e.g. 3/16"):
        Shard.parse(text)
    assert Shard.parse("3/16") == Shard(3, 16)


def test_a_bad_shard_ends_the_command(capsys, album, tmp_path):
    assert run("pack", "folder", album, tmp_path / "out", "--shard", "flac") == 2
    assert "'flac' is no shard" in capsys.readouterr().err
    assert run("predict", album, "--shard", "5/4") == 2
    assert "K from 1 to N" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["csv", "json", "jsonl"])
def test_labels(form, saved, album, tmp_path, capsys):
    command = ["predict", album, "--model", saved, f"--{form}", "--batch-size", 1]
    more = ["--over-time"] if form == "csv" else []
    assert run(*command, *more, "--output", tmp_path / "whole") == 1  # one file is broken
    count = 9 if form == "csv" else 3  # of nine some are empty
    parts = [tmp_path / f"part-{number}" for number in range(1, count + 1)]
    states = [
        run(*command, *more, "--output", part, "--shard", f"{number}/{count}") for number, part in enumerate(parts, 1)
    ]
    assert sorted(states) == [0] * (count - 1) + [1]  # of the shard with the broken file alone
    assert run("merge", tmp_path / "merged", *parts, "--parts", count) == 0
    assert (tmp_path / "merged").read_bytes() == (tmp_path / "whole").read_bytes()
    assert f"{count} parts merged" in capsys.readouterr().err
    assert run("merge", tmp_path / "merged", *parts[1:], "--parts", count) == 2
    assert run("merge", parts[0], *parts) == 2
    assert "is one of the files that are read" in capsys.readouterr().err


def test_label_tracks(saved, album, tmp_path):
    command = ["predict", album, "--model", saved, "--audacity", "--batch-size", 1]
    run(*command, "--output", tmp_path / "whole")
    parts = [tmp_path / f"part-{number}" for number in range(1, 4)]
    for number, part in enumerate(parts, 1):
        run(*command, "--output", part, "--shard", f"{number}/3")
        run(*command, "--output", tmp_path / "shared", "--shard", f"{number}/3")
    assert merge(parts, tmp_path / "merged") == ("files", 6)
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole") == contents(tmp_path / "shared")
    assert {"a.txt", "a-2.txt", "a-3.txt"} < set(contents(tmp_path / "whole"))
    shutil.copytree(parts[1], tmp_path / "copy")
    with pytest.raises(UsageError, match="one name"):
        merge([parts[1], tmp_path / "copy"], tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("suffix", ["", ".parquet"])
def test_features(suffix, pool, saved, album, tmp_path):
    command = ["features", album, "--model", saved, "--batch-size", 1, *(["--pool"] if pool else [])]
    assert run(*command, "--output", tmp_path / f"whole{suffix}") == 1
    parts = [tmp_path / f"part-{number}{suffix}" for number in range(1, 4)]
    for number, part in enumerate(parts, 1):
        run(*command, "--output", part, "--shard", f"{number}/3")
    what, count = merge(parts[::-1], tmp_path / f"merged{suffix}")  # they know their order
    assert (what, count == 7) == (("rows", pool) if suffix else ("files", True))
    if suffix:
        whole, merged = pq.read_table(tmp_path / "whole.parquet"), pq.read_table(tmp_path / "merged.parquet")
        assert merged.equals(whole, check_metadata=True)
    else:
        assert contents(tmp_path / "merged") == contents(tmp_path / "whole")
    for chosen, message in (
        (parts[:-1], "1 of 3 shards missing: 3/3"), ([*parts[:-1], tmp_path / f"whole{suffix}"], "without --shard"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            merge(chosen, tmp_path / f"other{suffix}")
    assert not (tmp_path / f"other{suffix}").exists()
    run(*command, "--overlap", 0.5, "--output", tmp_path / f"overlapped{suffix}", "--shard", "3/3")
    with pytest.raises(UsageError, match="settings"):
        merge([*parts[:-1], tmp_path / f"overlapped{suffix}"], tmp_path / f"other{suffix}")


@pytest.fixture
def collection(tmp_path):
    """Seven readable clips of two classes and one that is not."""
    rng = np.random.default_rng(1)
    root = tmp_path / "collection"
    for number in range(7):
        path = root / "xy"[number % 2] / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.3 * rng.standard_normal((3000 + 100 * number, 1 + number % 2)), 16000)
    (root / "x" / "0b.wav").write_bytes(b"RIFF of nothing")
    return root


def test_caches(collection, tmp_path):
    command = ["pack", "folder", collection]
    more = ["--rate", 8000, "--channels", 1, "--workers", 1, "--max-unreadable", 1]
    assert run(*command, tmp_path / "whole", *more) == 0
    parts = [tmp_path / f"part-{number}" for number in range(1, 10)]
    for number, part in enumerate(parts, 1):
        assert run(*command, part, *more, "--shard", f"{number}/9") == 0
    assert run("merge", tmp_path / "merged", *parts[::-1]) == 0
    assert contents(tmp_path / "merged/8000x1") == contents(tmp_path / "whole/8000x1")
    manifest = load_manifest("folder", collection)
    reader, files = CacheReader(Cache(tmp_path / "merged/8000x1"), manifest), FileReader(manifest, 8000, 1)
    for row in range(len(manifest)):
        np.testing.assert_allclose(reader.read(row, 5, 900), files.read(row, 5, 900), atol=1e-4)
    assert run(*command, parts[3], *more, "--shard", "5/9") == 2  # of another shard
    with (parts[3] / "8000x1/samples.i16").open("r+b") as samples:
        samples.write(b"\1\2\3\4")
    with pytest.raises(UsageError, match="part-4.*damaged.*checksum"):
        merge(parts, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(UsageError, match="missing: 2/9"):
        merge([parts[0], *parts[2:]], tmp_path / "other")


def test_parquet_shards(collection, tmp_path):
    command = ["pack", "folder", collection]
    more = ["--shards", "flac", "--rows-per-shard", 2, "--workers", 1, "--max-unreadable", 1]
    assert run(*command, tmp_path / "whole", *more) == 0
    parts = [tmp_path / f"part-{number}" for number in range(1, 7)]
    for number, part in enumerate(parts, 1):
        assert run(*command, part, *more, "--shard", f"{number}/6") == 0
    assert run("merge", tmp_path / "merged", *parts[::-1]) == 0
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")
    with pytest.raises(UsageError, match="without --shard"):
        merge([parts[0], tmp_path / "whole"], tmp_path / "other")


LINES = ['{"file": "a", "error": "no"}\n', '{"file": "b", "probabilities": {"x": 1.0}}\n']
HEAD = "file,seconds,label,x,level_db,silent,error,note\n"


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (LINES[0], LINES[1][:-9], "two, line 1.*does not end"),
        (LINES[0], LINES[1][:-9] + "\n", "two, line 1.*no valid JSON"),
        (LINES[0], '{"name": "b"}\n', "two, line 1.*no entry"),
        (LINES[0], LINES[1] + LINES[0], "a is in .*one and in .*two"),
        (LINES[0] * 2, LINES[1], "a is twice in .*one"),
        (LINES[1], LINES[1].replace('"x"', '"y": 0.5, "x"').replace('"b"', '"c"'), "another number of labels"),
        (f"[\n{LINES[0]}]\n", f"[\n{LINES[1]}", "two.*does not end with ]"),
        (f"[\n{LINES[0]}]\n", f"[\n{LINES[1][:-1]},\n]\n", "two.*does not end with ]"),
        (f"[\n{LINES[0]}]\n", f"[\n{LINES[1]}{LINES[1]}]\n", "two, line 3: a comma"),
        (f"[\n{LINES[0]}]\n", LINES[1], "one is JSON and .*two is JSON lines"),
        (HEAD + "a,1,x,1,0,0,,\n", HEAD + "b,1,x,1,0,0,,", "two, line 2"),
        (HEAD + "a,1,x,1,0,0,,\n", HEAD + "b,1,x,1\n", "two, line 2: 4 of 8 columns"),
        (HEAD + "a,1,x,1,0,0,,\n", HEAD + '"b,1,x,1,0,0,,\n', "two, line 2"),
        (HEAD + "a,1,x,1,0,0,,\n", HEAD + "a,1,x,1,0,0,,\n", "a is in .*one and in .*two"),
        (HEAD + "a,1,x,1,0,0,,\n", HEAD.replace("x", "y") + "b,1,x,1,0,0,,\n", "two has other columns"),
        (HEAD + "a,1,x,1,0,0,,\n", "", "two is empty file"),
        (HEAD, "a.wav  0:03  rock 62 %\n", "two is none of what gafx merge joins"),
    ],
)
def test_text_that_is_not_whole_is_refused(first, second, message, tmp_path):
    parts = [tmp_path / "one", tmp_path / "two"]
    for part, text in zip(parts, (first, second), strict=True):
        part.write_text(text)
    with pytest.raises(UsageError, match=message):
        merge(parts, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


def test_empty_shards_and_bytes_that_are_no_text(tmp_path):
    texts = {"a": b"", "b": LINES[0].encode(), "c": b""}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    assert merge([tmp_path / name for name in texts], tmp_path / "out") == ("entries", 1)
    assert (tmp_path / "out").read_bytes() == LINES[0].encode()
    for name in texts:
        (tmp_path / name).write_bytes(b"[\n]\n")
    merge([tmp_path / name for name in texts], tmp_path / "out")
    assert json.loads((tmp_path / "out").read_bytes()) == []
    row = b'"caf\xe9\nb.wav",1,"x",1,0,0,,\n'
    (tmp_path / "a").write_bytes(HEAD.encode() + row)
    (tmp_path / "b").write_bytes(HEAD.encode())
    merge([tmp_path / "b", tmp_path / "a"], tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == HEAD.encode() + row


def test_what_merge_would_destroy_or_lacks(tmp_path, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    for part in (one, two):
        part.mkdir()
        (part / f"{part.name}.txt").write_text("0.0\t1.0\tx\n")
    for out in (one, one / "in", tmp_path):
        with pytest.raises(UsageError, match="name"):
            merge([one, two], out)
    with pytest.raises(UsageError, match="does not exist"):
        merge([one, tmp_path / "three"], tmp_path / "out")
    with pytest.raises(UsageError, match="twice"):
        merge([one, one], tmp_path / "out")
    assert merge([one, two], tmp_path / "out") == ("files", 2)
    with pytest.raises(UsageError, match="not an empty folder"):
        merge([one, two], tmp_path / "out")
    (two / "two.txt").write_text("0.0\t1.0\tx\n1.0\t")
    with pytest.raises(UsageError, match="two.txt is truncated"):
        merge([one, two], tmp_path / "other")


def test_order_of_parts(tmp_path, caplog):
    def names(*numbers):
        return [tmp_path / f"part-{number}.csv" for number in numbers]

    for number in (1, 2, 10):
        names(number)[0].write_text(HEAD + f"{number},1,x,1,0,0,,\n")
    merge(names(1, 2, 10), tmp_path / "out")
    assert not [record for record in caplog.records if "part" in record.message]
    merge(names(1, 10, 2), tmp_path / "out")
    assert "part-2.csv, and text is joined in the order given" in caplog.text
    records = [Shard(number, 3).record("list") for number in (2, 3, 1)]
    assert merge_order(names(2, 3, 1), records) == [2, 0, 1]
    with pytest.raises(UsageError, match="same shard, 2/3"):
        merge_order(names(2, 3, 4), [records[0], records[1], records[0]])
    with pytest.raises(UsageError, match="one whole"):
        merge_order(names(1, 2), [Shard(1, 2).record("list"), Shard(2, 2).record("other")])
    with pytest.raises(UsageError, match="one division"):
        merge_order(names(1, 2), [Shard(1, 2).record("list"), Shard(2, 3).record("list")])


def test_the_slurm_array_is_sound():
    path = ROOT / "configs/slurm/label_array.sbatch"
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text()
    assert "#SBATCH --array=1-16" in text
    assert 'SHARD="$SLURM_ARRAY_TASK_ID/${SHARDS:-$SLURM_ARRAY_TASK_COUNT}"' in text


@pytest.mark.slow
def test_ray(saved, album, tmp_path):
    """docs/examples/ray_label.py on one machine: the answers of the command."""
    pytest.importorskip("ray.data", reason="ray is not installed")
    script = ROOT / "docs/examples/ray_label.py"
    # One machine: no token of a cluster in the home folder, and time to start on busy processors.
    settings = {"RAY_AUTH_MODE": "disabled", "RAY_raylet_start_wait_time_s": "300", "RAY_USAGE_STATS_ENABLED": "0"}
    subprocess.run(
        [sys.executable, script, album, tmp_path / "out", "--model", saved], check=True, env={**os.environ, **settings}
    )
    run("predict", album, "--model", saved, "--jsonl", "--output", tmp_path / "wanted.jsonl")
    wanted = {entry["file"]: entry for entry in map(json.loads, (tmp_path / "wanted.jsonl").read_text().splitlines())}
    tables = [pq.read_table(path).to_pylist() for path in sorted((tmp_path / "out").glob("*.parquet"))]
    found = {row["file"]: json.loads(row["entry"]) for table in tables for row in table}
    assert set(found) == set(wanted)
    for file, entry in wanted.items():
        assert found[file].get("error") == entry.get("error")
        assert found[file].get("probabilities") == pytest.approx(entry.get("probabilities"), abs=1e-6)
