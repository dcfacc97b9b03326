"""Broken files, false headers and no files: skipped with a reason and counted, or read by their content."""

import os
import socket
import struct
import sys
from pathlib import Path

import fuzz_audio
import numpy as np
import pytest
import soundfile

import gafx
from gafx.audio import decode
from gafx.audio.formats import READ
from gafx.audio.read import probe, read_segment, resampled_length
from gafx.data.manifest import Skipped
from gafx.data.sources.base import audio_files
from gafx.errors import UnreadableAudio

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RATE = 22050
WRITTEN = {
    "pcm16.wav": {},
    "pcm24.wav": {"subtype": "PCM_24"},
    "float.wav": {"subtype": "FLOAT"},
    "adpcm.wav": {"subtype": "MS_ADPCM"},
    "extensible.wav": {"format": "WAVEX", "subtype": "PCM_16"},
    "rf64.wav": {"format": "RF64", "subtype": "PCM_16"},
    "big.wav": {"subtype": "PCM_16", "endian": "BIG"},
    "a.flac": {},
    "a.ogg": {},
    "opus.ogg": {"format": "OGG", "subtype": "OPUS"},
    "constant.mp3": {"bitrate_mode": "CONSTANT", "compression_level": 0.5},
    "variable.mp3": {"bitrate_mode": "VARIABLE", "compression_level": 0.7},
    "a.au": {"subtype": "PCM_16"},
    "mulaw.au": {"subtype": "ULAW"},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """`{name: content}` of whole files, three seconds each."""
    folder = tmp_path_factory.mktemp("whole")
    rng = np.random.default_rng(7)
    for name, options in WRITTEN.items():
        rate = 24000 if "opus" in name else RATE
        time = np.arange(3 * rate) / rate
        soundfile.write(
            folder / name, 0.2 * np.sin(900 * time) + 0.05 * rng.standard_normal(len(time)), rate, **options
        )
    return {name: (folder / name).read_bytes() for name in WRITTEN}


def without_xing(mp3: bytes) -> bytes:
    return mp3[mp3.index(mp3[:2], 2) :]


def id3(size: int, filling: bytes) -> bytes:
    return b"ID3\3\0\0" + bytes([size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127]) + filling[:size]


def refused(path, reason, read=probe):
    with pytest.raises(UnreadableAudio, match=reason):
        read(path)


def segment(path, start=0, length=8000):
    return read_segment(path, start, length, sample_rate=16000)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- truncated, and what only looks so --------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.999, 0.9, 0.5, 0.1, 0.002])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_truncated_file_is_refused_by_its_header(name, fraction, whole, tmp_path):
    path = write(tmp_path / name, whole[name][: int(fraction * len(whole[name]))])
    refused(path, "truncated|cannot be decoded|holds no samples")


@pytest.mark.parametrize("name", WRITTEN)
def test_whole_files_and_more_than_was_promised(name, whole, tmp_path):
    frames = probe(write(tmp_path / name, whole[name])).frames
    padding = 1000 if name.startswith("adpcm") else 0  # its last block is full
    assert 0 <= frames - 3 * (24000 if "opus" in name else RATE) <= padding
    for junk in (b"\0", b"junk" * 10, b"TAG" + bytes(125), b"LIST\x05\0\0\0abcde", bytes(5000)):
        assert probe(write(tmp_path / name, whole[name] + junk)).frames == frames, junk[:4]


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0x7FFFFF00])
def test_streamed_wav_and_au_are_whole(size, whole, tmp_path):
    wav, au = bytearray(whole["pcm16.wav"]), bytearray(whole["a.au"])
    for riff in (size, 0, 8):
        struct.pack_into("<I", wav, 4, riff)
        struct.pack_into("<I", wav, wav.index(b"data") + 4, size)
        assert probe(write(tmp_path / "a.wav", wav)).frames == 3 * RATE
    struct.pack_into(">I", au, 8, size)
    assert probe(write(tmp_path / "a.au", au)).frames == 3 * RATE


def test_a_wav_that_was_never_closed(whole, tmp_path):
    wav = bytearray(whole["pcm16.wav"])
    struct.pack_into("<I", wav, wav.index(b"data") + 4, 0)
    assert probe(write(tmp_path / "a.wav", wav)).frames == 3 * RATE
    struct.pack_into("<I", wav, 4, 8)
    assert probe(write(tmp_path / "a.wav", wav)).frames == 3 * RATE


def test_a_wav_with_chunks_before_its_samples(whole, tmp_path):
    """Long texts before the samples overflow libsndfile's log, which contains the real length."""
    wav = whole["pcm16.wav"]
    at = wav.index(b"data")
    texts = b"".join(b"ICMT" + struct.pack("<I", 500) + b"words " * 83 + b"\0\0" for _ in range(20))
    wav = wav[:at] + b"LIST" + struct.pack("<I", len(texts) + 4) + b"INFO" + texts + wav[at:]
    assert probe(write(tmp_path / "a.wav", wav)).frames == 3 * RATE
    refused(write(tmp_path / "b.wav", wav[: len(wav) // 2]), "truncated")
    # A hundred thousand empty chunks: an answer, and soon.
    many = wav[:at] + b"abcd\0\0\0\0" * 100_000 + wav[at:]
    refused(write(tmp_path / "c.wav", many), "cannot be decoded")


def test_ogg_with_a_long_tag_behind_it(whole, tmp_path):
    path = write(tmp_path / "a.ogg", whole["a.ogg"] + bytes(100_000))
    assert probe(path).frames == 3 * RATE
    refused(write(tmp_path / "b.ogg", whole["a.ogg"][:-1]), "last page is not complete")


@pytest.mark.parametrize("name", ["constant.mp3", "variable.mp3"])
def test_tags_of_an_mp3(name, whole, tmp_path):
    picture, tail = np.random.default_rng(0).bytes(500_000), b"APETAGEX" + np.random.default_rng(1).bytes(60_000)
    expected = segment(write(tmp_path / "plain.mp3", whole[name]), 30_000, 18_000)
    for content in (
        id3(500_000, picture) + whole[name],
        id3(500_000, bytes(500_000)) + whole[name] + b"TAG" + bytes(125),
        id3(300, picture) + id3(2000, picture) + whole[name] + tail,
    ):
        path = write(tmp_path / "a.mp3", content)
        assert probe(path).frames == 3 * RATE
        np.testing.assert_array_equal(segment(path, 30_000, 18_000), expected)
        middle = content.index(whole[name]) + len(whole[name]) // 2
        refused(write(tmp_path / "b.mp3", content[:middle]), "truncated")


@pytest.mark.parametrize("picture", [0, 300_000])
def test_an_mp3_without_xing_header_has_its_real_length(picture, whole, tmp_path):
    plain = without_xing(whole["constant.mp3"])
    tags = id3(picture, np.random.default_rng(0).bytes(picture)) if picture else b""
    for tail in (b"", b"TAG" + bytes(125), b"APETAGEX" + bytes(60_000)):
        path = write(tmp_path / "a.mp3", tags + plain + tail)
        frames = probe(path).frames
        assert 3 * RATE <= frames <= 3 * RATE + 3 * 1152
        end = frames * 16000 // RATE
        assert segment(path, end - 4000, 8000).shape[1] in range(4000, 4000 + 321)  # starts snap back by up to 320


def test_an_mp3_of_which_only_a_part_would_be_read_says_so(tmp_path):
    """Loud first, then silent: libsndfile takes the first frames' bit rate for all, and the file for too short."""
    wave = np.random.default_rng(0).standard_normal(20 * RATE) * np.linspace(0.3, 1e-4, 20 * RATE) ** 2
    soundfile.write(tmp_path / "a.mp3", wave, RATE, bitrate_mode="VARIABLE", compression_level=0.5)
    path = write(tmp_path / "b.mp3", without_xing((tmp_path / "a.mp3").read_bytes()))
    refused(path, r"lacks the Xing header .* of 20\.\d s would be read; .ffmpeg")


def test_a_stream_that_does_not_say_how_long_it_is(whole, tmp_path):
    """Its last frame tells; without that frame nothing does."""
    flac = bytearray(whole["a.flac"])
    flac[21] &= 0xF0  # the number of samples: the last 4 bits of byte 21 and bytes 22 to 25
    flac[22:26] = bytes(4)
    assert probe(write(tmp_path / "a.flac", flac)).frames == 3 * RATE
    refused(write(tmp_path / "b.flac", flac[:-100]), "last of its .* samples cannot be decoded")
    for read in (probe, segment):
        refused(write(tmp_path / "c.flac", flac[:9000] + bytes(200_000)), "does not say how long|no samples", read)


def test_damage_in_the_middle_is_not_passed_over(whole, tmp_path):
    for name in ("a.flac", "a.ogg"):
        content = bytearray(whole[name])
        middle = len(content) // 2
        content[middle : middle + 9000] = bytes(9000)
        path = write(tmp_path / name, content)
        refused(path, "damaged|truncated|cannot be decoded", lambda path: (probe(path), segment(path, 0, 48_000)))


# --- false headers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0, 1, 999, 768_001, 2**31 - 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("name", ["pcm16.wav", "a.au"])
def test_impossible_sampling_rates(name, rate, whole, tmp_path):
    content = bytearray(whole[name])
    struct.pack_into("<I" if name.endswith("wav") else ">I", content, 24 if name.endswith("wav") else 16, rate)
    path = write(tmp_path / name, content)
    for read in (probe, segment):
        refused(path, "sampling rate|cannot be decoded", read)


@pytest.mark.parametrize("channels", [0, 65, 1024, 65535])
def test_impossible_channels(channels, whole, tmp_path):
    content = bytearray(whole["pcm16.wav"])
    struct.pack_into("<HIIH", content, 22, channels, RATE, 2 * channels * RATE, 2 * channels % 65536)
    for read in (probe, segment):
        refused(write(tmp_path / "a.wav", content), "channels|cannot be decoded", read)


@pytest.mark.parametrize("rate", [1000, 8000, 44101, 192_000, 767_999])
def test_rare_rates_are_read(rate, tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.3 * np.sin(np.arange(2 * rate) / rate * 600), rate)
    assert probe(tmp_path / "a.wav").seconds == 2
    assert np.abs(segment(tmp_path / "a.wav", 1000, 16000)).max() == pytest.approx(0.3, abs=0.02)


def test_memory_grows_with_what_is_there_not_with_what_is_asked_for(whole, tmp_path):
    """A header of 64 channels at 768 kHz and an endless segment: reading takes no more than the file gives."""
    import tracemalloc

    content = bytearray(whole["pcm16.wav"])
    struct.pack_into("<HIIH", content, 22, 64, 768_000, 128 * 768_000, 128)
    path = write(tmp_path / "a.wav", content)
    tracemalloc.start()
    read_segment(path, 0, 2**40, sample_rate=16000)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_segments_of_many_blocks(monkeypatch, whole, tmp_path):
    expected = {}
    for name in WRITTEN:
        write(tmp_path / name, whole[name])
        expected[name] = segment(tmp_path / name, 5000, 30_000), segment(tmp_path / name, 40_000, 30_000)
    monkeypatch.setattr(decode, "_BLOCK", 1000)
    for name, segments in expected.items():
        np.testing.assert_array_equal(segment(tmp_path / name, 5000, 30_000), segments[0], err_msg=name)
        np.testing.assert_array_equal(segment(tmp_path / name, 40_000, 30_000), segments[1], err_msg=name)


# --- short, silent, long, odd -----------------------------------------------------------------------------------------


def test_one_sample(tmp_path):
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, [0.5], 44100)
        assert probe(tmp_path / name).frames == 1
        np.testing.assert_allclose(read_segment(tmp_path / name, 0, 9, sample_rate=44100), [[0.5]], atol=1e-4)
        refused(tmp_path / name, "too short: not one sample at 16000 Hz", segment)


def test_a_last_sample_that_resampling_swallows(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(44101, 0.1), 44100)
    assert segment(tmp_path / "a.wav", 15_999, 100).shape[1] >= 1
    refused(tmp_path / "a.wav", "too short|ends before", lambda path: segment(path, 16_000, 100))


def test_silence_and_denormals(tmp_path):
    for name in ("a.wav", "a.flac", "a.ogg", "a.mp3", "a.au"):
        soundfile.write(tmp_path / name, np.zeros(RATE), RATE)
        assert probe(tmp_path / name).frames == RATE
        assert not segment(tmp_path / name).any()
    soundfile.write(tmp_path / "tiny.wav", np.full(RATE, 1e-40, np.float32), RATE, subtype="FLOAT")
    assert np.abs(segment(tmp_path / "tiny.wav")).max() < 1e-38


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("channel", [0, 7])
def test_one_bad_sample_in_eight_channels(value, channel, tmp_path):
    samples = np.zeros((RATE, 8), np.float32)
    samples[11_000, channel] = value
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    refused(tmp_path / "a.wav", "peaks at 1e[+]30" if value == 1e30 else "NaN or infinite", segment)
    assert not segment(tmp_path / "a.wav", 12_000, 100).any()


@pytest.mark.parametrize(
    "name",
    [
        "a.wav",
        "a.flac",
        pytest.param("a.ogg", marks=pytest.mark.slow),
        pytest.param("a.mp3", marks=pytest.mark.slow),
        pytest.param("n.mp3", marks=pytest.mark.slow, id="mp3 without Xing"),
    ],
)
def test_two_hours(name, tmp_path):
    rate, minute = 8000, np.random.default_rng(0).standard_normal(8000 * 60).astype(np.float32) / 10
    path = tmp_path / ("a.mp3" if name == "n.mp3" else name)
    more = {"bitrate_mode": "CONSTANT", "compression_level": 0.9} if name.endswith("mp3") else {}
    with soundfile.SoundFile(path, "w", rate, 1, **more) as file:
        for _ in range(120):
            file.write(minute)
    if name == "n.mp3":
        path.write_bytes(without_xing(path.read_bytes()))
    assert probe(path).seconds == pytest.approx(7200, abs=0.3)
    with soundfile.SoundFile(path) as file:
        for second in (3600, 7195):
            run_up = 40_000 if name.endswith("mp3") else 0
            file.seek(second * rate - run_up)
            truth = file.read(run_up + 4 * rate, dtype="float32")[run_up:]
            got = read_segment(path, second * rate, 4 * rate, sample_rate=rate)[0]
            np.testing.assert_allclose(got, truth, atol=1e-4)


def test_extensions_that_are_wrong(whole, tmp_path):
    sound = ("pcm16.wav", "a.flac", "a.ogg", "opus.ogg", "constant.mp3", "a.au")
    for name in sound:
        for extension in READ:
            path = write(tmp_path / f"x{extension}", whole[name])
            assert probe(path).seconds == pytest.approx(3)
            assert segment(path).shape == (1, 8000)
    rng = np.random.default_rng(0)
    others = {
        "jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF\0" + rng.bytes(40_000),
        "png": b"\x89PNG\r\n\x1a\n" + rng.bytes(40_000),
        "raw": (rng.standard_normal(40_000) * 3000).astype(np.int16).tobytes(),
        "mp4": b"\0\0\0\x20ftypM4A \0\0\0\0" + rng.bytes(40_000),
        "aiff": b"FORM\0\0\0\x2eAIFFCOMM" + bytes(60),
        "nist": b"NIST_1A\n   1024\n" + bytes(2000),
        "avi": b"RIFF\0\x10\0\0AVI LIST" + bytes(4000),
        "one byte": b"\xff",
        "zeros": bytes(40_000),
    }
    for content in others.values():
        for extension in READ:
            path = write(tmp_path / f"y{extension}", content)
            refused(path, "cannot be decoded")


def test_a_wav_whose_name_says_raw(whole, tmp_path):
    assert probe(write(tmp_path / "a.raw", whole["pcm16.wav"])).frames == 3 * RATE
    refused(write(tmp_path / "b.raw", bytes(4000)), "cannot be decoded")


# --- what is no regular file ------------------------------------------------------------------------------------------


def test_pipes_devices_sockets_and_loops(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    os.symlink("/dev/zero", tmp_path / "zero.wav")
    os.symlink("loop.wav", tmp_path / "loop.wav")
    os.symlink("two.wav", tmp_path / "one.wav")
    os.symlink("one.wav", tmp_path / "two.wav")
    os.symlink("nowhere.wav", tmp_path / "gone.wav")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "s.wav"))  # such names are limited to 108 bytes
        for read in (probe, segment):
            for name in ("pipe.wav", "zero.wav", "s.wav"):
                refused(tmp_path / name, "is not a regular file", read)
            for name in ("loop.wav", "one.wav"):
                refused(tmp_path / name, "is a link loop", read)
            refused(tmp_path / "gone.wav", "does not exist", read)
            refused(str(tmp_path / "a\0b.wav"), "zero byte", read)
            refused(tmp_path / ("x" * 300 + ".wav"), "cannot be opened", read)


def unreadable_folder(monkeypatch, folder):
    """Root reads whatever it likes: a folder that refuses must be played to it."""
    scandir = os.scandir

    def refuse(path="."):
        if os.fspath(path) == os.fspath(folder):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_no_permission(whole, tmp_path):
    write(tmp_path / "a.wav", whole["pcm16.wav"]).chmod(0)
    refused(tmp_path / "a.wav", "cannot be opened .*denied")


def test_every_file_of_a_folder_is_accounted_for(whole, tmp_path, monkeypatch):
    root = tmp_path / "set"
    good = {"jazz/a.wav", "jazz/deep/er/b.ogg", "jazz/album.wav/c.flac", "rock/wrong.mp3", "rock/new\nline.wav"}
    for name in sorted(good):
        write(root / name, whole["a.flac" if name.endswith("wrong.mp3") else "a.ogg"])
    latin = os.path.join(os.fsencode(root), b"rock", b"caf\xe9.wav")
    with open(latin, "wb") as file:
        file.write(whole["pcm16.wav"])
    good.add(os.fsdecode(b"rock/caf\xe9.wav"))
    bad = {
        "jazz/empty.wav": "is empty",
        "jazz/cut.wav": "is truncated",
        "jazz/text.mp3": "cannot be decoded",
        "jazz/picture.au": "cannot be decoded",
        "jazz/song.m4a": "convert it",
        "jazz/folder.wav": "is a folder",
        "jazz/song.opus": "is a folder",
        "jazz/locked": "cannot be opened (Permission denied)",
        "jazz/pipe.wav": "is not a regular file",
        "jazz/self.wav": "is a link loop",
        "jazz/self": "is a link loop",
        "jazz/gone.wav": "does not exist",
        "jazz/lost disc": "does not exist",
        "jazz/up": "is a link back to a folder above it",
        "jazz/deep/er/back": "is a link back to a folder above it",
        "jazz/again": "is a link to a folder",
        "rock/all": "is a link back to a folder above it",
        "rock/new\nend.wav": "is empty",
    }
    write(root / "jazz/cut.wav", whole["pcm16.wav"][:5000])
    write(root / "jazz/text.mp3", b"<html>not found</html>" * 99)
    write(root / "jazz/picture.au", b"\x89PNG\r\n\x1a\n" + bytes(5000))
    for name in ("jazz/empty.wav", "jazz/song.m4a", "rock/new\nend.wav"):
        write(root / name, b"")
    for name in ("jazz/folder.wav/cover", "jazz/song.opus", "jazz/locked"):
        (root / name).mkdir(parents=True)
    os.mkfifo(root / "jazz/pipe.wav")
    for name, target in {
        "jazz/self.wav": "self.wav",
        "jazz/self": "self",
        "jazz/gone.wav": "nowhere.wav",
        "jazz/lost disc": "/nowhere/at all",
        "jazz/cover.jpg": "nowhere.jpg",
        "jazz/up": "..",
        "jazz/deep/er/back": "../../../jazz",
        "jazz/again": "deep",
        "rock/all": root,
    }.items():
        os.symlink(target, root / name)
    unreadable_folder(monkeypatch, root / "jazz" / "locked")
    manifest = gafx.load_manifest("folder", root)
    assert {manifest.relative_path(row) for row in range(len(manifest))} == good
    skipped = {entry.path: entry.reason for entry in manifest.skipped}
    assert set(skipped) == set(bad)
    for name, reason in bad.items():
        assert reason in skipped[name], name
    assert len(manifest) + len(manifest.skipped) == len(good) + len(bad)
    assert all("\n" not in line for entry in manifest.skipped for line in entry.as_dict().values())


def test_a_class_folder_that_is_a_link(whole, tmp_path):
    write(tmp_path / "elsewhere" / "a.wav", whole["pcm16.wav"])
    write(tmp_path / "set" / "jazz" / "b.wav", whole["pcm16.wav"])
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "rock")
    os.symlink(tmp_path / "set" / "jazz", tmp_path / "elsewhere" / "jazzy")  # another class's folder: legal
    os.symlink(tmp_path / "set", tmp_path / "set" / "all")  # a class that would hold every class
    manifest = gafx.load_manifest("folder", tmp_path / "set")
    found = [manifest.relative_path(row) for row in range(len(manifest))]
    assert found == ["jazz/b.wav", "rock/a.wav", "rock/jazzy/b.wav"]
    assert [entry.reason for entry in manifest.skipped] == ["is a link back to a folder above it"]


def test_links_between_folders_make_no_endless_walk(whole, tmp_path):
    folders = [tmp_path / f"f{number:02d}" for number in range(12)]
    for folder in folders:
        write(folder / "a.wav", whole["pcm16.wav"])
        for other in folders:
            os.symlink(other, folder / f"to {other.name}")
    listed = list(audio_files(tmp_path))
    assert len([path for path in listed if path.endswith("a.wav")]) == 12
    assert len(listed) == 12 + 144
    assert listed == sorted(listed, key=lambda path: path.split(os.sep))


def test_a_skipped_file_is_one_line():
    entry = Skipped("a\nb\r\t\x1b[2J\u2028\udce9 é 音.wav", "is empty").as_dict()
    assert entry["path"] == r"a\nb\r\t\x1b[2J\u2028\xe9 é 音.wav"


# --- real files, and damaged ones by the hundred ----------------------------------------------------------------------


@pytest.mark.skipif(not DATA.is_dir(), reason="the real data sets are not next to the checkout (../shared/data)")
def test_real_files_are_whole():
    paths = [path for path in DATA.rglob("*") if path.suffix in READ and not path.is_symlink()]
    assert len(paths) > 400
    for path in paths:
        info = probe(path)
        end = resampled_length(info.frames, info.sample_rate, 16000)
        assert segment(path, max(0, end - 8000), 8000).shape[1] > min(end, 8000) - 321


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_fuzzed_files():
    summary = fuzz_audio.fuzz(300, seed=1234, workers=1)
    assert len(summary.results) == 300
    assert not summary.failures, summary.table()
    assert any(not result.reason for result in summary.results)


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_a_fuzz_run_notices_crashes_hangs_and_memory(monkeypatch, tmp_path):
    """Workers that die, hang or grow are counted as failures, and the run continues."""
    summary = fuzz_audio.fuzz(8, seed=1, workers=2, seconds=1.5, keep=str(tmp_path), act=misbehave)
    failures = {result.index: result.failure for result in summary.failures}
    assert len(summary.results) == 8
    assert set(failures) == {1, 3, 5}
    assert "exit code -11" in failures[1]
    assert "more than 1.5 s" in failures[3]
    assert "MemoryError" in failures[5]
    assert sorted(path.name.split(".")[0] for path in tmp_path.iterdir()) == ["1-1", "1-3", "1-5"]


def misbehave(path, rng):
    number = Path(path).stem
    if number == "1":
        os.kill(os.getpid(), 11)
    if number == "3":
        import time

        time.sleep(60)
    if number == "5":
        np.ones(2**30, np.uint8)
    return ""
