"""Audio in Parquet shards: the files of `datasets` are read as it means them, at random, and never trusted."""

import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shard_files
import torch
from shard_files import clips, dataset, push

from gafx.audio.decode import Encoded, Span
from gafx.audio.read import probe, read_segment
from gafx.config import DataConfig, TrainConfig, build, run_id
from gafx.data.batches import TrainingOrder, training_loader
from gafx.data.dataset import ClipDataset
from gafx.data.open import open_reader
from gafx.data.packing.cache import CacheReader
from gafx.data.packing.pack import pack
from gafx.data.readers import FileReader
from gafx.data.segments import training_segments
from gafx.data.shards import index
from gafx.data.shards import indexing as module
from gafx.data.shards.index import Selection, open_shards
from gafx.data.shards.layout import part_of
from gafx.data.sources.base import load_manifest
from gafx.data.splits import split
from gafx.errors import UnreadableAudio, UsageError

ENCODED = {"use_dictionary": False}
NAMES = ["rock", "jazz", "folk"]
ClassLabel = datasets.ClassLabel


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def audio():
    return clips(np.random.default_rng(0), 30)


@pytest.fixture
def pushed(tmp_path, audio):
    """30 clips of five formats in three training and two test shards."""
    root = tmp_path / "pushed"
    labels = [number % 3 for number in range(30)]
    for part, begin, end, count in (("train", 0, 20, 3), ("test", 20, 30, 2)):
        made = dataset(audio[begin:end], label=(labels[begin:end], ClassLabel(names=NAMES)))
        push(made, root, part, count)
    return root


# --- audio inside shards ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", shard_files.FORMATS)
@pytest.mark.parametrize("named", [True, False], ids=["in memory", "temporary file"])
def test_a_span_and_bytes_are_read_as_a_file(form, named, tmp_path, rng, monkeypatch):
    if not named:
        monkeypatch.delattr(os, "memfd_create", raising=False)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
        (tmp_path / "temporary").mkdir()
    content = shard_files.encoded(0.1 * rng.standard_normal((40_000, 2)), 24000, form)
    path, around = tmp_path / f"a.{form}", tmp_path / "around"
    path.write_bytes(content)
    around.write_bytes(b"fLaC" * 100 + content + b"OggS" * 5000)
    for other in (Span(around, 400, len(content)), Encoded(memoryview(content)), Encoded(pa.py_buffer(content))):
        assert probe(other) == probe(path)
        for start, length in ((0, 1000), (9000, 7000), (26_000, 5000)):
            expected = read_segment(path, start, length, sample_rate=16000, channels=2)
            assert np.array_equal(read_segment(other, start, length, sample_rate=16000, channels=2), expected)
    if not named:
        assert os.listdir(tmp_path / "temporary") == []


def test_checks_are_those_of_files(tmp_path, rng):
    content = shard_files.encoded(0.1 * rng.standard_normal(40_000), 16000, "opus")
    for whole, reason in (
        (content[: len(content) // 2], "its last page is not complete"),
        (b"", "is empty"),
        (b"no audio at all " * 50, "cannot be decoded"),
    ):
        with pytest.raises(UnreadableAudio, match=reason):
            probe(Encoded(whole))
    (tmp_path / "a").write_bytes(content)
    for offset, size in ((0, len(content) + 1), (-1, 5), (len(content), 10)):
        with pytest.raises(UnreadableAudio, match="beyond the end of its shard"):
            probe(Span(tmp_path / "a", offset, size))
    with pytest.raises(UnreadableAudio, match="does not exist"):
        probe(Span(tmp_path / "b", 0, 5))


def test_opus_files(tmp_path, rng):
    """Files called `.opus`, whose every segment is the slice of the whole (Opus predicts: to 1e-4 after the run-up)."""
    for label in "ab":
        (tmp_path / "set" / label).mkdir(parents=True)
        content = shard_files.encoded(0.1 * rng.standard_normal(3 * 48_000 + 11), 48000, "opus")
        (tmp_path / "set" / label / "song.opus").write_bytes(content)
    manifest = load_manifest("folder", tmp_path / "set")
    assert (len(manifest), manifest.skipped) == (2, ())
    whole, reader = shard_files.decoded(content), FileReader(manifest, 48000, 1)
    assert round(manifest.duration[1] * 48000) == whole.shape[1]
    for start in rng.integers(0, 100_000, 20).tolist():
        np.testing.assert_allclose(reader.read(1, start, 5000), whole[:, start : start + 5000], atol=1e-4)


# --- what the library writes ------------------------------------------------------------------------------------------


def test_shards_of_the_library(pushed, audio, capfd):
    manifest = load_manifest("shards", pushed)
    assert len(manifest) == 30
    assert manifest.classes == tuple(NAMES)
    assert manifest.skipped == manifest.notes == ()
    # By another way: through the library itself.
    theirs = datasets.load_dataset(str(pushed), cache_dir=pushed.parent / "cache")
    for part, number in (("train", 0), ("test", 2)):
        rows = np.flatnonzero(manifest.split == number)
        assert manifest.labels.take(rows).values.tolist() == theirs[part]["label"]
        for row, clip in zip(rows, theirs[part].cast_column("audio", datasets.Audio(decode=False)), strict=True):
            span = manifest.file(row)
            with open(span.path, "rb") as file:
                file.seek(span.offset)
                assert file.read(span.size) == clip["audio"]["bytes"]
            assert Path(span.path).parent == pushed / "data"  # in place, not copied
    assert manifest.relative_path(0) == "data/test-00000-of-00002.parquet#0"
    assert len({manifest.relative_path(row) for row in range(30)}) == 30
    assert len(np.unique(manifest.group)) == 30
    assert not (pushed / ".gafx-index" / "copied").exists() or not os.listdir(pushed / ".gafx-index" / "copied")


@pytest.mark.parametrize("sample_rate", [16000, 22050])
def test_segments_are_those_of_plain_files(pushed, audio, tmp_path, rng, sample_rate):
    manifest = load_manifest("shards", pushed)
    order = [*range(20, 30), *range(20)]  # of the files: test before train
    folder = shard_files.as_files(audio, tmp_path / "files" / "a")
    paths = sorted(folder.iterdir())
    reader = FileReader(manifest, sample_rate, 1)
    for row, number in enumerate(order):
        assert manifest.duration[row] == probe(paths[number]).seconds
        for start in (0, *rng.integers(0, 3000, 3).tolist()):
            expected = read_segment(paths[number], start, 1000, sample_rate=sample_rate)
            np.testing.assert_allclose(reader.read(row, start, 1000), expected, atol=1e-4, rtol=0)


def write_variant(root, audio, labels, **options):
    struct = pa.array(audio, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    return shard_files.plain(root, "train.parquet", {"audio": struct, "label": pa.array(labels)}, **options)


@pytest.mark.parametrize(
    ("options", "copied"),
    [
        ({"compression": "snappy", "row_group_size": 100}, True),
        ({"compression": "zstd", "row_group_size": 4}, True),
        ({"compression": "none", "row_group_size": 7, "data_page_version": "2.0"}, False),
        ({"compression": "none", "use_dictionary": True, "row_group_size": 30}, False),
        ({"compression": "none", **ENCODED, "column_encoding": {"audio.bytes": "DELTA_LENGTH_BYTE_ARRAY"}}, False),
        ({"compression": "none", **ENCODED, "column_encoding": {"audio.bytes": "DELTA_BYTE_ARRAY"}}, True),
    ],
    ids=["snappy", "zstd, small groups", "pages of version 2", "dictionary", "lengths apart", "prefixes apart"],
)  # fmt: skip
def test_every_way_of_storing_bytes(tmp_path, audio, options, copied, caplog):
    caplog.set_level("INFO", "gafx")
    audio = [*audio, audio[3], audio[0]]  # twice the same
    write_variant(tmp_path / "set", audio, ["a", "b"] * 16, **options)
    manifest = load_manifest("shards", tmp_path / "set")
    for row, clip in enumerate(audio):
        span = manifest.file(row)
        with open(span.path, "rb") as file:
            file.seek(span.offset)
            assert file.read(span.size) == clip["bytes"]
    assert any("copied" in manifest.file(row).path for row in range(32)) == copied
    reported = "compressed inside Parquet" in caplog.text
    assert reported == (options["compression"] != "none")


@pytest.mark.parametrize(
    ("values", "feature", "expected", "classes"),
    [
        ([2, 0, 1, 2], ClassLabel(names=NAMES), [[2], [0], [1], [2]], NAMES),
        ([[2, 0], [0], [1], [1, 1, 2]], datasets.List(ClassLabel(names=NAMES)), [[2, 0], [0], [1], [1, 2]], NAMES),
        (["b", "a", "b", "c"], datasets.Value("string"), [[1], [0], [1], [2]], ["a", "b", "c"]),
        (
            [["b", "a"], ["b"], ["c"], ["c"]],
            datasets.List(datasets.Value("string")),
            [[1, 0], [1], [2], [2]],
            list("abc"),
        ),
        ([7, 3, 3, 10], datasets.Value("int16"), [[1], [0], [0], [2]], ["3", "7", "10"]),
    ],
)
def test_labels(tmp_path, audio, values, feature, expected, classes):
    push(
        dataset(audio[:4], genre=(values, feature), other=([1.0] * 4, datasets.Value("float64"))), tmp_path, "train", 2
    )
    manifest = load_manifest("shards", tmp_path)
    assert [entry.tolist() for entry in (manifest.labels[row] for row in range(4))] == expected
    assert list(manifest.classes) == classes
    with pytest.raises(UsageError, match=r"label='other'.*type double"):
        load_manifest("shards", tmp_path, label="other")
    with pytest.raises(UsageError, match=r"label='nix'.*genre .*other \(double\)"):
        load_manifest("shards", tmp_path, label="nix")


def test_labels_that_are_none(tmp_path, audio):
    push(dataset(audio[:4], label=([1, None, -1, 0], ClassLabel(names=NAMES))), tmp_path / "numbers", "train", 1)
    lists = datasets.List(ClassLabel(names=NAMES))
    push(dataset(audio[:4], label=([[1], None, [], [0, 2]], lists)), tmp_path / "lists", "train", 1)
    for root in (tmp_path / "numbers", tmp_path / "lists"):
        manifest = load_manifest("shards", root)
        assert manifest.row.tolist() == [0, 3]
        assert [(clip.path[-2:], clip.reason) for clip in manifest.skipped] == [
            ("#1", "has no label"),
            ("#2", "has no label"),
        ]


@pytest.mark.parametrize("kind", ["string_view", "large_string", "dictionary"])
@pytest.mark.parametrize("several", [None, "list_", "large_list", "list_view", "fixed"])
def test_types_of_strings(tmp_path, audio, kind, several):
    """Whatever Arrow calls strings; and shards that differ in it are of one data set."""
    text = pa.dictionary(pa.int32(), pa.string()) if kind == "dictionary" else getattr(pa, kind)()
    labels = pa.array(["b", "a", "c", "b"]).cast(text)
    if several == "fixed":
        labels = pa.FixedSizeListArray.from_arrays(labels, 1)
    elif several is not None:
        made = {"list_": pa.ListArray, "large_list": pa.LargeListArray, "list_view": pa.ListViewArray}[several]
        places = ([0, 1, 2, 3], [1] * 4) if several == "list_view" else (range(5),)
        number = pa.int64() if several == "large_list" else pa.int32()
        labels = made.from_arrays(*(pa.array(entry, number) for entry in places), labels)
    struct = pa.array(audio[:4], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    columns = {"audio": struct, "label": labels, "artist": pa.array(["x", "y", "x", None]).cast(text)}
    shard_files.plain(tmp_path, "one.parquet", columns)
    plain = pa.array([["c"]] if several else ["c"])
    shard_files.plain(tmp_path, "two.parquet", {"audio": struct[:1], "label": plain, "artist": ["y"]})
    manifest = load_manifest("shards", tmp_path, group="artist")
    assert manifest.classes == ("a", "b", "c")
    assert manifest.labels.values.tolist() == [1, 0, 2, 1, 2]
    group = manifest.group.tolist()
    assert (group[0] == group[2], group[1] == group[4], len(set(group))) == (True, True, 3)


@pytest.mark.parametrize("kind", [pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())])
@pytest.mark.parametrize("nested", [True, False])
def test_types_of_bytes(tmp_path, audio, kind, nested):
    content = pa.array([clip["bytes"] for clip in audio]).cast(kind)
    if nested:
        content = pa.StructArray.from_arrays([content, pa.array(["x"] * 30)], ["bytes", "path"])
    shard_files.plain(tmp_path, "a.parquet", {"audio": content, "label": ["a", "b"] * 15}, compression="none")
    manifest = load_manifest("shards", tmp_path)
    for row, clip in enumerate(audio):
        span = manifest.file(row)
        with open(span.path, "rb") as file:
            file.seek(span.offset)
            assert file.read(span.size) == clip["bytes"]


def test_given_classes_groups_folds_and_further_columns(tmp_path, audio):
    strings = datasets.List(datasets.Value("string"))
    made = dataset(
        audio[:6],
        labels=([["/m/1", "/m/2"], ["/m/2"], ["/m/9"], [], ["/m/1"], ["/m/2"]], strings),
        artist=(["x", "y", "x", None, None, "y"], datasets.Value("string")),
        fold=([1, 2, 1, 3, 2, 1], datasets.Value("int64")),
    )  # fmt: skip
    push(made, tmp_path, "train", 2)
    files = tuple(sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*.parquet")))
    selection = Selection(files, (0, 0), group="artist", fold="fold", classes=("/m/2", "/m/1"), keep=("artist",))
    manifest, kept, left = open_shards(tmp_path, selection)
    assert [manifest.labels[row].tolist() for row in range(4)] == [[1, 0], [0], [1], [0]]
    assert manifest.fold.tolist() == [1, 2, 2, 1]
    group = manifest.group.tolist()
    assert group[1] == group[3]
    assert len(set(group)) == 3
    assert [kept["artist"][row].tobytes() for row in range(4)] == [b"x", b"y", b"", b"y"]
    assert [left["artist"][row].tobytes() for row in range(2)] == [b"x", b""]
    assert [clip.as_dict() for clip in manifest.skipped] == [
        {"path": f"{files[0]}#2", "reason": "its label '/m/9' is none of the 2 classes"},
        {"path": f"{files[1]}#0", "reason": "has no label"},
    ]
    with pytest.raises(UsageError, match=r"fold='artist'.*not numbers"):
        load_manifest("shards", tmp_path, fold="artist")


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("train-00000-of-00002.parquet", 0),
        ("data/validation-00000-of-00001-ab12.parquet", 1),
        ("data/bal_train/03.parquet", 0),
        ("unbal_train.parquet", 0),
        ("eval/0.parquet", 2),
        ("full/balanced_test/0000.parquet", 2),
        ("TEST.parquet", 2),
        ("dev/x.parquet", 1),
        ("data/00.parquet", -1),
        ("restrained/contest.parquet", -1),
    ],
)
def test_parts_by_names(path, part):
    assert part_of(path) == part


def test_one_part_is_no_division(tmp_path, audio):
    push(dataset(audio[:6], label=([0, 1] * 3, ClassLabel(names=["a", "b"]))), tmp_path, "train", 1)
    assert load_manifest("shards", tmp_path).split.tolist() == [-1] * 6


def test_shards_that_are_not_there_are_noted(pushed):
    (pushed / "data" / "train-00001-of-00003.parquet").unlink()
    manifest = load_manifest("shards", pushed)
    assert manifest.notes == (
        "2 of the 3 shards data/train-*.parquet are here (not data/train-00001-of-00003.parquet, say)",
    )


def test_hashed_shards_that_are_not_there_are_noted(pushed):
    for number, path in enumerate(sorted((pushed / "data").glob("train-*"))):
        path.rename(path.with_name(f"{path.stem}-{number:016x}.parquet"))
    assert load_manifest("shards", pushed).notes == ()
    (pushed / "data" / f"train-00001-of-00003-{1:016x}.parquet").unlink()
    assert load_manifest("shards", pushed).notes == (
        "2 of the 3 shards data/train-*.parquet are here (not data/train-00001-of-00003-*.parquet, say)",
    )


# --- in training ------------------------------------------------------------------------------------------------------


def test_batches_are_those_of_plain_files(pushed, audio, tmp_path):
    """The same clips in the same order give the same batches, with workers and without."""
    shards = load_manifest("shards", pushed)
    order = [*range(20, 30), *range(20)]
    root = tmp_path / "files"
    shard_files.as_files(audio, root / "all")
    names = sorted(path.name for path in (root / "all").iterdir())
    lines = [f"all/{names[number]},{NAMES[number % 3]}" for number in order]
    (root / "list.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    files = load_manifest("folder", root, csv="list.csv")
    assert files.classes == tuple(sorted(NAMES))

    def batches(manifest, workers):
        segments = training_segments(manifest, np.arange(30), 16000, 1600)
        clips = ClipDataset(
            manifest, segments, FileReader(manifest, 16000, 1), seed=3, random_crop=True, fixed_length=1600
        )
        order = TrainingOrder(len(segments), batch_size=8, epochs=2, seed=3)
        return list(training_loader(clips, order, workers=workers))

    reference = batches(files, 0)
    for workers in (0, 2):
        for ours, theirs in zip(batches(shards, workers), reference, strict=True):
            assert not ours.errors
            assert torch.equal(ours.wave, theirs.wave)
            assert torch.equal(ours.index, theirs.index)
            names = [[m.classes[int(c)] for c in b.target.argmax(1)] for m, b in ((shards, ours), (files, theirs))]
            assert names[0] == names[1]


def test_another_process_and_a_cache(pushed, tmp_path, caplog):
    caplog.set_level("INFO", "gafx")
    manifest = load_manifest("shards", pushed)
    reader = FileReader(manifest, 16000, 1)
    assert np.array_equal(pickle.loads(pickle.dumps(reader)).read(4, 100, 500), reader.read(4, 100, 500))
    cache = pack(manifest, tmp_path / "cache", sample_rate=16000, workers=2)
    cached = CacheReader(cache, manifest)
    for row in range(len(manifest)):
        np.testing.assert_allclose(cached.read(row, 200, 900), reader.read(row, 200, 900), atol=1e-4)
    # Shards that were copied have another time and the same clips; one with another clip is another matter.
    shutil.copytree(pushed, tmp_path / "copy", copy_function=shutil.copy, ignore=shutil.ignore_patterns(".gafx*"))
    copy = load_manifest("shards", tmp_path / "copy")
    CacheReader(cache, copy)
    assert "comparing their content" in caplog.text
    path = tmp_path / "copy" / "data" / "test-00000-of-00002.parquet"
    table = pq.read_table(path).to_pylist()
    table[1]["audio"]["bytes"] = shard_files.encoded(
        np.full(len(shard_files.decoded(table[1]["audio"]["bytes"])[0]), 0.1), 16000
    )
    push(dataset([row["audio"] for row in table], label=([row["label"] for row in table], ClassLabel(names=NAMES))),
         tmp_path / "new", "test", 1)  # fmt: skip
    shutil.copy(tmp_path / "new" / "data" / "test-00000-of-00001.parquet", path)
    with pytest.raises(UsageError, match=r"is stale: 1 files .*test-00000-of-00002\.parquet#1|does not hold 1 of"):
        CacheReader(cache, load_manifest("shards", tmp_path / "copy"))


def test_the_config_reads_shards(pushed):
    config = build(TrainConfig, {"data": {"name": "shards", "root": str(pushed), "protocol": "official"}})
    manifest = load_manifest("shards", pushed)
    parts = split(manifest, "official")
    assert (len(parts.train), len(parts.test)) == (20, 10)
    reader, unreadable = open_reader(config.data, manifest, sample_rate=16000, channels=1, build=False)
    assert reader.read(0, 0, 100).shape == (1, 100)
    assert unreadable == ()
    other = build(
        TrainConfig, {"data": {"name": "shards", "root": "x", "protocol": "official", "options": {"index": "y"}}}
    )
    assert run_id(config) == run_id(other)
    assert isinstance(config.data, DataConfig)


# --- the index --------------------------------------------------------------------------------------------------------


def test_opening_does_nothing_row_by_row(tmp_path, audio, monkeypatch):
    """Once indexed, ten times the rows cost as many calls and as much memory, and Parquet is not opened."""
    roots = []
    for rows in (30, 300):
        root = tmp_path / str(rows)
        push(dataset((audio * 10)[:rows], label=([0, 1] * (rows // 2), ClassLabel(names=["a", "b"]))), root, "train", 2)
        load_manifest("shards", root)
        roots.append(root)
    monkeypatch.setattr(pq, "ParquetFile", lambda *_: 1 / 0)
    calls, memory = [], []
    for root in (roots[0], *roots):
        count = [0]

        def profile(*_, count=count):
            count[0] += 1

        tracemalloc.start()
        sys.setprofile(profile)
        manifest = load_manifest("shards", root)
        sys.setprofile(None)
        memory.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        calls.append(count[0])
        assert all(not column.flags.owndata for column in (manifest.group, manifest.labels.values, manifest.start))
    assert abs(calls[2] - calls[1]) < 50
    assert memory[2] < memory[1] + 10_000  # as it varies by itself; 270 rows' objects would be more


def test_changed_and_new_shards_are_indexed_again(pushed, audio, caplog, monkeypatch):
    caplog.set_level("INFO", "gafx")
    looked = []
    real = module.scan
    monkeypatch.setattr(module, "scan", lambda part: looked.append(Path(part.path).name) or real(part))
    load_manifest("shards", pushed)
    assert len(looked) == 5
    load_manifest("shards", pushed)
    load_manifest("shards", pushed, group="label")  # other columns: no clip is looked at again
    assert len(looked) == 5
    made = dataset(audio[:9], label=([0, 1, 2] * 3, ClassLabel(names=NAMES)))
    push(made, pushed.parent / "new", "test", 1)
    shutil.copy(pushed.parent / "new" / "data" / "test-00000-of-00001.parquet",
                pushed / "data" / "test-00001-of-00002.parquet")  # fmt: skip
    caplog.clear()
    manifest = load_manifest("shards", pushed)
    assert looked[5:] == ["test-00001-of-00002.parquet"]
    assert "1 shards under" in caplog.text
    assert len(manifest) == 20 + 5 + 9
    assert len(list((pushed / ".gafx-index" / "scanned").iterdir())) == 5  # what the old one left is gone
    for row in range(len(manifest)):
        FileReader(manifest, 16000, 1).read(row, 0, 100)


def test_processes_find_the_same(pushed, tmp_path, monkeypatch):
    one = load_manifest("shards", pushed)
    monkeypatch.setattr(module, "_WORTH", 1)
    two = load_manifest("shards", pushed, index=str(tmp_path / "index"))
    assert one.fingerprint() == two.fingerprint()
    assert np.array_equal(one.spans.offset, two.spans.offset)


def test_an_index_that_was_broken_off(pushed, monkeypatch):
    """Scanned shards are kept."""
    looked, real = [], module.scan

    def scan(part):
        looked.append(part.path)
        return real(part) if len(looked) != 4 else 1 / 0

    monkeypatch.setattr(module, "scan", scan)
    with pytest.raises(ZeroDivisionError):
        load_manifest("shards", pushed)
    assert len(load_manifest("shards", pushed)) == 30
    assert len(looked) == 4 + 2


def test_a_damaged_index_is_made_again(pushed):
    first = load_manifest("shards", pushed)
    fingerprint, offsets = first.fingerprint(), first.spans.offset.copy()
    del first
    (folder,) = (path.parent for path in (pushed / ".gafx-index").glob("*/about.json"))
    for name, content in (("offset.npy", b"short"), ("about.json", b"{}"), ("about.json", b"[1]"), ("row.npy", None)):
        (folder / name).write_bytes(content) if content else (folder / name).unlink()
        again = load_manifest("shards", pushed)
        assert again.fingerprint() == fingerprint
        assert np.array_equal(again.spans.offset, offsets)


def test_a_copy_that_was_removed_is_made_again(tmp_path, audio):
    write_variant(tmp_path / "set", audio, ["a", "b"] * 15, compression="zstd")
    load_manifest("shards", tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / ".gafx-index" / "copied")
    manifest = load_manifest("shards", tmp_path / "set")
    assert FileReader(manifest, 16000, 1).read(7, 0, 100).shape == (1, 100)


def test_a_root_that_cannot_be_written(pushed, tmp_path, monkeypatch):
    def forbidden(self, *arguments, **options):
        if str(self).startswith(str(pushed)):
            raise PermissionError(13, "Permission denied", str(self))
        return mkdir(self, *arguments, **options)

    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", forbidden)
    with pytest.raises(UsageError, match=r"cannot be written in .*\.gafx-index.*data\.options\.index=<folder>"):
        load_manifest("shards", pushed)
    manifest = load_manifest("shards", pushed, index=str(tmp_path / "index"))
    assert len(manifest) == 30
    assert not (pushed / ".gafx-index").exists()
    monkeypatch.undo()
    # One that is complete is read where nothing can be written, not even a lock.
    load_manifest("shards", pushed)
    monkeypatch.setattr(index, "locked", lambda *_: 1 / 0)
    assert len(load_manifest("shards", pushed)) == 30
    assert stat.S_ISDIR((pushed / ".gafx-index").stat().st_mode)


def test_no_room(tmp_path, audio, monkeypatch):
    write_variant(tmp_path / "set", audio, ["a", "b"] * 15, compression="zstd")
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(UsageError, match=r"needs [1-9].* kB, and 1\.0 kB are free: make room.*gafx pack --shards"):
            load_manifest("shards", tmp_path / "set")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from gafx.data.sources.base import load_manifest\n"
        "load_manifest('shards', sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "set"], capture_output=True, text=True, check=False)
    assert "UsageError: no room for the index of" in done.stderr
    assert len(load_manifest("shards", tmp_path / "set")) == 30


def test_two_processes_index_once(pushed):
    code = (
        "import sys; from gafx.data.sources.base import load_manifest; print(len(load_manifest('shards', sys.argv[1])))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, pushed], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0] for process in both] == ["30\n"] * 2


# --- never trusted ----------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_read(tmp_path, audio):
    entries = list(audio[:10])
    entries[1] = {"bytes": None, "path": "/etc/passwd"}
    entries[3] = {"bytes": b"", "path": "x"}
    entries[4] = None
    entries[5] = {"bytes": audio[5]["bytes"][:200], "path": "../../cut.flac"}
    entries[7] = {"bytes": b"not audio" * 40, "path": None}
    write_variant(tmp_path, entries, [str(number % 2) for number in range(10)], compression="none")
    manifest = load_manifest("shards", tmp_path)
    assert manifest.row.tolist() == [0, 2, 6, 8, 9]
    reasons = {clip.path: clip.reason for clip in manifest.skipped}
    assert list(reasons) == [f"train.parquet#{row}" for row in (1, 3, 4, 5, 7)]
    assert "holds no audio but a path ('/etc/passwd'), which is not followed" in reasons["train.parquet#1"]
    assert reasons["train.parquet#4"] == "holds no audio"
    assert "empty" in reasons["train.parquet#3"]
    assert all(FileReader(manifest, 16000, 1).read(row, 0, 100).size for row in range(5))


def test_a_damaged_page_costs_its_row_group(tmp_path, audio):
    path = write_variant(tmp_path, audio, ["a", "b"] * 15, compression="zstd", row_group_size=10)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    with path.open("r+b") as file:
        file.seek(column.dictionary_page_offset or column.data_page_offset)
        file.write(b"\xff" * 60)
    manifest = load_manifest("shards", tmp_path)
    assert {clip.reason[:30] for clip in manifest.skipped} == {"cannot be read from its shard "}
    assert manifest.row.tolist() == [*range(10), *range(20, 30)]
    assert [clip.path for clip in manifest.skipped] == [f"train.parquet#{row}" for row in range(10, 20)]


@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.99])
def test_a_truncated_shard(pushed, keep):
    path = pushed / "data" / "train-00000-of-00003.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(UsageError, match=r"train-00000-of-00003\.parquet cannot be read as Parquet .*fetch it again"):
        load_manifest("shards", pushed)


def test_a_shard_that_shrinks_after_it_was_opened(pushed):
    manifest = load_manifest("shards", pushed)
    os.truncate(pushed / "data" / "test-00000-of-00002.parquet", 100)
    with pytest.raises(UnreadableAudio, match="beyond the end of its shard"):
        FileReader(manifest, 16000, 1).read(0, 0, 100)


def test_foreign_columns(tmp_path):
    root = tmp_path / "text"
    shard_files.plain(root, "a.parquet", {"text": ["x"], "label": [1]})
    with pytest.raises(UsageError, match=r"no column of audio .*text \(string\), label \(int64\)"):
        load_manifest("shards", root)
    root = tmp_path / "none"
    root.mkdir()
    with pytest.raises(UsageError, match="holds no Parquet file"):
        load_manifest("shards", root)
    root = tmp_path / "unlabelled"
    shard_files.plain(root, "a.parquet", {"audio": [b"x"], "speaker": [1]})
    with pytest.raises(
        UsageError, match=r"no column called label, .*data\.options\.label=<column>: .*speaker \(int64\)"
    ):
        load_manifest("shards", root)


def test_columns_of_one_name(tmp_path, audio):
    tmp_path.joinpath("set").mkdir()
    table = pa.table([[audio[0]], ["x"], ["y"]], names=["audio", "label", "label"])
    pq.write_table(table, tmp_path / "set" / "a.parquet")
    with pytest.raises(
        UsageError, match=r"a\.parquet has several columns called 'label' .*audio, label, label.*unique names"
    ):
        load_manifest("shards", tmp_path / "set")


def test_nothing_that_can_be_used(tmp_path):
    write_variant(tmp_path / "set", [{"bytes": b"", "path": "x"}] * 5, ["a"] * 5)
    with pytest.raises(
        UsageError, match=r"no usable clip: 5 rows are skipped \(train\.parquet#0: is empty.*, \.\.\.\)"
    ):
        load_manifest("shards", tmp_path / "set")


def test_shards_of_two_data_sets(tmp_path, audio):
    push(dataset(audio[:4], label=([0, 1] * 2, ClassLabel(names=["a", "b"]))), tmp_path, "train", 1)
    push(dataset(audio[:4], label=([0, 1] * 2, ClassLabel(names=["b", "a"]))), tmp_path, "test", 1)
    with pytest.raises(UsageError, match="names other classes in column 'label'"):
        load_manifest("shards", tmp_path)


def test_metadata_that_make_no_sense(tmp_path, audio):
    for number, text in enumerate(
        (b"{", b"[]", b'{"info": 3}', json.dumps({"info": {"features": {"label": [[[]]]}}}).encode())
    ):
        table = pa.table(
            {"audio": pa.array([clip["bytes"] for clip in audio[:2]]), "label": ["x", "y"]}
        ).replace_schema_metadata({b"huggingface": text, b"gafx": text})  # fmt: skip
        root = tmp_path / str(number)
        root.mkdir()
        pq.write_table(table, root / "a.parquet")
        assert load_manifest("shards", root).classes == ("x", "y")


def test_pyarrow_is_imported_when_it_is_needed():
    code = "import sys, gafx.data.sources.shards, gafx.data.shards.write; print('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
