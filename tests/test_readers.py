"""Readers: small data sets are decoded once and kept in memory, with the samples of direct reading."""

import numpy as np
import pytest
import soundfile

from gafx.data import readers
from gafx.data.readers import FileReader
from gafx.data.sources.base import load_manifest
from gafx.errors import UnreadableAudio

RATE = 16000


@pytest.fixture
def manifest(tmp_path):
    """Two classes of three clips, at the reader's rate and at 22.05 kHz."""
    rng = np.random.default_rng(0)
    for label, rate in (("a", RATE), ("b", 22050)):
        (tmp_path / label).mkdir()
        for number in range(3):
            wave = rng.uniform(-0.5, 0.5, rate + 1234 * number)
            soundfile.write(tmp_path / label / f"{number}.wav", wave, rate, subtype="PCM_16")
    return load_manifest("folder", tmp_path)


def test_kept_clips_equal_direct_reading(manifest):
    kept, direct = FileReader(manifest, RATE, 1, keep_bytes=10**6), FileReader(manifest, RATE, 1)
    for row in range(len(manifest)):
        for start, length in ((0, 16000), (0, 40000), (3001, 8000), (15000, 8000)):
            a, b = kept.read(row, start, length), direct.read(row, start, length)
            assert a.shape == b.shape
            exact = manifest.sample_rate[row] == RATE
            assert np.array_equal(a, b) if exact else np.allclose(a, b, atol=1e-3)
            a[:] = 0  # a caller may change what it was given
            assert np.array_equal(kept.read(row, start, length), b) or not exact


@pytest.mark.parametrize(("keep_bytes", "decoded"), [(10**6, 6), (10**5, 12), (0, 12)])
def test_each_clip_is_decoded_once_if_all_of_them_fit(manifest, monkeypatch, keep_bytes, decoded):
    calls = []
    read_segment = readers.read_segment
    monkeypatch.setattr(readers, "read_segment", lambda *a, **k: calls.append(a) or read_segment(*a, **k))
    reader = FileReader(manifest, RATE, 1, keep_bytes=keep_bytes)
    for _ in range(2):
        for row in range(len(manifest)):
            reader.read(row, 100, 4000)
    assert len(calls) == decoded


def test_the_readable_part_of_a_damaged_clip_is_still_read(manifest):
    row = next(r for r in range(len(manifest)) if manifest.relative_path(r) == "a/2.wav")
    path = manifest.root / "a" / "2.wav"
    path.write_bytes(path.read_bytes()[:20_000])  # the manifest still has its former length
    reader = FileReader(manifest, RATE, 1, keep_bytes=10**6)
    assert reader.read(row, 0, 5000).shape == (1, 5000)
    with pytest.raises(UnreadableAudio):
        reader.read(row, 12_000, 4000)
