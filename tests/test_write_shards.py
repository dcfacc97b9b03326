"""gafx pack --shards: what is written comes back as it was, the same bytes however it was made; and from the hub."""

import hashlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import shard_files
import soundfile
from hub_server import start
from runs import ROOT, environment, kill_when

from gafx.audio.read import probe
from gafx.data.manifest import PublishedSplit, Ragged
from gafx.data.readers import FileReader
from gafx.data.shards.encode import _fixed_serial, _ogg_checksum
from gafx.data.shards.write import write_shards
from gafx.data.sources.base import load_manifest
from gafx.errors import UsageError


def music(rng, seconds, rate, channels=1, loudness=0.15):
    noise = rng.standard_normal((int(seconds * rate) + int(rng.integers(100)), channels))
    return loudness * (noise + np.roll(noise, 1, axis=0)) / 2


@pytest.fixture
def collection(tmp_path, rng):
    """Three classes, several rates and channel counts, parts, folds, recordings, spans of a file, several labels."""
    root = tmp_path / "collection"
    lines = ["path,label,split,fold,group,start,duration,weight"]
    for number in range(24):
        rate, channels = (44100, 22050, 16000)[number % 3], 1 + number % 2
        path = root / "abc"[number % 3] / f"{number}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, music(rng, 0.3, rate, channels), rate)
        part = ("train", "train", "val", "test")[number % 4]
        lines.append(
            f"{path.relative_to(root)},{'abc'[number % 3]},{part},{1 + number % 5},r{number // 2},,,{1 + number % 2}"
        )
    soundfile.write(root / "long.wav", music(rng, 2, 16000), 16000)
    lines += [f"long.wav,{label},train,1,long,{start},0.5,1" for label, start in (("a", 0), ("b", 0.7), ("c", 1.3))]
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return root


def by_name(manifest):
    """Rows by the name of their audio."""
    names = {}
    for row in range(len(manifest)):
        if manifest.spans is None:
            path = Path(manifest.relative_path(row))
            start = float(manifest.start[row])
            names[str(path.with_name(f"{path.stem}{f'@{start:.3f}' if start else ''}"))] = row
        else:
            table = pq.read_table(manifest.file(row).path, columns=["audio"])
            names[table["audio"][int(manifest.row[row])]["path"].as_py().rpartition(".")[0]] = row
    return names


def facts(manifest):
    """All columns of a manifest, by clip name."""
    rows = by_name(manifest)
    members = {}
    for name, row in rows.items():
        members.setdefault(int(manifest.group[row]), set()).add(name)
    return manifest.classes, {
        name: (
            manifest.labels[row].tolist(), int(manifest.fold[row]), int(manifest.split[row]),
            float(manifest.weight[row]), int(manifest.sample_rate[row]), round(float(manifest.duration[row]), 6),
            frozenset(members[int(manifest.group[row])]),
        )
        for name, row in rows.items()
    }  # fmt: skip


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def gafx_pack(*arguments, **more):
    command = [sys.executable, "-m", "gafx.cli", "pack", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=120, check=False, cwd=ROOT, **more
    )


# --- what comes back --------------------------------------------------------------------------------------------------


def test_the_round_trip_keeps_all(collection, tmp_path, rng):
    manifest = load_manifest("folder", collection, csv="list.csv")
    written = write_shards(manifest, tmp_path / "out", rows_per_shard=7, workers=1)
    assert (written.clips, written.unreadable, written.scaled, written.rounded) == (27, (), 0, 0)
    names = sorted(path.name for path in (tmp_path / "out").glob("*.parquet"))
    assert names == [
        "test-00000-of-00001.parquet", "train-00000-of-00003.parquet", "train-00001-of-00003.parquet",
        "train-00002-of-00003.parquet", "validation-00000-of-00001.parquet",
    ]  # fmt: skip
    back = load_manifest("shards", tmp_path / "out")
    assert facts(back) == facts(manifest)
    ours, theirs = by_name(back), by_name(manifest)
    for name, row in theirs.items():
        info = probe(back.file(ours[name]))
        assert info.channels == probe(manifest.file(row)).channels
        readers = [FileReader(m, info.sample_rate, info.channels) for m in (back, manifest)]
        length = round(float(manifest.duration[row]) * info.sample_rate)
        segments = [reader.read(r, 0, length) for reader, r in zip(readers, (ours[name], row), strict=True)]
        assert np.array_equal(*segments)  # every sample of 16-bit audio, spans of longer files included
        if "long" not in name:  # resampling a span reads samples around it, which a separate file lacks
            start = int(rng.integers(2000))
            segments = [FileReader(m, 22050, 1).read(r, start, 2000) for m, r in ((back, ours[name]), (manifest, row))]
            np.testing.assert_allclose(*segments, atol=1e-4)


@pytest.mark.parametrize("several", [False, True])
def test_the_library_reads_ours(collection, tmp_path, several):
    lines = (collection / "list.csv").read_text().splitlines()
    if several:
        lines[1:] = [line.replace(",a,", ",a;b,") for line in lines[1:]]
        (collection / "list.csv").write_text("\n".join(lines) + "\n")
    manifest = load_manifest("folder", collection, csv="list.csv")
    out = tmp_path / "out"
    write_shards(manifest, out, rows_per_shard=7, workers=1, sample_rate=16000)
    datasets.disable_progress_bars()
    theirs = datasets.load_dataset(str(out), cache_dir=tmp_path / "cache")
    assert {part: len(rows) for part, rows in theirs.items()} == {"train": 15, "validation": 6, "test": 6}
    features = theirs["train"].features
    assert features["audio"] == datasets.Audio(sampling_rate=16000)
    label = features["labels"].feature if several else features["label"]
    assert label == datasets.ClassLabel(names=["a", "b", "c"])
    by_hand = datasets.load_dataset("parquet", data_files=str(out / "test-*.parquet"), cache_dir=tmp_path / "cache")
    assert by_hand["train"].features == features
    back = load_manifest("shards", out)
    for part, number in (("train", 0), ("validation", 1), ("test", 2)):
        rows = np.flatnonzero(back.split == number)
        wanted = theirs[part]["labels" if several else "label"]
        found = [back.labels[row].tolist() for row in rows]
        assert found == (list(wanted) if several else [[value] for value in wanted])
        for row, clip in zip(rows, theirs[part].cast_column("audio", datasets.Audio(decode=False)), strict=True):
            samples = shard_files.decoded(clip["audio"]["bytes"])
            assert samples.shape[1] == round(back.duration[row] * 16000)


def test_a_published_division_comes_back(tmp_path, rng):
    for number in range(6):
        path = tmp_path / "set" / "ab"[number % 2] / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, music(rng, 0.2, 16000), 16000)
    manifest = replace(
        load_manifest("folder", tmp_path / "set"),
        split=np.array([0, 1, -1, 2, 0, -1], np.int8),
        published=PublishedSplit("fault_filtered", ("jazz.00054",)),
    )
    write_shards(manifest, tmp_path / "out", workers=1)
    assert (tmp_path / "out" / "rest-00000-of-00001.parquet").is_file()
    back = load_manifest("shards", tmp_path / "out")
    assert back.published == manifest.published
    assert facts(back) == facts(manifest)
    # What cannot be read when it is written, or was taken away later, is missing from the division.
    lost = np.flatnonzero(manifest.split == 1)[0]
    content = bytearray(Path(os.fsdecode(manifest.file(lost))).read_bytes())
    Path(os.fsdecode(manifest.file(lost))).write_bytes(content[:200])
    write_shards(manifest, tmp_path / "less", rows_per_shard=1, workers=1)
    (tmp_path / "less" / "train-00001-of-00002.parquet").unlink()
    less = load_manifest("shards", tmp_path / "less").published.missing
    assert less[:2] == ("jazz.00054", manifest.relative_path(lost))
    assert less[2].startswith("1 of the 2 shards train-*.parquet are here")


def test_clips_of_no_class_come_back(collection, tmp_path):
    manifest = load_manifest("folder", collection, csv="list.csv")
    lengths = np.arange(len(manifest)) % 3
    manifest = replace(manifest, labels=Ragged.of([range(length) for length in lengths], np.int32))
    write_shards(manifest, tmp_path / "out", workers=1)
    back = load_manifest("shards", tmp_path / "out")
    assert back.skipped == ()
    assert facts(back) == facts(manifest)


def test_what_was_missing_and_noted_comes_back(collection, tmp_path):
    manifest = load_manifest("folder", collection, csv="list.csv")
    write_shards(manifest, tmp_path / "none", workers=1)
    notes = ("a: 1 of 4 listed clips are here", "ütf, too")
    write_shards(replace(manifest, missing=3, notes=notes), tmp_path / "out", workers=1)
    before, back = load_manifest("shards", tmp_path / "none"), load_manifest("shards", tmp_path / "out")
    assert (before.missing, before.notes) == (0, ())
    assert (back.missing, back.notes) == (3, notes)
    assert back.fingerprint() == before.fingerprint()
    write_shards(back, tmp_path / "again", codec="opus", workers=1)
    again = load_manifest("shards", tmp_path / "again")
    assert (again.missing, again.notes) == (3, notes)
    with pytest.raises(UsageError, match="shards of other data"):
        write_shards(manifest, tmp_path / "out", workers=1)


def test_loud_deep_and_lossy_audio(tmp_path, rng):
    """24 bits are kept, overshooting samples are scaled and reported, those of lossy formats rounded to 16 bits."""
    root = tmp_path / "set"
    for label in "ab":
        (root / label).mkdir(parents=True)
    deep = np.round(music(rng, 0.3, 16000)[:, 0] * 2**23) / 2**23
    soundfile.write(root / "a" / "deep.wav", deep, 16000, subtype="PCM_24")
    loud = 1.5 * np.sin(np.arange(5000) / 20)
    soundfile.write(root / "a" / "loud.wav", loud, 16000, subtype="FLOAT")
    soundfile.write(root / "b" / "lossy.mp3", music(rng, 0.5, 16000), 16000)
    edge = np.array([-32768, 32767, 0, 5] * 500, np.int16)
    soundfile.write(root / "b" / "edge.wav", edge, 16000)
    done = gafx_pack("folder", root, tmp_path / "out", "--shards", "flac", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "1 scaled down because they overshoot full scale" in done.stderr
    about = json.loads((tmp_path / "out" / "shards.json").read_text())
    assert [entry["path"] for entry in about["scaled"]] == ["a/loud.wav"]
    assert about["scaled"][0]["factor"] == pytest.approx(1 / 1.5, rel=1e-3)
    back = load_manifest("shards", tmp_path / "out")
    rows, reader = by_name(back), FileReader(back, 16000, 1)
    assert {name: probe(back.file(row)).bits for name, row in rows.items()} == {
        "a/deep": 24, "a/loud": 24, "b/lossy": 16, "b/edge": 16
    }  # fmt: skip
    assert np.array_equal(reader.read(rows["a/deep"], 0, len(deep))[0], deep.astype(np.float32))
    assert np.array_equal(reader.read(rows["b/edge"], 0, 2000)[0], edge.astype(np.float32) / 32768)
    scaled = reader.read(rows["a/loud"], 0, 5000)[0]
    assert np.abs(scaled).max() <= 1
    np.testing.assert_allclose(scaled, loud * about["scaled"][0]["factor"], atol=1e-6)
    original = FileReader(load_manifest("folder", root), 16000, 1).read(3, 0, 8000)
    np.testing.assert_allclose(reader.read(rows["b/lossy"], 0, 8000), original, atol=0.51 / 32768)


def test_opus(tmp_path, rng):
    root = tmp_path / "set"
    for label, rate in (("a", 22050), ("b", 16000)):
        (root / label).mkdir(parents=True)
        tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
        soundfile.write(root / label / "x.wav", tone, rate)
    done = gafx_pack("folder", root, tmp_path / "out", "--shards", "opus", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "resampled: 22050 to 24000 Hz" in done.stderr
    back = load_manifest("shards", tmp_path / "out")
    assert sorted(back.sample_rate.tolist()) == [16000, 24000]
    assert back.duration.tolist() == [1.0, 1.0]
    for row in range(2):
        segment = FileReader(back, 16000, 1).read(row, 4000, 8000)
        expected = 0.3 * np.sin(2 * np.pi * 440 * np.arange(4000, 12000) / 16000)
        np.testing.assert_allclose(segment[0], expected, atol=0.06)  # a lossy tone, and no sample of delay (0.17)
    with pytest.raises(UsageError, match=r"Opus has no sampling rate of 44100 Hz: choose 8000, 12000"):
        write_shards(back, tmp_path / "no", codec="opus", sample_rate=44100)
    with pytest.raises(UsageError, match=r"unknown codec 'flak'; did you mean 'flac'"):
        write_shards(back, tmp_path / "no", codec="flak")


def test_an_ogg_fixed_serial(rng):
    """The serial number is taken out, and each page has the checksum that Ogg requires."""
    first, second = (shard_files.encoded(0.1 * np.sin(np.arange(60_000) / 9), 24000, "opus") for _ in range(2))
    assert first != second
    assert _fixed_serial(first) == _fixed_serial(second)
    assert np.array_equal(shard_files.decoded(_fixed_serial(first)), shard_files.decoded(first))
    # libsndfile's own checksum, by the same function.
    size = 28
    page = bytearray(first[: size + first[27]])
    wanted, page[22:26] = bytes(page[22:26]), bytes(4)
    assert _ogg_checksum(bytes(page)).to_bytes(4, "little") == wanted


# --- how it is made ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["flac", "opus"])
def test_processes_change_no_byte(collection, tmp_path, codec):
    manifest = load_manifest("folder", collection, csv="list.csv")
    for workers in (1, 2):
        write_shards(manifest, tmp_path / str(workers), codec=codec, rows_per_shard=9, workers=workers)
    assert content(tmp_path / "1") == content(tmp_path / "2")


def test_killed_again_and_again(tmp_path, rng):
    root = tmp_path / "set"
    for number in range(60):
        path = root / "ab"[number % 2] / f"{number}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, music(rng, 0.3, 16000), 16000)
    (root / "a" / "broken.flac").write_bytes((root / "a" / "0.flac").read_bytes()[:300])
    manifest = load_manifest("folder", root)
    write_shards(manifest, tmp_path / "once", rows_per_shard=5, workers=1)
    aside, generator, killed = tmp_path / ".killed.packing", random.Random(0), 0
    # The command as it is, but slow enough to be hit in the middle of a shard.
    slow = (
        "import time, gafx.data.shards.shard_file as w; add = w.ShardFile.add\n"
        "w.ShardFile.add = lambda self, clips: (time.sleep(0.05), add(self, clips))\n"
        "from gafx.cli import main; main()"
    )
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", slow, "pack", "folder", root, tmp_path / "killed", "--shards", "flac",
             "--rows-per-shard", "5", "--workers", "1"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(), cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        done = len(list(aside.glob("*.parquet")))
        more = generator.randrange(1, 4)
        killed += kill_when(process, lambda done=done, more=more: len(list(aside.glob("*.parquet"))) >= done + more)
    assert killed == 3
    finished = sorted(aside.glob("*.parquet"))
    assert 3 <= len(finished) < 13
    damaged, kept = finished[0], finished[1].stat().st_mtime_ns
    damaged.write_bytes(damaged.read_bytes()[:-5] + b"later")
    done = gafx_pack("folder", root, tmp_path / "killed", "--shards", "flac", "--rows-per-shard", 5)
    assert done.returncode == 0, done.stderr
    assert "continuing: " in done.stderr
    assert done.stdout == f"{tmp_path / 'killed'}\n"
    assert content(tmp_path / "killed") == content(tmp_path / "once")
    assert (tmp_path / "killed" / finished[1].name).stat().st_mtime_ns == kept
    assert {path.name for path in tmp_path.iterdir()} == {"set", "once", "killed"}


@pytest.mark.parametrize("workers", [1, 2])
def test_no_room(collection, tmp_path, workers):
    arguments = ["folder", collection, tmp_path / "out", "--shards", "flac", "--option", "csv=list.csv"]
    arguments += ["--workers", workers, "--rows-per-shard", 9]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    done = gafx_pack(*arguments, preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    assert "no room for the shards" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    done = gafx_pack(*arguments)
    assert done.returncode == 0, done.stderr
    assert len(load_manifest("shards", tmp_path / "out")) == 27


def test_unreadable_clips_are_listed(collection, tmp_path):
    (collection / "d").mkdir()
    broken = np.full(9000, 0.1, np.float32)
    broken[4000] = np.nan
    soundfile.write(collection / "d" / "nan.wav", broken, 22050, subtype="FLOAT")
    (collection / "d" / "empty\nname.wav").write_bytes(b"")
    shutil.copy(collection / "a" / "0.flac", collection / "d")
    for name in ("list.csv", "long.wav"):
        (collection / name).unlink()
    done = gafx_pack("folder", collection, tmp_path / "out", "--shards", "flac", "--max-unreadable", 0.2)
    assert done.returncode == 0, done.stderr
    assert "2 unreadable:" in done.stderr
    assert "d/nan.wav: holds NaN or infinite samples" in done.stderr
    assert "d/empty\\nname.wav: is empty" in done.stderr
    about = json.loads((tmp_path / "out" / "shards.json").read_text())
    assert [entry["path"] for entry in about["unreadable"]] == ["d/empty\\nname.wav", "d/nan.wav"]
    assert len(load_manifest("shards", tmp_path / "out")) == 25
    done = gafx_pack("folder", collection, tmp_path / "out", "--shards", "flac")
    assert done.returncode == 2
    assert "2 of 27 files" in done.stderr


def test_what_is_there_already(collection, tmp_path, rng):
    manifest = load_manifest("folder", collection, csv="list.csv")
    out = tmp_path / "out"
    write_shards(manifest, out, workers=1)
    before = content(out)
    load_manifest("shards", out)  # leaves its index there
    write_shards(manifest, out, workers=1)
    assert content(out) == before
    with pytest.raises(UsageError, match=r"holds shards of other data, .*--overwrite"):
        write_shards(manifest, out, codec="opus", workers=1)
    soundfile.write(collection / "a" / "0.flac", music(rng, 0.3, 44100), 44100)
    changed = load_manifest("folder", collection, csv="list.csv")
    with pytest.raises(UsageError, match="files that have changed since"):
        write_shards(changed, out, workers=1)
    write_shards(changed, out, workers=1, overwrite=True)
    assert content(out) != before
    assert len(load_manifest("shards", out)) == 27
    (out / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match=r"\(thesis\.txt\) and is left alone"):
        write_shards(manifest, out, workers=1, overwrite=True)
    with pytest.raises(UsageError, match="is inside the data"):
        write_shards(manifest, collection / "out")
    done = gafx_pack("folder", collection, tmp_path / "x", "--rows-per-shard", 5)
    assert "--rows-per-shard belongs to --shards" in done.stderr


def test_shards_of_shards(collection, tmp_path):
    """Shards are a data set like any other: they can be written again, say as another codec."""
    manifest = load_manifest("folder", collection, csv="list.csv")
    write_shards(manifest, tmp_path / "one", workers=1)
    first = load_manifest("shards", tmp_path / "one")
    write_shards(first, tmp_path / "two", rows_per_shard=4, workers=1)
    again = load_manifest("shards", tmp_path / "two")
    assert len(by_name(again)) == 27
    for row in range(27):
        assert np.array_equal(
            FileReader(again, 16000, 1).read(row, 0, 4000), FileReader(first, 16000, 1).read(row, 0, 4000)
        )
    assert again.labels.values.tolist() == first.labels.values.tolist()
    assert again.split.tolist() == first.split.tolist()


# --- from the hub -----------------------------------------------------------------------------------------------------


class DataHub(BaseHTTPRequestHandler):
    """A hub of data sets: `server.files` by path, `server.broken` how often a connection is cut in the middle."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        server, path = self.server, self.path.partition("?")[0]
        server.asked.append(self.path)
        if path.startswith("/api/datasets/team/songs/revision/") or path == "/api/datasets/team/songs":
            return self.json({"id": "team/songs", "sha": "c0ffee", "private": False, "tags": [], "downloads": 0,
                              "likes": 0, "siblings": []})  # fmt: skip
        if path.startswith("/api/datasets/team/songs/tree/c0ffee"):
            entries = []
            for name, content in server.files.items():
                sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                entry = {"type": "file", "oid": sha1, "size": len(content), "path": name}
                if len(content) > 100:
                    entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
                entries.append(entry)
            return self.json(entries)
        name = path.removeprefix("/datasets/team/songs/resolve/c0ffee/")
        if name not in server.files:
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        content, begin = server.files[name], 0
        sha = hashlib.sha256(content).hexdigest()
        if len(content) <= 100:
            sha = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        headers = {"ETag": '"x"', "X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(content)),
                   "X-Repo-Commit": "c0ffee"}  # fmt: skip
        if asked := self.headers.get("Range"):
            begin = int(asked.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        if server.broken.get(name, 0) > 0:
            server.broken[name] -= 1
            self.send_response(206 if begin else 200)
            for key, value in {**headers, "Content-Length": str(len(content) - begin)}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content[begin : begin + (len(content) // 3 if server.broken[name] < 50 else 0)])
            self.close_connection = True
            return None
        return self.answer(206 if begin else 200, content[begin:] if body else b"", headers)

    def json(self, value):
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, rng):
    audio = shard_files.clips(rng, 12, forms=("flac",))
    labels = ([0, 1] * 6, datasets.ClassLabel(names=["a", "b"]))
    datasets.disable_progress_bars()
    shard_files.push(shard_files.dataset(audio, label=labels), tmp_path / "hub", "train", 2)
    shard_files.push(shard_files.dataset(audio, label=labels), tmp_path / "hub", "test", 1)
    server = ThreadingHTTPServer(("127.0.0.1", 0), DataHub)
    server.files = {f"data/{path.name}": path.read_bytes() for path in (tmp_path / "hub" / "data").iterdir()}
    server.files |= {"README.md": b"# songs", ".gitattributes": b"x"}
    server.asked, server.broken = [], {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(hub, tmp_path, **options):
    code = (
        "import sys, json, gafx.data.download.fetch as d; d._PAUSE = 0.01\n"
        "from gafx.data.sources.base import load_manifest\n"
        "m = load_manifest('shards', sys.argv[1], download=True, **json.loads(sys.argv[2])); print(len(m), *m.notes)"
    )
    options = {"repo": "team/songs", **options}
    process = start(
        code, f"http://127.0.0.1:{hub.server_port}", tmp_path / "home", tmp_path / "songs", json.dumps(options)
    )
    out, error = process.communicate(timeout=60)
    return out.strip(), error


def test_fetched_from_the_hub(hub, tmp_path):
    hub.broken["data/test-00000-of-00001.parquet"] = 2
    assert fetch(hub, tmp_path)[0] == "24"
    files = {str(path.relative_to(tmp_path / "songs")) for path in (tmp_path / "songs" / "data").iterdir()}
    assert files == {name for name in hub.files if name.endswith(".parquet")}
    assert all((tmp_path / "songs" / name).read_bytes() == hub.files[name] for name in files)
    assert not any(path.name.startswith(".songs") for path in tmp_path.iterdir())
    assert not any("README" in path for path in hub.asked)
    asked = len(hub.asked)
    assert fetch(hub, tmp_path)[0] == "24"  # it exists: no request is made
    assert len(hub.asked) == asked


def test_a_fetch_that_was_broken_off(hub, tmp_path):
    """Files that are whole are kept, one that is not what the hub announces is not."""
    hub.broken["data/train-00001-of-00002.parquet"] = 100  # at once, that is
    _, error = fetch(hub, tmp_path)
    assert "UsageError" in error
    assert "could not be fetched in 5 tries" in error
    assert not (tmp_path / "songs").exists()
    kept = tmp_path / ".songs.download" / "files" / "data" / "test-00000-of-00001.parquet"
    time = kept.stat().st_mtime_ns
    hub.broken.clear()
    assert fetch(hub, tmp_path)[0] == "24"
    assert (tmp_path / "songs" / "data" / kept.name).stat().st_mtime_ns == time


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        ({}, {"repo": "team/nix"}, r"'team/nix' on the hub could not be requested"),
        ({}, {"repo": None}, r"needs data\.options\.repo"),
        ({}, {"config": "full"}, r"no Parquet file in a folder 'full'"),
        ({"one/train.parquet": b"x", "two/train.parquet": b"x"}, {}, r"several configurations: .*: one, two"),
        ({"../out.parquet": b"x"}, {}, "leads out of its folder"),
        ({"/etc/out.parquet": b"x"}, {}, "leads out of its folder"),
    ],
)
def test_what_the_hub_does_not_have(hub, tmp_path, change, options, reason):
    hub.files |= change
    out, error = fetch(hub, tmp_path, **options)
    assert not out
    assert re.search(reason, error.strip().splitlines()[-1]), error
    assert not (tmp_path / "songs").exists()
    assert not (tmp_path / "out.parquet").exists()


def test_a_configuration(hub, tmp_path):
    files = {name: body for name, body in hub.files.items() if name.endswith(".parquet")}
    hub.files = {f"full/{Path(name).name}": body for name, body in files.items()} | {"small/train.parquet": b"x"}
    assert fetch(hub, tmp_path, config="full")[0] == "24"
