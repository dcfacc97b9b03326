"""The factors that the synthetic set was composed from, as targets for probes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gafx.data.manifest import Manifest
from gafx.errors import UsageError

Array = npt.NDArray[Any]
PITCHES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
# The third decides: these modes and chord qualities (Harte's syntax) have a minor one.
_MINOR_MODES = ("minor", "dorian")
_MINOR_CHORDS = ("min", "dim", "hdim")
TRIADS = tuple(f"{pitch} {third}" for pitch in PITCHES for third in ("major", "minor"))
NAMES = ("tempo", "key", "chord", "instrument", "loudness", "genre")


@dataclass(frozen=True)
class Factor:
    """One question: a target for every row, where a row is a track or, for chords, a segment of one.

    Attributes:
        name: of `NAMES`.
        features: which features a probe reads: `statistics`, `modulation` or `segments` (see `features.Features`).
        target: `(rows,)`: class numbers, or values where `classes` is empty.
        track: `(rows,)`: number of the track that each row belongs to.
        classes: names of the classes that occur in the set's vocabulary; empty for a regression.
        said: what is predicted, in words for the page.
        tolerance: of a regression on a logarithm: also report the share of tracks within this ratio.
    """

    name: str
    features: Literal["statistics", "modulation", "segments"]
    target: Array
    track: Array
    classes: tuple[str, ...] = ()
    said: str = ""
    tolerance: float | None = None

    def take(self, tracks: Array) -> "Factor":
        """The rows of some tracks, ascending; these are numbered anew, in the order of `tracks`."""
        kept = np.isin(self.track, tracks)
        return Factor(
            self.name, self.features, self.target[kept], np.searchsorted(tracks, self.track[kept]), self.classes,
            self.said, self.tolerance,
        )  # fmt: skip


def chord_segments(manifest: Manifest) -> list[list[tuple[float, float]]]:
    """Start and end, in seconds, of each track's chords."""
    return [[(float(start), float(end)) for start, end, _ in fact["chords"]] for fact in _facts(manifest)]


def synthetic_factors(manifest: Manifest) -> list[Factor]:
    """Tempo, key, chord, instrument, loudness and genre of a synthetic set's tracks (docs/synthetic.md).

    Raises:
        UsageError: the manifest knows no such truth.
    """
    facts = _facts(manifest)
    each = np.arange(len(facts))
    chords = [chord_class(name) for fact in facts for _, _, name in fact["chords"]]
    of_track = np.repeat(each, [len(fact["chords"]) for fact in facts])
    keys = [2 * int(fact["tonic"]) + (fact["mode"] in _MINOR_MODES) for fact in facts]
    instruments = tuple(sorted({fact["instrument"] for fact in facts}))
    return [
        Factor(
            "tempo", "modulation", np.log2([fact["tempo"] for fact in facts]), each,
            said="logarithm of the beats per minute", tolerance=0.04,
        ),
        Factor("key", "statistics", np.array(keys), each, TRIADS, "tonic, and major or minor third: 24 classes"),
        Factor(
            "chord", "segments", np.array(chords), of_track, TRIADS,
            "root, and major or minor third, of each chord: 24 classes",
        ),
        Factor(
            "instrument", "statistics", np.array([instruments.index(fact["instrument"]) for fact in facts]), each,
            instruments, f"that plays the melody: {len(instruments)} classes",
        ),
        Factor("loudness", "statistics", np.array([fact["loudness"] for fact in facts]), each, said="RMS in dBFS"),
        Factor(
            "genre", "statistics", manifest.first_label(), each, manifest.classes, f"{len(manifest.classes)} classes"
        ),
    ]  # fmt: skip


def chord_class(name: str) -> int:
    """The class of a chord in Harte's syntax, e.g. `G#:min7`: twice its root, plus one for a minor third."""
    root, _, quality = name.partition(":")
    return 2 * PITCHES.index(root) + quality.startswith(_MINOR_CHORDS)


def _facts(manifest: Manifest) -> Sequence[dict[str, Any]]:
    if not manifest.facts:
        raise UsageError(
            f"{manifest.root} holds no truth about its tracks: the factors are those of the synthetic set; for other "
            "data write gafx probe <data set> <root>"
        )
    return manifest.facts
