"""Segments against a plain loop, for any tracks; and a data set that does not grow in Python objects with its clips."""

import gc
import inspect
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gafx.audio.read import resampled_length
from gafx.config import AugmentConfig
from gafx.data.batches import TrainingOrder, class_balance
from gafx.data.dataset import ClipDataset
from gafx.data.manifest import Manifest, Ragged, make_manifest
from gafx.data.readers import FileReader, clip_lengths
from gafx.data.segments import OVERLAP, evaluation_segments, training_segments
from gafx.deploy.predict import predict_files
from gafx.deploy.windows import Layout

RATES = [8000, 16000, 22050, 44100, 48000]


def tracks(frames, rates):
    return make_manifest(
        Path("/data"),
        ["a", "b"],
        [f"{number}.wav" for number in range(len(frames))],
        [[number % 2] for number in range(len(frames))],
        [count / rate for count, rate in zip(frames, rates, strict=True)],
        rates,
    )


some_tracks = st.lists(st.tuples(st.integers(1, 3_000_000), st.sampled_from(RATES)), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(which=some_tracks, sample_rate=st.sampled_from(RATES))
def test_lengths_are_those_of_single_files(which, sample_rate):
    manifest = tracks([frames for frames, _ in which], [rate for _, rate in which])
    expected = [resampled_length(frames, rate, sample_rate) for frames, rate in which]
    assert clip_lengths(manifest, np.arange(len(which)), sample_rate).tolist() == expected


@settings(max_examples=300, deadline=None, derandomize=True)
@given(which=some_tracks, segment_length=st.integers(1, 700_000), least=st.integers(1, 5000))
def test_evaluation_covers_each_track(which, segment_length, least):
    manifest = tracks([frames for frames, _ in which], [rate for _, rate in which])
    rows = np.arange(len(which))[::-1].copy()
    if max(clip_lengths(manifest, rows, 16000)) // segment_length > 10_000:
        segment_length += 5000
    segments = evaluation_segments(manifest, rows, 16000, segment_length, least)
    expected = []
    for row in rows.tolist():
        length = resampled_length(*which[row], 16000)
        if length <= segment_length:
            expected.append((row, 0, max(length, least)))
            continue
        starts = list(range(0, length - segment_length + 1, segment_length))
        if length - starts[-1] - segment_length >= max(0.1 * segment_length, 1):  # else the remainder is dropped
            starts.append(length - segment_length)
        expected += [(row, start, segment_length) for start in starts]
    assert list(zip(segments.row.tolist(), segments.start.tolist(), segments.length.tolist(), strict=True)) == expected


@pytest.mark.parametrize("frames", [100, 7999, 8000, 8799, 8800, 12_000, 12_700, 12_900, 16_000, 33_333])
def test_overlapping_segments_are_the_windows_of_predict(frames):
    manifest = tracks([frames], [16000])
    layout = Layout.of(16000, 1, 0.5, overlap=OVERLAP, least=400)
    windows = layout.cut([np.zeros((1, frames), np.float32)])
    segments = evaluation_segments(manifest, np.array([0]), 16000, 8000, 400, overlap=OVERLAP)
    found = list(zip(segments.start.tolist(), segments.length.tolist(), strict=True))
    assert found == [(start, wave.shape[1]) for start, wave in windows]
    assert inspect.signature(predict_files).parameters["overlap"].default == OVERLAP


@settings(max_examples=200, deadline=None, derandomize=True)
@given(which=some_tracks, segment_length=st.integers(8000, 700_000))
def test_training_segments_lie_inside_their_track(which, segment_length):
    manifest = tracks([frames for frames, _ in which], [rate for _, rate in which])
    segments = training_segments(manifest, np.arange(len(which)), 16000, segment_length)
    for row, (frames, rate) in enumerate(which):
        length = resampled_length(frames, rate, 16000)
        starts = segments.start[segments.row == row]
        assert len(starts) == max(1, (length + segment_length // 40) // segment_length)
        assert (np.diff(starts) > 0).all()
        assert starts.min() == 0
        assert starts.max() + segment_length <= max(length, segment_length)
    assert (segments.length == segment_length).all()


def test_three_or_ten_segments_of_a_gtzan_track():
    manifest = tracks([661_794, 660_000, 675_808], [22050] * 3)
    segments = training_segments(manifest, np.arange(3), 22050, 220_500)
    assert segments.row.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert segments.start.tolist() == [0, 220_500, 441_000, 0, 220_500, 439_500, 0, 220_500, 441_000]
    ten = training_segments(manifest, np.arange(3), 22050, 66_150)  # of the MFCC paper
    assert np.bincount(ten.row).tolist() == [10, 10, 10]
    assert ten.start[10:20].tolist() == [*range(0, 595_350, 66_150), 593_850]


def large(rows):
    names = np.array([list(f"{number:08d}.wav".encode()) for number in range(1000)], np.uint8)
    labels = np.random.default_rng(0).integers(0, 3, 2 * rows).astype(np.int32)
    return Manifest(
        root=Path("/data"),
        classes=("a", "b", "c"),
        path=Ragged(names[np.arange(rows) % 1000].reshape(-1), np.arange(rows + 1) * 12),
        labels=Ragged(labels, np.arange(rows + 1) * 2),
        group=np.arange(rows),
        start=np.zeros(rows),
        duration=np.full(rows, 10.0),
        sample_rate=np.full(rows, 22050, np.int32),
        row=np.full(rows, -1),
        fold=np.full(rows, -1, np.int32),
        split=np.full(rows, -1, np.int8),
        weight=np.ones(rows),
    )


def objects(rows):
    """Number of Python objects that a data set of so many clips and its order keep alive, and its pickled size."""
    gc.collect()
    before = len(gc.get_objects())
    manifest = large(rows)
    segments = training_segments(manifest, np.arange(rows), 22050, 220_500)
    clips = ClipDataset(
        manifest,
        segments,
        FileReader(manifest, 22050, 1),
        random_crop=True,
        fixed_length=220_500,
        augment=AugmentConfig(),
    )
    order = TrainingOrder(rows, batch_size=32, epochs=2, seed=0, weights=class_balance(manifest, segments.row))
    batches = iter(order)
    assert len(next(batches)) == 32
    gc.collect()
    return len(gc.get_objects()) - before, len(pickle.dumps(clips))


def test_clips_are_no_python_objects():
    """Workers share arrays, but copy every page on which a Python object's reference count changes."""
    few, small = objects(2000)
    many, size = objects(200_000)
    assert many <= few + 20
    assert size < 250 * 200_000  # bytes a clip
    assert small < size


def test_label_counts_and_balance_are_those_of_the_targets():
    manifest = large(500)
    rows = np.random.default_rng(1).permutation(500)[:200]
    targets = np.zeros((200, 3), np.float32)
    for place, row in enumerate(rows):
        targets[place, manifest.labels[row]] = 1
    assert np.array_equal(manifest.targets(rows), targets)
    single = tracks([1000] * 9, [8000] * 9)
    assert single.label_counts(np.arange(9)).tolist() == [5, 4]
    assert class_balance(single, np.arange(9)) == pytest.approx([1 / 5, 1 / 4] * 4 + [1 / 5])
