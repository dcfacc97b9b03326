"""Whole files in blocks: equal to the file read at once, any format, broken ones refused."""

import io

import numpy as np
import pytest
import soundfile

from gafx.audio.decode import Encoded
from gafx.audio.read import probe, read_segment, stream
from gafx.errors import UnreadableAudio


def noise(rng, seconds, rate, channels):
    tone = np.sin(np.arange(round(seconds * rate)) / 30)[:, None]
    return 0.3 * tone + 0.1 * rng.standard_normal((round(seconds * rate), channels))


def whole(path, **how):
    return np.concatenate(list(stream(path, **how)), axis=1)


@pytest.mark.parametrize("sample_rate", [16000, 22050])
@pytest.mark.parametrize(
    ("name", "rate", "how"),
    [
        ("a.wav", 44100, {}),
        ("a.flac", 48000, {}),
        ("a.ogg", 44100, {}),
        ("a.mp3", 44100, {}),
        ("a.opus", 48000, {"format": "OGG", "subtype": "OPUS"}),
        ("a.au", 22050, {}),
    ],
)
def test_blocks_make_the_whole(name, rate, how, sample_rate, rng, wav_factory):
    path = wav_factory(name, noise(rng, 5.3, rate, 2), rate, **how)
    expected = read_segment(path, 0, 10**9, sample_rate=sample_rate)
    np.testing.assert_array_equal(whole(path, sample_rate=sample_rate, block_seconds=0.7), expected)


@pytest.mark.parametrize("channels", [1, 2])
def test_channels_are_matched(channels, rng, wav_factory):
    path = wav_factory("a.wav", noise(rng, 1, 22050, 3), 22050, subtype="FLOAT")
    read = whole(path, sample_rate=22050, channels=channels)
    assert read.shape == (channels, 22050)
    np.testing.assert_allclose(read[-1], soundfile.read(path)[0].mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("AIFF", "PCM_16"), ("AIFF", "PCM_24"), ("W64", "FLOAT"), ("CAF", "PCM_16"), ("NIST", "PCM_16"), ("VOC", "PCM_16"),
     ("WAV", "GSM610"), ("WAV", "MS_ADPCM")],
)  # fmt: skip
def test_any_format_where_the_user_chose_the_file(format, subtype, rng, wav_factory):
    rate = 8000
    path = wav_factory(f"a.{format.lower()}", noise(rng, 2, rate, 1), rate, format=format, subtype=subtype)
    read = whole(path, sample_rate=rate, any_format=True, block_seconds=0.3)
    samples = soundfile.SoundFile(path).read(10**6, dtype="float32")
    np.testing.assert_allclose(read[0], samples, atol=1e-6)
    assert probe(path, any_format=True).seconds == pytest.approx(2, abs=0.1)
    if format != "WAV":  # data sets are made of the usual formats: what is downloaded meets fewer parsers
        with pytest.raises(UnreadableAudio, match=r"does not begin like wav|not wav, flac"):
            probe(path)


@pytest.mark.parametrize(("format", "subtype"), [("AIFF", "PCM_16"), ("W64", "PCM_16"), ("CAF", "PCM_16")])
def test_a_truncated_file_of_a_rarer_format(format, subtype, rng, wav_factory):
    path = wav_factory("a", noise(rng, 1, 22050, 1), 22050, format=format, subtype=subtype)
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(UnreadableAudio, match="truncated"):
        next(stream(path, sample_rate=22050, any_format=True))


def test_what_is_no_audio(tmp_path):
    for name, content, reason in (
        ("a.wav", b"not audio at all", "cannot be decoded"),
        ("b.zip", b"PK\3\4" + bytes(100), "cannot be decoded"),
        ("c.m4a", b"\0\0\0\x20ftypM4A \0" + bytes(100), "mp4 or m4a"),
        ("d.raw", bytes(1000), "cannot be decoded"),
        ("e.flac", b"", "empty"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableAudio, match=reason):
            next(stream(tmp_path / name, sample_rate=16000, any_format=True))


def test_a_file_that_breaks_in_the_middle(rng, tmp_path):
    content = io.BytesIO()
    soundfile.write(content, noise(rng, 20, 22050, 1), 22050, format="FLAC")
    damaged = bytearray(content.getvalue())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 3000] = bytes(3000)
    blocks = stream(Encoded(bytes(damaged)), sample_rate=22050, block_seconds=1)
    next(blocks)
    with pytest.raises(UnreadableAudio):
        for _ in blocks:
            pass


def test_standard_error_is_free_between_blocks(rng, wav_factory, capfd):
    path = wav_factory("a.mp3", noise(rng, 3, 22050, 1), 22050)
    blocks = stream(path, sample_rate=16000, block_seconds=1)
    next(blocks)
    import os

    os.write(2, b"seen at once")
    assert capfd.readouterr().err == "seen at once"
    blocks.close()


def test_less_than_a_sample(wav_factory):
    path = wav_factory("a.wav", np.full(2, 0.1), 44100)
    with pytest.raises(UnreadableAudio, match="too short"):
        list(stream(path, sample_rate=1000))
