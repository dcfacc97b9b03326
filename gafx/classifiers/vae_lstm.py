"""Variational autoencoder of LSTMs over tokens (the thesis, chapter 4.2.2)."""

import torch
from torch import Tensor, nn

from gafx.classifiers._generator import Generator, mean_of_present
from gafx.classifiers.base import Shape, check_at_least_one, check_rates
from gafx.nn.transformer import dropout_layer
from gafx.registry import CLASSIFIERS

State = tuple[Tensor, Tensor]  # hidden and cell state, `(layers, batch, width)` each


@CLASSIFIERS.register
class VAELSTM(Generator):
    """VAE of two LSTMs: two layers of 256 units in encoder and decoder and 64 latent dimensions, as in the thesis.

    What differs, since the thesis's model learned little more than the frequencies of the notes:

    - Its encoder reads a token's number as one value, here an embedding.
    - Its decoder turns the latent vector into 100 inputs by a linear layer of 1.66 million weights, reads no tokens and
      predicts one, the token that follows the clip. Here it reads the token before each token together with the latent
      vector (Bowman et al., 2016), predicts every token, and begins in a state that is a linear function of the latent
      vector, of any length.
    - Its posterior is a function of the encoder's last output, here of the mean over the clip: the last output alone
      hardly knows how a long clip began, and such a posterior collapses sooner (Long et al., 2019, arXiv 1911.03976).

    The thesis's 2,916,883 parameters are those of its decoder; its encoder has 822,400 more. This model has 2,674,067
    in all with the same vocabulary of 787 tokens: without the wide linear layer, with an embedding.

    Args:
        map_shape: (1, 1, tokens) of the clips in training; other lengths are accepted.
        num_classes: size of the vocabulary.
        latent: size of the latent vector.
        width: units of a layer, and size of an embedded token.
        depth: layers of the encoder, and of the decoder.
        dropout: probability in training that a value of the embedded tokens, of an output between two layers or of the
            last outputs is zero, in [0, 1).

    Raises:
        UsageError: an argument out of range, or maps of sound.
    """

    def __init__(
        self,
        map_shape: Shape,
        num_classes: int,
        /,
        *,
        latent: int = 64,
        width: int = 256,
        depth: int = 2,
        dropout: float = 0.1,
    ):
        check_at_least_one(latent=latent, width=width, depth=depth)
        check_rates(dropout=dropout)
        super().__init__(map_shape, num_classes, width, latent)
        self.depth, self.dropout = depth, dropout_layer(dropout)
        between = dropout if depth > 1 else 0.0
        self.encoder = nn.LSTM(width, width, depth, batch_first=True, dropout=between)
        self.decoder = nn.LSTM(width + latent, width, depth, batch_first=True, dropout=between)
        self.initial = nn.Linear(latent, 2 * depth * width)

    def outputs(self, inputs: Tensor, latent: Tensor | None) -> Tensor:
        assert latent is not None
        return self._decode(inputs, latent, self.begin(latent, len(inputs)))[0]

    def begin(self, latent: Tensor | None, batch: int) -> State:
        assert latent is not None
        with torch.autocast(latent.device.type, enabled=False):
            first = self.initial(latent.to(self.initial.weight.dtype)).unflatten(1, (2, self.depth, -1))
        hidden, cell = first.permute(1, 2, 0, 3).contiguous()
        return hidden.tanh(), cell

    def advance(self, state: State, ids: Tensor, latent: Tensor | None) -> tuple[Tensor, State]:
        assert latent is not None
        outputs, state = self._decode(ids[:, None], latent, state)
        return outputs[:, 0], state

    def summarise(self, codes: Tensor, present: Tensor) -> Tensor:
        # Without autocast, as `gafx.nn.recurrent.last_output`.
        with torch.autocast(codes.device.type, enabled=False):
            return mean_of_present(self.encoder(self.dropout(self.embedding(codes)))[0], present)

    def _decode(self, inputs: Tensor, latent: Tensor, state: State) -> tuple[Tensor, State]:
        with torch.autocast(inputs.device.type, enabled=False):
            embedded = self.dropout(self.embedding(inputs))
            repeated = latent.to(embedded.dtype)[:, None].expand(-1, inputs.shape[1], -1)
            outputs, state = self.decoder(torch.cat([embedded, repeated], dim=2), state)
            return self.dropout(outputs), state
