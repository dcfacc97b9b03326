"""Formats that FFmpeg reads (the extra `formats`): sample for sample what was encoded, in blocks, errors in a sentence.

The files are written by PyAV's encoders from signals made here.
"""

import builtins
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import soundfile

from gafx.audio import formats
from gafx.audio.decode import Encoded
from gafx.audio.read import header_seconds, probe, stream
from gafx.cli import main
from gafx.deploy.cut_outs import Cutter
from gafx.deploy.predict import Prediction
from gafx.errors import UnreadableAudio

av = pytest.importorskip("av", reason="needs PyAV (the extra formats)")


def signal(rng, samples, rate, channels=2):
    """A sweep and noise, as 16-bit integers `(channels, samples)`."""
    time = np.arange(samples) / rate
    wave = 0.3 * np.sin(2 * np.pi * (200 + 300 * time) * time) + 0.02 * rng.standard_normal((channels, samples))
    return (32767 * wave).round().astype(np.int16)


def encode(form, codec, samples, rate, *, sound=True, video=False, start=0, bit_rate=128_000, **options):
    """A file in memory with these samples, perhaps beside a black video; `start` delays the sound, in samples."""
    with TemporaryDirectory() as folder, av.open(f"{folder}/a", "w", format=form, options=options) as file:
        layout = {1: "mono", 2: "stereo"}[len(samples)]
        picture = file.add_stream("mpeg4", rate=25, width=32, height=32, pix_fmt="yuv420p") if video else None
        track = file.add_stream(codec, rate=rate, layout=layout) if sound else None
        for number in range(round(25 * samples.shape[1] / rate)) if picture else ():
            image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            image.pts, image.time_base = number, Fraction(1, 25)
            file.mux(picture.encode(image))
        if track:
            track.bit_rate = bit_rate
            convert = av.AudioResampler(format=track.format, layout=layout, rate=rate)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="s16p", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            for part in [*convert.resample(frame), *convert.resample(None)]:
                file.mux(track.encode(part))
        for each in filter(None, (picture, track)):
            file.mux(each.encode(None))
        file.close()
        return Path(folder, "a").read_bytes()


def test_cut_outs(rng, tmp_path):
    """The samples that were labelled, at the rate and with the channels of the file."""
    samples = signal(rng, 44100, 44100)
    path = tmp_path / "a.m4a"
    path.write_bytes(encode("mp4", "alac", samples, 44100))
    windows = np.array([[0.0, 0.5], [0.5, 1.0]])
    found = Prediction(
        str(path), ("a", "b"), 1.0, np.ones(2) / 2, windows=windows, window_probabilities=np.eye(2), window_count=2
    )
    cuts = [soundfile.read(each, dtype="float32") for each in Cutter(tmp_path / "cut", ("a", "b")).cut(found)]
    assert [rate for _, rate in cuts] == [44100, 44100]
    np.testing.assert_array_equal(np.concatenate([cut for cut, _ in cuts]), samples.T / np.float32(32768))


def read(content, rate, channels=2, seconds=0.2):
    return np.concatenate(
        list(stream(Encoded(content), sample_rate=rate, channels=channels, any_format=True, block_seconds=seconds)), 1
    )


def lag(found, expected):
    """Samples by which a decoded signal comes late, by cross-correlation."""
    size = 2 * max(len(found), len(expected))
    product = np.fft.rfft(found, size) * np.conj(np.fft.rfft(expected, size))
    shift = int(np.argmax(np.fft.irfft(product, size)))
    return shift - size if shift > size // 2 else shift


@pytest.mark.parametrize(
    ("form", "codec"), [("ipod", "alac"), ("matroska", "flac"), ("matroska", "pcm_s16le"), ("avi", "pcm_s16le")]
)
def test_lossless_to_the_bit(form, codec, rng):
    samples = signal(rng, 30_013, 22050)
    np.testing.assert_array_equal(read(encode(form, codec, samples, 22050), 22050), samples / np.float32(32768))


# Lengths that are no whole number of milliseconds, in which edit lists count, nor of frames. (A last frame of less than
# a millisecond is lost: FFmpeg's writer leaves it out of the edit list.)
@pytest.mark.parametrize(
    ("form", "codec", "rate", "video"),
    [("ipod", "aac", 44100, False), ("mov", "aac", 22050, False), ("mp4", "aac", 44100, True),
     ("mp4", "libopus", 48000, False), ("webm", "libopus", 48000, False)],
)  # fmt: skip
@pytest.mark.parametrize("length", [3_000, 62_001, 70_937])
def test_no_sample_more_or_less(form, codec, rate, video, length, rng):
    samples = signal(rng, length, rate)
    found = read(encode(form, codec, samples, rate, video=video), rate)
    assert found.shape == samples.shape
    assert lag(found[0], samples[0] / 32768) == 0
    assert np.corrcoef(found[0], samples[0])[0, 1] > 0.97


@pytest.mark.parametrize(("form", "codec"), [("adts", "aac"), ("asf", "wmav2"), ("ac3", "ac3"), ("mp2", "mp2")])
def test_containers_that_do_not_count_samples(form, codec, rng):
    """The encoder's delay stays in (or, of wma, FFmpeg's decoder takes more than it): within two frames."""
    samples = signal(rng, 70_937, 44100)
    found = read(encode(form, codec, samples, 44100), 44100)
    assert abs(found.shape[1] - samples.shape[1]) < 4096
    assert abs(lag(found[0], samples[0] / 32768)) <= 2048


def test_a_delayed_sound_begins_with_its_first_sample(rng):
    samples = signal(rng, 40_001, 44100, 1)
    found = read(encode("mov", "alac", samples, 44100, video=True, start=22_050), 44100, 1)
    np.testing.assert_array_equal(found, samples / np.float32(32768))


@pytest.mark.parametrize(("form", "codec"), [("ipod", "aac"), ("webm", "libopus"), ("mpegts", "aac")])
def test_blocks_of_any_size_make_the_same(form, codec, rng):
    content = encode(form, codec, signal(rng, 100_000, 48000), 48000)
    whole = read(content, 16000, 1, seconds=100)
    for seconds in (0.001, 0.13, 1.0):
        np.testing.assert_array_equal(read(content, 16000, 1, seconds=seconds), whole)


def test_the_content_decides_and_not_the_name(rng, tmp_path):
    """FFmpeg reads a video that is called a wav; a wav that is called m4a stays with libsndfile."""
    samples = signal(rng, 22_050, 22050, 1)
    (tmp_path / "a.wav").write_bytes(encode("ipod", "alac", samples, 22050))
    soundfile.write(tmp_path / "b.m4a", samples.T, 22050, format="WAV")
    for name in ("a.wav", "b.m4a"):
        (block,) = stream(tmp_path / name, sample_rate=22050, any_format=True)
        np.testing.assert_array_equal(block, samples / np.float32(32768))
        assert header_seconds(tmp_path / name) == 1
    assert probe(tmp_path / "b.m4a").frames == 22_050


def test_an_aac_after_a_tag(rng):
    content = encode("adts", "aac", signal(rng, 30_000, 44100), 44100)
    tagged = b"ID3\4\0\0\0\0\1\0" + bytes(128) + content
    np.testing.assert_array_equal(read(tagged, 44100), read(content, 44100))


def test_data_sets_stay_away_from_ffmpeg(rng, monkeypatch):
    webm, m4a = (encode(*how, signal(rng, 5000, 48000), 48000) for how in (("webm", "libopus"), ("ipod", "aac")))
    monkeypatch.setattr(av, "open", lambda *_, **__: pytest.fail("FFmpeg was asked"))
    for content in (webm, m4a):
        for ask in (probe, lambda file: next(stream(file, sample_rate=16000))):
            with pytest.raises(UnreadableAudio, match=r"it is (webm or mkv|mp4 or m4a)\): convert it"):
                ask(Encoded(content))


def test_an_mp3_in_disguise_stays_away_from_ffmpeg_too(rng, tmp_path, monkeypatch):
    """FFmpeg never gets a file that `probe` accepts, as the demo and the service ask of uploads: also an mp3 after a
    header of AAC, over which libsndfile's decoder would skip."""
    soundfile.write(tmp_path / "a.mp3", signal(rng, 44100, 44100, 1).T, 44100)
    content = (tmp_path / "a.mp3").read_bytes()
    monkeypatch.setattr(av, "open", lambda *_, **__: pytest.fail("FFmpeg was asked"))
    assert probe(Encoded(content)).frames == 44100
    for before in (b"\xff\xf1\x50\x80", b"ID3\4\0\0\0\0\0\0\xff\xf1\x50\x80"):
        with pytest.raises(UnreadableAudio, match="it is aac"):
            probe(Encoded(before + content))


def test_without_the_extra_the_error_names_it(rng, tmp_path, monkeypatch, capsys):
    (tmp_path / "song.m4a").write_bytes(encode("ipod", "aac", signal(rng, 5000, 44100), 44100))
    real = builtins.__import__

    def missing(name, *rest):
        if name == "av":
            raise ModuleNotFoundError("No module named 'av'", name="av")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UnreadableAudio, match=r"pip install 'gafx\[formats\]', or convert it, say with `ffmpeg"):
        next(stream(tmp_path / "song.m4a", sample_rate=16000, any_format=True))
    assert header_seconds(tmp_path / "song.m4a") == 0
    with pytest.raises(SystemExit) as ended:
        main(["features", str(tmp_path), "--frontend", "mel", "--window", "1", "--output", str(tmp_path / "out")])
    assert ended.value.code == 1
    assert "gafx[formats]" in capsys.readouterr().err


def refused(content, reason):
    with pytest.raises(UnreadableAudio, match=reason):
        read(content, 16000)


def test_a_video_without_sound(rng):
    refused(encode("mp4", "aac", signal(rng, 22_050, 44100), 44100, sound=False, video=True), "has no sound")


@pytest.mark.parametrize(
    ("form", "codec", "options"),
    [("ipod", "aac", {"movflags": "faststart"}), ("ipod", "alac", {}), ("webm", "libopus", {}), ("adts", "aac", {}),
     ("matroska", "flac", {}), ("asf", "wmav2", {}), ("avi", "pcm_s16le", {}), ("mpegts", "aac", {})],
)  # fmt: skip
def test_truncated_files(form, codec, options, rng, capfd):
    content = encode(form, codec, signal(rng, 48000 * 3, 48000), 48000, **options)
    refused(content[: len(content) * 7 // 10], "truncated|damaged")
    assert capfd.readouterr().err == ""  # FFmpeg's messages would be of no use


def test_a_hole_in_the_middle(rng):
    """Matroska's reader finds its way after damage; what is missing would shift all that follows."""
    damaged = bytearray(encode("webm", "libopus", signal(rng, 48000 * 8, 48000), 48000))
    middle = len(damaged) // 2
    damaged[middle : middle + 3000] = bytes(3000)
    refused(bytes(damaged), r"has gaps: \d.\d\d of 8.\d\d s")


def test_random_damage_is_never_a_crash(rng):
    """In a process of its own: it must end by itself, whatever FFmpeg meets."""
    code = (
        "import sys, numpy as np\n"
        "from gafx.audio.decode import Encoded\nfrom gafx.audio.read import header_seconds, stream\n"
        "from gafx.errors import UnreadableAudio\n"
        "content, rng = sys.stdin.buffer.read(), np.random.default_rng(0)\n"
        "for number in range(40):\n"
        "    damaged = bytearray(content)\n"
        "    for at in rng.integers(0, (len(content), 1000)[number % 2], (1, 5, 50)[number % 3]):\n"
        "        damaged[at] = rng.integers(256)\n"
        "    header_seconds(Encoded(bytes(damaged)))\n"
        "    try:\n"
        "        for block in stream(Encoded(bytes(damaged)), sample_rate=16000, any_format=True):\n"
        "            assert np.isfinite(block).all()\n"
        "    except UnreadableAudio as error:\n"
        "        assert len(str(error)) < 300\n"
    )
    for form, codec in (("ipod", "aac"), ("webm", "libopus"), ("mpegts", "aac")):
        content = encode(form, codec, signal(rng, 48_000, 48000), 48000)
        done = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b""), form


def test_no_file_makes_ffmpeg_open_another(tmp_path):
    """Playlists and references: a demuxer is given by name, so their readers are never chosen."""
    (tmp_path / "secret.wav").write_bytes(b"RIFF")
    for content in (
        b"#EXTM3U\n#EXTINF:1,\nsecret.wav\n", b"ffconcat version 1.0\nfile secret.wav\n",
        b"\x1aE\xdf\xa3#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/secret.wav\n",
    ):  # fmt: skip
        (tmp_path / "list.webm").write_bytes(content)
        with pytest.raises(UnreadableAudio, match="cannot be decoded"):
            next(stream(tmp_path / "list.webm", sample_rate=16000, any_format=True))
    assert formats.ffmpeg_container(b"#EXTM3U\n") is None


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(rng, tmp_path):
    """A child process, since the peak of this one is what earlier tests needed."""
    code = (
        "import resource, sys\nfrom gafx.audio.read import stream\n"
        "for name in sys.argv[1:]:\n"
        "    samples = sum(b.shape[1] for b in stream(name, sample_rate=16000, any_format=True, block_seconds=1))\n"
        "    print(samples, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    for name, seconds in (("short", 10), ("long", 300)):
        samples = np.tile(signal(rng, 160_000, 16000, 1), (1, seconds // 10))
        (tmp_path / name).write_bytes(encode("ipod", "aac", samples, 16000, bit_rate=32_000))
    names = [str(tmp_path / name) for name in ("short", "long")]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    (short, before), (long, after) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert (short, long) == (160_000, 4_800_000)
    assert after - before < 5_000  # kB; its samples are 19 MB
