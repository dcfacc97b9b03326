"""Where the segments of a track begin: one rule for data sets, prediction and front-ends that cut their wave."""

from typing import Any

# A remainder at a track's end shorter than this fraction of a segment is dropped.
_SMALL_REMAINDER = 0.1


def keeps_remainder(rest: Any, segment_length: int) -> Any:
    """Return whether `rest` samples (an int or an array) after a track's whole segments need one more segment."""
    return rest >= max(_SMALL_REMAINDER * segment_length, 1)


def segment_starts(samples: int, segment_length: int) -> list[int]:
    """Return the first samples of a track's segments, side by side, the last moved back to end with the track.

    A shorter track is one segment.
    """
    if samples <= segment_length:
        return [0]
    starts = list(range(0, samples - segment_length + 1, segment_length))
    rest = samples - (starts[-1] + segment_length)
    return [*starts, samples - segment_length] if keeps_remainder(rest, segment_length) else starts
