"""Piano rolls: the notes of a song over time as SVG."""

import numpy as np

from gafx.midi.song import Song
from gafx.report import svg
from gafx.report.format import plural

_LEFT, _TOP, _WIDTH, _BELOW = 40, 6, 640, 38  # margins, and the plot's width, in pixels
_LEAST_KEYS, _KEY = 24, 4.0  # range of pitches that is always shown, and the height of a semitone
_PARTS = 8  # with a colour of their own
_LEVELS = (0.45, 0.7, 1.0)  # opacity of soft, middle and loud notes
_MOST_SECONDS, _LEAST_GIVEN = 300.0, 8.0  # shown at once, and of what is given


def piano_roll(song: Song, label: str, *, given_beats: float = 0.0) -> str:
    """Draw the notes of a song: pitch over time, a colour per track and program, drums in grey, loud notes darker.

    Args:
        song: to draw, at most five minutes of it.
        label: of the figure, for screen readers.
        given_beats: what is before is marked as given.
    """
    notes = song.notes
    given = float(song.seconds(given_beats))
    # Of a long song that is continued, as much as there is of the continuation.
    begin = max(0.0, given - max(_LEAST_GIVEN, song.duration - given)) if given else 0.0
    finish = max(min(song.duration, begin + _MOST_SECONDS), begin + 1.0)
    start, end = song.seconds(notes["start"]), song.seconds(notes["start"] + notes["duration"])
    shown = (end > begin) & (start < finish)
    notes, start, end = notes[shown], np.maximum(start[shown], begin), np.minimum(end[shown], finish)
    low, high = _pitches(notes["pitch"])
    axes = svg.Axes(_LEFT, _TOP, _WIDTH, _KEY * (high - low + 1), (begin, finish), (low - 0.5, high + 0.5))
    parts = [axes.x_axis("seconds" if shown.all() else f"seconds, of {song.duration:.0f}")]
    for octave in range(-(-low // 12) * 12, high + 1, 12):
        y = axes.y(octave - 0.5)
        parts.append(svg.line(axes.left, y, axes.left + axes.width, y, "grid"))
        parts.append(svg.text(axes.left - 6, axes.y(octave) + 3.5, f"C{octave // 12 - 1}", "end"))
    if given_beats:
        x = axes.x(min(given, finish))
        box = f'x="{axes.left}" y="{axes.top}" width="{x - axes.left:.1f}" height="{axes.height:.1f}"'
        parts.append(f'<rect class="plate" {box}>{svg.title("given")}</rect>')
        parts.append(svg.line(x, axes.top, x, axes.top + axes.height, "chance"))
    kinds = np.where(notes["drum"], -1, 128 * notes["track"].astype(np.int64) + notes["program"])
    names = [kind for kind in dict.fromkeys(kinds.tolist()) if kind >= 0]
    colours = {kind: svg.model_colour(number % _PARTS) for number, kind in enumerate(names)} | {-1: "var(--muted)"}
    loud = np.digitize(notes["velocity"], (50, 90))
    for kind, colour in colours.items():
        for level, opacity in enumerate(_LEVELS):
            chosen = np.flatnonzero((kinds == kind) & (loud == level))
            outline = "".join(
                _bar(axes, *each) for each in zip(start[chosen], end[chosen], notes["pitch"][chosen], strict=True)
            )
            parts.append(f'<path d="{outline}" style="fill: {colour}; fill-opacity: {opacity}"/>' if outline else "")
    return svg.picture(
        _LEFT + _WIDTH + 12, _TOP + axes.height + _BELOW, "".join(parts), f"{label}: {plural(len(song), 'note')}"
    )


def _pitches(pitch: np.ndarray) -> tuple[int, int]:
    """Lowest and highest pitch of the plot."""
    low, high = (int(pitch.min()), int(pitch.max())) if len(pitch) else (60, 72)
    short = max(0, _LEAST_KEYS - (high - low + 1))
    return low - short // 2 - 1, high + (short + 1) // 2 + 1


def _bar(axes: svg.Axes, start: float, end: float, pitch: int) -> str:
    left, width = axes.x(start), max(axes.x(end) - axes.x(start) - 0.4, 0.8)
    return f"M{left:.1f} {axes.y(pitch + 0.5):.1f}h{width:.1f}v{_KEY - 0.6:.1f}h-{width:.1f}z"
