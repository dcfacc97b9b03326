"""Measures of generated music, against numbers worked out by hand."""

import numpy as np
import pytest

from gafx.midi.song import Song, make_notes
from gafx.studies.music.measures import (
    DISTRIBUTIONS,
    ceiling,
    copies,
    densities,
    durations,
    intervals,
    joined_lines,
    lines,
    overlap,
    overlap_score,
    pitch_classes,
    repetition,
)
from tests.music_models import make_song


def song(*rows):
    """A song of (start, duration, pitch), or with (..., drum, track)."""
    return Song(make_notes([(row[0], row[1], row[2], 80, 0, *(row[3:] or (False, 0))) for row in rows]))


def test_distributions_of_a_song():
    tune = song(
        (0, 1, 60), (0, 1, 64), (1, 0.5, 67), (1.5, 0.5, 48), (4, 2, 48), (0, 4, 36, True, 1), (7.5, 0.5, 72, False, 2)
    )
    assert np.flatnonzero(pitch_classes(tune)).tolist() == [0, 4, 7]
    assert pitch_classes(tune)[0] == 4  # without the drum
    assert [line.tolist() for line in lines(tune)] == [[64, 67, 48, 48], [72]]
    found = intervals(tune)
    assert {index - 13: count for index, count in enumerate(found) if count} == {3: 1, -13: 1, 0: 1}
    assert durations(tune).tolist() == [0, 0, 0, 0, 3, 2, 1, 0, 0, 0]  # halves, ones, a two
    assert {notes: count for notes, count in enumerate(densities(tune)) if count} == {5: 1, 2: 1}


def test_a_song_without_notes_counts_nothing():
    for count in DISTRIBUTIONS.values():
        assert not count(song()).any()


def test_overlap_of_distributions():
    assert overlap(np.array([2.0, 2.0, 0.0]), np.array([0.0, 1.0, 3.0])) == pytest.approx(0.25)
    counts = np.array([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0]])
    found = overlap_score(counts, counts, np.arange(3))
    assert found.value == pytest.approx(1)
    assert found.low < 1


def test_the_ceiling_is_the_overlap_of_halves_of_the_groups():
    counts = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert ceiling(counts, np.array([0, 0, 1, 1]), (2, 2)).value == 0
    assert 0 < ceiling(counts, np.arange(4), (2, 2)).value < 1
    assert np.isnan(ceiling(counts, np.zeros(4, int), (2, 2)).value)


def test_copies_in_any_key():
    known, other = make_song(1, name="known"), make_song(2)
    moved = Song(known.notes.copy())
    moved.notes["pitch"] += 3
    joined = joined_lines([known, moved, other])
    found = copies(joined[:1], joined[1:], np.arange(2), resamples=20)
    assert found.longest == len(joined[0])
    assert found.fractions[16].value == pytest.approx(0.5)  # all of the first, none of the second
    parts = make_song(1, programs=(0, 32))
    (line,) = joined_lines([parts])
    assert (line >= 256).sum() == 1  # between two parts


def test_repetition():
    looped, other = np.tile([1, 2, 3, 4], 6), np.arange(24)
    assert repetition([other], np.arange(1), resamples=0).value == 0
    assert repetition([looped], np.arange(1), resamples=0).value == pytest.approx(1 - 4 / 21)
    assert repetition([looped, other], np.arange(2), resamples=0).value == pytest.approx((1 - 4 / 21) / 2)
