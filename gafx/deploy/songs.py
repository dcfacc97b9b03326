"""Output of `gafx generate`: MIDI and wav files, index.json, a page, and the table for the terminal."""

import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx._version import __version__
from gafx.audio.mp3 import mp3
from gafx.deploy.generate import Piece, Walk
from gafx.deploy.render import SAMPLE_RATE, Wave, write_wav
from gafx.errors import UsageError
from gafx.io import write_json
from gafx.midi.write import write_midi
from gafx.report import format as fmt
from gafx.report.html import write_page
from gafx.report.piano_roll import piano_roll
from gafx.stats.scores import Score, mean_score

INDEX, PAGE = "index.json", "index.html"
_MOST_EMBEDDED = 30_000_000  # bytes of audio in the page; of further songs it has a link to the file
_RESAMPLES = 1000
_COLLAPSED = 0.1  # distance of latent vectors whose prior has a std of 1 in each dimension


@dataclass(frozen=True)
class Heard:
    """What a model of audio hears in the songs.

    Attributes:
        model: its name.
        classes: its labels.
        generated: `(songs, labels)` probabilities; NaN of silent songs.
        real: `(songs, labels)` of real songs, rendered the same way; None without.
        real_names: of the files.
    """

    model: str
    classes: tuple[str, ...]
    generated: npt.NDArray[np.float64]
    real: npt.NDArray[np.float64] | None = None
    real_names: tuple[str, ...] = ()

    @property
    def means(self) -> list[tuple[str, Score, Score | None]]:
        """Label and mean probability in the generated and in the real songs, with a bootstrap over songs; largest
        first."""
        order = np.argsort(-np.nan_to_num(np.nanmean(self.generated, axis=0)), kind="stable")
        real = [None] * len(order) if self.real is None else [_mean(column) for column in self.real.T]
        return [(self.classes[label], _mean(self.generated[:, label]), real[label]) for label in order.tolist()]

    def first(self, probabilities: npt.NDArray[np.float64]) -> dict[str, int]:
        """Number of songs whose most probable label this is, for the labels that occur, most frequent first."""
        known = probabilities[np.isfinite(probabilities).all(axis=1)]
        counts = np.bincount(known.argmax(axis=1), minlength=len(self.classes)) if len(known) else np.zeros(0, int)
        return {
            self.classes[label]: int(counts[label]) for label in np.argsort(-counts, kind="stable") if counts[label]
        }

    def as_dict(self) -> dict[str, Any]:
        """Content for JSON."""
        means = {
            label: {"generated": generated.as_dict(), "real": None if real is None else real.as_dict()}
            for label, generated, real in self.means
        }
        counts = {"generated": self.first(self.generated), "real": None if self.real is None else self.first(self.real)}
        return {"model": self.model, "mean_probability": means, "most_probable": counts, "real": list(self.real_names)}


def check_folder(folder: Path, option: str = "--output") -> list[Path]:
    """Return the files in an output folder that an earlier call has written and this one replaces.

    Raises:
        UsageError: it is a file, or has files but no index.json of `gafx generate`.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{option} {folder} is a file: name a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return []
    found = None
    with suppress(OSError, ValueError):
        found = json.loads((folder / INDEX).read_text("utf-8"))
    if not (isinstance(found, dict) and "gafx" in found and isinstance(found.get("songs"), list)):
        raise UsageError(f"{option} {folder} has files that gafx generate did not write: name a new folder")
    names = [song.get(key) for song in found["songs"] if isinstance(song, dict) for key in ("file", "wav")]
    return [folder / name for name in names if isinstance(name, str) and Path(name).name == name]


def write_songs(
    folder: Path, pieces: Sequence[Piece], *, model: str, scheme: str, settings: Mapping[str, Any],
    waves: Sequence[Wave] = (), walk: Walk | None = None, heard: Heard | None = None,
) -> str:  # fmt: skip
    """Write the files of pieces, index.json and the page, in place of those of an earlier call.

    Args:
        folder: created where it is missing; see `check_folder`.
        pieces: to write, as `song-001.mid` and so on.
        model: name of the model that wrote them.
        scheme: of its tokens.
        settings: of the call, for the record.
        waves: the rendered songs, written as `song-001.wav`; none for no wav files.
        walk: whose points the pieces are.
        heard: what a model of audio hears in them.

    Returns:
        The table for the terminal.
    """
    for path in check_folder(folder):
        path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    entries = [_entry(number, piece, bool(waves), heard) for number, piece in enumerate(pieces)]
    for entry, piece in zip(entries, pieces, strict=True):
        write_midi(replace(piece.song, name=Path(entry["file"]).stem), folder / entry["file"])
    for entry, wave in zip(entries, waves, strict=False):
        write_wav(wave, folder / entry["wav"])
    record = {
        "gafx": __version__, "model": model, "scheme": scheme, "settings": dict(settings), "songs": entries,
        "walk": None if walk is None else _walk_entry(walk), "heard": None if heard is None else heard.as_dict(),
    }  # fmt: skip
    write_json(folder / INDEX, record)
    sounds = _sounds(waves) or [""] * len(pieces)
    songs = [
        {**entry, "roll": piano_roll(piece.song, entry["file"], given_beats=piece.given_beats), "audio": sound}
        for entry, piece, sound in zip(entries, pieces, sounds, strict=True)
    ]
    page = write_page(
        folder / PAGE, "songs.html.j2", title=f"{'A walk' if walk else 'Songs'} by {model}", record=record, songs=songs,
        settings={fmt.label(key): _setting(value) for key, value in settings.items()}, heard=heard, walk=walk,
        walk_text="" if walk is None else walk_text(walk),
    )  # fmt: skip
    return f"{_table(entries, walk, heard)}\npage: {page}"


def _entry(number: int, piece: Piece, wav: bool, heard: Heard | None) -> dict[str, Any]:
    name = f"song-{number + 1:03}"
    song = piece.song
    entry: dict[str, Any] = {
        "file": f"{name}.mid", "wav": f"{name}.wav" if wav else None, "place": number, "notes": len(song),
        "seconds": round(song.duration, 3), "tokens_given": piece.given, "tokens_drawn": piece.drawn,
        "tokens_left_out": song.skipped, "log_likelihood": piece.log_likelihood,
        "nll_per_token": -piece.log_likelihood / piece.drawn,
    }  # fmt: skip
    if heard is not None:
        values = heard.generated[number]
        known = bool(np.isfinite(values).all())
        entry["heard"] = dict(zip(heard.classes, values.round(6).tolist(), strict=True)) if known else None
        entry["label"] = heard.classes[int(values.argmax())] if known else None
        entry["probability"] = float(values.max()) if known else None
    return entry


def _walk_entry(walk: Walk) -> dict[str, Any]:
    return {
        "latent_distances": walk.latent_distances, "latent_ends": walk.latent_ends,
        "token_distances": walk.token_distances, "token_ends": walk.token_ends,
    }  # fmt: skip


def _mean(values: npt.NDArray[np.float64]) -> Score:
    known = values[np.isfinite(values)]
    if not len(known):
        return Score(float("nan"))
    return mean_score(known, np.arange(len(known)), resamples=_RESAMPLES if len(known) > 1 else 0)


def _sounds(waves: Sequence[Wave]) -> list[str]:
    """Audio of each song for the page, as data; empty beyond the page's bound, where it links to the file."""
    found, room = [], _MOST_EMBEDDED
    for wave in waves:
        text = (
            "data:audio/mpeg;base64," + base64.b64encode(mp3(wave[None], SAMPLE_RATE)).decode("ascii") if room else ""
        )
        room = max(0, room - len(text))
        found.append(text if room else "")
    return found


def _setting(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return fmt.NONE if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _table(entries: Sequence[Mapping[str, Any]], walk: Walk | None, heard: Heard | None) -> str:
    header = ["song", "notes", "length", "nats/token", "tokens left out", *([f"{heard.model} hears"] if heard else [])]
    rows = [
        [
            entry["file"], str(entry["notes"]), fmt.clock(entry["seconds"]), f"{entry['nll_per_token']:.3f}",
            str(entry["tokens_left_out"]),
            *([f"{entry['label']} ({fmt.probability(entry['probability'])})" if entry["label"] else "silence"]
              if heard else []),
        ]
        for entry in entries
    ]  # fmt: skip
    parts = [fmt.text_table(header, rows)]
    if walk is not None:
        parts.append(walk_text(walk))
    if heard is not None:
        counts = ["generated", *(["real"] if heard.real is not None else [])]
        sizes = (len(heard.generated), 0 if heard.real is None else len(heard.real))
        header = ["label", *(f"{name} ({fmt.plural(size, 'song')})" for name, size in zip(counts, sizes, strict=False))]
        lines = [
            [label, *(fmt.score(score, "probability") for score in scores if score is not None)]
            for label, *scores in heard.means
        ]
        parts.append(f"mean probability by {heard.model}, 95 % intervals over songs\n{fmt.text_table(header, lines)}")
    return "\n\n".join(parts)


def walk_text(walk: Walk) -> str:
    """The distances of a walk in a sentence."""
    latent, tokens = walk.latent_distances, walk.token_distances
    text = (
        f"latent distance of neighbours {np.mean(latent):.3f} on average (largest {max(latent):.3f}), of the ends "
        f"{walk.latent_ends:.3f}; edit distance of tokens of neighbours {fmt.fraction(float(np.mean(tokens)))} on "
        f"average (largest {fmt.fraction(max(tokens))}), of the ends {fmt.fraction(walk.token_ends)}"
    )
    if walk.latent_ends < _COLLAPSED:
        text += "; both songs have nearly the same latent vector: it says little about a song (posterior collapse)"
    return text
