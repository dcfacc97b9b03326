"""Compare generators with each other, with an n-gram model and with real music, on the test part of their data."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.config import EvaluateConfig
from gafx.data.dataset import ClipDataset
from gafx.data.protocols import Protocol
from gafx.data.segments import Segments, evaluation_segments
from gafx.deploy.generate import Composer
from gafx.errors import UsageError
from gafx.evaluation.runs import Run, check_comparable, expand, open_part, open_run, predict_part
from gafx.inference import Predictions, to_tracks
from gafx.midi.song import Song
from gafx.midi.tokens import END, Tokenizer
from gafx.nn.precision import pick_device
from gafx.stats.compare import Paired, compare_values, holm, mean
from gafx.stats.scores import Score, mean_score
from gafx.studies.music.measures import (
    DISTRIBUTIONS,
    Copies,
    Counts,
    ceiling,
    copies,
    joined_lines,
    overlap_score,
    repetition,
)  # fmt: skip
from gafx.studies.music.ngram import Ids, NGram

Rows = npt.NDArray[np.int64]
NGRAM = "n-gram"
_HIGHEST = 8  # order of the n-gram model
_VALIDATION = 10  # without a validation part, every so many recordings of the training chooses the n-gram's order

_log = logging.getLogger("gafx")


@dataclass(frozen=True)
class Generated:
    """A row of the comparison: a model, or the real pieces of the test part.

    Attributes:
        name: of the run, `n-gram` or the test part.
        about: what the model is.
        nll: negative log-likelihood per token in nats; None of real pieces.
        is_bound: it is an upper bound, by a latent vector.
        versus: difference from the n-gram model on the same pieces; None of that model and of real pieces.
        adjusted: its p-value after Holm's correction.
        pieces: number of pieces whose notes are measured.
        overlaps: with the test part, by distribution; None of the test part itself.
        copied, copied_intervals: runs of tokens, and of intervals in any key, that occur in the training.
        repeated: runs of tokens that occurred earlier in the piece.
        left_out: fraction of the tokens that fitted nowhere.
    """

    name: str
    about: str
    nll: Score | None
    is_bound: bool
    versus: Paired | None
    adjusted: float | None
    pieces: int
    overlaps: dict[str, Score] | None
    copied: Copies
    copied_intervals: Copies
    repeated: Score
    left_out: float

    def as_dict(self) -> dict[str, Any]:
        """Content for JSON."""
        values = asdict(self)
        for key in ("nll", "repeated"):
            score = getattr(self, key)
            values[key] = None if score is None else score.as_dict()
        values["overlaps"] = None if self.overlaps is None else {k: v.as_dict() for k, v in self.overlaps.items()}
        for key in ("copied", "copied_intervals"):
            values[key]["fractions"] = {size: score.as_dict() for size, score in getattr(self, key).fractions.items()}
        return values


@dataclass(frozen=True)
class Comparison:
    """The comparison of several generators.

    Attributes:
        rows: the models, the n-gram model after the runs, and the test part last.
        ceilings: by distribution, overlap of the training part with itself.
        data: name of the data set, protocol, part and numbers of pieces, as text.
        settings: of generation.
        notes: sentences on how it was measured.
    """

    rows: list[Generated]
    ceilings: dict[str, Score]
    data: str
    settings: dict[str, Any]
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Content for JSON."""
        return {
            "data": self.data, "settings": self.settings, "rows": [row.as_dict() for row in self.rows],
            "ceilings": {name: score.as_dict() for name, score in self.ceilings.items()}, "notes": self.notes,
        }  # fmt: skip


@dataclass(frozen=True)
class _Pieces:
    """Pieces of one set, as tokens and as notes, with the recording of each."""

    tokens: list[Ids]
    songs: list[Song]
    groups: Rows

    @classmethod
    def of(cls, tokens: Sequence[Ids], player: Tokenizer, groups: Rows | None = None) -> "_Pieces":
        songs = [player.decode(each) for each in tokens]
        return cls(list(tokens), songs, np.arange(len(songs)) if groups is None else groups)

    def counts(self, name: str) -> Counts:
        """Counts of a distribution, `(pieces, bins)`."""
        return np.stack([DISTRIBUTIONS[name](song) for song in self.songs])


def compare_music(
    folders: Sequence[Path], config: EvaluateConfig, *, number: int = 50, temperature: float = 0.9, top_p: float = 0.95,
    seed: int = 0, length: int | None = None, samples: int | None = None,
    progress: Callable[[str], object] = _log.info,
) -> Comparison:  # fmt: skip
    """Compare finished runs of objective=likelihood of the same data, split, tokens and clip length.

    All read the same windows of the test part, which are those of `gafx evaluate`, each without what is before it. The
    n-gram model is counted on the training part; whether also on its transpositions, where the runs were trained with
    them, and its order are chosen on the validation part. Windows of the test part of the length of the generated
    pieces are the real music that the measures compare with.

    Args:
        folders: of the runs.
        config: batch size, device, precision, resamples, and root of the data.
        number: of pieces that each model writes.
        temperature, top_p, seed, length: of these, see `Composer.pieces`.
        samples: draws of the latent vector for the bound of a VAE, see `objective=likelihood`; default: the run's.
        progress: called with what is done next.

    Raises:
        UsageError: runs that cannot be compared, or an argument out of range.
    """
    runs = [open_run(folder) for folder in expand(folders)]
    _check(runs)
    device = pick_device(config.device)
    first = runs[0]
    found: list[tuple[Run, Composer, Predictions]] = []
    clips = None
    for run in runs:
        progress(f"likelihood of the test part under {run.folder.name}")
        if samples is not None:
            run.config.objective["samples"] = samples
        model, clips = open_part(run, config)
        model.to(device)
        found.append((run, Composer(model, device=device), predict_part(run, model, clips, config, device)))
    assert clips is not None
    test, player = clips, found[0][1].tokenizer
    training, held_out = open_part(first, config, "train")[1], open_part(first, config, "val")[1]
    whole, whole_groups = _whole(training)
    progress("n-gram model")
    ngram, about = _fit_ngram(whole, whole_groups, _read(held_out, held_out.segments), player, _transposed(runs))
    windows = _read(test, test.segments)
    of_ngram = Predictions(
        test.segments.row, test.segments.start,
        np.array([[-values.mean()] for values in ngram.log_probabilities(windows)]),
    )  # fmt: skip
    tracks, groups = to_tracks(of_ngram), test.manifest.group
    base = tracks.values[:, 0]
    length = found[0][1].context if length is None else length
    real = _cut(test, player, length)
    lessons = _cut(training, player, length)
    known = _Pieces.of(whole, player, whole_groups)
    rows: list[Generated] = []
    measured = _Measure(known, real, config.resamples)
    for run, composer, predictions in found:
        progress(f"{number} pieces by {run.folder.name}")
        own = to_tracks(predictions)
        if not np.array_equal(own.row, tracks.row):
            raise UsageError(f"{run.folder} could not read {len(tracks.row) - len(own.row)} pieces of the test part")
        values = own.values[:, 0]
        written = composer.pieces(number, temperature=temperature, top_p=top_p, seed=seed, length=length)
        pieces = _Pieces([each.tokens for each in written], [each.song for each in written], np.arange(number))
        rows.append(measured.row(
            run.folder.name, _about(run, composer), pieces,
            nll=mean_score(values, groups[own.row], resamples=config.resamples),
            is_bound=composer.generator.latent > 0, versus=compare_values(mean, values, base, groups[own.row]),
        ))  # fmt: skip
    progress(f"{number} pieces by the n-gram model")
    drawn = ngram.sample(number, length, temperature=temperature, top_p=top_p, seed=seed)
    rows.append(measured.row(
        NGRAM, about, _Pieces.of([_until_end(each) for each in drawn], player),
        nll=mean_score(base, groups[tracks.row], resamples=config.resamples),
    ))  # fmt: skip
    rows.append(measured.row("test part", "real pieces", real))
    sizes = (number, len(real.songs))
    ceilings = {name: ceiling(lessons.counts(name), lessons.groups, sizes) for name in DISTRIBUTIONS}
    return Comparison(
        _adjusted(rows), ceilings, _data_text(first, test, training, windows),
        {"number": number, "temperature": temperature, "top_p": top_p, "seed": seed, "length": length},
        [*dict.fromkeys(test.manifest.notes)],
    )  # fmt: skip


@dataclass(frozen=True)
class _Measure:
    """Measures pieces against the training and the test part."""

    known: _Pieces
    real: _Pieces
    resamples: int

    def row(
        self, name: str, about: str, pieces: _Pieces, *, nll: Score | None = None, is_bound: bool = False,
        versus: Paired | None = None,
    ) -> Generated:  # fmt: skip
        known = len(self.known.songs)
        lines = joined_lines([*self.known.songs, *pieces.songs])
        return Generated(
            name, about, nll, is_bound, versus, None, len(pieces.songs),
            None if pieces is self.real else {
                name: overlap_score(pieces.counts(name), self.real.counts(name), self.real.groups,
                                    resamples=self.resamples)
                for name in DISTRIBUTIONS
            },
            copies(self.known.tokens, pieces.tokens, pieces.groups, resamples=self.resamples),
            copies(lines[:known], lines[known:], pieces.groups, resamples=self.resamples),
            repetition(pieces.tokens, pieces.groups, resamples=self.resamples),
            sum(song.skipped for song in pieces.songs) / max(1, sum(map(len, pieces.tokens))),
        )  # fmt: skip


def _check(runs: Sequence[Run]) -> None:
    for run in runs:
        if run.config.objective["name"] != "likelihood":
            raise UsageError(
                f"{run.folder} was trained with objective={run.config.objective['name']}: only models of tokens "
                "(objective=likelihood) are compared as music; gafx evaluate scores the others"
            )
    first = runs[0]
    for run in runs[1:]:
        for what, of in (
            ("scheme of tokens (data.options)", lambda run: run.config.data.options),
            ("length of clips (data.segment_seconds)", lambda run: run.config.data.segment_seconds),
            ("fold", lambda run: run.config.data.fold),
        ):  # fmt: skip
            if of(run) != of(first):
                raise UsageError(
                    f"{first.folder} and {run.folder} have another {what} ({of(first)} and {of(run)}), so that their "
                    "likelihoods are of other tokens; compare them separately"
                )
    check_comparable(runs)


def _about(run: Run, composer: Composer) -> str:
    name: str = run.config.classifier["name"]
    if not composer.generator.latent:
        return name
    samples = run.config.objective.get("samples", 1)
    return f"{name}, {'ELBO' if samples == 1 else f'importance-weighted bound of {samples} draws'}"


def _transposed(runs: Sequence[Run]) -> int:
    """Largest transposition that any of the runs was trained with, in semitones."""
    return max(run.config.augment.transpose for run in runs)


def _read(clips: ClipDataset, segments: Segments) -> list[Ids]:
    """Tokens of segments."""
    columns = (segments.row.tolist(), segments.start.tolist(), segments.length.tolist())
    return [clips.reader.read(*each)[0].astype(np.int64) for each in zip(*columns, strict=True)]


def _whole(clips: ClipDataset) -> tuple[list[Ids], Rows]:
    """Tokens of the whole pieces of a part, and their recordings."""
    rows = np.unique(clips.segments.row)
    lengths = clips.manifest.duration[rows].astype(np.int64)
    return _read(clips, Segments(rows, np.zeros_like(rows), lengths)), clips.manifest.group[rows]


def _cut(clips: ClipDataset, player: Tokenizer, length: int) -> _Pieces:
    """Whole windows of the pieces of a part, side by side."""
    windows = evaluation_segments(clips.manifest, np.unique(clips.segments.row), 1, length)
    full = np.flatnonzero(windows.length == length)
    if not len(full):
        raise UsageError(f"length={length} is longer than every piece of the data; take a smaller one")
    kept = Segments(windows.row[full], windows.start[full], windows.length[full])
    return _Pieces.of([_until_end(each) for each in _read(clips, kept)], player, clips.manifest.group[kept.row])


def _until_end(tokens: Ids) -> Ids:
    ends = np.flatnonzero(tokens == END)
    return tokens[: ends[0]] if len(ends) else tokens


def _fit_ngram(
    pieces: list[Ids], groups: Rows, held_out: list[Ids], player: Tokenizer, semitones: int
) -> tuple[NGram, str]:
    """The n-gram model of the order, and with or without transpositions, that the validation part chooses."""
    how = "the validation part"
    training = pieces
    if not held_out:
        numbers = np.unique(groups, return_inverse=True)[1]
        chosen = numbers % _VALIDATION == 0
        held_out = [each for each, held in zip(pieces, chosen, strict=True) if held]
        training = [each for each, held in zip(pieces, chosen, strict=True) if not held] or pieces
        how = f"every {_VALIDATION}th recording of the training part"
    size = len(player.vocabulary)

    def fit(pieces: list[Ids], moved: int) -> list[Ids]:
        shifts = [shift for shift in range(-moved, moved + 1) if shift]
        return pieces + [
            new for shift in shifts for each in pieces if (new := player.transpose(each, shift)) is not None
        ]

    best: tuple[float, int, NGram] | None = None
    for moved in sorted({0, semitones}):
        model = NGram.choose(fit(training, moved), held_out, size, _HIGHEST)
        loss = -sum(float(values.sum()) for values in model.log_probabilities(held_out))
        if best is None or loss < best[0]:
            best = loss, moved, model
    assert best is not None
    _, moved, model = best
    if training is not pieces:
        model = NGram.fit(fit(pieces, moved), size, model.order)
    also = f", counted in all keys up to {moved} semitones away" if moved else ""
    return model, f"interpolated Kneser-Ney, order {model.order}{also}; chosen on {how}"


def _adjusted(rows: Sequence[Generated]) -> list[Generated]:
    tested = [row for row in rows if row.versus is not None]
    values = iter(holm([row.versus.p_value for row in tested if row.versus is not None]))
    return [row if row.versus is None else replace(row, adjusted=next(values)) for row in rows]


def _data_text(run: Run, test: ClipDataset, training: ClipDataset, windows: Sequence[Ids]) -> str:
    data, manifest = run.config.data, test.manifest
    rows = np.unique(test.segments.row)
    protocol = Protocol.parse(data.protocol).label(data.split_seed)
    return (
        f"{data.name}, {protocol}, test part: {len(rows)} pieces in {len(np.unique(manifest.group[rows]))} groups, "
        f"{sum(map(len, windows)):,} tokens in {len(windows):,} windows of at most {data.segment_seconds:g}; "
        f"training part: {len(np.unique(training.segments.row))} pieces"
    )
