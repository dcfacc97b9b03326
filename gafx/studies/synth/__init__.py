"""Music made by code: `compose` decides a track, `render` plays it.

Ten genres differ in the distributions of nine factors (`FACTORS`), and the distributions overlap. A track is a pure
function of (seed, genre, index): it does not depend on how many others are made, in which order or in which process.

    score = compose("bossa", 3, seed=0, seconds=10.0)
    wave = render(score, 22050)     # (220500,) float32 in [-1, 1]
    score.truth()                   # tempo, key, instruments, loudness, room, timed chords, ready for JSON

`vary` says which factors tell the genre: "all", "rhythm" (tempo and drums) or a single factor by its name, of which
"harmony" and "timbre" are two. The others are drawn from the pool of all ten genres, whatever the label. The
generator is described in docs/synthetic.md.
"""

from gafx.studies.synth.genres import GENRES
from gafx.studies.synth.render import render
from gafx.studies.synth.score import FACTORS, VARY, Score, compose

__all__ = ["FACTORS", "GENRES", "VARY", "Score", "compose", "render"]
