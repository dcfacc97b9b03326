"""Tokens of symbolic music as they are: the input of the models that write music."""

from typing import Literal

from torch import Tensor

from gafx.frontends.base import FrontEnd, Shape
from gafx.midi.tokens import TOKEN_RATE
from gafx.registry import FRONTENDS


@FRONTENDS.register
class Tokens(FrontEnd):
    """Sequences of token ids from `data=midi`: whole numbers in the place of a wave, one id per sample and "second".

    The map is the sequence itself, not normalised. The vocabulary is the model's list of labels.

    Args:
        scheme: what the tokens are, see `gafx.midi.tokens`: `notes`, notes and chords in the order of their onsets as
            in the thesis (chapter 4.2.1), or `events`, with time, duration and velocity. It must be that of the data.
    """

    sample_rate = TOKEN_RATE
    learned = False
    map_norm = "none"
    unit = "tokens"
    not_exportable = "it reads tokens"

    def __init__(self, *, scheme: Literal["notes", "events"] = "events"):
        super().__init__()
        self.scheme = scheme

    def output_shape(self, samples: int) -> Shape:
        return 1, 1, samples

    def forward(self, wave: Tensor) -> Tensor:
        """`(batch, 1, tokens)` -> `(batch, 1, 1, tokens)`."""
        self.check_wave(wave)
        return wave[:, :, None]

    def codes(self, wave: Tensor) -> Tensor:
        """Compute the ids as integers: `(batch, 1, tokens)` -> int64 `(batch, tokens)`."""
        self.check_wave(wave)
        return wave[:, 0].round().long()

    def map_of(self, codes: Tensor) -> Tensor:
        return codes[:, None, None].float()

    def decode(self, codes: Tensor) -> Tensor:
        return codes[:, None].float()
