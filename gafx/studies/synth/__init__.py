"""Generated music: `compose` draws a track's score, `render` synthesizes it.

Ten genres have different, overlapping distributions of nine factors (`FACTORS`). A track is a pure function of (seed,
genre, index): it does not depend on the number of other tracks, their order or the process.

    score = compose("bossa", 3, seed=0, seconds=10.0)
    wave = render(score, 22050)     # (220500,) float32 in [-1, 1]
    score.truth()                   # tempo, key, instruments, loudness, room, timed chords, for JSON

`vary` selects the factors that depend on the genre: "all", "rhythm" (tempo and drums) or a single factor by its name,
e.g. "harmony" or "timbre". The others are drawn from all ten genres, independently of the label. docs/synthetic.md
describes the generator.
"""

from gafx.studies.synth.genres import GENRES
from gafx.studies.synth.render import render
from gafx.studies.synth.score import FACTORS, VARY, Score, compose

__all__ = ["FACTORS", "GENRES", "VARY", "Score", "compose", "render"]
