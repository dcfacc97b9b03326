"""Autoregressive transformer over tokens: the baseline of the models with a latent vector."""

from torch import Tensor, nn

from gafx.classifiers._generator import Generator
from gafx.classifiers.base import Shape, check_at_least_one, check_rates
from gafx.nn.causal import Past, TokenBlock, TokenTransformer
from gafx.registry import CLASSIFIERS

State = tuple[int, list[Past] | None]  # number of ids so far, keys and values of every block
EMBEDDING_STD = 0.5  # about what a latent vector adds to an embedded token at the start


@CLASSIFIERS.register
class Decoder(Generator):
    """Causal transformer (after GPT-2, Radford et al., 2019, with rotary positions) over tokens.

    Args:
        map_shape: (1, 1, tokens) of the clips in training; a token attends to as many at most, also in longer clips.
        num_classes: size of the vocabulary.
        latent: of a subclass, size of the vector that every block reads; 0 for none.
        width: of a token.
        depth: number of blocks.
        heads: attention heads; they share the width.
        dropout: probability in training that a value of the embedded tokens, of the attention's output or of the
            perceptron is zero, in [0, 1).

    Raises:
        UsageError: an argument out of range, a width that is no multiple of twice `heads`, or maps of sound.
    """

    fsdp_units = (TokenBlock,)

    def __init__(
        self,
        map_shape: Shape,
        num_classes: int,
        latent: int = 0,
        /,
        *,
        width: int = 256,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.1,
    ):
        check_at_least_one(width=width, depth=depth, heads=heads)
        check_rates(dropout=dropout)
        super().__init__(map_shape, num_classes, width, latent)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        self.tokens = map_shape[2]
        self.transformer = TokenTransformer(width, depth, heads, dropout=dropout, context=self.tokens, latent=latent)

    def outputs(self, inputs: Tensor, latent: Tensor | None) -> Tensor:
        return self.transformer(self.embedding(inputs), latent)

    def begin(self, latent: Tensor | None, batch: int) -> State:
        return 0, None

    def advance(self, state: State, ids: Tensor, latent: Tensor | None) -> tuple[Tensor, State]:
        position, past = state
        outputs, kept = self.transformer.step(self.embedding(ids)[:, None], latent, position, past)
        return outputs[:, 0], (position + 1, kept)
