"""Variational autoencoder of transformers over tokens (the thesis, chapter 4.2.2)."""

from torch import Tensor

from gafx.classifiers._generator import mean_of_present
from gafx.classifiers.base import Shape, check_at_least_one
from gafx.classifiers.decoder import Decoder
from gafx.nn.causal import TokenTransformer
from gafx.registry import CLASSIFIERS


@CLASSIFIERS.register
class VAETransformer(Decoder):
    """VAE whose encoder attends to the whole clip, and whose causal decoder reads the latent vector in every block.

    The thesis puts transformer blocks in the place of its LSTMs and gives no sizes; all sizes here are ours. The
    posterior is a linear function of the mean output of the encoder over the clip's tokens.

    Args:
        map_shape: (1, 1, tokens) of the clips in training; a token attends to as many at most, also in longer clips.
        num_classes: size of the vocabulary.
        latent: size of the latent vector.
        width: of a token, in encoder and decoder.
        depth: blocks of the encoder, and of the decoder.
        heads: attention heads; they share the width.
        dropout: as of `decoder`, in encoder and decoder.

    Raises:
        UsageError: an argument out of range, a width that is no multiple of twice `heads`, or maps of sound.
    """

    def __init__(
        self,
        map_shape: Shape,
        num_classes: int,
        /,
        *,
        latent: int = 64,
        width: int = 256,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.1,
    ):
        check_at_least_one(latent=latent)
        super().__init__(map_shape, num_classes, latent, width=width, depth=depth, heads=heads, dropout=dropout)
        self.encoder = TokenTransformer(width, depth, heads, dropout=dropout)

    def summarise(self, codes: Tensor, present: Tensor) -> Tensor:
        return mean_of_present(self.encoder(self.embedding(codes), present=present), present)
