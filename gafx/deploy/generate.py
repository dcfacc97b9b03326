"""Write music with a model that was trained on tokens of MIDI: new pieces, continuations, walks in the latent space."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gafx.classifiers._generator import Generator
from gafx.errors import UnreadableMidi, UsageError, check_options
from gafx.loading import load
from gafx.midi.read import NAMES, is_midi_name, read_midi
from gafx.midi.song import TEMPO, Song
from gafx.midi.tokens import BEGIN, END, PAD, UNKNOWN, Tokenizer, scheme_of, tokenizer
from gafx.model import GAFX
from gafx.nn.precision import pick_device
from gafx.nn.sampling import pick
from gafx.report.format import printable

Ids = npt.NDArray[np.int64]
SongSource = Song | str | os.PathLike[str]
Walking = Literal["spherical", "linear"]

# Rows of every batch, also for one piece: how a row is rounded depends on the size of its batch, and a piece must not
# depend on how many others are asked for.
_ROWS = 8
MOST_TOKENS = 100_000


@dataclass(frozen=True)
class Piece:
    """A piece that a model has written.

    Attributes:
        song: its notes.
        tokens: int64 `(tokens,)`, without `<begin>` and `<end>`, those of a continued song first.
        given: number of tokens of the continued song.
        log_likelihood: of the tokens that were drawn, an `<end>` among them, in nats: under the model's own
            distribution (temperature 1, all tokens), given those before them and its latent vector.
        drawn: number of tokens that were drawn.
        given_beats: where the continued song ends, in beats.
    """

    song: Song
    tokens: Ids
    given: int
    log_likelihood: float
    drawn: int
    given_beats: float = 0.0


@dataclass(frozen=True)
class Walk:
    """Pieces on a way through the latent space.

    Attributes:
        pieces: the decoded points, the ends among them.
        points: `(steps, latent)`.
        latent_distances, latent_ends: Euclidean, between neighbours and between the ends.
        token_distances, token_ends: edit distances of the pieces' tokens as a fraction of the longer one's length.
    """

    pieces: list[Piece]
    points: npt.NDArray[np.float64]
    latent_distances: list[float]
    latent_ends: float
    token_distances: list[float]
    token_ends: float


class Composer:
    """A model that writes music, with the tokenizer of its vocabulary.

    Args:
        model: a run's folder or any other source of `gafx.load`, or a loaded model.
        device: as of `gafx.predict`.

    Attributes:
        model: the whole model, in eval mode on `device`.
        generator: its classifier.
        tokenizer: of its vocabulary.
        context: tokens of a clip in training.

    Raises:
        UsageError: no model there, or one that was not trained on tokens of MIDI.
    """

    def __init__(self, model: str | os.PathLike[str] | GAFX, *, device: str | torch.device = "auto"):
        loaded = model if isinstance(model, GAFX) else load(model)
        self.name = "this model" if isinstance(model, GAFX) else printable(os.fspath(model))
        info, generator = loaded.info, loaded.classifier
        scheme = None if info is None else scheme_of(info.classes)
        if info is None or scheme is None or not isinstance(generator, Generator):
            raise UsageError(
                f"{self.name} writes no music: it was not trained on tokens of MIDI with objective=likelihood; train "
                "one with experiment=midi_decoder, midi_vae_lstm or midi_vae_transformer"
            )
        self.device = pick_device(device)
        self.model, self.generator = loaded.to(self.device).eval(), generator
        self.tokenizer: Tokenizer = tokenizer(scheme, info.classes)
        self.context = generator.map_shape[2]

    def read(self, source: SongSource) -> Song:
        """Return a song, read from a MIDI file where it is a path.

        Raises:
            UsageError: the file cannot be read as MIDI, or nothing of it has a token.
        """
        if isinstance(source, Song):
            return source
        try:
            return read_midi(source)
        except UnreadableMidi as error:
            raise UsageError(f"{printable(os.fspath(source))} {error}") from error

    def encode(self, song: Song) -> Ids:
        """Return the tokens of a song, at least one.

        Raises:
            UsageError: it has no note that the vocabulary could hold.
        """
        tokens = np.asarray(self.tokenizer.encode(song), np.int64)
        if not len(tokens):
            raise UsageError(
                f"{song.name or 'a song'} has no token of the scheme {self.tokenizer.scheme!r}: it has drums alone, or "
                "no notes"
            )
        return tokens

    def pieces(
        self, number: int = 8, *, temperature: float = 0.9, top_p: float = 0.95, seed: int = 0,
        length: int | None = None, tempo: float = TEMPO, prompt: SongSource | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> list[Piece]:  # fmt: skip
        """Write pieces; the piece of a place in the list depends on the seed and that place alone.

        Args:
            number: of pieces.
            temperature: divisor of the logits; 0 takes the most likely token each time, so that pieces differ by their
                latent vectors alone.
            top_p: draw from the smallest set of tokens whose probabilities sum to so much, in (0, 1].
            seed: of latent vectors and tokens.
            length: most tokens to draw; default: as many as a clip in training. A piece may end before.
            tempo: quarter notes per minute of the pieces; those of a continued song stay.
            prompt: song to continue. The model reads its last tokens, as many as a clip in training, and a VAE takes
                its latent vector from their posterior.
            progress: called with the number of finished pieces.

        Raises:
            UsageError: an argument out of range, or the song cannot be read.
        """
        length = self.context if length is None else length
        _check(number=number, length=length, temperature=temperature, top_p=top_p, seed=seed, tempo=tempo)
        song = None if prompt is None else self.read(prompt)
        given = np.zeros(0, np.int64) if song is None else self.encode(song)
        found: list[Piece] = []
        for block in range(math.ceil(number / _ROWS)):
            random = _random(seed, block)
            wanted = min(_ROWS, number - len(found))
            latent = self._draw_latents(random, given)
            with torch.inference_mode():
                written = self._write(latent, _ROWS, wanted, length, random, temperature, top_p, given[-self.context :])
            found += [self._piece(given, *each, tempo, song) for each in written]
            if progress is not None:
                progress(wanted)
        return found

    def between(
        self, first: SongSource, second: SongSource, steps: int = 7, *, path: Walking = "spherical",
        temperature: float = 0.0, top_p: float = 0.95, seed: int = 0, length: int | None = None, tempo: float = TEMPO,
        progress: Callable[[int], object] | None = None,
    ) -> Walk:  # fmt: skip
        """Walk from the latent vector of one song to that of another, and decode every point.

        The ends are the means of the posteriors of the songs' first tokens, as many as a clip in training. All points
        are decoded with the same random numbers, so that neighbours differ by their latent vectors alone.

        Args:
            first, second: the songs.
            steps: points, the ends among them, at least 2.
            path: `spherical` turns from one direction to the other and changes the length evenly (White,
                arXiv 1609.04468): between random vectors, which have about one length, it stays where the model has
                been trained; `linear` is the straight line.
            temperature: 0 decodes greedily; see `pieces` for it and the others.
            top_p, seed, length, tempo, progress: see `pieces`.

        Raises:
            UsageError: the model has no latent space, an argument out of range, or a song cannot be read.
        """
        length = self.context if length is None else length
        _check(length=length, temperature=temperature, top_p=top_p, seed=seed, tempo=tempo)
        if steps < 2 or steps > MOST_TOKENS:
            raise UsageError(f"steps={steps} must be at least 2: both ends are steps")
        if not self.generator.latent:
            raise UsageError(
                f"{self.name} has no latent space to walk in: only models with classifier=vae_lstm or vae_transformer "
                "have"
            )
        ends = [self._mean(self.encode(self.read(song))) for song in (first, second)]
        points = between(ends[0], ends[1], steps, path)
        pieces = []
        for point in points:
            latent = torch.from_numpy(point)[None].to(self.device, self._dtype)
            with torch.inference_mode():
                written = self._write(latent, 1, 1, length, _random(seed, 0), temperature, top_p, np.zeros(0, np.int64))
            pieces.append(self._piece(np.zeros(0, np.int64), *written[0], tempo, None))
            if progress is not None:
                progress(1)
        gaps = np.linalg.norm(np.diff(points, axis=0), axis=1)
        tokens = [piece.tokens for piece in pieces]
        return Walk(
            pieces, points, gaps.tolist(), float(np.linalg.norm(points[-1] - points[0])),
            [edit_distance(*pair) for pair in pairwise(tokens)],
            edit_distance(tokens[0], tokens[-1]),
        )  # fmt: skip

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.generator.parameters()).dtype

    def _window(self, tokens: Ids) -> Tensor:
        return torch.from_numpy(tokens[None]).to(self.device)

    def _mean(self, tokens: Ids) -> npt.NDArray[np.float64]:
        with torch.inference_mode():
            mean, _ = self.generator.posterior(self._window(tokens[: self.context]))
        return mean[0].double().cpu().numpy()

    def _draw_latents(self, random: torch.Generator, given: Ids) -> Tensor | None:
        """Latent vectors `(_ROWS, latent)` from N(0, I), or from the posterior of given tokens; None without."""
        if not self.generator.latent:
            return None
        drawn = torch.randn(_ROWS, self.generator.latent, generator=random, dtype=torch.float64).to(self.device)
        if len(given):
            with torch.inference_mode():
                mean, log_variance = self.generator.posterior(self._window(given[-self.context :]))
            drawn = mean.double() + (0.5 * log_variance.double()).exp() * drawn
        return drawn.to(self._dtype)

    def _write(
        self, latent: Tensor | None, rows: int, wanted: int, length: int, random: torch.Generator, temperature: float,
        top_p: float, given: Ids,
    ) -> list[tuple[Ids, float, int]]:  # fmt: skip
        """Draw tokens for the first `wanted` of `rows` rows; return those of each, log-likelihood and number drawn."""
        state = self.generator.start(rows, latent)
        logits = None
        for token in (BEGIN, *given.tolist()):
            logits, state = self.generator.step(state, torch.full((rows,), token, device=self.device))
        assert logits is not None
        tokens = np.zeros((rows, length), np.int64)
        likelihood, drawn = np.zeros(rows), np.zeros(rows, np.int64)
        going = np.ones(rows, bool)
        for place in range(length):
            scores = logits.double().cpu()
            allowed = scores.clone()
            # A piece has a first token.
            allowed[:, [PAD, BEGIN, UNKNOWN, *([END] if place == 0 else [])]] = -math.inf
            chosen = pick(allowed, temperature, top_p, random)
            tokens[:, place] = chosen.numpy()
            gained = scores.log_softmax(dim=1).gather(1, chosen[:, None])[:, 0].numpy()
            likelihood += np.where(going, gained, 0.0)
            drawn += going
            going &= tokens[:, place] != END
            if not going[:wanted].any():
                break
            if place + 1 < length:
                logits, state = self.generator.step(state, chosen.to(self.device))
        lengths = drawn - (tokens[np.arange(rows), drawn - 1] == END)
        return [(tokens[row, : lengths[row]], float(likelihood[row]), int(drawn[row])) for row in range(wanted)]

    def _piece(
        self, given: Ids, tokens: Ids, likelihood: float, drawn: int, tempo: float, prompt: Song | None
    ) -> Piece:
        every = np.concatenate([given, tokens])
        song = self.tokenizer.decode(every, tempo if prompt is None else float(prompt.tempos[0, 1]))
        if prompt is not None and self.tokenizer.scheme == "events":  # of the other scheme the beats are not kept
            song = replace(song, tempos=prompt.tempos)
        return Piece(song, every, len(given), likelihood, drawn, self.tokenizer.decode(given).length)


def generate(
    model: str | os.PathLike[str] | GAFX, number: int = 8, *, device: str | torch.device = "auto", **options: Any
) -> list[Song]:
    """Write songs with a trained model: `gafx.midi.write.write_midi(song, path)` saves one.

    Args:
        model: a run's folder, or another source of `gafx.load`, trained on tokens of MIDI.
        number: of songs.
        device: as of `gafx.predict`.
        **options: of `Composer.pieces`: `temperature`, `top_p`, `seed`, `length`, `tempo`, `prompt`, `progress`.

    Raises:
        UsageError: no such model, an option out of range, or a song to continue that cannot be read.
    """
    check_options(options, Composer.pieces, "generate")
    return [piece.song for piece in Composer(model, device=device).pieces(number, **options)]


def between(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], steps: int, path: Walking
) -> npt.NDArray[np.float64]:
    """Points from one vector to another, `(steps, size)`; see `Composer.between`.

    Vectors without a direction, or of opposite directions, are joined by the straight line.
    """
    fraction = np.linspace(0.0, 1.0, steps)[:, None]
    lengths = np.linalg.norm(first), np.linalg.norm(second)
    straight = (1 - fraction) * first + fraction * second
    if path == "linear" or not min(lengths):
        return straight
    angle = np.arccos(np.clip(first @ second / (lengths[0] * lengths[1]), -1, 1))
    if np.sin(angle) < 1e-6:
        return straight
    ends = (first / lengths[0], second / lengths[1])
    directions = (np.sin((1 - fraction) * angle) * ends[0] + np.sin(fraction * angle) * ends[1]) / np.sin(angle)
    return directions * ((1 - fraction) * lengths[0] + fraction * lengths[1])


def edit_distance(first: Ids, second: Ids) -> float:
    """Fewest insertions, deletions and replacements between two sequences, as a fraction of the longer one's length."""
    if not len(first) or not len(second):
        return float(len(first) != len(second))
    place = np.arange(len(second) + 1)
    costs = place.copy()
    for number, token in enumerate(first, 1):
        replaced = np.minimum(costs[:-1] + (second != token), costs[1:] + 1)
        # An insertion costs one for each place on: the minimum over all places before.
        costs = np.minimum.accumulate(np.concatenate([[number], replaced]) - place) + place
    return float(costs[-1] / max(len(first), len(second)))


def heard(
    songs: Sequence[npt.NDArray[np.float32]], model: Any, sample_rate: int
) -> tuple[tuple[str, ...], npt.NDArray[np.float64]]:
    """Return the labels of a model of audio, and its probabilities for rendered songs, `(songs, labels)`.

    A song in which all windows are silent gives NaN.

    Args:
        songs: of `gafx.deploy.render.render`.
        model: from `gafx.deploy.predict.probabilities`, or what that takes.
        sample_rate: of the songs in Hz.
    """
    from gafx.deploy.predict import predict, probabilities

    loaded = probabilities(model)
    found = predict(list(songs), loaded, sample_rate=sample_rate)
    none = np.full(len(loaded.classes), np.nan)
    rows = [none if each.probabilities is None else np.asarray(each.probabilities, np.float64) for each in found]
    return tuple(loaded.classes), np.array(rows).reshape(-1, len(loaded.classes))


def find_midi(names: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return MIDI files: those named, and those below the folders named, sorted.

    Raises:
        UsageError: a path that does not exist, or a folder without MIDI files.
    """
    found: list[Path] = []
    for name in map(Path, names):
        if not name.exists():
            raise UsageError(f"there is no {name}: name a MIDI file or a folder with MIDI files")
        below = sorted(path for path in name.rglob("*") if is_midi_name(str(path))) if name.is_dir() else [name]
        if not below:
            raise UsageError(f"there is no MIDI file ({NAMES}) in {name}")
        found += below
    return list(dict.fromkeys(found))


def _check(**values: float) -> None:
    """Check the options of `Composer`."""
    rules: dict[str, tuple[Callable[[float], bool], str]] = {
        "number": (lambda value: 1 <= value <= MOST_TOKENS, f"a whole number from 1 to {MOST_TOKENS:,}"),
        "length": (lambda value: 1 <= value <= MOST_TOKENS, f"a whole number of tokens from 1 to {MOST_TOKENS:,}"),
        "temperature": (lambda value: 0 <= value <= 100, "from 0 (greedy) to 100, e.g. 0.9"),
        "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1; 1 draws from all tokens"),
        "seed": (lambda value: 0 <= value < 2**63, "a whole number from 0 on"),
        "tempo": (lambda value: 4 <= value <= 1000, "from 4 to 1000 quarter notes per minute"),
    }
    for name, value in values.items():
        allowed, what = rules[name]
        if not allowed(value):
            raise UsageError(f"{name}={value:g} must be {what}")


def _random(seed: int, block: int) -> torch.Generator:
    """Random numbers of a batch of pieces."""
    return torch.Generator().manual_seed(int(np.random.default_rng((seed, block)).integers(2**63)))
