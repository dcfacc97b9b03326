"""Reading segments: each equals the slice of the whole file resampled at once; unreadable files have a reason."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from gafx.audio import integrity
from gafx.audio.read import fit_length, mix_channels, probe, read_segment, resample, resampled_length, snap
from gafx.errors import UnreadableAudio, UsageError

FILES = {
    "pcm16.wav": {"subtype": "PCM_16"},
    "pcm24.wav": {"subtype": "PCM_24"},
    "float.wav": {"subtype": "FLOAT"},
    "a.flac": {},
    "a.ogg": {},
    "a.mp3": {},
    "a.au": {},
}
RATES = [(44100, 22050), (44100, 16000), (22050, 16000), (16000, 22050), (22050, 22050)]


def music(rng, seconds, rate, channels):
    """Noise with a slow swell, different in every channel, as loud as music."""
    samples = int(seconds * rate) + 7
    noise = rng.standard_normal((samples, channels))
    noise = (noise + np.roll(noise, 1, axis=0)) / 2
    return (0.15 * noise * (1 + np.sin(np.arange(samples) / rate * 3))[:, None]).clip(-1, 1)


def whole_file(path, sample_rate, channels):
    """The reference: soundfile and soxr on the whole file, then the channels: `(channels, samples)`."""
    samples, rate = soundfile.read(path, dtype="float64", always_2d=True)
    if rate != sample_rate:
        samples = soxr.resample(samples, rate, sample_rate, quality="HQ")
    if samples.shape[1] != channels:
        samples = np.repeat(samples.mean(axis=1, keepdims=True), channels, axis=1)
    return samples.T


def check_segments(path, sample_rate, channels, rng, segments=12):
    rate = soundfile.info(path).samplerate
    whole = whole_file(path, sample_rate, channels)
    step = sample_rate // np.gcd(rate, sample_rate)
    longest = whole.shape[1]
    cases = [(0, 1), (0, longest), (longest - 50, 500), (longest // 2, longest)]
    cases += [(int(rng.integers(longest)), int(rng.integers(1, longest))) for _ in range(segments)]
    for start, length in cases:
        begin = start // step * step
        expected = whole[:, begin : begin + length]
        segment = read_segment(path, start, length, sample_rate=sample_rate, channels=channels)
        assert segment.dtype == np.float32
        assert segment.flags.c_contiguous
        assert segment.shape == expected.shape, (start, length)
        np.testing.assert_allclose(segment, expected, atol=1e-4, rtol=0, err_msg=f"start {start}, length {length}")


@pytest.mark.parametrize(("rate", "sample_rate"), RATES)
@pytest.mark.parametrize("name", FILES)
def test_a_segment_equals_the_slice_of_the_whole(name, rate, sample_rate, rng, wav_factory):
    path = wav_factory(name, music(rng, 1.2, rate, 1), rate, **FILES[name])
    check_segments(path, sample_rate, 1, rng)


@pytest.mark.parametrize("rate", [48000, 24000])
def test_segments_of_opus(rate, rng, wav_factory):
    path = wav_factory("a.ogg", music(rng, 3, rate, 1), rate, format="OGG", subtype="OPUS")
    check_segments(path, 16000, 1, rng, segments=30)


@pytest.mark.parametrize("wanted", [1, 2])
@pytest.mark.parametrize(
    ("name", "channels"),
    [("a.wav", 2), ("a.wav", 8), ("a.flac", 2), ("a.flac", 8), ("a.ogg", 8), ("a.mp3", 2), ("a.wav", 1)],
)
def test_channels(name, channels, wanted, rng, wav_factory):
    path = wav_factory(name, music(rng, 0.6, 44100, channels), 44100)
    check_segments(path, 16000, wanted, rng, segments=4)


@pytest.mark.parametrize(
    ("rate", "channels", "options"),
    [
        (44100, 1, {}),
        (44100, 2, {"compression_level": 0.5, "bitrate_mode": "VARIABLE"}),
        (22050, 1, {"compression_level": 0.9, "bitrate_mode": "VARIABLE"}),
        (22050, 1, {"compression_level": 0.9, "bitrate_mode": "CONSTANT"}),
        (22050, 2, {"compression_level": 0.99, "bitrate_mode": "CONSTANT"}),
    ],
    ids=["44.1 kHz, default", "44.1 kHz, variable", "22 kHz, variable", "22 kHz, 24 kbit/s", "22 kHz, 8 kbit/s"],
)
@pytest.mark.parametrize("sample_rate", [22050, 16000])
def test_mp3_of_any_bit_rate(rate, channels, options, sample_rate, rng, wav_factory):
    """A frame of an mp3 takes bits from those before it, the more the lower and the less even its bit rate."""
    time = np.arange(int(4 * rate)) / rate
    swell = 0.3 * np.sin(2 * np.pi * 220 * time) * (1 + np.sin(2 * np.pi * 2 * time)) / 2
    bursts = 0.2 * rng.standard_normal(len(time)) * ((4 * time) % 1 < 0.1)
    path = wav_factory("a.mp3", np.stack([swell + bursts] * channels, axis=1), rate, **options)
    check_segments(path, sample_rate, 1, rng)


@pytest.mark.parametrize(("seconds", "rate"), [(10, 44100), (5, 44100), (10, 22050)])
@pytest.mark.parametrize("loudness", [0.15, 0.001])
def test_the_end_of_an_ogg(seconds, rate, loudness, rng, wav_factory):
    """libsndfile's own seeks into the last page land late: 17 of 441 of them at 44.1 kHz."""
    path = wav_factory("a.ogg", loudness * rng.standard_normal((seconds * rate + 7, 1)), rate)
    whole = whole_file(path, rate, 1)
    for start in [*range(whole.shape[1] - 60_000, whole.shape[1], 997), 100, whole.shape[1] // 2]:
        for length in (512, 100_000):
            segment = read_segment(path, start, length, sample_rate=rate)
            np.testing.assert_allclose(
                segment, whole[:, start : start + length], atol=1e-5, err_msg=f"{start} {length}"
            )


ESC10 = Path(__file__).resolve().parents[2] / "shared" / "data" / "esc10"


@pytest.mark.skipif(not ESC10.is_dir(), reason="the real ESC-10 is not next to the checkout (../shared/data/esc10)")
def test_real_oggs(rng):
    for path in sorted(ESC10.glob("*/*.ogg"))[::9]:
        check_segments(path, 44100, 1, rng, segments=3)
        whole = whole_file(path, 44100, 1)
        for start in rng.integers(180_000, whole.shape[1], 3).tolist():
            segment = read_segment(path, start, 2000, sample_rate=44100)
            np.testing.assert_allclose(segment, whole[:, start : start + 2000], atol=1e-4)


def test_an_mp3_is_read_without_a_word(rng, wav_factory, capfd):
    """libmpg123 remarks on every seek; what others write to standard error meanwhile is kept."""
    swell = music(rng, 20, 22050, 1) * np.abs(np.sin(np.arange(20 * 22050 + 7) / 3000))[:, None]
    path = wav_factory("a.mp3", swell, 22050, compression_level=0.9, bitrate_mode="CONSTANT")
    with ThreadPoolExecutor(4) as pool:
        for start in range(40):
            pool.submit(read_segment, path, 11025 * start, 22050 * 8, sample_rate=16000)
        for number in range(300):
            os.write(2, b"line %d\n" % number)
    assert capfd.readouterr().err.splitlines() == [f"line {number}" for number in range(300)]
    with soundfile.SoundFile(path) as file:  # the test could not fail otherwise
        for start in range(50_000, 400_000, 11_025):
            file.seek(start)
            file.read(10_000)
    assert "libmpg123" in capfd.readouterr().err


@pytest.fixture(scope="module")
def long_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("audio") / "long.flac"
    soundfile.write(path, music(np.random.default_rng(1), 3, 22050, 1), 22050)
    return path, whole_file(path, 16000, 1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(start=st.integers(0, 48_000), length=st.integers(1, 50_000))
def test_any_segment(long_file, start, length):
    path, whole = long_file
    begin = start - start % 320  # 16000 / gcd(22050, 16000) = 320 samples, 441 of the file's
    segment = read_segment(path, start, length, sample_rate=16000)
    np.testing.assert_allclose(segment, whole[:, begin : begin + length], atol=1e-4, rtol=0)


def test_two_segments_side_by_side_make_the_whole(long_file):
    path, whole = long_file
    cuts = [*range(0, whole.shape[1], 3200), whole.shape[1]]
    segments = [read_segment(path, begin, end - begin, sample_rate=16000) for begin, end in pairwise(cuts)]
    np.testing.assert_allclose(np.concatenate(segments, axis=1), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("start", "rates", "expected"),
    [
        (0, (22050, 16000), 0),
        (319, (22050, 16000), 0),
        (320, (22050, 16000), 320),
        (1000, (22050, 16000), 960),
        (1000, (16000, 22050), 882),
        (1001, (44100, 22050), 1001),
        (1001, (22050, 22050), 1001),
    ],
)
def test_snap(start, rates, expected):
    assert snap(start, *rates) == expected


@pytest.mark.parametrize("rates", [*RATES, (48000, 22050), (8000, 44100), (11025, 16000)])
def test_resampled_length_is_soxrs(rates):
    rng = np.random.default_rng(3)
    for samples in [*range(1, 200), *rng.integers(200, 6000, 60).tolist()]:
        real = len(resample(np.zeros((samples, 1), np.float32), *rates))
        assert resampled_length(samples, *rates) == real, samples


def test_mix_channels():
    stereo = np.array([[0.2, 0.6], [-1.0, 1.0]], np.float32)
    assert mix_channels(stereo, 2) is stereo
    np.testing.assert_allclose(mix_channels(stereo, 1), [[0.4], [0.0]], atol=1e-7)
    np.testing.assert_allclose(mix_channels(stereo[:, :1], 2), [[0.2, 0.2], [-1.0, -1.0]], atol=1e-7)
    many = np.arange(16, dtype=np.float32).reshape(2, 8)
    np.testing.assert_allclose(mix_channels(many, 2), [[3.5, 3.5], [11.5, 11.5]])


@pytest.mark.parametrize(
    ("length", "expected"),
    [(1, [1]), (3, [1, 2, 3]), (4, [1, 2, 3, 1]), (8, [1, 2, 3, 1, 2, 3, 1, 2])],
)
def test_fit_length(length, expected):
    samples = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    result = fit_length(samples, length)
    assert result.tolist() == [expected, [value + 3 for value in expected]]


def test_probe(rng, wav_factory):
    info = probe(wav_factory("a.flac", music(rng, 1, 16000, 2), 16000))
    assert (info.frames, info.sample_rate, info.channels) == (16007, 16000, 2)
    assert info.seconds == pytest.approx(16007 / 16000)


def test_loud_pcm_stays_within_one(wav_factory):
    samples = np.array([[-1.0], [1.0], [0.5], [0.0]] * 300)
    for name, arguments in FILES.items():
        if name.endswith((".wav", ".flac", ".au")):
            segment = read_segment(wav_factory(name, samples, 22050, **arguments), 0, 4, sample_rate=22050)
            np.testing.assert_allclose(segment, [[-1, 1, 0.5, 0]], atol=1e-4)


# --- files that cannot be read ----------------------------------------------------------------------------------------


def unreadable(path, reason, start=0, read=read_segment):
    assert issubclass(UnreadableAudio, UsageError)
    with pytest.raises(UnreadableAudio, match=reason):
        read(path, start, 1000, sample_rate=22050) if read is read_segment else read(path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.wav", b"", "is empty"),
        ("text.wav", b"not audio\n" * 50, "cannot be decoded"),
        ("text.mp3", b"<html>not found</html>" * 50, "cannot be decoded"),
        ("zeros.flac", bytes(4000), "cannot be decoded"),
    ],
)
@pytest.mark.parametrize("read", [read_segment, probe], ids=["read", "probe"])
def test_files_that_are_no_audio(tmp_path, name, content, reason, read):
    (tmp_path / name).write_bytes(content)
    unreadable(tmp_path / name, reason, read=read)


@pytest.mark.parametrize("read", [read_segment, probe], ids=["read", "probe"])
def test_a_missing_file_and_a_folder(tmp_path, read):
    unreadable(tmp_path / "no.wav", "does not exist", read=read)
    unreadable(tmp_path / "no" / "such.wav", "does not exist", read=read)
    (tmp_path / "x.wav").mkdir()
    unreadable(tmp_path / "x.wav", "is a folder", read=read)


@pytest.mark.parametrize("read", [read_segment, probe], ids=["read", "probe"])
def test_a_wav_without_samples(wav_factory, read):
    unreadable(wav_factory("none.wav", np.zeros((0, 1))), "ends before|no samples", read=read)


@pytest.mark.parametrize("fraction", [0.01, 0.5])
def test_a_truncated_flac(rng, wav_factory, fraction):
    path = wav_factory("cut.flac", music(rng, 3, 22050, 1))
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    unreadable(path, "cannot be decoded", start=60_000)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_wav_that_is_not_finite(wav_factory, value):
    samples = np.zeros((5000, 2), np.float32)
    samples[500, 1] = value
    unreadable(wav_factory("nan.wav", samples, subtype="FLOAT"), "NaN or infinite")


def test_a_start_behind_the_end(rng, wav_factory):
    for name in ("a.wav", "a.flac", "a.mp3"):
        path = wav_factory(name, music(rng, 1, 44100, 1), 44100)
        unreadable(path, "ends before 4.00 s", start=4 * 22050)


@pytest.mark.parametrize("name", [b"caf\xe9 \xff\n new line.wav", "Björk – Jóga 🎵.flac".encode()])
def test_names_that_are_no_text(tmp_path, rng, name):
    plain = tmp_path / ("plain" + os.fsdecode(name[-5:]).lstrip("e"))
    soundfile.write(plain, music(rng, 0.2, 22050, 1), 22050)
    expected = read_segment(plain, 0, 1000, sample_rate=22050)
    odd = os.path.join(os.fsencode(tmp_path), name)
    os.rename(plain, odd)
    np.testing.assert_array_equal(read_segment(odd, 0, 1000, sample_rate=22050), expected)
    np.testing.assert_array_equal(read_segment(os.fsdecode(odd), 0, 1000, sample_rate=22050), expected)
    assert probe(odd).frames == 4417
    unreadable(odd + b"?", "does not exist")


def test_a_process_without_standard_error(tmp_path, rng, wav_factory):
    """With standard error closed, the next file opened would get its descriptor and be diverted."""
    path = wav_factory("a.mp3", music(rng, 2, 22050, 1), 22050)
    code = (
        "import sys; from gafx.audio.read import probe, read_segment\n"
        "print(probe(sys.argv[1]).channels, read_segment(sys.argv[1], 500, 1000, sample_rate=16000).shape)"
    )
    command = f"{sys.executable} -c '{code}' \"{path}\" 2>&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout == "1 (1, 1000)\n"


@pytest.mark.parametrize("block", [64, 1000, 1 << 18])
def test_mp3_frames_do_not_depend_on_the_blocks_they_are_read_in(block, rng, wav_factory, monkeypatch):
    path = wav_factory("x.mp3", 0.1 * rng.standard_normal((30_000, 2)), 44100)
    content = path.read_bytes()
    path.write_bytes(b"\xff" * 700 + content + b"\xff\xfb junk" * 90 + content)
    monkeypatch.setattr(integrity, "_BLOCK", 1 << 20)
    with open(path, "rb", buffering=0) as file:
        whole = integrity.mp3_runs(file)
        monkeypatch.setattr(integrity, "_BLOCK", block)
        assert integrity.mp3_runs(file) == whole
    assert sum(run.samples for run in whole[0]) > 50_000


@pytest.mark.parametrize("left", [0, 3, 700])
def test_an_mp3_that_shrinks_while_its_frames_are_counted_ends_no_process(left, rng, wav_factory, monkeypatch):
    """It would if the file were mapped into memory: reading past its end raises SIGBUS."""
    path = wav_factory("x.mp3", 0.1 * rng.standard_normal(60_000), 44100)
    monkeypatch.setattr(integrity, "_BLOCK", 512)
    with open(path, "rb", buffering=0) as file:
        whole = sum(run.samples for run in integrity.mp3_runs(file)[0])
        reads = []

        def shrinking(file, offset, count, read=integrity.bytes_at):
            reads.append(offset)
            if len(reads) == 3:
                os.truncate(path, left)
            return read(file, offset, count)

        monkeypatch.setattr(integrity, "bytes_at", shrinking)
        assert sum(run.samples for run in integrity.mp3_runs(file)[0]) < whole
