"""Factors of the synthetic set, as targets of probes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gafx.data.manifest import Manifest
from gafx.errors import UsageError

Array = npt.NDArray[Any]
PITCHES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
# These modes and chord qualities (Harte's syntax) have a minor third.
_MINOR_MODES = ("minor", "dorian")
_MINOR_CHORDS = ("min", "dim", "hdim")
TRIADS = tuple(f"{pitch} {third}" for pitch in PITCHES for third in ("major", "minor"))


@dataclass(frozen=True)
class Factor:
    """A target for every row, where a row is a track or, for chords, a segment of one.

    Attributes:
        name: `tempo`, `key`, `chord`, `instrument`, `loudness` or `genre`.
        features: that a probe reads: `statistics`, `modulation` or `segments` (see `features.Features`).
        target: `(rows,)` class numbers, or values where `classes` is empty.
        track: `(rows,)` number of each row's track.
        classes: names; empty for a regression.
        description: for the page.
        tolerance: of a regression on a base-2 logarithm: also report the fraction of tracks within this ratio.
    """

    name: str
    features: Literal["statistics", "modulation", "segments"]
    target: Array
    track: Array
    classes: tuple[str, ...] = ()
    description: str = ""
    tolerance: float | None = None

    def take(self, tracks: Array) -> "Factor":
        """Keep the rows of some tracks (ascending), which are numbered again in the order of `tracks`."""
        kept = np.isin(self.track, tracks)
        return replace(self, target=self.target[kept], track=np.searchsorted(tracks, self.track[kept]))


def chord_segments(manifest: Manifest) -> list[list[tuple[float, float]]]:
    """Return start and end, in seconds, of each track's chords."""
    return [[(float(start), float(end)) for start, end, _ in fact["chords"]] for fact in _facts(manifest)]


def synthetic_factors(manifest: Manifest) -> list[Factor]:
    """Return tempo, key, chord, instrument, loudness and genre of a synthetic set's tracks (docs/synthetic.md).

    Raises:
        UsageError: the manifest has no annotation of its tracks.
    """
    facts = _facts(manifest)
    each = np.arange(len(facts))
    chords = [chord_class(name) for fact in facts for _, _, name in fact["chords"]]
    of_track = np.repeat(each, [len(fact["chords"]) for fact in facts])
    keys = [2 * int(fact["tonic"]) + (fact["mode"] in _MINOR_MODES) for fact in facts]
    instruments = tuple(sorted({fact["instrument"] for fact in facts}))
    played = [instruments.index(fact["instrument"]) for fact in facts]
    tempo, loudness = np.log2([fact["tempo"] for fact in facts]), np.array([fact["loudness"] for fact in facts])
    third, count = "major or minor third: 24 classes", f"{len(manifest.classes)} classes"
    return [
        Factor("tempo", "modulation", tempo, each, (), "logarithm of the beats per minute", 0.04),
        Factor("key", "statistics", np.array(keys), each, TRIADS, f"tonic, and {third}"),
        Factor("chord", "segments", np.array(chords), of_track, TRIADS, f"root of each chord, and {third}"),
        Factor("instrument", "statistics", np.array(played), each, instruments,
               f"of the melody: {len(instruments)} classes"),
        Factor("loudness", "statistics", loudness, each, (), "RMS in dBFS"),
        Factor("genre", "statistics", manifest.first_label(), each, manifest.classes, count),
    ]  # fmt: skip


def chord_class(name: str) -> int:
    """Return the class of a chord in Harte's syntax, e.g. `G#:min7`: twice its root, plus one for a minor third."""
    root, _, quality = name.partition(":")
    return 2 * PITCHES.index(root) + quality.startswith(_MINOR_CHORDS)


def _facts(manifest: Manifest) -> Sequence[dict[str, Any]]:
    if not manifest.facts:
        raise UsageError(
            f"{manifest.root} has no annotation of its tracks: the factors are those of the synthetic set; for other "
            "data write gafx probe <data set> <root>"
        )
    return manifest.facts
