"""Wrong headers, joined recordings, missing sound: data sets read whole files, labelling what can be read, with a note.

The references are the recordings that a file was made of, each read alone.
"""

import io
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from odd_headers import in_ogg, inside_wav, repair_checksums, two_chunks, without_end, without_total, zeroed

import gafx
from gafx.audio import integrity
from gafx.audio.decode import Encoded
from gafx.audio.read import probe, read_segment, resample, stream
from gafx.cli import main
from gafx.deploy.files import find_files
from gafx.errors import UnreadableAudio, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:the maps of this model")

RATE = 22050
CASES = Path(__file__).resolve().parents[2] / "shared" / "cases" / "audio"


def sound(seed=0, seconds=3.0, rate=RATE, channels=1):
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate))[:, None] / rate
    tone = 0.3 * np.sin(2 * np.pi * (220 + 50 * seed + 10 * np.arange(channels)) * time)
    return tone + 0.05 * rng.standard_normal(tone.shape)


def encoded(form, seed=0, seconds=3.0, rate=RATE, channels=1, **options):
    file = io.BytesIO()
    soundfile.write(file, sound(seed, seconds, rate, channels), rate, format=form, **options)
    return file.getvalue()


def with_av(form, codec, rate=44100, options=None, seconds=2.0):
    av = pytest.importorskip("av")
    file = io.BytesIO()
    samples = sound(seconds=seconds, rate=rate)[:, 0]
    with av.open(file, "w", format=form) as container:
        track = container.add_stream(codec, rate=rate, layout="mono", options=options or {})
        size = track.codec_context.frame_size or 1152
        for start in range(0, len(samples), size):
            values = np.int16(32767 * samples[None, start : start + size].clip(-1, 1))
            frame = av.AudioFrame.from_ndarray(values, format="s16", layout="mono")
            frame.sample_rate, frame.pts = rate, start
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return file.getvalue()


def lame(seed=0, rate=RATE, channels=1, bit_rate=64):
    encoder = pytest.importorskip("lameenc").Encoder()
    encoder.set_bit_rate(bit_rate)
    encoder.set_in_sample_rate(rate)
    encoder.set_channels(channels)
    encoder.silence()
    values = np.int16(32767 * sound(seed, rate=rate, channels=channels).clip(-1, 1))
    return bytes(encoder.encode(values.tobytes()) + encoder.flush())


def labelled(content, rate=RATE, **options):
    """All samples that labelling reads, `(samples,)`, and its notes."""
    notes = []
    path = content if isinstance(content, (str, Path)) else Encoded(bytes(content))
    found = list(stream(path, sample_rate=rate, any_format=True, note=notes.append, **options))
    return np.concatenate(found, axis=1)[0], notes


def alone(content, rate=RATE):
    """The reference: a whole recording by soundfile and soxr."""
    samples, own = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    return resample(samples.mean(axis=1, keepdims=True), own, rate)[:, 0]


ID3 = b"ID3\3\0\0\0\0\x20\0" + bytes(4096)
TAG = b"TAG" + bytes(125)
JOINED = {
    "mp3, each with a Xing header": lambda: ([encoded("MP3"), encoded("MP3", 1)], b"", b""),
    "mp3, variable bit rate": lambda: (
        [encoded("MP3", s, bitrate_mode="VARIABLE", compression_level=0.5) for s in (0, 1)], b"", b"",
    ),
    "mp3, the same twice": lambda: ([encoded("MP3")] * 2, b"", b""),
    "mp3, tags, rates and channels": lambda: (
        [encoded("MP3"), encoded("MP3", 1), encoded("MP3", 2, 1.5, 44100, 2), encoded("MP3", 3, 1, 48000)], ID3, TAG,
    ),
    "flac": lambda: ([encoded("FLAC"), encoded("FLAC", 1, 2)], b"", b""),
    "flac, the same thrice": lambda: ([encoded("FLAC")] * 3, b"", b""),
    "flac, other rate, channels and bits": lambda: (
        [encoded("FLAC"), encoded("FLAC", 1, 1, 44100, 2, subtype="PCM_24")], b"", b"",
    ),
    "vorbis, the same number": lambda: ([encoded("OGG")] * 2, b"", b""),
    "vorbis, other numbers": lambda: ([encoded("OGG"), encoded("OGG", 1), encoded("OGG", 2, 1)], b"", b""),
    "vorbis, other rate and channels": lambda: ([encoded("OGG"), encoded("OGG", 1, 2, 44100, 2)], b"", b""),
    "opus": lambda: (
        [encoded("OGG", 0, 1.5, 48000, subtype="OPUS"), encoded("OGG", 1, 1, 48000, subtype="OPUS")], b"", b"",
    ),
    "opus, the same number": lambda: ([encoded("OGG", 0, 1.5, 48000, subtype="OPUS")] * 2, b"", b""),
    "vorbis and opus": lambda: ([encoded("OGG"), encoded("OGG", 1, 1, 48000, subtype="OPUS")], b"", b""),
    "wav, other rate": lambda: ([encoded("WAV"), encoded("WAV", 1, 1, 44100)], b"", b""),
    "wav, other bits": lambda: ([encoded("WAV"), encoded("WAV", 1, subtype="FLOAT")], b"", b""),
}  # fmt: skip


@pytest.mark.parametrize("kind", JOINED)
def test_joined_recordings_are_labelled_whole_and_refused_by_data_sets(kind):
    recordings, before, after = JOINED[kind]()
    content = b"".join(before + each + after for each in recordings)
    rate = 48000 if kind.startswith("opus") else RATE  # resampling goes on from one to the next of the same rate
    found, notes = labelled(content, rate)
    np.testing.assert_allclose(found, np.concatenate([alone(each, rate) for each in recordings]), atol=1e-5)
    assert [note for note in notes if f"holds {len(recordings)} recordings" in note] == notes
    assert len(notes) == 1
    with pytest.raises(
        UnreadableAudio, match=f"holds {len(recordings)} recordings.*(ffmpeg -i FILE NEW.flac|split it)"
    ):
        probe(Encoded(content))
    with pytest.raises(UnreadableAudio):  # without a place for the note
        list(stream(Encoded(content), sample_rate=RATE, any_format=True))


def wav_with(size, tail=b"", **options):
    wav = encoded("WAV", **options)
    at = wav.index(b"data") + 4
    return wav[:at] + struct.pack("<I", size(struct.unpack_from("<I", wav, at)[0])) + wav[at + 4 :] + tail


WHOLE = {
    "wav, size 0": lambda: (wav_with(lambda size: 0), encoded("WAV")),
    "wav, size 0, odd samples": lambda: (wav_with(lambda size: 0, subtype="PCM_U8"), encoded("WAV", subtype="PCM_U8")),
    "wav, size 0, big-endian": lambda: (
        encoded("WAV", endian="BIG").replace(b"data" + struct.pack(">I", 132300), b"data" + bytes(4)), encoded("WAV"),
    ),
    "wav, all sizes 0": lambda: (zeroed(wav_with(lambda size: 0), 4, 8), encoded("WAV")),
    **{
        f"wav, {by} too large": lambda by=by: (wav_with(lambda size: size + by), encoded("WAV"))
        for by in (1, 2, 8, 36, 44)
    },
    "wav, size too large, 24 bit": lambda: (
        wav_with(lambda size: size + 8, subtype="PCM_24"), encoded("WAV", subtype="PCM_24"),
    ),
    "wav, tag behind": lambda: (encoded("WAV") + TAG, encoded("WAV")),
    "wav, chunk behind": lambda: (encoded("WAV") + b"LIST\4\0\0\0INFO", encoded("WAV")),
    "wav, two chunks of samples": lambda: (two_chunks(encoded("WAV")), encoded("WAV")),
    "rf64, sizes 0": lambda: (zeroed(encoded("RF64"), 20, 44), encoded("RF64")),
    "au, size 0": lambda: (zeroed(encoded("AU"), 8, 12), encoded("AU")),
    "au, header counted": lambda: (encoded("AU")[:8] + struct.pack(">I", 132324) + encoded("AU")[12:], encoded("AU")),
    "flac, no total": lambda: (without_total(encoded("FLAC")), encoded("FLAC")),
    "flac, no total, stereo, 24 bit": lambda: (
        without_total(encoded("FLAC", channels=2, subtype="PCM_24")), encoded("FLAC", channels=2, subtype="PCM_24"),
    ),
    "flac, no total, short": lambda: (without_total(encoded("FLAC", seconds=0.01)), encoded("FLAC", seconds=0.01)),
    "flac in ogg": lambda: (in_ogg(encoded("FLAC")), encoded("FLAC")),
    "flac in ogg, no total": lambda: (in_ogg_without_total(), encoded("FLAC")),
    "mp3 in wav": lambda: (inside_wav(encoded("MP3"), RATE), encoded("MP3")),
    "mp3 in wav, no Xing": lambda: (inside_wav(lame(), RATE), lame()),
    "vorbis, no end": lambda: (without_end(encoded("OGG")), encoded("OGG")),
    "vorbis, no end, stereo": lambda: (without_end(encoded("OGG", channels=2)), encoded("OGG", channels=2)),
    "opus, no end": lambda: (
        without_end(encoded("OGG", rate=48000, subtype="OPUS")), encoded("OGG", rate=48000, subtype="OPUS"),
    ),
}  # fmt: skip


def in_ogg_without_total():
    flac = encoded("FLAC")
    content = bytearray(in_ogg(flac))
    at = content.index(b"fLaC") + 21
    content[at : at + 5] = bytes([content[at] & 0xF0, 0, 0, 0, 0])
    repair_checksums(content)
    return bytes(content)


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_files_with_wrong_headers_are_read_everywhere(kind):
    content, original = WHOLE[kind]()
    expected, rate = soundfile.read(io.BytesIO(original), dtype="float32", always_2d=True)
    expected = expected.mean(axis=1)
    assert probe(Encoded(content)).frames == len(expected)
    found, notes = labelled(content, rate)
    assert notes == []
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for start in np.random.default_rng(0).integers(0, len(expected), 5):
        segment = read_segment(Encoded(content), int(start), 3000, sample_rate=rate)[0]
        np.testing.assert_allclose(segment, expected[start : start + 3000], atol=2e-5)


def test_wavs_of_one_format_one_after_the_other_are_one():
    content = encoded("WAV") + encoded("WAV", 1) + encoded("WAV", 2)
    expected = np.concatenate([alone(encoded("WAV", seed)) for seed in range(3)])
    assert probe(Encoded(content)).frames == len(expected)
    np.testing.assert_array_equal(labelled(content)[0], expected)
    np.testing.assert_array_equal(
        read_segment(Encoded(content), 66_000, 70_000, sample_rate=RATE)[0], expected[66_000:136_000]
    )


def test_wavs_joined_after_an_odd_number_of_bytes():
    first = encoded("WAV", subtype="PCM_U8", seconds=0.1)[:-1]  # 2,205 bytes, without the one that makes them even
    assert len(first) == 44 + 2205
    found, _ = labelled(first + encoded("WAV", 1, 1, 44100), 44100)
    np.testing.assert_allclose(found[-44100:], alone(encoded("WAV", 1, 1, 44100), 44100), atol=1e-6)


@pytest.mark.parametrize("subtype", ["IMA_ADPCM", "MS_ADPCM", "ULAW", "GSM610"])
def test_a_wav_of_other_codecs_whose_size_was_never_written(subtype):
    wav = encoded("WAV", subtype=subtype, rate=8000)
    at = wav.index(b"data") + 4
    content = zeroed(wav, at, at + 4)
    expected = soundfile.SoundFile(io.BytesIO(wav)).read(10**6, dtype="float32")
    np.testing.assert_allclose(labelled(content, 8000)[0], expected, atol=1e-6)


def test_ffmpeg_reads_what_libsndfile_cannot():
    content = with_av("wav", "adpcm_yamaha", 22050)
    found, notes = labelled(content)
    assert np.std(found[: 2 * RATE] - sound(seconds=2)[:, 0]) < 0.02  # 4 bits a sample
    assert "FFmpeg read 2." in notes[0]
    with pytest.raises(UnreadableAudio):
        probe(Encoded(content))


def test_layer_2_in_a_wav():
    mp2 = with_av("mp2", "mp2", 44100)
    content = inside_wav(mp2, 44100, tag=0x50)
    np.testing.assert_array_equal(labelled(content, 44100)[0], labelled(mp2, 44100)[0])
    assert probe(Encoded(content)).frames == probe(Encoded(mp2)).frames


def test_a_wav_called_raw(tmp_path):
    (tmp_path / "a.raw").write_bytes(encoded("WAV"))
    np.testing.assert_array_equal(labelled(tmp_path / "a.raw")[0], alone(encoded("WAV")))
    assert probe(tmp_path / "a.raw").frames == 3 * RATE


@pytest.mark.parametrize(("form", "codec", "rate"), [("mp2", "mp2", 44100), ("mp2", "mp2", 16000)])
def test_layer_2(form, codec, rate):
    content = with_av(form, codec, rate)
    expected = soundfile.SoundFile(io.BytesIO(content)).read(10**6, dtype="float32")
    assert probe(Encoded(content)).frames == len(expected) >= 2 * rate
    found, notes = labelled(content, rate)
    assert notes == []
    np.testing.assert_array_equal(found, expected)


MISSING = {
    "wav, cut": (lambda: encoded("WAV")[:90_000], 44_978, "is truncated"),
    "wav, more cut than an encoder's error": (lambda: encoded("WAV")[:-46], 66_127, "is truncated"),
    "aiff, cut": (lambda: encoded("AIFF")[:90_000], 44_000, "is truncated"),
    "flac, cut": (lambda: encoded("FLAC")[:70_000], 30_000, "truncated"),
    "flac, no total, cut": (lambda: without_total(encoded("FLAC")[:70_000]), 30_000, "truncated|how long"),
    "mp3, cut": (lambda: encoded("MP3")[:10_900], 40_000, "is truncated"),
    "mp3 in wav, cut": (lambda: inside_wav(encoded("MP3"), RATE)[:10_900], 40_000, "is truncated"),
    "mp3, junk in it": (lambda: _with_junk(encoded("MP3")), 63_000, "that are no audio"),
    "mp3, zeros in it": (lambda: _with_junk(encoded("MP3"), bytes(70_000)), 63_000, "that are no audio"),
    "mp3, no Xing, junk in it": (lambda: _with_junk(lame()), 65_000, "that are no audio"),
    "vorbis, cut": (lambda: encoded("OGG")[:-100], 40_000, "is truncated"),
    "au, size too small": (
        lambda: encoded("AU")[:8] + struct.pack(">I", 60_000) + encoded("AU")[12:],
        66_150,
        "goes on",
    ),
    "flac, total too small": (
        lambda: encoded("FLAC")[:22] + struct.pack(">I", 20_000) + encoded("FLAC")[26:],
        66_150,
        "header for 20000 samples",
    ),
    "flac, stereo, total too small": (
        lambda: zeroed(encoded("FLAC", channels=2), 22, 24),
        66_150,
        "header for .* samples, and 66150",
    ),
    "wav, size too small": (lambda: wav_with(lambda size: 1000), 66_150, "goes on after"),
}


def _with_junk(content, junk=None):
    half = len(content) // 2
    return content[:half] + (np.random.default_rng(1).bytes(5000) if junk is None else junk) + content[half:]


@pytest.mark.parametrize("kind", MISSING)
def test_where_sound_is_missing_data_sets_refuse_and_labelling_reads_the_rest(kind):
    make, least, reason = MISSING[kind]
    content = make()
    with pytest.raises(UnreadableAudio, match=reason):
        list(stream(Encoded(content), sample_rate=RATE, any_format=kind.startswith("aiff")))
    found, notes = labelled(content)
    assert least <= len(found) <= 3.2 * RATE
    assert len(notes) == 1
    assert "s of it were read" in notes[0]
    if "cut" in kind and "mp3" not in kind:
        whole = alone(encoded({"wav": "WAV", "aif": "AIFF", "fla": "FLAC", "vor": "OGG"}[kind[:3]]))
        np.testing.assert_allclose(found, whole[: len(found)], atol=1e-4)


def test_an_mp3_whose_header_promises_less_than_it_holds():
    content = bytearray(encoded("MP3"))
    at = content.index(b"Info") if b"Info" in content else content.index(b"Xing")
    (frames, size) = struct.unpack_from(">II", content, at + 8)
    struct.pack_into(">I", content, at + 8, frames // 2)
    with pytest.raises(UnreadableAudio, match=f"header for {frames // 2} frames, and {frames} of them"):
        probe(Encoded(bytes(content)))
    assert len(labelled(content)[0]) == 3 * RATE
    struct.pack_into(">II", content, at + 8, frames // 2, size // 2)
    with pytest.raises(UnreadableAudio):
        probe(Encoded(bytes(content)))
    assert len(labelled(content)[0]) == 3 * RATE


def test_what_is_no_sound_stays_an_error():
    samples = sound(seconds=10)
    samples[5 * RATE] = np.nan
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="FLOAT")
    for content in (file.getvalue(), file.getvalue()[:-4000]):
        with pytest.raises(UnreadableAudio, match="NaN"):
            labelled(content)
    for content in (b"words " * 1000, bytes(4000), b"RIFF" + bytes(100), b"OggS" + bytes(1000), b"fLaC" + bytes(1000)):
        with pytest.raises(UnreadableAudio):
            labelled(content)


# --- decoding in one go, in blocks and from anywhere ------------------------------------------------------------------


LOSSY = {
    "vorbis": lambda seconds: encoded("OGG", seconds=seconds, rate=44100),
    "mp3": lambda seconds: encoded("MP3", seconds=seconds, rate=44100),
    "mp3, variable": lambda seconds: encoded("MP3", 0, seconds, 44100, bitrate_mode="VARIABLE", compression_level=0.9),
    "opus": lambda seconds: encoded("OGG", seconds=seconds, rate=48000, subtype="OPUS"),
    **{
        f"opus, frames of {ms} ms": lambda seconds, ms=ms: with_av(
            "ogg", "libopus", 48000, {"frame_duration": str(ms)}, seconds
        )
        for ms in (2.5, 5, 10, 40, 60)
    },
}


@pytest.mark.parametrize("kind", LOSSY)
def test_blocks_and_segments_are_slices_of_one_decoding(kind):
    """Decoders have a state: after a seek, or at the end, some give other samples than on the way through."""
    for seconds in (0.0025, 0.01, 0.011, 0.03, 0.05, 0.1, 1.1, 4.3):
        if kind.startswith(("mp3", "vorbis")) and seconds < 0.03:
            continue
        content = LOSSY[kind](seconds)
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            rate, whole = file.samplerate, file.read(dtype="float32")
        for block in (0.013, 0.3, 2.0, 30.0):
            found = np.concatenate(list(stream(Encoded(content), sample_rate=rate, block_seconds=block)), axis=1)[0]
            np.testing.assert_array_equal(found, whole, err_msg=f"{seconds} s in blocks of {block} s")
        for start in np.random.default_rng(1).integers(0, len(whole), 12).tolist():
            segment = read_segment(Encoded(content), start, 3000, sample_rate=rate)[0]
            np.testing.assert_allclose(segment, whole[start : start + 3000], atol=1e-4, err_msg=f"{seconds} s, {start}")


# --- the files of the bug reports -------------------------------------------------------------------------------------


@pytest.mark.skipif(not CASES.is_dir(), reason="the small inputs are not next to the checkout (../shared/cases/audio)")
@pytest.mark.parametrize(
    ("name", "samples", "note", "refused"),
    [
        ("chained_same_serial.ogg", 132_300, "holds 2 recordings", True),
        ("concat_xing.mp3", 132_300, "holds 2 recordings", True),
        ("data0.wav", 66_150, "", False), ("layer2.mp2", 66_816, "", False), ("noeos.ogg", 66_150, "", False),
        ("ogg_flac.oga", 66_150, "", False), ("one_byte_short.wav", 66_150, "", False), ("s.wav", 66_150, "", False),
        ("unknown_total.flac", 66_150, "", False), ("opus_10ms.opus", 480, "", False),
    ],
)  # fmt: skip
def test_the_inputs_of_the_reports(name, samples, note, refused):
    path = CASES / name
    rate = soundfile.info(path).samplerate if name.startswith("opus") else RATE
    found, notes = labelled(path, rate)
    assert len(found) == samples
    assert note in " ".join(notes)
    assert bool(notes) == refused
    if refused:
        with pytest.raises(UnreadableAudio, match=note):
            probe(path)
        return
    assert probe(path).frames == samples
    np.testing.assert_array_equal(read_segment(path, 0, 10**6, sample_rate=rate)[0], found)
    if name not in ("layer2.mp2", "opus_10ms.opus"):
        original = soundfile.read(CASES / "s.wav", dtype="float32")[0]
        lossless = name != "noeos.ogg"
        np.testing.assert_allclose(found, original, atol=1e-4 if lossless else 0.2)


# --- what the user is told --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return gafx.create_model("mel", {"name": "ast", "depth": 1}, classes=["a", "b"], segment_seconds=1.0).eval()


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "model"
    model.save(folder)
    return folder


@pytest.fixture
def album(tmp_path):
    folder = tmp_path / "album"
    folder.mkdir()
    for name, content in (
        ("chained.ogg", encoded("OGG") * 2), ("cut.wav", encoded("WAV")[:90_000]), ("whole.wav", encoded("WAV")),
    ):  # fmt: skip
        (folder / name).write_bytes(content)
    return folder


def test_doubtful_files_are_labelled_with_a_note(model, run, album, capsys):
    chained, cut, whole = gafx.predict(album, model)
    assert chained.seconds == pytest.approx(6, abs=0.01)
    assert "holds 2 recordings" in chained.note
    assert cut.seconds == pytest.approx(2.04, abs=0.01)
    assert "is truncated" in cut.note
    assert whole.note is None
    assert "note" not in whole.to_dict()
    frame = gafx.predict(album, model).to_pandas()
    assert frame["note"].isna().tolist() == [False, False, True]
    assert main(["predict", str(album), "--model", str(run), "--json"]) in (0, None)
    out, err = capsys.readouterr()
    assert [entry.get("note") for entry in json.loads(out)] == [chained.note, cut.note, None]
    assert "2 files doubtful" in err
    assert f"{album / 'cut.wav'}: {cut.note}" in err
    assert main(["features", str(album), "--model", str(run), "--output", str(album.parent / "out")]) in (0, None)
    assert "2 files doubtful" in capsys.readouterr().err


def test_a_folder_that_cannot_be_opened_is_an_error(model, run, album, monkeypatch, capsys):
    closed = album / "closed"
    closed.mkdir()
    (closed / "c.wav").write_bytes(encoded("WAV"))
    scandir = os.scandir

    def refused(path="."):
        if os.fspath(path) in (str(closed), os.fsencode(closed)):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)  # the tests may run as root, who can open everything
    assert find_files([str(album)]).files[1] == str(closed)
    found = {answer.file: answer.error for answer in gafx.predict(album, model)}
    assert found[str(closed)] == "is a folder that cannot be opened (Permission denied)"
    assert len(found) == 4
    for command in (["predict"], ["features", "--output", str(album.parent / "out")]):
        with pytest.raises(SystemExit) as ended:
            main([*command, str(album), "--model", str(run)])
        assert ended.value.code == 1
        assert f"{closed}: is a folder that cannot be opened (Permission denied)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["predict", str(closed), "--model", str(run)])
    assert "cannot be opened (Permission denied)" in capsys.readouterr().err
    from gafx.data.shards.layout import shard_files

    with pytest.raises(UsageError, match="closed is a folder of shards that cannot be opened"):
        shard_files(album)


def test_joined_recordings_are_found_at_every_place(tmp_path, rng):
    """Across the blocks that are searched, beside false beginnings, and none twice or in what an earlier block held."""
    marks = {"flac": b"fLaC\x80\0\0\x22", "ogg": b"OggS\0\2"}
    content = bytearray(rng.integers(256, size=600_001, dtype=np.uint8).tobytes())
    for number, place in enumerate([0, 300, 262_136, 262_140, 262_149, 524_270, 524_281, 599_990]):
        for at, mark in ((place, marks["flac"]), (place + 20_000, marks["ogg"]), (place + 40_000, b"fLaCOggSfLaC")):
            if at + len(mark) <= len(content):
                content[at : at + len(mark)] = mark
        content[280_000 + 9 * number : 280_004 + 9 * number] = b"fLaC"
    (tmp_path / "any").write_bytes(content)
    with open(tmp_path / "any", "rb", buffering=0) as file:
        for name, pattern in (("flac", integrity._FLAC_BEGINNING), ("ogg", integrity._OGG_BEGINNING)):
            expected = [match.start() for match in pattern.finditer(content)]
            assert len(expected) >= 6
            assert list(integrity._matches(file, pattern, len(marks[name]))) == expected
