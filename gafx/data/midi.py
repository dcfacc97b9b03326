"""Reads MIDI files as sequences of tokens in the place of waves."""

from dataclasses import dataclass, field

import numpy as np

from gafx.audio.read import Samples
from gafx.data.manifest import Manifest
from gafx.errors import UnreadableMidi
from gafx.midi.read import read_midi
from gafx.midi.song import Song
from gafx.midi.tokens import END, TOKEN_RATE, Tokenizer, Tokens, tokenizer


def read_piece(manifest: Manifest, row: int) -> Song:
    """Read the song of a clip; raises `UnreadableMidi` as `read_midi`."""
    return read_midi(manifest.root / manifest.relative_path(row))


@dataclass(eq=False)
class TokenReader:
    """Reads segments of the tokens of MIDI files: a piece, then `<end>`.

    A token is a sample, a whole number as float32, exact up to 2**24. Each file is read once, and its tokens are kept.

    Args:
        manifest: of a set of MIDI files.
    """

    manifest: Manifest
    sample_rate: int = TOKEN_RATE
    channels: int = 1
    tokenizer: Tokenizer = field(init=False)

    def __post_init__(self) -> None:
        self.tokenizer = tokenizer(self.manifest.scheme or "none", self.manifest.classes)
        self._kept: dict[int, Tokens] = {}

    def tokens(self, row: int) -> Tokens:
        """Return all tokens of a piece, `<end>` last.

        Raises:
            UnreadableMidi: the file has changed since the data set was read.
        """
        if row not in self._kept:
            found = np.append(self.tokenizer.encode(read_piece(self.manifest, row)), END)
            if len(found) != self.manifest.duration[row]:
                raise UnreadableMidi(
                    f"has {len(found):,} tokens, and had {self.manifest.duration[row]:,.0f}: it has changed"
                )
            self._kept[row] = found
        return self._kept[row]

    def read(self, row: int, start: int, length: int) -> Samples:
        return self.tokens(row)[None, start : start + length].astype(np.float32)

    def transpose(self, wave: Samples, semitones: int) -> Samples | None:
        """Return a segment moved by semitones; `None` where a note leaves the vocabulary."""
        moved = self.tokenizer.transpose(wave[0].astype(np.int64), semitones)
        return None if moved is None else moved[None].astype(np.float32)
