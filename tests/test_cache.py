"""The packed cache: the samples of the files, the same bytes however it was made, and nothing stale or foreign."""

import json
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from runs import MEL, ROOT, SMALL, environment, kill_when, records, train, weights

from gafx.config import TrainConfig, build, run_id
from gafx.data.packing.cache import ABOUT, CLIPS, SAMPLES, Cache, CacheReader
from gafx.data.packing.pack import pack
from gafx.data.readers import FileReader, clip_lengths
from gafx.data.sources.base import load_manifest
from gafx.errors import UnreadableAudio, UsageError

FORMATS = {"wav": {"subtype": "FLOAT"}, "flac": {}, "ogg": {}, "mp3": {}, "au": {}}


def music(rng, seconds, rate, channels=1, loudness=0.15):
    samples = int(seconds * rate) + int(rng.integers(100))
    noise = rng.standard_normal((samples, channels))
    noise = (noise + np.roll(noise, 1, axis=0)) / 2
    return (loudness * noise * (1 + np.sin(np.arange(samples) / rate * 3))[:, None]).clip(-1, 1)


@pytest.fixture
def album(tmp_path, rng):
    """Two classes; every format, stereo and mono, 44.1, 22.05 and 16 kHz, a quiet and a full-scale track."""
    root = tmp_path / "album"
    for number, (extension, arguments) in enumerate(FORMATS.items()):
        for name, rate in (("a", 44100), ("b", 22050), ("b", 16000)):
            path = root / name / f"{number}.{rate}.{extension}"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, music(rng, 0.8, rate, 1 + number % 2), rate, **arguments)
    soundfile.write(root / "a" / "quiet.flac", music(rng, 0.8, 44100, loudness=1e-3), 44100, subtype="PCM_24")
    square = np.where(np.sin(np.arange(40_000) / 9) > 0, 1.0, -1.0)
    soundfile.write(root / "b" / "square.wav", square, 44100, subtype="PCM_16")
    return root


def whole_file(path, start, duration, sample_rate, channels):
    """The reference: a clip of a file, decoded and resampled at once."""
    samples, rate = soundfile.read(path, dtype="float64", always_2d=True)
    if rate != sample_rate:
        samples = soxr.resample(samples, rate, sample_rate, quality="HQ")
    if samples.shape[1] != channels:
        samples = np.repeat(samples.mean(axis=1, keepdims=True), channels, axis=1)
    return samples.T, rate


def check_segments(manifest, reader, rng, segments=25):
    rate, channels = reader.sample_rate, reader.channels
    files = FileReader(manifest, rate, channels)
    for row in range(len(manifest)):
        path = os.fsdecode(manifest.file(row))
        whole, source_rate = whole_file(path, 0, None, rate, channels)
        step = rate // np.gcd(source_rate, rate)
        offset = round(float(manifest.start[row]) * rate)
        length = int(clip_lengths(manifest, np.array([row]), rate)[0])
        # int16 rounding: half a step of the clip's own scale.
        tolerance = 1e-4 + 0.51 * float(np.abs(whole).max()) / 32767
        cases = [(0, length), (0, 1), (length - 1, 5)]
        cases += [(int(rng.integers(length)), int(rng.integers(1, length + 1))) for _ in range(segments)]
        for start, wanted in cases:
            begin = (start + offset) // step * step
            expected = whole[:, begin : min(begin + wanted, offset + length)]
            for one in (reader, files):
                segment = one.read(row, start, wanted)
                assert segment.dtype == np.float32
                assert segment.shape == expected.shape, (path, start, wanted)
                np.testing.assert_allclose(
                    segment, expected, atol=tolerance, rtol=0, err_msg=f"{path} {start} {wanted}"
                )


@pytest.mark.parametrize(("sample_rate", "channels"), [(22050, 1), (16000, 2), (44100, 2)])
def test_a_segment_equals_the_slice_of_the_whole(album, tmp_path, rng, sample_rate, channels):
    manifest = load_manifest("folder", album)
    cache = pack(manifest, tmp_path / "cache", sample_rate=sample_rate, channels=channels, workers=1)
    assert not cache.unreadable
    assert cache.verify() == []
    check_segments(manifest, CacheReader(cache, manifest), rng)


def test_clips_inside_longer_files(tmp_path, rng):
    root = tmp_path / "long"
    root.mkdir()
    for name in ("one.flac", "two.mp3"):
        soundfile.write(root / name, music(rng, 3, 44100), 44100)
    lines = ["path,label,start,duration"]
    for number in range(10):
        lines.append(f"{('one.flac', 'two.mp3')[number % 2]},{'xy'[number // 5]},{number * 0.2171:.6f},0.6137")
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    manifest = load_manifest("folder", root, csv="list.csv")
    for sample_rate in (16000, 44100):
        cache = pack(manifest, tmp_path / "cache", sample_rate=sample_rate, workers=1)
        check_segments(manifest, CacheReader(cache, manifest), rng, segments=15)


def test_negative_overshoot_is_not_clipped(tmp_path):
    """Samples on the 16-bit grid, of which only a negative one is out of its range."""
    wave = np.tile(np.array([0.5, -1.5, 0.25, -0.25], np.float32), 4000)
    (tmp_path / "album" / "x").mkdir(parents=True)
    soundfile.write(tmp_path / "album" / "x" / "loud.wav", wave, 16000, subtype="FLOAT")
    manifest = load_manifest("folder", tmp_path / "album")
    reader = CacheReader(pack(manifest, tmp_path / "cache", sample_rate=16000, workers=1), manifest)
    np.testing.assert_allclose(reader.read(0, 0, len(wave))[0], wave, atol=1.5 / 32767)


def test_what_overshoots_is_kept_and_what_is_quiet_loses_nothing(album, tmp_path):
    manifest = load_manifest("folder", album)
    reader = CacheReader(pack(manifest, tmp_path / "cache", sample_rate=16000, workers=1), manifest)
    files = FileReader(manifest, 16000, 1)
    rows = {Path(manifest.relative_path(row)).name: row for row in range(len(manifest))}
    square = files.read(rows["square.wav"], 0, 14_000)
    assert np.abs(square).max() > 1.05
    assert np.abs(reader.read(rows["square.wav"], 0, 14_000)).max() == pytest.approx(np.abs(square).max(), abs=1e-4)
    quiet = files.read(rows["quiet.flac"], 0, 12_000)
    error = np.abs(reader.read(rows["quiet.flac"], 0, 12_000) - quiet).max()
    assert error < 1e-3 / 32767 * 5  # a fixed scale of full range would err by up to 1.5e-5


def test_sixteen_bit_audio_keeps_its_bits(tmp_path, rng):
    values = rng.integers(-32768, 32768, 22050).astype(np.int16)
    values[:2] = -32768, 32767
    for label in "ab":
        (tmp_path / "set" / label).mkdir(parents=True)
        soundfile.write(tmp_path / "set" / label / "x.wav", values, 22050, subtype="PCM_16")
    manifest = load_manifest("folder", tmp_path / "set")
    cache = pack(manifest, tmp_path / "cache", sample_rate=22050, workers=1)
    assert cache.clips["scale"].tolist() == [1 / 32768] * 2
    assert np.array_equal(np.fromfile(cache.folder / "samples.i16", "<i2"), np.tile(values, 2))
    reader, files = CacheReader(cache, manifest), FileReader(manifest, 22050, 1)
    assert np.array_equal(reader.read(1, 100, 9000), files.read(1, 100, 9000))


def test_a_clip_of_several_blocks(tmp_path, rng, monkeypatch):
    """Clips that are too long to be held at once are packed in blocks, to the same bytes."""
    import gafx.data.packing.encode as module

    for label, rate in (("a", 44100), ("b", 22050)):
        (tmp_path / "set" / label).mkdir(parents=True)
        soundfile.write(tmp_path / "set" / label / "x.mp3", music(rng, 4, rate, 2), rate)
    manifest = load_manifest("folder", tmp_path / "set")
    once = pack(manifest, tmp_path / "once", sample_rate=16000, channels=2, workers=1)
    monkeypatch.setattr(module, "_BLOCK", 7000)
    blocks = pack(manifest, tmp_path / "blocks", sample_rate=16000, channels=2, workers=1)
    # Resampling in segments rounds differently in the last bits of a float, so by a step of int16 now and then.
    one, other = (np.fromfile(cache.folder / "samples.i16", "<i2").astype(int) for cache in (once, blocks))
    difference = np.abs(one - other)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01
    assert blocks.verify() == []


# --- how it is made ---------------------------------------------------------------------------------------------------


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def gafx_pack(*arguments, **more):
    command = [sys.executable, "-m", "gafx.cli", "pack", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=120, check=False, cwd=ROOT, **more
    )


def test_processes_and_interruptions_change_no_byte(tmp_path, rng):
    """One process, two processes, and a pack that SIGKILL ended again and again: the same files."""
    root = tmp_path / "set"
    for number in range(120):
        path = root / "ab"[number % 2] / f"{number}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, music(rng, 1.5, 44100), 44100)
    (root / "a" / "broken.flac").write_bytes((root / "a" / "0.flac").read_bytes()[:200])
    manifest = load_manifest("folder", root)
    one = content(pack(manifest, tmp_path / "one", sample_rate=16000, workers=1).folder)
    assert content(pack(manifest, tmp_path / "two", sample_rate=16000, workers=2).folder) == one
    killed, generator = 0, random.Random(0)
    samples = tmp_path / "killed" / ".16000x1.packing" / SAMPLES
    log = samples.with_name("done.jsonl")
    # The command as it is, but that it writes into its journal after every clip.
    often = (
        "import gafx.data.packing.pack as p; p._JOURNAL_SECONDS = 0; p._CHUNK = 1; from gafx.cli import main; main()"
    )
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", often, "pack", "folder", root, tmp_path / "killed", "--rate", "16000",
             "--channels", "1", "--workers", "2"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(), cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        done = log.read_text().count("\n") if log.exists() else 0
        more = generator.randrange(1, 40)
        killed += kill_when(
            process, lambda done=done, more=more: log.exists() and log.read_text().count("\n") >= done + more
        )
    assert killed >= 2
    with log.open("a") as file:
        file.write('{"row": 3, "length"')  # what a kill in the middle of a line leaves
    done = gafx_pack("folder", root, tmp_path / "killed", "--rate", 16000, "--channels", 1)
    assert done.returncode == 0, done.stderr
    assert "continuing" in done.stderr
    assert content(Path(done.stdout.strip())) == one
    assert not samples.parent.exists()
    Path(done.stdout.strip()).rename(samples.parent)  # a kill just before the folder gets its name
    log.write_text("")
    assert content(pack(manifest, tmp_path / "killed", sample_rate=16000).folder) == one


def test_two_at_once_pack_once(album, tmp_path):
    arguments = ["folder", album, tmp_path / "cache", "--rate", 16000, "--channels", 1, "--workers", 1]
    command = [sys.executable, "-m", "gafx.cli", "pack", *map(str, arguments)]
    both = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=ROOT
        )
        for _ in range(2)
    ]
    results = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert results[0][0] == results[1][0] == f"{tmp_path / 'cache' / '16000x1'}\n"
    assert Cache(tmp_path / "cache" / "16000x1").verify() == []


@pytest.mark.parametrize("workers", [1, 2])
def test_no_room(album, tmp_path, workers):
    """A file-size limit ends packing with a message; packed clips stay, and without the limit it resumes."""
    arguments = ["folder", album, tmp_path / "cache", "--rate", 44100, "--channels", 1, "--workers", workers]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = gafx_pack(*arguments, preexec_fn=limit)
    assert done.returncode == 2
    assert "no room for the cache" in done.stderr
    assert "continues from there" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "cache" / "44100x1").exists()
    done = gafx_pack(*arguments)
    assert done.returncode == 0, done.stderr
    again = pack(load_manifest("folder", album), tmp_path / "other", sample_rate=44100, workers=1)
    assert content(Path(done.stdout.strip())) == content(again.folder)


def test_too_little_free_space_is_said_before_the_first_clip(album, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UsageError, match=r"needs [1-9]\d*\.\d kB more .* are free: make room"):
        pack(load_manifest("folder", album), tmp_path / "cache", sample_rate=16000, workers=1)


def test_packing_needs_no_calls_of_linux_alone(album, packed, tmp_path, monkeypatch):
    """macOS has no fdatasync, Windows no pread and pwrite either."""
    for name in ("fdatasync", "pread", "pwrite"):
        monkeypatch.delattr(os, name, raising=False)
    cache = packed[1]
    again = pack(load_manifest("folder", album), tmp_path / "other", sample_rate=16000, workers=1)
    assert content(again.folder) == content(cache.folder)


def test_unreadable_files_are_recorded_and_reported(album, tmp_path):
    broken = np.full(9000, 0.1, np.float32)
    broken[4000] = np.nan
    soundfile.write(album / "a" / "nan.wav", broken, 22050, subtype="FLOAT")
    (album / "b" / "empty\nname.wav").write_bytes(b"")
    done = gafx_pack("folder", album, tmp_path / "cache", "--frontend", "mel", "--max-unreadable", 0.2)
    assert done.returncode == 0, done.stderr
    assert "2 unreadable:" in done.stderr
    assert "a/nan.wav: holds NaN or infinite samples" in done.stderr
    assert "b/empty\\nname.wav: is empty" in done.stderr
    manifest = load_manifest("folder", album)
    cache = Cache(tmp_path / "cache" / "22050x1")
    row = [manifest.relative_path(row) for row in range(len(manifest))].index("a/nan.wav")
    assert cache.unreadable == {row: "holds NaN or infinite samples"}
    with pytest.raises(UnreadableAudio, match="NaN"):
        CacheReader(cache, manifest).read(row, 0, 100)
    done = gafx_pack("folder", album, tmp_path / "cache")
    assert done.returncode == 2
    assert "2 of 19 files" in done.stderr
    assert "max_unreadable=0.05" in done.stderr


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture
def packed(album, tmp_path):
    manifest = load_manifest("folder", album)
    return manifest, pack(manifest, tmp_path / "cache", sample_rate=16000, workers=1)


def test_a_changed_file_is_stale_and_a_touched_or_copied_one_is_not(album, packed, tmp_path, rng):
    manifest, cache = packed
    os.utime(album / "a" / "0.44100.wav", (1, 1))
    CacheReader(cache, manifest)
    shutil.copytree(album, tmp_path / "copy", copy_function=shutil.copy)  # without the files' times
    copy = load_manifest("folder", tmp_path / "copy")
    CacheReader(cache, copy)
    samples, rate = soundfile.read(album / "b" / "1.22050.flac", always_2d=True)
    soundfile.write(album / "b" / "1.22050.flac", samples[::-1], rate)
    with pytest.raises(UsageError, match=r"is stale: 1 files .*b/1\.22050\.flac.*--overwrite"):
        CacheReader(cache, load_manifest("folder", album))
    with pytest.raises(UsageError, match="is stale"):
        pack(load_manifest("folder", album), tmp_path / "cache", sample_rate=16000, workers=1)
    changed = load_manifest("folder", album)
    CacheReader(pack(changed, tmp_path / "cache", sample_rate=16000, workers=1, overwrite=True), changed)


def test_a_cache_of_other_data_is_refused_and_one_of_more_data_serves(album, packed, tmp_path, rng):
    _, cache = packed
    shutil.rmtree(album / "b")
    (album / "b").mkdir()
    shutil.copy(album / "a" / "quiet.flac", album / "b" / "new.flac")
    with pytest.raises(UsageError, match=r"does not hold 1 of the 7 clips .*b/new\.flac.*packed from other data"):
        CacheReader(cache, load_manifest("folder", album))
    (album / "b" / "new.flac").unlink()
    lines = ["path,label", "a/quiet.flac,soft", "a/3.44100.mp3,loud", "a/0.44100.wav,loud"]
    (album / "list.csv").write_text("\n".join(lines))
    fewer = load_manifest("folder", album, csv="list.csv")
    reader, files = CacheReader(cache, fewer), FileReader(fewer, 16000, 1)
    for row in range(3):
        np.testing.assert_allclose(reader.read(row, 0, 9000), files.read(row, 0, 9000), atol=5e-5)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (ABOUT, lambda content: b"", "is damaged"),
        (ABOUT, lambda content: content[:-40], "is damaged"),
        (ABOUT, lambda content: content.replace(b"gafx-cache-1", b"gafx-cache-9"), "another format"),
        (ABOUT, lambda content: content.replace(b'"fingerprint"', b'"fingerpaint"'), "lacks fingerprint"),
        (CLIPS, lambda content: content[:-7], "is damaged"),
        (CLIPS, lambda content: content[:500] + bytes([content[500] ^ 1]) + content[501:], "another checksum"),
        (SAMPLES, lambda content: content[:-2], "has .* bytes"),
    ],
)
def test_a_damaged_cache_is_refused(packed, name, damage, message):
    manifest, cache = packed
    path = cache.folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError, match=rf"{message}.*--overwrite"):
        CacheReader(Cache(cache.folder), manifest)


@pytest.mark.parametrize("name", ["samples.i16", "clips.npy"])
def test_files_that_shrink_while_they_are_open_end_no_process(packed, name):
    """A memory map would: reading past the end of the file raises SIGBUS, which no handler of Python survives."""
    manifest, cache = packed
    reader = CacheReader(cache, manifest)
    with (cache.folder / name).open("r+b") as file:
        file.truncate(10)
    if name == "clips.npy":
        assert reader.read(0, 0, 100).shape[1] == 100
        return
    with pytest.raises(UsageError, match=r"ends before clip 0: it was cut short.*Pack again"):
        reader.read(0, 0, 8000)
    assert len(cache.verify()) == len(cache)


def test_verify_finds_one_flipped_bit(packed, album, tmp_path):
    _, cache = packed
    with (cache.folder / SAMPLES).open("r+b") as file:
        file.seek(int(cache.clips["offset"][4]) * 2 + 300)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    assert Cache(cache.folder).verify() == [4]
    done = gafx_pack("folder", album, tmp_path / "cache", "--rate", 16000, "--channels", 1, "--verify")
    assert done.returncode == 2
    assert "1 of the 17 clips" in done.stderr
    assert "--overwrite" in done.stderr


def test_folders_that_are_no_cache(album, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        pack(load_manifest("folder", album), tmp_path / "file", sample_rate=16000)
    (tmp_path / "mine" / "16000x1").mkdir(parents=True)
    (tmp_path / "mine" / "16000x1" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="holds no cache"):
        pack(load_manifest("folder", album), tmp_path / "mine", sample_rate=16000)
    assert (tmp_path / "mine" / "16000x1" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch", "x", "y"], "unknown data set 'nosuch'"),
        (["folder", "nowhere", "y", "--rate", "16000", "--channels", "1"], "does not exist"),
        (["folder", "tests", "y", "--option", "csv"], "--option 'csv' is no option"),
        (["folder", "tests", "y", "--option", "cvs=1"], "did you mean 'csv'"),
        (["folder", "tests", "y", "--frontend", "nosuch"], "unknown front-end 'nosuch'"),
        (["folder", "tests", "y", "--workers", "0"], "must be at least 1"),
    ],
)
def test_mistakes_on_the_command_line(arguments, message):
    done = gafx_pack(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


# --- in a run ---------------------------------------------------------------------------------------------------------


def test_a_run_packs_its_cache_and_learns_the_same_from_it(synthetic_root, tmp_path):
    """The synthetic set is 16 bit at the models' rate: from the cache come the same bits, so the same weights."""
    recipe = [*SMALL, *MEL, f"data.root={synthetic_root}", "max_steps=4", "workers=1", f"output_dir={tmp_path}"]
    files = train(*recipe)
    cached = train(*recipe, f"data.cache={tmp_path / 'cache'}")
    assert files != cached
    assert (tmp_path / "cache" / "22050x1" / ABOUT).is_file()
    assert [line["loss"] for line in records(files)] == [line["loss"] for line in records(cached)]
    ours, theirs = weights(files), weights(cached)
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)
    results = []
    for folder in (files, cached):
        done = subprocess.run(
            [sys.executable, ROOT / "evaluate.py", folder, "resamples=10", "workers=0", "pictures=0"],
            capture_output=True, text=True, env=environment(), check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        results.append(json.loads((folder / "result.json").read_text())["scores"])
    assert results[0] == results[1]


def test_run_id_knows_whether_a_cache_is_used_and_not_where():
    def name(**data):
        return run_id(build(TrainConfig, {"frontend": {"name": "mel"}, "data": {"name": "synthetic", **data}}))

    assert name() == name(cache=None)
    assert name(cache="here") == name(cache="there") != name()


def test_overwriting_mends_damaged_samples_and_leaves_alone_what_is_no_cache(album, packed, tmp_path):
    manifest, cache = packed
    whole = content(cache.folder)
    with (cache.folder / SAMPLES).open("r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    again = pack(manifest, tmp_path / "cache", sample_rate=16000, workers=1, overwrite=True)
    assert content(again.folder) == whole

    (again.folder / "thesis.txt").write_text("x")
    (again.folder / ABOUT).unlink()
    with pytest.raises(UsageError, match=r"no part of a cache \(thesis\.txt\) and is left alone"):
        pack(manifest, tmp_path / "cache", sample_rate=16000, workers=1, overwrite=True)

    with pytest.raises(UsageError, match="is inside the data"):
        pack(manifest, album / "cache", sample_rate=16000, workers=1)


def test_a_journal_that_tells_of_samples_that_are_not_there(packed, tmp_path, monkeypatch):
    import gafx.data.packing.pack as module

    manifest, cache = packed
    whole = content(cache.folder)
    with monkeypatch.context() as patch:
        patch.setattr(module._Packing, "_write_records", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pack(manifest, tmp_path / "other", sample_rate=16000, workers=1)
    (tmp_path / "other" / ".16000x1.packing" / SAMPLES).write_bytes(b"")
    assert content(pack(manifest, tmp_path / "other", sample_rate=16000, workers=1).folder) == whole


def test_a_cache_that_cannot_be_written_to_serves(album, packed, tmp_path, monkeypatch):
    """Shared caches are read-only for a run: no lock is taken for a complete one."""
    import gafx.data.packing.pack as module

    manifest, cache = packed
    monkeypatch.setattr(module, "locked", lambda *_: 1 / 0)
    assert pack(manifest, tmp_path / "cache", sample_rate=16000).folder == cache.folder
    os.utime(album / "a" / "0.44100.wav", (1, 1))
    CacheReader(cache, manifest)  # compared by content, and its new time kept
    monkeypatch.setattr("gafx.data.packing.cache.file_crc", lambda *_: 1 / 0)
    CacheReader(cache, manifest)


def test_unreadable_files_are_fresh_in_a_copy_of_the_data(album, tmp_path):
    (album / "a" / "cut.flac").write_bytes((album / "a" / "1.44100.flac").read_bytes())
    manifest = load_manifest("folder", album)
    (album / "a" / "cut.flac").write_bytes(b"damaged after it was looked at")
    cache = pack(manifest, tmp_path / "cache", sample_rate=16000, workers=1)
    assert len(cache.unreadable) == 1
    os.utime(album / "a" / "cut.flac", (1, 1))
    CacheReader(cache, manifest)


def test_another_process_maps_the_samples_itself(packed):
    manifest, cache = packed
    reader = CacheReader(cache, manifest)
    sent = pickle.dumps(reader)
    assert len(sent) < 20_000 < (cache.folder / SAMPLES).stat().st_size
    assert np.array_equal(pickle.loads(sent).read(3, 100, 500), reader.read(3, 100, 500))


def test_an_empty_folder_name_is_refused():
    with pytest.raises(UsageError, match=r"data\.cache is empty.*data\.cache=null"):
        build(TrainConfig, {"data": {"name": "synthetic", "cache": ""}})
